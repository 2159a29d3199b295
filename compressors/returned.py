"""What a method gives back, looked at before it is used: its name, what came, what was wanted."""

from __future__ import annotations

import inspect
from typing import Any, get_args

import torch
from torch import Tensor

from vidllm.errors import VidllmError, WorkError
from vidllm.errors.bounds import lacks_memory
from vidllm.progress import Stopped
from vidllm.tokens import Mix, Selection, VideoTokens
from vidllm.tokens.video_tokens import finite

_SELECTIONS = get_args(Selection)
_TAKES = {"plan": "tokens, budget, query", "score": "tokens, query"}


def scores_of(method: Any, tokens: VideoTokens, query: Tensor | None) -> Tensor:
    """What a `Scorer` gives: (L,) numbers.

    Raises:
        WorkError: it gives something else; the line names it, and what came.
    """
    scores = _call(method, "score", tokens, query)
    came, count = _told(scores), len(tokens)
    if isinstance(scores, Tensor) and scores.shape == (count,):
        missing = 0 if scores.is_complex() else int(torch.isnan(scores).sum())
        if not missing and not scores.is_complex():
            return scores
        came = f"{missing} NaN among them" if missing else f"one of {scores.dtype}"
    raise WorkError(
        f"{method.name}: score() must give a tensor of shape ({count},), a number for every token "
        f"and none NaN, and it gave {came}"
    )


def plan_of(method: Any, tokens: VideoTokens, budget: int, query: Tensor | None) -> Selection:
    """What a `Compressor` plans.

    Raises:
        WorkError: no selection, or one that makes tokens that are no numbers.
    """
    selection = _call(method, "plan", tokens, budget, query)
    if not isinstance(selection, _SELECTIONS):
        raise WorkError(
            f"{method.name}: plan() must give Keep, Merge or Mix of vidllm.tokens, and it gave "
            f"{_told(selection)}"
        )
    # Of our own methods the tests know; a pass over the features would cost as much as some do.
    if isinstance(selection, Mix) and not _ours(method) and not finite(selection.features):
        raise WorkError(f"{method.name}: plan() gave a Mix with NaN or infinite features")
    return selection


def _call(method: Any, name: str, *arguments: Any) -> Any:
    function = getattr(method, name)
    try:
        return function(*arguments)
    except Exception as error:
        named = _named(method, name, error)
        if isinstance(error, TypeError):
            signature = inspect.signature(function)
            try:
                signature.bind(*arguments)
            except TypeError:
                named = WorkError(
                    f"{method.name}: {name}() must take ({_TAKES[name]}), and it takes {signature}"
                )
        if named is error:
            raise
        raise named from error


def _named(method: Any, name: str, error: Exception) -> Exception:
    """An error that says whose it is, where a plan is none or another package's code failed."""
    if isinstance(error, VidllmError):
        plain = isinstance(error, WorkError) and not isinstance(error, Stopped)
        anonymous = plain and not str(error).startswith(str(method.name))
        return WorkError(f"{method.name}: {error}") if anonymous else error
    if _ours(method) or lacks_memory(error):
        return error
    line = next(iter(str(error).strip().splitlines()), "")
    return WorkError(f"{method.name}: {name}() failed with {type(error).__name__}: {line}")


def _ours(method: Any) -> bool:
    return type(method).__module__.split(".")[0] == "vidllm"


def _told(value: object) -> str:
    """A value for a message, by its kind and shape."""
    if value is None:
        return "None"
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}."
    shape = getattr(value, "shape", None)
    size = "" if shape is None else f" of shape {tuple(shape)}"
    return f"a {module}{kind.__name__}{size}"
