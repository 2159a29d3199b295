"""vidllm: ask a long video a question, get an answer with times, pay for a quarter of the tokens.

``import vidllm`` is quick: the public names below are loaded on first use (PEP 562), so neither
torch nor transformers is imported until something needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it.
_EXPORTS = {
    "Answer": "vidllm.models.answer",
    "Compressor": "vidllm.compressors",
    "InputError": "vidllm.errors",
    "Limits": "vidllm.video",
    "Receipt": "vidllm.models.answer",
    "Span": "vidllm.timecode",
    "Listener": "vidllm.progress",
    "StopSignal": "vidllm.progress",
    "Stopped": "vidllm.progress",
    "TokenMap": "vidllm.tokens",
    "VideoClip": "vidllm.video",
    "VideoIndex": "vidllm.longvideo.index",
    "VideoLibrary": "vidllm.longvideo.library",
    "VideoLLM": "vidllm.ask.video_llm",
    "VideoTokens": "vidllm.tokens",
    "VidllmError": "vidllm.errors",
    "WorkError": "vidllm.errors",
    "compress": "vidllm.ask.compression",
    "load_retriever": "vidllm.models.retrieval.retriever",
    "load_video": "vidllm.video",
    "set_verbosity": "vidllm.progress.verbosity",
}

__all__ = [
    "Answer",
    "Compressor",
    "InputError",
    "Limits",
    "Listener",
    "Receipt",
    "Span",
    "StopSignal",
    "Stopped",
    "TokenMap",
    "VideoClip",
    "VideoIndex",
    "VideoLLM",
    "VideoLibrary",
    "VideoTokens",
    "VidllmError",
    "WorkError",
    "__version__",
    "compress",
    "load_retriever",
    "load_video",
    "set_verbosity",
]

if TYPE_CHECKING:
    from vidllm.ask.compression import compress
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.compressors import Compressor
    from vidllm.errors import InputError, VidllmError, WorkError
    from vidllm.longvideo.index import VideoIndex
    from vidllm.longvideo.library import VideoLibrary
    from vidllm.models.answer import Answer, Receipt
    from vidllm.models.retrieval.retriever import load_retriever
    from vidllm.progress import Listener, Stopped, StopSignal
    from vidllm.progress.verbosity import set_verbosity
    from vidllm.timecode import Span
    from vidllm.tokens import TokenMap, VideoTokens
    from vidllm.video import Limits, VideoClip, load_video


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'vidllm' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
