"""How much memory torch takes on the CPU while something runs, counted and not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that torch held at a time for what `call` made, and what it returned.

    Every allocation counts, also those that an operation makes for itself.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = call()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, result
