"""Worst cases: the answers that lost most, with the frames that the model saw and what it kept.

Frames are read again from the video at the seconds of the map of kept tokens. Over each lies a
veil: grey where tokens were dropped, coloured where several share one token, clear where a token
stands alone; the cells of kept tokens are outlined.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vidllm.errors import InputError
from vidllm.tokens import TokenMap
from vidllm.video import load_video

from ..scores.common import Interval
from ..tasks.base import Item
from .answers import said_spans, true_letter, true_spans
from .load import Row, Run, entry_of
from .outcome import FULL, split_label
from .style import CONTROLS

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Frames a case, and how high each is drawn, in pixels.
SHOWN, HEIGHT = 8, 150
_DROPPED, _MERGED, _EDGE = (
    np.asarray(c, np.float32) for c in ((92, 100, 116), (230, 120, 0), (255, 255, 255))
)
_VEIL, _TINT = 0.78, 0.5


@dataclass(frozen=True)
class Case:
    """One question, an answer that fell short, and the uncompressed answer to it.

    Args:
        row: the answer; full: of the uncompressed run, None where `row` is that or it is missing.
        loss: value lost against the uncompressed run; None where the value alone says it.
        family: of the task. others: (label, value) of the other settings' answers to the question.
    """

    item: Item
    row: Row
    full: Row | None
    loss: float | None
    family: str = ""
    others: tuple[tuple[str, float | None], ...] = ()

    @property
    def truth(self) -> list[Interval]:
        """The true spans."""
        return true_spans(self.item, self.family)

    def said(self, row: Row) -> list[Interval]:
        """The spans of an answer to the question."""
        return said_spans(row, self.item, self.family)


@dataclass(frozen=True)
class Still:
    """One frame: seconds, JPEG with and without the veil, and what was kept of its tokens."""

    second: float
    picture: str
    kept: int
    total: int
    in_truth: bool = False
    in_said: bool = False


@dataclass(frozen=True)
class Pictures:
    """Frames of a case, or the reason why there are none."""

    stills: tuple[Still, ...] = ()
    reason: str = ""
    kept: int = 0
    total: int = 0
    notes: tuple[str, ...] = field(default=())


def worst_cases(run: Run, most: int) -> list[Case]:
    """The answers that lost most against the uncompressed run, each question once.

    Methods that only serve to compare with (`CONTROLS`) are left out if there are others. Half of
    the places are for questions that the headline counts, where there are so many. Of equal
    losses that at the larger share comes first, then videos and kinds that were not there yet,
    then the order of the questions. Where nothing was lost, or there is no uncompressed run,
    the lowest values.
    """
    ranked = _losses(run) if FULL in run.rows else []
    if not ranked:
        ranked = [
            ((row.value, 0.0), Case(run.items[name], row, None, None, run.family))
            for rows in run.rows.values()
            for name, row in rows.items()
            if row.value is not None and row.value < 1
        ]
    inside = [pair for pair in ranked if pair[1].item.id in run.counted]
    outside = [pair for pair in ranked if pair[1].item.id not in run.counted]
    rest = len({case.item.id for _, case in outside})
    first = _spread(inside, most - min(most // 2, rest))
    found = [*first, *_spread(outside, most - len(first))]
    found.sort(key=lambda pair: pair[0])
    return [_with_others(run, case) for _, case in found]


Ranked = tuple[tuple[float, float], Case]


def _losses(run: Run) -> list[Ranked]:
    """Answers that lost something, with −loss and −share."""
    full, found = run.rows[FULL], []
    labels = {label: split_label(label) for label in run.rows if label != FULL}
    methods = [(label, keep) for label, (name, keep) in labels.items() if name not in CONTROLS]
    for label, keep in methods or [(label, keep) for label, (_, keep) in labels.items()]:
        for name, row in run.rows[label].items():
            base = full.get(name)
            if row.value is not None and base is not None and base.value is not None:
                loss = base.value - row.value
                if loss > 0:
                    found.append(
                        ((-loss, -keep), Case(run.items[name], row, base, loss, run.family))
                    )
    return found


def _spread(ranked: Sequence[Ranked], most: int) -> list[Ranked]:
    """The first of the ranked ones, each question once, equal ones from different videos."""
    found: list[Ranked] = []
    left = sorted(ranked, key=lambda pair: pair[0])
    while left and len(found) < most:
        ties = [pair for pair in left if pair[0] == left[0][0]]
        videos = [case.item.vid for _, case in found]
        kinds = [case.item.kind for _, case in found]
        best = min(ties, key=lambda p: (videos.count(p[1].item.vid), kinds.count(p[1].item.kind)))
        found.append(best)
        left = [pair for pair in left if pair[1].item.id != best[1].item.id]
    return found


def _with_others(run: Run, case: Case) -> Case:
    others = tuple(
        (label, rows[case.item.id].value)
        for label, rows in run.rows.items()
        if case.item.id in rows and label not in (case.row.setting, FULL)
    )
    return replace(case, others=others)


def token_map(row: Row) -> TokenMap | None:
    """The map of kept tokens of an answer; None where none was kept or it cannot be read."""
    kept = entry_of(row).get("kept")
    if not isinstance(kept, Mapping):
        return None
    try:
        return TokenMap.from_dict(kept)
    except InputError:
        return None


def pictures(case: Case, find: Callable[[Item], Path], reader: str = "pyav") -> Pictures:
    """The frames of a case under its veil.

    Args:
        find: the file of an item's video; raises InputError where there is none.

    Returns:
        The frames, or the reason why there are none: nothing is raised for a video.
    """
    kept = token_map(case.row)
    if kept is None:
        kept = None if case.full is None else token_map(case.full)
        note = "this answer has no map of kept tokens: the frames are shown whole"
        notes: tuple[str, ...] = (note,)
    else:
        notes = ()
    if kept is None:
        return Pictures(reason=case.row.response.error or "no map of the frames was kept")
    truth, said = case.truth, case.said(case.row)
    slots = choose_slots(kept.seconds, (*truth, *said))
    seconds = kept.seconds[slots]
    try:
        file = find(case.item)
        # A slot may stand a little behind the last frame; the frame shown then is that one.
        clip = load_video(file, times=[max(0.0, float(s)) for s in seconds], reader=reader)
    except InputError as error:
        return Pictures(reason=str(error), kept=len(kept), total=kept.total)
    if len(clip) != len(slots):
        return Pictures(reason="; ".join(clip.notes), kept=len(kept), total=kept.total)
    heat, alone = kept.heat(), _outlined(kept)
    whole = bool(notes)
    counts = kept.per_frame()
    stills = [
        Still(
            second=float(kept.seconds[slot]),
            picture=data_uri(
                clip.frames[k] if whole else veiled(clip.frames[k], heat[slot], alone[slot])
            ),
            kept=int(counts[slot]),
            total=kept.grid[1] * kept.grid[2],
            in_truth=_inside(float(kept.seconds[slot]), truth),
            in_said=_inside(float(kept.seconds[slot]), said),
        )
        for k, slot in enumerate(slots)
    ]
    return Pictures(tuple(stills), "", len(kept), kept.total, (*notes, *clip.notes))


def choose_slots(seconds: np.ndarray, spans: Iterable[Interval], most: int = SHOWN) -> list[int]:
    """Which of (T,) slots to show: evenly spread, with the middle of every span among them."""
    count = len(seconds)
    if count <= most:
        return list(range(count))
    chosen = [round(k * (count - 1) / (most - 1)) for k in range(most)]
    fixed: set[int] = set()
    for start, end in spans:
        wanted = int(np.abs(seconds - (start + end) / 2).argmin())
        if len(fixed) >= most // 2 or wanted in chosen:
            fixed |= {wanted} & set(chosen)
            continue
        free = [slot for slot in chosen if slot not in fixed]
        nearest = min(free, key=lambda slot: abs(slot - wanted))
        chosen[chosen.index(nearest)] = wanted
        fixed.add(wanted)
    return sorted(set(chosen))


def veiled(frame: np.ndarray, heat: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8, made small, under the veil of its cells.

    Args:
        heat: (h, w) in [0, 1], what is left of each token. alone: (h, w) bool, where a kept
            token stands.
    """
    small = _small(frame).astype(np.float32)
    height, width = small.shape[:2]
    rows = np.minimum(np.arange(height) * heat.shape[0] // height, heat.shape[0] - 1)
    columns = np.minimum(np.arange(width) * heat.shape[1] // width, heat.shape[1] - 1)
    left = heat[np.ix_(rows, columns)][..., None]
    dropped = left <= 0
    strength = np.where(dropped, _VEIL, _TINT * (1 - left))
    colour = np.where(dropped, _DROPPED, _MERGED)
    shown = small * (1 - strength) + colour * strength
    cell = (rows[:, None] * heat.shape[1] + columns[None]).astype(np.int64)
    here = alone[np.ix_(rows, columns)]
    edge = np.zeros((height, width), dtype=bool)
    edge[:, 1:] |= cell[:, 1:] != cell[:, :-1]
    edge[1:] |= cell[1:] != cell[:-1]
    edge[0], edge[:, 0], edge[-1], edge[:, -1] = True, True, True, True
    if min(height / heat.shape[0], width / heat.shape[1]) >= 6:  # else all would be edge
        line = (edge & here)[..., None]
        shown = np.where(line, 0.45 * shown + 0.55 * _EDGE, shown)
    result: np.ndarray = np.clip(shown + 0.5, 0, 255).astype(np.uint8)
    return result


def data_uri(frame: np.ndarray) -> str:
    """A frame as a small JPEG in a data URI."""
    data = io.BytesIO()
    Image.fromarray(_small(frame)).save(data, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _small(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _outlined(kept: TokenMap) -> np.ndarray:
    """(T, h, w) bool: the cells at which kept tokens stand."""
    there = np.zeros(kept.total, dtype=bool)
    there[kept.place] = True
    return there.reshape(kept.grid)


def _inside(second: float, spans: Sequence[Interval]) -> bool:
    return any(start <= second <= end for start, end in spans)


def timeline_end(case: Case) -> float:
    """Seconds that a timeline of a case must hold, above 0."""
    rows = [case.row, *([case.full] if case.full is not None else [])]
    ends = [end for row in rows for _, end in case.said(row)]
    ends += [end for _, end in case.truth]
    known = [case.row.response.duration, case.item.duration]
    given = [float(d) for d in known if d is not None and math.isfinite(d) and d > 0]
    return given[0] if given else max([1.0, *[e for e in ends if math.isfinite(e)]])


def plain_truth(case: Case) -> Any:
    """The truth for people: of a choice the letter with its text; times where they belong."""
    item = case.item
    letter = true_letter(item)
    if letter is not None:
        return f"{letter}. {item.choices[item.letters.index(letter)]}"
    if isinstance(item.truth, Mapping) and isinstance(item.truth.get("answer"), str):
        words = item.truth["answer"].split("{}")
        times = [f"{second:.1f} s" for span in case.truth for second in span]
        if len(words) == len(times) + 1:
            return "".join(a + b for a, b in zip(words, [*times, ""], strict=True))
    if case.truth and case.family != "captions":
        return ", ".join(f"{start:.1f} to {end:.1f} s" for start, end in case.truth)
    return item.truth
