"""Fingerprints: which model, which recipe and which file an index was made of."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidllm.pipeline import VideoLLM

_ENDS = 1 << 20  # bytes at both ends of a file that are hashed


def model_mark(llm: VideoLLM) -> str:
    """A short hash of a model's config and weights (a few numbers of every tensor)."""
    digest = hashlib.sha256(str(type(llm.model).__name__).encode())
    for name, value in sorted(llm.model.named_parameters()):
        flat = value.detach().flatten()
        few = flat[:: max(1, flat.numel() // 16)][:16]
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(few.float().cpu().numpy().tobytes())
    told = {k: v for k, v in llm.config.to_dict().items() if k in ("temporal", "time_code")}
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def source_mark(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Name, absolute path, size and a hash of both ends of a video file."""
    file = Path(path).resolve()
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as data:
        digest.update(data.read(_ENDS))
        data.seek(max(0, size - _ENDS))
        digest.update(data.read(_ENDS))
    return {"name": file.name, "path": str(file), "bytes": size, "sha256": digest.hexdigest()}
