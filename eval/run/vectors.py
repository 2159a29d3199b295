"""Vectors in rows of text: float16, base64, so that similarities can be made again from a file."""

from __future__ import annotations

import base64
import binascii

import numpy as np

_HEAD = "f16:"


def write_vector(vector: np.ndarray) -> str:
    """ "f16:" and the base64 of a vector (D,), rounded to little-endian float16."""
    return _HEAD + base64.b64encode(np.asarray(vector).astype("<f2").tobytes()).decode("ascii")


def read_vector(text: str) -> np.ndarray | None:
    """(D,) float64 of `write_vector`'s text; None for any other text, NaN or infinity."""
    if not text.startswith(_HEAD):
        return None
    try:
        found = np.frombuffer(base64.b64decode(text[len(_HEAD) :], validate=True), dtype="<f2")
    except (binascii.Error, ValueError):
        return None
    return found.astype(np.float64) if found.size and np.isfinite(found).all() else None
