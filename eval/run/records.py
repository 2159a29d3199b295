"""The folder of a run: its configuration, its journals and what is made of them in the end.

| file | what |
|---|---|
| `run.json` | the whole resolved configuration; only limit and settings may grow |
| `rows-<rank>.jsonl` | the journal of each process (`journal`) |
| `answers.jsonl` | all rows in order, without what was measured: the same bytes for the same run |
| `costs.jsonl` | what every answer cost, in the same order |
| `results.json`, `results.csv` | scores, intervals, failures and costs of every setting |
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import output_folder
from vidllm.errors.plain import plain
from vidllm.errors.schema import damage, parse, validate
from vidllm.errors.writing import whole_file

from ..tasks.base import Item
from .folder_checks import check_config, check_rows
from .folder_schemas import COST_ROW
from .folder_schemas import FORMAT as FORMAT
from .journal import (
    Journal,
    Key,
    Row,
    in_order,
    journals,
    key_of,
    line_of,
    read_journals,
    read_lines,
    reason,
    without_costs,
)
from .run_settings import FULL

CONFIG, ANSWERS, COSTS, RESULTS, TABLE = (
    "run.json", "answers.jsonl", "costs.jsonl", "results.json", "results.csv",
)  # fmt: skip
#: What may differ between two parts of one run: where things are, and what says so only.
FREE = ("data", "videos", "commit", "device_name", "python", "items", "clips")
#: What the labels of the settings say too.
OF_SETTINGS = ("recipe", "tokens", "refused")


class RunFolder:
    """A folder that holds a run, or will.

    Args:
        path: made when a run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuse early what cannot be a folder of a run.

        Raises:
            InputError: a file, or a folder that is not made and cannot be.
        """
        output_folder(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {reason(error)}") from error
        others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
        if others and CONFIG not in others:
            raise InputError(
                f"--out {self.path} holds {min(others)!r} but no {CONFIG}: it is no folder of a "
                "run; give another one"
            )

    def begin(self, config: Mapping[str, Any], mark: Callable[[int | None], str]) -> None:
        """Take the folder up, or write down what its run is.

        A run may go on with a larger limit, if that asks the same before it asks more, and with
        more settings. Settings that it has and that are not asked again must be finished.

        Args:
            config: the resolved configuration of this run.
            mark: the hash of what is asked under a limit.

        Raises:
            InputError: it holds a run of another configuration; the message names the key.
        """
        new = plain(dict(config))
        if (self.path / CONFIG).is_file():
            old = self.config()
            same, limit = {**new, "settings": old["settings"]}, old.get("limit")
            same |= {name: old.get(name) for name in OF_SETTINGS}
            if longer := _more(limit, new["limit"]):
                same |= {"limit": limit, "prompts": mark(limit)}
            difference(old, same, str(self.path))
            self._check_left(old, new, longer)
            new |= _merged(old, new)
            if longer or new["settings"] != old["settings"]:
                self._reopen()
            commits = [c for c in str(old.get("commit") or "").split("+") if c]
            if new.get("commit") and new["commit"] not in commits:
                commits.append(new["commit"])
            new["commit"] = "+".join(commits) or None
            if new == old:
                return
        write_whole(self.path / CONFIG, json.dumps(new, indent=1, ensure_ascii=False) + "\n")

    def _check_left(self, old: Mapping[str, Any], new: Mapping[str, Any], longer: bool) -> None:
        """See that settings of the folder that are not asked again need not be.

        Args:
            longer: the limit grows.
        """
        left = set(labels_of(old)) - set(labels_of(new))
        if not left:
            return
        found = Counter(label for label, _ in self.rows())
        for label in labels_of(old):
            if label in left and (longer or found[label] < new["items"]):
                why = "has no answers behind the older --limit" if longer else "is not finished"
                raise InputError(
                    f"--out {self.path} holds the setting {label} too, which {why}: name it as "
                    "well (--compressor, --keep), or give another folder"
                )

    def _reopen(self) -> None:
        """Take the final files of a smaller run away; its rows stay."""
        if not journals(self.path) and (rows := self.rows()):
            lines = "".join(line_of(row) for row in in_order(rows, labels_of(self.config())))
            write_whole(self.path / "rows-0.jsonl", lines)
        for name in (ANSWERS, COSTS, RESULTS, TABLE):
            (self.path / name).unlink(missing_ok=True)

    def config(self) -> dict[str, Any]:
        """The configuration of the run.

        Raises:
            InputError: there is none, or it is damaged.
        """
        file = self.path / CONFIG
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{self.path} holds no {CONFIG}: give the --out of a run") from None
        except OSError as error:
            raise InputError(f"{file} cannot be read: {reason(error)}") from error
        found = parse(text, file, f"delete {self.path} and run again")
        if not isinstance(found, dict):
            raise InputError(damage(file, "it is no object", f"delete {self.path} and run again"))
        check_config(found, file)
        return dict(found)

    def lock(self, rank: int) -> FileLock:
        """The lock of a process, which it holds as long as it lives."""
        return FileLock(self.path / f".lock-{rank}")

    def claim(self, rank: int) -> FileLock:
        """Take the lock of this process.

        Raises:
            InputError: another run has it.
        """
        lock = self.lock(rank)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            raise InputError(
                f"another run is at work in {self.path}: wait for it, or give another --out"
            ) from None
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be locked: {reason(error)}") from error
        return lock

    def journal(self, rank: int) -> Journal:
        """The journal of a process, open."""
        return Journal(self.path / f"rows-{rank}.jsonl")

    def rows(self, items: Sequence[Item] = ()) -> dict[Key, Row]:
        """All rows by key: of the journals, or of the final files where these were deleted.

        Args:
            items: all of the benchmark, in order, where they are known: rows must be of them.

        Raises:
            InputError: a damaged file, or rows of another run.
        """
        found = read_journals(self.path)
        if not found and (self.path / ANSWERS).is_file():
            found = {key_of(row): row for _, _, row in read_lines(self.path / ANSWERS)}
            for cost in _costs(self.path / COSTS):
                name = str(cost.pop("setting")), str(cost.pop("id"))
                if name in found:
                    found[name]["cost"] = cost
        if found and (self.path / CONFIG).is_file():
            check_rows(found, labels_of(self.config()), self.path, items)
        return found

    def write_answers(self, rows: Sequence[Row]) -> None:
        """Write answers.jsonl and costs.jsonl. Raises WorkError where that cannot be."""
        write_whole(self.path / ANSWERS, "".join(line_of(without_costs(r)) for r in rows))
        costs = ({"setting": r["setting"], "id": r["id"], **r.get("cost", {})} for r in rows)
        write_whole(self.path / COSTS, "".join(line_of(cost) for cost in costs))

    def write_results(self, results: Mapping[str, Any], table: str) -> None:
        """Write results.json and results.csv. Raises WorkError where that cannot be."""
        text = json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(self.path / RESULTS, text + "\n")
        write_whole(self.path / TABLE, table)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """See that two configurations are the same run.

    Raises:
        InputError: they are not; the message names the first key that differs.
    """
    for key in {**old, **new}:
        one, two = old.get(key), new.get(key)
        if key in FREE or one == two:
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            key, one, two = next(
                (f"{key}.{k}", one.get(k), two.get(k))
                for k in {**one, **two}
                if one.get(k) != two.get(k)
            )
        raise InputError(
            f"--out {where} holds another run ({key}: {_short(one)}, not {_short(two)}): give "
            "another folder, or the options of that run"
        )


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of two configurations, the uncompressed one first, and what goes with them."""
    known = set(labels_of(old))
    both = [*old["settings"], *(s for s in new["settings"] if s["label"] not in known)]
    told: dict[str, Any] = {"settings": sorted(both, key=lambda s: bool(s["label"] != FULL))}
    for name in OF_SETTINGS:
        if name in old or name in new:
            one, two = old.get(name), new.get(name)
            told[name] = {**one, **two} if isinstance(one, dict) and two else two or one
    return told


def labels_of(config: Mapping[str, Any]) -> list[str]:
    """The labels of a run's settings, in order."""
    return [str(setting["label"]) for setting in config["settings"]]


def prompts_mark(items: Iterable[Item]) -> str:
    """A hash of what is asked: every item with its prompt and its truth, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(plain(item.as_dict()), sort_keys=True).encode())
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it finds all of it or the old one.

    Raises:
        WorkError: it cannot be written.
    """
    try:
        with whole_file(path) as part:
            part.write_bytes(text.encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise WorkError(
            f"{path} cannot be written: {reason(error)}; the answers are kept, run the same "
            "command again"
        ) from error


def _costs(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        where, advice = f"line {number} of {path}", "delete the file to score without costs"
        cost = parse(line, where, advice)
        validate(cost, COST_ROW, where, advice)
        found.append(cost)
    return found


def _more(old: int | None, new: int | None) -> bool:
    """Whether a limit asks for more than an older one did."""
    return old is not None and (new is None or new > old)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}…"
