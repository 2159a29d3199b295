"""The answers of an arm to the test's clips: its own run's, or out of one that asked the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vidllm.errors import InputError

from ...run.journal import Key, Row
from ...run.records import CONFIG, RunFolder
from ...run.run_settings import FULL
from ..methods.candidates import native_config, own_compressor
from .arms import START
from .entries import Entry, Exam
from .finished import start_mark


def answers_of(
    entry: Entry, exam: Exam, init: str = ""
) -> tuple[dict[str, Any], dict[Key, Row]] | None:
    """Configuration and rows over the first clips of a run, as many as the test has.

    Args:
        init: the start, "" for the shipped model.

    Returns:
        None where an answer is missing.

    Raises:
        InputError: a run of another benchmark, split or seed, or damaged files.
    """
    if (kept := entry.finished) is not None:
        exam.check(kept.config, entry.file)
        if kept.start != start_mark(init):
            raise InputError(f"{entry.file} began with other weights: give another --kept")
        found = _of(exam, kept.config, kept.rows, kept.config["settings"])
        if found is not None and _is_whole(entry, exam, kept.config):
            return found
    own = _taken(entry.answers, exam, lambda _: True)
    if own is not None and not _is_whole(entry, exam, own[0]):
        return None
    if own is not None or entry.arm.recipe or entry.start_run is None:
        return own
    return _taken(entry.start_run, exam, lambda setting: _asks(entry, exam, init, setting))


def _is_whole(entry: Entry, exam: Exam, config: Mapping[str, Any]) -> bool:
    """Whether an arm was asked at every share of the test that it takes, or refused there."""
    refused = {float(label.rpartition("@")[2]) for label in config.get("refused") or ()}
    asked = {setting.get("keep") for setting in config["settings"]} | refused
    return all(keep in asked for keep in exam.keeps if entry.arm.takes(keep))


def _taken(
    folder: Path, exam: Exam, wants: Callable[[Mapping[str, Any]], bool]
) -> tuple[dict[str, Any], dict[Key, Row]] | None:
    if not (folder / CONFIG).is_file():
        return None
    config, every = _read(folder, (folder / CONFIG).stat().st_mtime_ns)
    exam.check(config, folder)
    return _of(exam, config, every, [one for one in config["settings"] if wants(one)])


def _of(
    exam: Exam,
    config: Mapping[str, Any],
    every: Mapping[Key, Row],
    settings: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[Key, Row]] | None:
    """What was said to the first clips under these settings; None where an answer is missing."""
    items = _first(every, exam.limit)
    if items is None or not settings:
        return None
    labels = [str(setting["label"]) for setting in settings]
    wanted = [(label, item) for label in labels for item in items]
    if any(key not in every for key in wanted):
        return None
    rows = {key: every[key] for key in wanted}
    told = {"settings": settings, "limit": exam.limit, "items": len(items)}
    return {**config, **told, "clips": len({row["vid"] for row in rows.values()})}, rows


@lru_cache(maxsize=2)
def _read(folder: Path, _: int) -> tuple[dict[str, Any], dict[Key, Row]]:
    run = RunFolder(folder)
    return run.config(), run.rows()


def _asks(entry: Entry, exam: Exam, init: str, setting: Mapping[str, Any]) -> bool:
    """Whether a setting of a borrowed run is one of an arm's."""
    if setting["label"] == FULL:
        return entry.arm.name == START
    spec = entry.arm.asked or own_compressor(native_config(init or None))
    return setting["compressor"] == spec and setting["keep"] in exam.keeps


def _first(rows: Mapping[Key, Row], limit: int) -> list[str] | None:
    """The questions about the first clips, in order; None where there are not as many clips."""
    ordered = sorted(rows.values(), key=lambda row: int(row["number"]))
    videos = list(dict.fromkeys(row["vid"] for row in ordered))[:limit]
    if len(videos) < limit:
        return None
    chosen = set(videos)
    return list(dict.fromkeys(str(row["id"]) for row in ordered if row["vid"] in chosen))
