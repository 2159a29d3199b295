"""EgoSchema: one question of five options about each of 5031 three-minute egocentric videos.

Verified in the official repository and in readers of the hub's copy: `questions.json` is a list of
{q_uid, google_drive_id, question, "option 0" to "option 4"}, `subset_answers.json` has the number
of the right option of the 500 questions whose answers are public; videos are `Q_UID.mp4`.
lmms-lab/egoschema has parquets with video_idx (the q_uid), question, option ("A. …" to "E. …") and
answer (the number as text): `Subset` and, without answers, `GENERATION`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidllm.errors import InputError

from . import files
from .base import TASKS, Item, Response
from .choice import (
    MultipleChoice,
    bare,
    letter_at,
    options,
    question_text,
    unique,
    with_hub,
)

_SUBSET = "Subset/test-00000-of-00001.parquet"
_FULL = "GENERATION/test-00000-of-00001.parquet|MC/test-00000-of-00001.parquet"


@TASKS.register("egoschema")
class EgoSchema(MultipleChoice):
    """Split subset: scored here. Split full: no public answers; `submission` makes the file that
    the authors' server (validate.py of their repository) and Kaggle score.

    Official: lmms-eval's parser takes "A man …" for option A and guesses where it reads nothing.
    """

    summary = "egocentric videos of three minutes, five options"
    splits = ("subset", "full")
    files: ClassVar = {
        "subset": (f"questions.json|{_SUBSET}", f"subset_answers.json|{_SUBSET}"),
        "full": (f"questions.json|{_FULL}",),
    }
    citation = "Mangalam et al., NeurIPS 2023 Datasets and Benchmarks, arXiv 2308.09126"
    licence = "MIT for the questions; the videos are Ego4D's, under its licence agreement"
    home = "https://github.com/egoschema/EgoSchema"
    hub = "lmms-lab/egoschema:Subset"
    script = "egoschema"
    notes: ClassVar = {
        "full": "the answers are not public: no scores; send the submission to the authors' server"
    }

    def items(self, data: Path, split: str) -> list[Item]:
        """In the order of the questions' file; truth None in the full set."""
        if data == files.HUB:
            config = {"subset": "Subset", "full": "GENERATION"}[split]
            rows = files.hub_records(with_hub(self, f"lmms-lab/egoschema:{config}"), "test")
        else:
            paths = files.annotation_files(self, data, split)
            parquet = next((path for path in paths if path.suffix == ".parquet"), None)
            rows = _official(paths, split) if parquet is None else files.read_records(parquet)
        return unique([_item(row, where, split == "subset") for where, row in rows], self.name)

    def submission(self, items: Sequence[Item], responses: Sequence[Response]) -> dict[str, int]:
        """The number of the chosen option by q_uid; −1 where no letter was read."""
        said = [self.read(item, r) for item, r in zip(items, responses, strict=True)]
        return {
            item.id: -1 if letter is None else item.letters.index(letter)
            for item, letter in zip(items, said, strict=True)
        }


def _official(paths: Sequence[Path], split: str) -> list[files.Record]:
    """Records in the hub's form; those of the subset with their answers, in the file's order."""
    rows = []
    for where, row in files.read_records(paths[0]):
        texts = [files.field(row, f"option {k}", str, where=where) for k in range(5)]
        uid = files.field(row, "q_uid", str, where=where)
        question = files.field(row, "question", str, where=where)
        rows.append((where, {"video_idx": uid, "question": question, "option": texts}))
    if split == "full":
        return rows
    answers = files.read_json(paths[1], dict)
    if lost := set(answers) - {row["video_idx"] for _, row in rows}:
        raise InputError(f"{paths[1].name}: {min(lost)} is no q_uid of {paths[0].name}")
    return [
        (f"{paths[1].name}, {row['video_idx']}", {**row, "answer": answers[row["video_idx"]]})
        for _, row in rows
        if row["video_idx"] in answers
    ]


def _item(row: dict[str, Any], where: str, public: bool) -> Item:
    uid = files.field(row, "video_idx", str, where=where)
    choices = bare(options(row, "option", where=where, count=5))
    truth = None
    if public:
        place = files.field(row, "answer", int, where=where)
        truth = letter_at(place, len(choices), f"{where}: the field 'answer'")
    return Item(
        id=uid,
        vid=uid,
        video=uid,
        prompt=question_text(files.field(row, "question", str, where=where), choices),
        truth=truth,
        choices=choices,
    )
