"""Telling a tower's calls for videos from those for pictures, which are none of a method's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol


class VideoCaller(Protocol):
    """Who wants to know.

    Attributes:
        adapter: of the model. call: the arguments of `get_video_features`, by name, while it is
            under way and its tower was not called yet; else None.
    """

    adapter: Any
    call: Mapping[str, Any] | None


@contextmanager
def calls_for_videos(caller: VideoCaller) -> Iterator[None]:
    """Note in this block when the model makes features of videos."""
    core = caller.adapter.core
    encode = core.get_video_features
    names = inspect.signature(encode)

    @wraps(encode)
    def told(*args: Any, **kwargs: Any) -> Any:
        bound = dict(names.bind_partial(*args, **kwargs).arguments)
        caller.call = bound | bound.pop("kwargs", {})
        try:
            return encode(*args, **kwargs)
        finally:
            caller.call = None

    with instead(core, "get_video_features", told):
        yield


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object in the place of its class's."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
