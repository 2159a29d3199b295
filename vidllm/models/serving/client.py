"""A video as a request to vLLM's OpenAI-compatible server, with the seconds of its frames."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from vidllm.video import VideoClip

#: vLLM tells a frame's second as its number by a rate: here the number of its millisecond.
_RATE = 1000


def chat_request(
    clip: VideoClip,
    question: str,
    *,
    compressor: str | None = None,
    keep: float | None = None,
    quality: int = 95,
) -> dict[str, Any]:
    """Arguments for `client.chat.completions.create`, beside `model`.

    The frames go as JPEG pictures with their own seconds, to the millisecond, so that the server
    neither samples again nor counts at a constant rate.

    Args:
        compressor, keep: as `vidllm.compress` takes them; the server's own where they are None.
        quality: of the pictures, 1 to 100.
    """
    pictures = []
    for frame in clip.frames:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "JPEG", quality=quality)
        pictures.append(base64.b64encode(data.getvalue()).decode())
    numbers = [round(float(second) * _RATE) for second in clip.seconds]
    total = max(numbers[-1] + 1, round(float(clip.duration) * _RATE))
    facts = {
        "fps": _RATE,
        "num_frames": -1,
        "frames_indices": numbers,
        "total_num_frames": total,
        "duration": total / _RATE,
    }
    chosen = {"compressor": compressor, "keep": keep}
    options = {name: value for name, value in chosen.items() if value is not None}
    extra: dict[str, Any] = {"media_io_kwargs": {"video": facts}}
    if options:
        extra["mm_processor_kwargs"] = options
    video = {"url": f"data:video/jpeg;base64,{','.join(pictures)}"}
    content = [
        {"type": "video_url", "video_url": video},
        {"type": "text", "text": question},
    ]
    return {"messages": [{"role": "user", "content": content}], "extra_body": extra}
