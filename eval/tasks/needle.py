"""`needle`: one short event somewhere in a clip of 1 to 60 minutes, to be found and to be recalled.

Made from a seed like `stage`: nothing is downloaded. As V-NIAH (LongVA, arXiv 2406.16852), but
the needle is an event of the clip itself, with a start and an end, and not a foreign picture.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidllm.errors import InputError, WorkError
from vidllm.errors.schema import Schema, String
from vidllm.stage.annotations import write_text
from vidllm.stage.words import COLOUR_NAMES
from vidllm.timecode import plain

from ..scores.common import Scores, average
from ..scores.spans import ious, tiou
from .base import TASKS, TRUE_SPAN, Item, Response, Task, check_split
from .needle_clips import (
    NEEDLES,
    VERSION,
    Place,
    needle_answer,
    needle_questions,
    needle_scene,
    write_needle,
)
from .options import numbers, one_number, option, whole_number
from .spans_text import first_span

if TYPE_CHECKING:
    from vidllm.stage.files import Progress
    from vidllm.stage.scenes import Scene

#: IoU from which on an answer to "when" is a hit.
HIT = 0.3
_COLOUR = rf"(?:to\s+)?(?:{'|'.join(COLOUR_NAMES)}|another\s+colou?r|a\s+different\s+colou?r)\b"
#: What stage calls an action → how a model may put it.
_SAID: dict[str, str] = {
    "spins": rf"\bsp[iu]n(?:s|ning)?\b|\brotat\w+|\btwirl\w*|\bturn(?:s|ing|ed)?\b(?!\s+{_COLOUR})",
    "blinks": r"\bblink\w*|\bflash\w*|\bflicker\w*",
    "grows": r"\bgr[oe]w(?:s|ing)?\b|\b(?:gets?|becomes?)\s+(?:bigger|larger)\b|\benlarg\w+",
    "changes colour": r"\bchang\w+\s+(?:(?:its|the|in)\s+)?colou?r\b|"
    rf"\b(?:turns?|becomes?|changes?)\s+{_COLOUR}",
    "jumps": r"\bjump\w*|\bhop(?:s|ping|ped)?\b|\bbounc\w+|\bleap\w*",
    "appears": r"\bappear\w*|\benter\w*",
    "leaves": r"\bleav\w+|\bexit\w*|\bdisappear\w*",
    "crosses": r"\bcross\w*",
    "meets": r"\bme+ts?\b|\bmeeting\b",
}


def action_in(text: str) -> str | None:
    """The one action that an answer names, as stage calls it; None for none or several."""
    text = plain(text).text
    named = [a for a, said in _SAID.items() if re.search(said, text, re.IGNORECASE)]
    return named[0] if len(named) == 1 else None


def depths(text: str) -> tuple[float, ...]:
    """ "0,50,100" as percent; a whole number alone is how many, evenly from 0 to 100."""
    found = numbers(text)
    if "," in text or found[0] != int(found[0]) or not 1 <= found[0] <= 101:
        return found
    count = int(found[0])
    return (50.0,) if count == 1 else tuple(100 * k / (count - 1) for k in range(count))


@TASKS.register("needle")
@dataclass(frozen=True)
class Needle(Task):
    """The needle test; every field is an option of the command.

    Args:
        lengths: of the clips, in minutes.
        depths: where the event lies, in percent of the time that is left beside it.
        clips: of every length and depth; each has actors and scenery of its own.
        event: seconds that the event takes.

    Raises:
        InputError: an option that is wrong.
    """

    lengths: tuple[float, ...] = option(
        "lengths", (1, 2, 5, 10, 30, 60), numbers, "Minutes of the clips: 1,2,5,10,30,60."
    )
    depths: tuple[float, ...] = option(
        "depths", depths("9"), depths, "Depths in percent, such as 0,50,100, or how many: 9."
    )
    clips: int = option("clips", 1, whole_number, "Clips of every length and depth: 1.")
    event: float = option("event", 6.0, one_number, "Seconds that the event takes: 6.")

    family: ClassVar[str] = "made"
    summary: ClassVar[str] = "a short event at every depth of clips of 1 to 60 minutes"
    headline: ClassVar[str] = "hit_rate"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": ("needle.jsonl",)}
    citation: ClassVar[str] = "vidllm, docs/needle.md; after V-NIAH (LongVA, arXiv 2406.16852)"
    licence: ClassVar[str] = "made from seeds: no rights of others"
    max_new_tokens: ClassVar[int] = 32

    def __post_init__(self) -> None:
        for name, most in (("lengths", math.inf), ("depths", 100.0)):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} must be different numbers, got {list(values)}")
            if not all(math.isfinite(v) and 0 <= v <= most for v in values):
                raise InputError(f"--{name} must lie between 0 and {most:g}, got {list(values)}")
            object.__setattr__(self, name, tuple(sorted(map(float, values))))
        if self.clips < 1:
            raise InputError(f"--clips must be at least 1, got {self.clips}")
        if not 0 < 2 * self.event <= 60 * self.lengths[0]:
            raise InputError(
                f"--event must be more than 0 s and at most half of the shortest clip "
                f"({60 * self.lengths[0]:g} s), got {self.event:g}"
            )

    def places(self) -> list[tuple[Place, str]]:
        """Where every clip has its needle, and what its actor does there.

        Actions take turns over lengths, depths and clips, so that no row or column of the heat
        map has more of one than of another by more than the remainder.
        """
        return [
            (Place(minutes, depth, number), NEEDLES[(i + j + number) % len(NEEDLES)])
            for number in range(self.clips)
            for i, minutes in enumerate(self.lengths)
            for j, depth in enumerate(self.depths)
        ]

    def prepare(
        self,
        data: Path | None,
        split: str,
        *,
        seed: int,
        limit: int | None = None,
        jobs: int = 1,
        progress: Progress | None = None,
    ) -> Path:
        """Make the clips that are not there yet, and say in which folder they and their file are.

        Args:
            data: folder of all needle tests; None for `$XDG_CACHE_HOME/vidllm/needle`. This one
                goes to a folder named after seed and options.
            seed: which actors and scenery.
            limit: only so many videos (the file always lists all clips).
            jobs: processes that write videos.
            progress: called with (videos written, videos to write).

        Raises:
            InputError: wrong arguments. WorkError: files that cannot be written.
        """
        from vidllm.stage.files import default_folder, world_mark

        check_split(self, split)
        if seed < 0 or jobs < 1 or (limit is not None and limit < 1):
            raise InputError(
                f"--seed must be 0 or more, --limit and --jobs at least 1, got {seed}, {limit} "
                f"and {jobs}"
            )
        known = [VERSION, world_mark("long", 0), *asdict(self).values()]
        mark = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]
        home = (data or default_folder().with_name("needle")).expanduser() / f"needle-{seed}-{mark}"
        scenes = [(p, needle_scene(p, seed, self.event, action)) for p, action in self.places()]
        try:
            (home / "videos").mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(_row(place, scene)) + "\n" for place, scene in scenes]
            if not (home / "needle.jsonl").exists():
                write_text(home / "needle.jsonl", "".join(lines))
            paths = [(home / "videos" / f"{p.vid}.mp4", scene) for p, scene in scenes[:limit]]
            _write([(p, s) for p, s in paths if not p.is_file()], jobs, progress)
        except OSError as error:
            raise WorkError(f"the clips cannot be written to {home}: {error.strerror}") from error
        return home

    def items(self, data: Path, split: str) -> list[Item]:
        """Two questions a clip: when the event happens, and what its actor does."""
        file = data / self.files[check_split(self, split)][0]
        if not file.is_file():
            raise InputError(f"{file} is missing: `vidllm eval needle` makes it")
        found: list[Item] = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                found += _items(json.loads(line))
            except KeyError as error:
                raise InputError(
                    f"{file}, line {number} lacks {error}: delete the folder, run again"
                ) from None
            except (ValueError, TypeError, AttributeError):
                raise InputError(
                    f"{file}, line {number} is damaged: delete the folder and run again"
                ) from None
        return found

    def truth_schema(self, item: Item) -> Schema:
        """See `Task.truth_schema`."""
        return TRUE_SPAN if item.kind == "when" else String()

    def read(self, item: Item, response: Response) -> Any:
        """[start, end] of the first span for "when"; the action for "what"."""
        if item.kind == "what":
            return action_in(response.text)
        found = first_span(item, response)
        return None if found is None else list(found)

    def value(self, item: Item, response: Response) -> float:
        """1 for a hit: an IoU of at least 0.3, or the right action."""
        said = None if response.error else self.read(item, response)
        if said is None or item.kind == "what":
            return float(said == item.truth)
        return float(tiou(said, item.truth) >= HIT)

    def scores(
        self, items: Sequence[Item], responses: Sequence[Response], *, official: bool = False
    ) -> Scores:
        """Hit rates of all, of "when" and "what", by depth and by length; mIoU and `near`.

        `near` is the share of answers to "when" whose middle is no further from the event's than
        the event is long or one hundredth of the clip, whichever is more: of a model whose times
        are too coarse for IoU it says whether it found the place. There is no official script.
        """
        pairs = list(zip(items, responses, strict=True))
        hits = [self.value(i, r) for i, r in pairs]
        read = [None if r.error else self.read(i, r) for i, r in pairs]
        when = [(i, said) for i, said in zip(items, read, strict=True) if i.kind == "when"]

        def rate(name: str, label: str) -> float | None:
            chosen = zip(items, hits, strict=True)
            return average([h for i, h in chosen if {"kind": i.kind, **i.groups}[name] == label])

        found: Scores = {
            "hit_rate": average(hits),
            "when": rate("kind", "when"),
            "what": rate("kind", "what"),
            "mIoU": average(ious([said for _, said in when], [i.truth for i, _ in when])),
            "near": average([_near(i, said) for i, said in when]),
            "parse_failures": average([said is None for said in read]),
        }
        for name in ("length", "depth"):
            for label in dict.fromkeys(i.groups[name] for i in items):
                found[f"hit_rate/{label}"] = rate(name, label)
        return found

    def finish(self, folder: Path) -> list[Path]:
        """Write the heat maps of a finished run into its folder (see `report.needle_map`)."""
        from ..report.needle_map import write_heatmaps

        return write_heatmaps(folder)


def _near(item: Item, said: Sequence[float] | None) -> bool:
    if said is None or item.duration is None:
        return False
    start, end = item.truth
    return abs(sum(said) - (start + end)) / 2 <= max(end - start, item.duration / 100)


def _row(place: Place, scene: Scene) -> dict[str, Any]:
    event = scene.events[0]
    when, what = needle_questions(scene)
    return {
        "vid": place.vid,
        "video": f"{place.vid}.mp4",
        "duration": scene.duration,
        "minutes": place.minutes,
        "depth": place.depth,
        "number": place.number,
        "when": when,
        "span": [event.start, event.end],
        "what": what,
        "answer": needle_answer(scene),
    }


def _items(row: dict[str, Any]) -> list[Item]:
    truths = {"when": [float(t) for t in row["span"]], "what": str(row["answer"])}
    return [
        Item(
            id=f"{row['vid']}-{kind}",
            vid=str(row["vid"]),
            video=str(row["video"]),
            prompt=str(row[kind]),
            truth=truth,
            kind=kind,
            duration=float(row["duration"]),
            groups={"length": f"{row['minutes']:g} min", "depth": f"{row['depth']:g} %"},
        )
        for kind, truth in truths.items()
    ]


def _write(scenes: list[tuple[Path, Scene]], jobs: int, progress: Progress | None) -> None:
    report = progress or (lambda done, total: None)
    if min(jobs, len(scenes)) <= 1:
        for done, (path, scene) in enumerate(scenes, 1):
            write_needle(path, scene)
            report(done, len(scenes))
        return
    # "spawn": a fork of a process in which torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(scenes)), mp_context=context) as pool:
        waiting = [pool.submit(write_needle, path, scene) for path, scene in scenes]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                report(done, len(scenes))
        except BrokenProcessPool as error:
            raise WorkError("a process that writes videos ended: try --jobs 1") from error
        finally:
            pool.shutdown(cancel_futures=True)
