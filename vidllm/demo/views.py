"""What the page says of a run, as HTML: its stages, its account, two answers side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from vidllm.ask.comparing import Comparison, first_token
from vidllm.ask.serving import Offer
from vidllm.models.answer import Answer, Receipt

from .chat import hint
from .drawing import clock
from .jobs import Heard
from .terms import EVERY, term

if TYPE_CHECKING:
    from vidllm.longvideo.index import VideoIndex

_STAGES = ("decode", "encode", "compress", "prefill", "generate")
_WORDS = {
    "decode": "read video",
    "encode": "encode",
    "compress": "compress",
    "prefill": "prefill",
    "generate": "generate",
    "waiting": "waiting for the model",
    "scan": "scan windows",
    "look": "look closer",
    "memory": "measure memory",
}


def progress(heard: Heard, stages: Sequence[str] = _STAGES) -> str:
    """The stages of a job with their seconds, the running one marked."""
    head = f"<b>{escape(heard.part)}</b> " if heard.part else ""
    if heard.share is not None:
        done = 100 * min(1.0, heard.share)
        return (
            f'<div class="vl-stages">{head}<span class="vl-now">reading, {done:.0f} %</span></div>'
            f'<div class="vl-meter"><i style="width:{done:.1f}%"></i></div>'
        )
    now = {heard.now: time.perf_counter() - heard.began} if heard.now else {}
    return _stages(heard.done, now, stages, head)


def finished(seconds: Mapping[str, float]) -> str:
    """The stages of an answer that is there."""
    return _stages(seconds, {}, (), "", f"<b>{_time(sum(seconds.values()))} in all</b>")


def stopped(seconds: float, now: str = "") -> str:
    """The line behind a stop."""
    during = f" during {_WORDS.get(now, now)}" if now else ""
    return f'<p class="vl-line" role="status">stopped after {_time(seconds)}{escape(during)}</p>'


def problem(text: str) -> str:
    """A line that says what is wrong and what to do; "" for nothing."""
    if not text:
        return ""
    return f'<p class="vl-problem" role="alert">{escape(text)}</p>'


def method(name: str) -> str:
    """What Ask and Compare ask with.

    Args:
        name: of the compressor, with its share.
    """
    if name == EVERY:
        return (
            f'<p class="vl-hint"><b>Ask</b> uses {EVERY}. <b>Compare</b> has nothing to compare '
            "with: choose a compressor under Settings.</p>"
        )
    name = escape(name)
    return (
        f'<p class="vl-hint"><b>Ask</b> uses <b>{name}</b>. <b>Compare</b> '
        f"asks twice: with {EVERY}, and with {name}.</p>"
    )


def column(title: str, said: str) -> str:
    """One of two answers side by side; said: HTML."""
    return f'<h4>{escape(title)}</h4><p class="vl-said">{said}</p>'


def turn_account(name: str, receipt: Receipt) -> str:
    """How an answer was made, in a line."""
    return (
        f"{name} · {receipt.tokens_kept:,} of {receipt.tokens_full:,} video tokens · "
        f"{_time(receipt.total)}"
    )


def account(answer: Answer) -> str:
    """What an answer cost, and what there is to know about it."""
    receipt = answer.receipt
    tiles = [
        (
            "video tokens",
            "",
            f"{receipt.tokens_kept:,}",
            f"of {receipt.tokens_full:,}, {_share(receipt)}",
        ),
        ("KV cache", "", _mb(receipt.kv_kept_mb), f"of {_mb(receipt.kv_full_mb)}"),
        ("TTFT", "first token", _time(first_token(receipt)), f"all {_time(receipt.total)}"),
    ]
    if receipt.flops is not None:
        tiles.append(("FLOPs", "computation", _flops(receipt), "FLOPs"))
    boxes = "".join(
        f"<div><dt>{term(name, shown)}</dt><dd>{value}</dd><dd>{more}</dd></div>"
        for name, shown, value, more in tiles
    )
    return f'<dl class="vl-tiles">{boxes}</dl>{_notes(answer.notes)}'


def comparison(made: Comparison, name: str) -> str:
    """Two answers in figures, and whether they agree."""
    full, less = made.full.receipt, made.less.receipt
    rows = [
        ("moments", _spans(made.full), _spans(made.less), ""),
        ("video tokens", f"{full.tokens_kept:,}", f"{less.tokens_kept:,}",
         _ratio(full.tokens_kept, less.tokens_kept)),
        ("TTFT", _time(first_token(full)), _time(first_token(less)),
         _ratio(first_token(full), first_token(less))),
        ("whole answer", _time(full.total), _time(less.total), _ratio(full.total, less.total)),
        ("KV cache", _mb(full.kv_kept_mb), _mb(less.kv_kept_mb),
         _ratio(full.kv_kept_mb, less.kv_kept_mb)),
    ]  # fmt: skip
    if full.peak_mb is not None and less.peak_mb is not None:
        ratio = _ratio(full.peak_mb, less.peak_mb)
        rows.append(("peak memory", _mb(full.peak_mb), _mb(less.peak_mb), ratio))
    if full.flops is not None and less.flops is not None:
        ratio = _ratio(sum(full.flops.values()), sum(less.flops.values()))
        rows.append(("FLOPs", _flops(full), _flops(less), ratio))
    body = "".join(
        f'<tr><th scope="row">{term(label)}</th><td>{one}</td><td>{two}</td><td>{ratio}</td></tr>'
        for label, one, two, ratio in rows
    )
    shared, measure = made.overlap, term("mean IoU")
    told = "" if shared is None else f": times overlap by {100 * shared:.0f} % ({measure})"
    verdict = ("yes", "✓ the answers agree") if made.agree else ("no", "✗ the answers differ")
    return (
        f'<p class="vl-verdict vl-{verdict[0]}">{verdict[1]}{told}</p>'
        f'<table class="vl-table"><thead><tr><td></td><th scope="col">{EVERY}</th>'
        f'<th scope="col">{escape(name)}</th>'
        f'<th scope="col">smaller by</th></tr></thead><tbody>{body}</tbody></table>'
        f"{_notes(made.less.notes)}"
    )


def _spans(answer: Answer) -> str:
    told = [] if answer.failed else [f"{clock(s.start)} – {clock(s.end)}" for s in answer.spans]
    return "<br>".join(told) or "none"


def refusals(refused: Sequence[Offer]) -> str:
    """What a model cannot serve, with the reasons."""
    rows = "".join(
        f'<tr><th scope="row">{escape(o.name)}</th><td>{o.kind}</td>'
        f"<td>{escape(o.reason)}</td></tr>"
        for o in refused
    )
    return (
        '<table class="vl-table vl-words"><thead><tr><th scope="col">name</th>'
        f'<th scope="col">kind</th><th scope="col">why not</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def indexed(index: VideoIndex | None) -> str:
    """What there is of a long video."""
    if index is None:
        return ""
    made, facts = index.made or {}, index.facts
    windows = " and ".join(
        f"{_count(x['windows'], 'window')} of {x['seconds']:g} s" for x in facts["levels"]
    )
    windows = windows or f"looked at in clips of {facts['clip']['frames']} frames"
    speed = f", read in {_time(made['wall'])}, {made['speed']:.0f} times real time" if made else ""
    told = hint(
        f"{clock(index.duration)} at {_count(facts['fps'], 'frame')} a second{speed}: {windows}"
    )
    return told + _notes(index.notes)


def _count(number: float, word: str) -> str:
    return f"{number:g} {word}" + "s" * (number != 1)


def _notes(notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="vl-notes">{lines}</ul>' if lines else ""


def _stages(
    done: Mapping[str, float],
    now: Mapping[str, float],
    coming: Sequence[str],
    head: str,
    tail: str = "",
) -> str:
    parts = []
    for name in dict.fromkeys([*coming, *done, *now]):
        word = term(_WORDS.get(name, name))
        if name in now:
            spent = done.get(name, 0.0) + now[name]
            parts.append(f'<span class="vl-now">{word} {_time(spent)}</span>')
        elif name in done:
            parts.append(f'<span class="vl-done">{word} {_time(done[name])}</span>')
        else:
            parts.append(f'<span class="vl-later">{word}</span>')
    return f'<div class="vl-stages" role="status">{head}{"".join(parts)}{tail}</div>'


def _time(seconds: float) -> str:
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


def _mb(value: float) -> str:
    return f"{value:.1f} MB" if value < 99.95 else f"{value:,.0f} MB"


def _share(receipt: Receipt) -> str:
    return f"{100 * receipt.tokens_kept / max(1, receipt.tokens_full):.3g} %"


def _ratio(full: float, less: float) -> str:
    if full <= 0 or less <= 0:
        return ""
    return f"{full / less:.2g} ×" if full >= less else f"{less / full:.2g} × more"


def _flops(receipt: Receipt) -> str:
    value = sum((receipt.flops or {}).values())
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
