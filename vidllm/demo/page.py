"""The page: its components, and what happens when they are used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from .handlers import Handlers
from .host import Host
from .parts import layout

#: Seconds between two looks for left files, and their age then; a day is longer than any visit.
_SWEEP = (3600, 86400)


def build(host: Host) -> gr.Blocks:
    """The page of a host."""
    page = gr.Blocks(title="vidllm", analytics_enabled=False, delete_cache=_SWEEP)
    with page:
        parts = layout(host)
        _wire(page, host, parts, Handlers(host, parts))
    return page


def _wire(page: gr.Blocks, host: Host, p: SimpleNamespace, do: Handlers) -> None:
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # All begin at once, so that Stop finds their job; for the model they wait in `Host.turn`.
    run: dict[str, Any] = {**hidden, "concurrency_limit": host.settings.waiting + 1,
                           "concurrency_id": "model"}  # fmt: skip
    look: dict[str, Any] = {**hidden, "concurrency_limit": 8, "concurrency_id": "look"}
    chosen = [p.compressor, p.keep, p.frames]
    shown = [p.problem, p.timeline, p.strip, p.sprite, p.status]
    said = [*shown, p.account, p.compare, p.python, p.json]
    cleared = [p.video, *said, p.answer, p.found, p.captions, p.curve, p.peaks, p.index,
               p.long_answer]  # fmt: skip
    p.video.change(do.video, [p.video, p.question, *chosen], cleared, **look)
    for event in (p.keep.change, p.compressor.change):
        event(do.look, [p.question, *chosen], shown, trigger_mode="always_last", **look)
    p.frames.release(do.resample, [p.question, *chosen], [p.video, *shown],
                     trigger_mode="always_last", **look)  # fmt: skip
    p.recipe.input(do.recipe, [p.recipe], [p.compressor, p.keep], queue=False, **hidden)
    for start in (p.ask.click, p.question.submit):
        start(do.ask, [p.question, *chosen, p.most], [*said, p.answer], **run)
    p.both.click(do.both, [p.question, *chosen, p.most],
                 [*said, p.full, p.less, p.verdict], **run)  # fmt: skip
    for start in (p.find.click, p.query.submit):
        start(do.find, [p.query, *chosen, p.most], [*said, p.found], **run)
    p.describe.click(do.describe, [*chosen, p.most], [*said, p.captions], **run)
    for start in (p.show.click, p.theme.submit):
        start(do.show, [p.theme, *chosen, p.most], [*said, p.curve, p.peaks], **run)
    slow = {**run, "concurrency_limit": 2, "concurrency_id": "read"}
    p.read.click(do.read, [p.rate], [*shown, p.index], **slow)
    for start in (p.long_ask.click, p.long_question.submit):
        start(do.long_ask, [p.long_question, p.rate],
              [*said, p.long_answer, p.index], **slow)  # fmt: skip
    # Stop ends the job, and with it the run: Gradio's own cancelling could hit the next run.
    p.stop.click(do.stop, None, [p.status], queue=False, **hidden)
    for text in (p.answer, p.full, p.less, p.long_answer):
        text.select(do.seek_text, None, p.video, queue=False, **hidden)
    for table in (p.found, p.captions, p.peaks):
        table.select(do.seek_row, None, p.video, queue=False, **hidden)
    page.unload(do.leave)
