"""Whether the files of a run's folder tell of one and the same run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.plain import plain
from vidllm.errors.schema import Object, damage, validate

from ..tasks.base import Item, Task
from .folder_schemas import CONFIG, FORMAT
from .journal import Key, Row, item_of
from .run_settings import Setting


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Validate run.json.

    Raises:
        InputError: a field is missing or wrong, or a setting's label is not that of its parts.
    """
    advice = f"delete {file.parent} and run again"
    version = config.get("format")
    if type(version) is int and version != FORMAT:
        raise InputError(
            f"{file.parent} was written by another version of vidllm (format {version}, not "
            f"{FORMAT})"
        )
    validate(config, CONFIG, file, advice)
    settings = config["settings"]
    labels = [setting["label"] for setting in settings]
    for setting in settings:
        label = setting["label"]
        if labels.count(label) > 1:
            raise InputError(damage(file, f"the setting {label} stands twice", advice))
        if not (parts := {"compressor", "keep"} & set(setting)):
            continue  # of a task that is asked without
        if len(parts) == 1:
            reason = f"the setting {label} has {', '.join(parts)} alone"
            raise InputError(damage(file, reason, advice))
        right = Setting(setting["compressor"], setting["keep"], None, setting.get("tokens")).label
        if label != right:
            raise InputError(damage(file, f"the setting {label} has the parts of {right}", advice))


def check_rows(
    rows: Mapping[Key, Row], labels: Sequence[str], folder: Path, items: Sequence[Item] = ()
) -> None:
    """See that rows are those of a run.

    Args:
        labels: of the run's settings. items: all of the benchmark, in order, where they are known.

    Raises:
        InputError: a row of a setting that the run has not, or of another question.
    """
    owners = {number: item.id for number, item in enumerate(items)}
    right = {item.id: (number, plain(item.as_dict())) for number, item in enumerate(items)}
    for row in rows.values():
        where = f"the row of {row['id']!r} under {row['setting']!r} in {folder}"
        if row["setting"] not in labels:
            reason = f"the run has no such setting, it has {', '.join(labels)}"
            raise InputError(damage(where, reason, "delete the row"))
        if items and row["id"] not in right:
            raise InputError(damage(where, "the benchmark has no such question", "delete the row"))
        if (owner := owners.setdefault(row["number"], row["id"])) != row["id"]:
            reason = f"its number {row['number']} is that of {owner!r}, not {row['id']!r}"
            raise InputError(damage(where, reason, "delete the row to have it asked again"))
        known = right.setdefault(row["id"], (row["number"], plain(item_of(row).as_dict())))
        if known[0] != row["number"]:
            reason = f"its number is {row['number']}, not {known[0]}"
            raise InputError(damage(where, reason, "delete the row to have it asked again"))
        mine = plain(item_of(row).as_dict())
        for name, value in mine.items():
            if value != known[1][name]:
                reason = f"its {name} is not that of the question"
                raise InputError(damage(where, reason, "delete the row to have it asked again"))


def check_truth(task: Task, items: Iterable[Item], where: object) -> None:
    """See that what is true of questions is what their benchmark has.

    Raises:
        InputError: it is something else; the line names question and field.
    """
    for item in items:
        schema = Object({"truth": task.truth_schema(item)})
        advice = "delete its rows to have it asked again"
        validate({"truth": item.truth}, schema, f"{item.id!r} in {where}", advice)
