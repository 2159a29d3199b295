"""Systems without an LLM by their course, and how one is kept in a folder.

| file | what |
|---|---|
| `config.json` | `HeadConfig` |
| `model.safetensors` | the weights that were trained; those of the frozen model stay in theirs |
| `tokenizer.json`, … | of the words that its sentence encoder knows |
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vidllm.errors import InputError, WorkError

from ..loading import footage_home, load_native
from ..native.footage import KnownFootage, load_known
from ..native.model import NativeVideoLLM
from ..shipped import find_model
from .action_namer import ActionNamer
from .frozen_frames import FrozenFrames, frozen_mark
from .head_config import HeadConfig
from .option_chooser import OptionChooser
from .sentence_aligner import SentenceAligner
from .system import HeadSystem

WEIGHTS = "model.safetensors"
SYSTEMS: dict[str, type[HeadSystem]] = {
    kind.course: kind for kind in (SentenceAligner, OptionChooser, ActionNamer)
}


def system_of(
    config: HeadConfig,
    frozen: FrozenFrames | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> HeadSystem:
    """A system with fresh weights.

    Raises:
        InputError: a course that has none, or parts that do not fit together.
    """
    if config.course not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise InputError(f"no system of a course {config.course!r}: there are {known}")
    return SYSTEMS[config.course](config, frozen, tokenizer)


def load_guard(config: HeadConfig) -> tuple[nn.Module, KnownFootage] | None:
    """The tower, and what footage it knows, of the model that a system without a start names.

    Raises:
        InputError: no such model. WorkError: statistics that cannot be read or do not fit.
    """
    if config.start or not config.guard:
        return None
    try:
        folder = find_model(config.guard)
    except InputError as error:
        raise InputError(f"the model whose footage this head knows is missing: {error}") from error
    model, _ = load_native(folder, None)
    vision = model.vision.requires_grad_(False).eval()
    known = load_known(footage_home(folder), vision)
    return None if known is None else (vision, known)


def load_start(start: str, *, mark: str = "") -> tuple[NativeVideoLLM, PreTrainedTokenizerBase]:
    """A model to stand on, frozen, in float32 on the CPU, and its tokenizer.

    Args:
        start: a shipped name or a folder. mark: of the weights that it must have, "" for any.

    Raises:
        InputError: no such model, or one with other weights.
    """
    try:
        folder = find_model(start)
    except InputError as error:
        raise InputError(f"the model that this head stands on is missing: {error}") from error
    model, tokenizer = load_native(folder, None)
    model.requires_grad_(False).eval()
    if mark and frozen_mark(model) != mark:
        raise InputError(
            f"this head was trained on features of another model than the one in {start}: get "
            "that one, or train the head again"
        )
    return model, tokenizer


def load_system(folder: str | Path) -> HeadSystem:
    """The system of a folder or a shipped name, on the CPU and in evaluation mode.

    Raises:
        InputError: no such folder or name, one that holds no such system, or whose frozen model is
            not there.
        WorkError: weights, or statistics of footage, that cannot be read or do not fit.
    """
    home = Path(find_model(str(folder)))
    config = HeadConfig.read(home)
    frozen = tokenizer = None
    if config.start:
        beside = home / config.start  # a model that was trained on for trying out lies inside
        start = str(beside) if (beside / "config.json").is_file() else config.start
        model, _ = load_start(start, mark=config.mark)
        footage = load_known(footage_home(find_model(start)), model.vision)
        frozen = FrozenFrames(model, config.reads, footage)
    if (home / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(home))
    system = system_of(config, frozen, tokenizer)
    try:
        state = load_file(home / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"the weights in {home} cannot be read: get the model again") from error
    system.take(state, home)
    return system.eval()
