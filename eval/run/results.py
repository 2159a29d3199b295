"""What a run came to: scores, intervals, failures and costs of every setting, made from rows alone.

The uncompressed run is the first setting; every other one is told relative to it, with a paired
test over the same questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.plain import plain
from vidllm.errors.writing import csv_text

from ..scores.common import Scores
from ..tasks import get_task
from ..tasks.base import Item, Response, Task
from .answer_costs import mean_costs, sum_costs
from .folder_checks import check_truth
from .headline import Part, by_group, matching
from .journal import Key, Row, in_order, item_of, response_of
from .records import RunFolder, labels_of, write_whole
from .run_settings import FULL
from .runner import scored_again

#: Two scores that differ by less are the same.
SAME = 1e-12


@dataclass(frozen=True)
class Outcome:
    """The answers of one setting with their scores.

    Args:
        label: of the setting. rows, items, responses: one each.
        scores: ours; official: the benchmark's own script's; None with the reason in `unofficial`.
        values: what each answer earned, by item id, where it has a value.
        videos: of each item id.
        parts: what the headline may be the mean of, see `scoring.matching`.
    """

    label: str
    rows: Sequence[Row]
    items: Sequence[Item]
    responses: Sequence[Response]
    scores: Scores
    official: Scores | None
    unofficial: str | None
    values: Mapping[str, float]
    videos: Mapping[str, str]
    parts: Mapping[str, Part]

    @property
    def differing(self) -> Scores:
        """The official scores that are other than ours, and those that only they have."""
        return {
            name: value
            for name, value in (self.official or {}).items()
            if name not in self.scores or not _same(value, self.scores[name])
        }


def outcome_of(task: Task, label: str, rows: Sequence[Row]) -> Outcome:
    """Score the rows of one setting.

    Raises:
        InputError: rows that the task cannot score.
    """
    items, responses = [item_of(row) for row in rows], [response_of(row) for row in rows]
    check_truth(task, items, f"the rows of {label}")
    scores = task.scores(items, responses)
    official: Scores | None = None
    reason = None
    try:
        official = task.scores(items, responses, official=True)
    except InputError as error:  # for example a duration that the official file does not have
        reason = str(error)
    headline = scores.get(task.headline)
    values, videos = {}, {item.id: item.vid for item in items}
    for item, row in zip(items, rows, strict=True):
        if row["value"] is not None:
            values[item.id] = float(row["value"])
    parts = matching(items, values, headline)
    if not parts and headline is not None and hasattr(task, "samples"):
        # The task says what its headline is the mean of; these are no values of single answers.
        pairs = task.samples(items, responses)
        sampled = {str(k): float(value) for k, (_, value) in enumerate(pairs)}
        part = Part(SAMPLES, tuple(sampled))
        mean = part.mean(sampled)
        if mean is not None and _same(mean, headline):
            values = sampled
            videos = {str(k): vid for k, (vid, _) in enumerate(pairs)}
            parts = {part.of: part}
    return Outcome(label, rows, items, responses, scores, official, reason, values, videos, parts)


#: The part whose values are the task's own samples, not those of single answers.
SAMPLES = "samples"


def common_part(outcomes: Sequence[Outcome]) -> str | None:
    """The name of the part that the headline is in every run; None where there is none."""
    known = [outcome.parts for outcome in outcomes if outcome.parts]
    return next((of for of in (known[0] if known else ()) if all(of in p for p in known)), None)


def task_of(config: Mapping[str, Any]) -> Task:
    """The task of a run, with its options. Raises InputError where there is none of that name."""
    kind = type(get_task(str(config["task"])))
    try:
        return kind(**config.get("options", {}))
    except TypeError as error:
        raise InputError(f"run.json names options that {kind.name} has not: {error}") from error


def rescore(folder: RunFolder) -> dict[str, Any]:
    """Score the rows of a run again, without its model; the files of a whole run are renewed.

    Raises:
        InputError: no run, no rows yet, or damaged ones.
        WorkError: files that cannot be written.
    """
    config = folder.config()
    rows = folder.rows()
    if not rows:
        raise InputError(f"{folder.path} has no answers yet: run it first")
    return finish(task_of(config), folder, config, rows)[0]


def summarise(task: Task, config: Mapping[str, Any], rows: Mapping[Key, Row]) -> dict[str, Any]:
    """The contents of results.json.

    Args:
        config: of run.json. rows: by setting and item, with today's `parsed` and `value`.

    Raises:
        InputError: rows that the task cannot score.
    """
    by_label = {label: in_order(rows, [label]) for label in labels_of(config)}
    outcomes = [outcome_of(task, label, some) for label, some in by_label.items() if some]
    of = common_part(outcomes)
    seed = int(config["seed"])
    full = next((outcome for outcome in outcomes if outcome.label == FULL), None)
    settings = {str(s["label"]): s for s in config["settings"]}
    expected = int(config["items"]) * len(config["settings"])
    return {
        **config,
        "headline": task.headline,
        "headline_of": of,
        "answers": len(rows),
        "expected": expected,
        "finished": len(rows) >= expected,
        "results": {
            outcome.label: {
                **settings[outcome.label],
                **_one(task, outcome, of, seed),
                "relative": None
                if full is None or outcome is full
                else relative(task, full, outcome, of, seed),
            }
            for outcome in outcomes
        },
    }


def relative(
    task: Task, full: Outcome, outcome: Outcome, of: str | None, seed: int
) -> dict[str, Any]:
    """The headline against that of the uncompressed run, over the questions that both have."""
    one, two = (side.scores.get(task.headline) for side in (full, outcome))
    found: dict[str, Any] = {"share": two / one if one and two is not None else None}
    part = full.parts.get(of) if of else None
    if part is None or (
        of == SAMPLES and list(full.videos.values()) != list(outcome.videos.values())
    ):
        return found
    both = part.within({name for name in full.values if name in outcome.values})
    return (
        {**found, **both.versus(full.values, outcome.values, full.videos, seed)}
        if (both.ids)
        else found
    )


def _one(task: Task, outcome: Outcome, of: str | None, seed: int) -> dict[str, Any]:
    value = outcome.scores.get(task.headline)
    headline: dict[str, Any] = {"name": task.headline, "value": value, "low": None, "high": None}
    part = outcome.parts.get(of) if of else None
    if part is not None:
        interval = part.interval(outcome.values, outcome.videos, seed)
        headline |= {"low": interval.low, "high": interval.high, "videos": interval.clusters}
    if task.headline in outcome.differing:
        headline["official"] = outcome.differing[task.headline]
    failures = [row for row in outcome.rows if row["error"] is not None]
    single = of != SAMPLES
    costs = [row.get("cost") or {} for row in outcome.rows]
    return {
        "answers": len(outcome.rows),
        "videos": len({item.vid for item in outcome.items}),
        "headline": headline,
        "scores": outcome.scores,
        "official": outcome.differing,
        "unofficial": outcome.unofficial,
        "by_group": by_group(outcome.items, outcome.values, part, seed) if single else {},
        "parse_failures": sum(
            row["parsed"] is None and row["error"] is None for row in outcome.rows
        ),
        "failed": len(failures),
        "failed_videos": failed_videos(failures),
        "costs": mean_costs(costs),
        "sums": sum_costs(costs),
    }


def failed_videos(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Why there are no answers: reason → videos, in order."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["error"] is not None:
            found.setdefault(str(row["error"]), {})[str(row["video"])] = None
    return {reason: list(videos) for reason, videos in found.items()}


def finish(
    task: Task, folder: RunFolder, config: Mapping[str, Any], rows: Mapping[Key, Row]
) -> tuple[dict[str, Any], dict[Key, Row]]:
    """Score the rows, and write the final files of a run that is whole.

    Returns:
        The contents of results.json, and the rows as today's parser reads them.

    Raises:
        InputError: rows that the task cannot score. WorkError: files that cannot be written.
    """
    read = {key: scored_again(task, row) for key, row in rows.items()}
    results = summarise(task, config, read)
    if results["finished"]:
        folder.write_answers(in_order(read, labels_of(config)))
        folder.write_results(results, table(results))
        _write_more(task, folder, read, labels_of(config))
    return results, read


def _write_more(
    task: Task, folder: RunFolder, rows: Mapping[Key, Row], labels: Sequence[str]
) -> None:
    """What some tasks have beside: the file that a server wants of each setting, pictures."""
    submit: Any = getattr(task, "submission", None)
    for label in labels if submit is not None else ():
        some = in_order(rows, [label])
        wanted = submit([item_of(row) for row in some], [response_of(row) for row in some])
        if wanted is not None:
            name = re.sub(r"[^\w.@+=-]", "_", label)
            text = json.dumps(plain(wanted), ensure_ascii=False)
            write_whole(folder.path / f"submission-{name}.json", text + "\n")
    draw: Any = getattr(task, "finish", None)
    if draw is not None:
        draw(folder.path)


def table(results: Mapping[str, Any]) -> str:
    """results.csv: a row a setting, a column a number."""
    return csv_text([_flat(results, one) for one in results["results"].values()])


def _flat(results: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    headline, relation, costs = one["headline"], one["relative"] or {}, one["costs"]
    row = {name: results.get(name) for name in ("task", "split", "model", "seed")}
    row |= {"setting": one["label"], "compressor": one["compressor"], "keep": one["keep"]}
    row |= {"headline": headline["name"], "value": headline["value"]}
    row |= {"low": headline["low"], "high": headline["high"]}
    row |= {"share": relation.get("share"), "p": relation.get("p")}
    row |= {name: one[name] for name in ("answers", "videos", "parse_failures", "failed")}
    row |= {name: value for name, value in costs.items() if not isinstance(value, dict)}
    for name in ("seconds", "flops"):
        row |= {f"{name}_{stage}": value for stage, value in costs[name].items()}
    row |= {f"score {name}": value for name, value in one["scores"].items()}
    row |= {f"official {name}": value for name, value in one["official"].items()}
    return {name: "" if value is None else value for name, value in row.items()}


def _same(one: float | None, two: float | None) -> bool:
    if one is None or two is None:
        return one is two
    return abs(one - two) <= SAME
