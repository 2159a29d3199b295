"""The page: its components, and what happens when they are used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from .endpoints import Endpoints
from .events import newest
from .handlers import Handlers
from .host import Host
from .parts import layout
from .script import SCRIPT, TO_PLAYER

#: Seconds between two looks for left files, and their age then; a day is longer than any visit.
_SWEEP = (3600, 86400)


def build(host: Host) -> gr.Blocks:
    """The page of a host."""
    page = gr.Blocks(title="vidllm", analytics_enabled=False, delete_cache=_SWEEP)
    with page:
        parts = layout(host)
        _wire(page, host, parts, Handlers(host, parts))
        Endpoints(host).offer()
    return page


def _wire(page: gr.Blocks, host: Host, p: SimpleNamespace, do: Handlers) -> None:
    # "always_last": what is chosen while an event runs has its run behind it; "multiple": at once.
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden",
                              "trigger_mode": "always_last"}  # fmt: skip
    # All begin at once, so that Stop finds their job, and who may not wait is told so by
    # `Host.begin`; for the model they wait in `Host.turn`.
    run: dict[str, Any] = {**hidden, "concurrency_limit": None, "concurrency_id": "model"}
    look: dict[str, Any] = {**hidden, "concurrency_limit": 8, "concurrency_id": "look"}
    menus: dict[str, Any] = {**hidden, "concurrency_limit": 8, "concurrency_id": "menus"}
    chosen = [p.compressor, p.keep, p.frames]
    seen = [p.problem, p.timeline, p.strip, p.method]
    shown = [*seen, p.sprite, p.status]
    said = [*shown, p.account, p.compare, p.python, p.json]
    cleared = [p.video, *said, p.answer, p.found, p.captions, p.curve, p.peaks, p.index,
               p.long_answer, p.question, p.examples]  # fmt: skip

    def on(events: Any, handler: Any, inputs: Any, outputs: Any, says: bool = False, **how: Any
           ) -> None:  # fmt: skip
        told = newest(handler, do, outputs, says=says)
        gr.on(events, told, inputs, outputs, **how)

    on(p.video.change, do.video, [p.video, p.question, *chosen], cleared,
       **{**look, "trigger_mode": "multiple"})  # fmt: skip
    on([p.keep.change, p.compressor.change], do.look, [p.question, *chosen], seen, **look)
    on(p.frames.release, do.resample, [p.question, *chosen], [p.video, *shown], **look)
    on(p.recipe.input, lambda name, _: do.recipe(name), [p.recipe],
       [p.problem, p.compressor, p.keep], **menus)  # fmt: skip
    on([p.compressor.input, p.keep.input], lambda *values: do.by_hand(*values[:-1]),
       [p.recipe, p.compressor, p.keep], [p.recipe], **menus)  # fmt: skip
    on([p.ask.click, p.question.submit], do.ask, [p.question, *chosen, p.most],
       [*said, p.answer], says=True, **run)  # fmt: skip
    on(p.both.click, do.both, [p.question, *chosen, p.most],
       [*said, p.full, p.less, p.verdict], says=True, **run)  # fmt: skip
    on([p.find.click, p.query.submit], do.find, [p.query, *chosen, p.most],
       [*said, p.found], says=True, **run)  # fmt: skip
    on(p.describe.click, do.describe, [*chosen, p.most], [*said, p.captions], says=True, **run)
    on([p.show.click, p.theme.submit], do.show, [p.theme, *chosen, p.most],
       [*said, p.curve, p.peaks], says=True, **run)  # fmt: skip
    slow = {**run, "concurrency_limit": 2, "concurrency_id": "read"}
    on(p.read.click, do.read, [p.rate], [*shown, p.index], says=True, **slow)
    on([p.long_ask.click, p.long_question.submit], do.long_ask, [p.long_question, p.rate],
       [*said, p.long_answer, p.index], says=True, **slow)  # fmt: skip
    # Without the queue, which may be full. Stop ends the job, whose own event says so: Gradio's
    # cancelling could hit the next run, and an answer of Stop could come behind it.
    quick: dict[str, Any] = {**hidden, "trigger_mode": "multiple", "queue": False}
    p.stop.click(do.end_work, None, None, **quick)
    on(p.clear.click, do.clear, None, [p.answer], **menus)
    p.upload.upload(None, p.upload, p.video, js=TO_PLAYER, api_visibility="private")
    # The player's own event goes on from there, as with every other clip.
    page.load(do.first, None, p.video, **quick).then(None, js=SCRIPT, api_visibility="private")
    page.unload(do.leave)
