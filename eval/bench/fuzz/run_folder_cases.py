"""Damaged folders of evaluation runs: rescored, reported, and read as a run that goes on."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, ClassVar

from vidllm.eval.report.load import load_run
from vidllm.eval.report.report_command import write_report
from vidllm.eval.report.study import sections
from vidllm.eval.report.tables import markdown, write_csv
from vidllm.eval.run.records import ANSWERS, CONFIG, COSTS, RESULTS, TABLE, RunFolder
from vidllm.eval.run.results import rescore

from .byte_damage import ANYWHERE
from .json_damage import damage_json, written
from .outcomes import ANSWER, CHANGED, NOTED, WHOLE, Case

_KINDS = ("value", "value", "value", "bytes", "file")
_PAGES = 12  # every so many cases the whole page is drawn, which is slow


class RunFolderTarget:
    """A finished run, and one that is not; see `outcomes.Target`."""

    memory: ClassVar[int] = 2**28
    seconds: ClassVar[float] = 20.0
    cases: ClassVar[int | None] = None

    def __init__(self, folder: Path) -> None:
        from vidllm.cli.main import main

        whole, part = folder / "whole", folder / "part"
        words = ["eval", "stage", "--split", "val", "--limit", "3", "--device", "cpu", "--frames"]
        words += ["16", "--max-new-tokens", "4", "--compressor", "temporal-pool", "--keep", "0.5"]
        if not (whole / RESULTS).exists():
            main([*words, "--data", str(folder / "stage"), "--out", str(whole)])
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(whole, part)
        for name in (ANSWERS, COSTS, RESULTS, TABLE):
            (part / name).unlink()
        journal = next(iter(part.glob("rows-*.jsonl")))
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[:-1]))
        self._whole = (whole, part)
        self._right = [_numbers(self._copied(one, folder / "copy")) for one in self._whole]

    def _copied(self, source: Path, place: Path) -> Path:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        return place

    def case(self, number: int, draw: random.Random, place: Path) -> Case:
        """See `outcomes.Target.case`."""
        which = draw.randrange(2)
        run = self._copied(self._whole[which], place / "run")
        names = (CONFIG, ANSWERS, COSTS, RESULTS, "rows-0.jsonl")
        file = run / draw.choice([name for name in names if (run / name).exists()])
        plausible, told, kind = (
            False,
            file.name,
            draw.choice(_KINDS),
        )
        if kind == "value":
            by_line = file.suffix == ".jsonl"
            parts = file.read_bytes().splitlines() if by_line else [file.read_bytes()]
            at = draw.randrange(len(parts))
            made = json.loads(parts[at])
            done = damage_json(made, draw)
            parts[at] = written(made)
            file.write_bytes(b"\n".join(parts) + b"\n")
            mutation, plausible, told = done.name, done.plausible, f"{file.name}: {done.told}"
        elif kind == "bytes":
            data = bytearray(file.read_bytes())
            mutation = draw.choice(list(ANYWHERE))
            ANYWHERE[mutation](data, draw, bytes(data))
            file.write_bytes(data)
            plausible = True  # a digit may become another
        else:
            mutation = draw.choice(list(_FILES))
            _damage_file(file, mutation)
            plausible = True  # a run may have no costs or results yet
        with_page = number % _PAGES == 0
        case = f"{file.suffix[1:]} {mutation}"
        return Case(case, lambda: self._read(run, which, plausible, told, with_page))

    def _read(
        self, run: Path, which: int, plausible: bool, told: str, with_page: bool
    ) -> tuple[str, str]:
        if with_page:
            write_report([run], run.parent / "report", worst=0)
        found = _numbers(run)
        right = self._right[which]
        if found["numbers"] == right["numbers"]:
            return WHOLE, told
        new = [note for note in found["notes"] if note not in right["notes"]]
        if new:
            return NOTED, "; ".join(new)
        differ = [n for n, v in found["numbers"].items() if v != right["numbers"][n]]
        return (ANSWER if plausible else CHANGED), f"{told}: another {', '.join(differ)}"


#: What may become of a whole file.
_FILES = ("empty", "missing", "folder", "twice", "null bytes")


def _damage_file(file: Path, mutation: str) -> None:
    data = file.read_bytes()
    file.unlink()
    if mutation == "folder":
        file.mkdir()
    elif mutation != "missing":
        file.write_bytes({"empty": b"", "twice": data + data}.get(mutation, bytes(len(data))))


def _numbers(run: Path) -> dict[str, Any]:
    """What people see of a run: scores, tables and rows, and the notes beside them."""
    shown = load_run(run)
    found = sections([shown])
    rows = RunFolder(run).rows()
    scored = rescore(RunFolder(run))
    return {
        "notes": shown.notes,
        "numbers": {
            "tables": markdown(found),
            "csv": write_csv(found),
            "rows": sorted(json.dumps(_lasting(row), sort_keys=True) for row in rows.values()),
            "results": json.dumps(_lasting(scored["results"]), sort_keys=True),
        },
    }


def _lasting(value: Any) -> Any:
    """Without what was measured, which may be any number."""
    if isinstance(value, dict):
        measured = ("cost", "costs", "sums")
        return {k: _lasting(v) for k, v in value.items() if k not in measured}
    return [_lasting(item) for item in value] if isinstance(value, list) else value
