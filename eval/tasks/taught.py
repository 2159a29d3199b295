"""The annotations of a benchmark as questions with answers, for training on one's own videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidllm.errors import InputError
from vidllm.recipes.courses.examples import Example, read_by

from . import Item, Task, check_split, get_task, task_names

#: A span in an answer, as all time codes read it.
_SPAN = "from {} to {}"


@read_by
def examples(name: str, data: Path, split: str | None = None) -> list[Example]:
    """What the annotation files of a benchmark teach, in the order of the files.

    Args:
        name: of the benchmark whose format the files have. data: their folder; videos lie there
            or in `videos` below it. split: of the benchmark, its usual one if None.

    Raises:
        InputError: a benchmark whose questions have no answer to teach, a file that is missing or
            wrong, or a video that is not there.
    """
    from ..run.clips import find_video, video_folders

    task = get_task(name)
    split = check_split(task, split)
    if hasattr(task, "prepare"):
        raise InputError(
            f"{name} makes its own videos: train on the stage world with --data stage, or give "
            f"--task one of {', '.join(teachable())}"
        )
    folders = video_folders(data, None)
    found = []
    for item in task.items(data, split):
        answer = answer_of(task, item)
        if answer is None:
            continue
        text, spans = answer
        video = find_video(item.video, folders)
        found.append(Example(video, item.prompt, text, spans, item.start, item.end))
    if not found:
        raise InputError(f"the annotations of {name} in {data} hold no answer that can be taught")
    return found


def teachable() -> list[str]:
    """Benchmarks whose format serves for training."""
    return [n for n in task_names() if get_task(n).family in ("grounding", "captions", "choice")]


def answer_of(task: Task, item: Item) -> tuple[str, tuple[tuple[float, float], ...]] | None:
    """The right answer to an item with its spans; None where it is not public.

    Raises:
        InputError: the task asks for no span, caption or letter.
    """
    truth: Any = item.truth
    if item.choices:
        letter = truth.get("answer") if isinstance(truth, dict) else truth
        return None if letter is None else (_escaped(str(letter)), ())
    if task.family == "captions":
        told = truth[0] if truth else []
        words = " ".join(f"{_SPAN} , {_escaped(str(text))}" for _, _, text in told)
        return (words, tuple((float(s), float(e)) for s, e, _ in told)) if told else None
    spans = _spans(truth)
    if task.family == "grounding" and spans:
        return " , ".join([_SPAN] * len(spans)), spans
    raise InputError(
        f"--task {task.name} has no answers that a model could be taught: give one of "
        f"{', '.join(teachable())}"
    )


def _spans(truth: Any) -> tuple[tuple[float, float], ...]:
    """The spans of a truth: one, several, or those of an object."""
    if isinstance(truth, dict):
        truth = truth.get("spans") or truth.get("location") or []
    if isinstance(truth, list | tuple) and truth and not isinstance(truth[0], list | tuple):
        truth = [truth]
    pairs = truth if isinstance(truth, list | tuple) else []
    good = all(len(pair) == 2 for pair in pairs)
    return tuple((float(s), float(e)) for s, e in pairs) if good else ()


def _escaped(text: str) -> str:
    """Text in which braces are no fields."""
    return text.replace("{", "{{").replace("}", "}}")
