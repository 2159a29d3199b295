"""`evaluate`: from what the command line asks for to a finished folder of results."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidllm.cli.options import say
from vidllm.errors import InputError, WorkError
from vidllm.models.shipped import weights_dir
from vidllm.progress import Stopped
from vidllm.progress.interruption import Halt, Interrupted
from vidllm.recipes import get_recipe
from vidllm.recipes.models import check_carries

from ..tasks.base import Item
from .ask_model import Asker, ModelAsker, model_name, served
from .clips import clips_of, limited, video_folders
from .journal import Key, Row
from .processes import Crew, join
from .progress_bar import Watch
from .records import RunFolder, labels_of, prompts_mark
from .results import finish
from .run_config import Order, resolved
from .run_settings import own_setting
from .runner import Runner

if TYPE_CHECKING:
    from vidllm.cli.options import CommonOptions


@dataclass(frozen=True)
class Finished:
    """A run that is done.

    Args:
        results: the contents of results.json. rows: by setting and item.
        baselines: what answers score that never look at a video, where that was asked for.
    """

    results: dict[str, Any]
    rows: Mapping[Key, Row]
    baselines: dict[str, Any] | None = None


def evaluate(order: Order, options: CommonOptions) -> Finished | None:
    """Run a benchmark, or go on with it; None in a process that is not the main one.

    Raises:
        InputError: something of the order is wrong, or the folder holds another run.
        WorkError: files that cannot be written, or another process ended early.
        Interrupted: the run was stopped from outside.
    """
    crew = join(options.device)
    try:
        with ExitStack() as stack:
            return _evaluate(order, replace(options, device=crew.device), crew, stack)
    finally:
        crew.leave()


def _evaluate(
    order: Order, options: CommonOptions, crew: Crew, stack: ExitStack
) -> Finished | None:
    if order.out is None and crew.size > 1:
        raise InputError(f"{crew.size} processes need a folder for their answers: give --out DIR")
    where = order.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vidllm-")))
    folder = RunFolder(where)
    with crew.main_first():
        if crew.is_main:
            folder.check()
        data, split = order.prepared(options)
        everything = order.items(data, split)
    check_footage(order, options)
    items, halt = limited(everything, order.most), Halt()
    asker, options = load_asker(order, options, halt.wanted)
    notes = notes_of(asker)
    for note in notes if crew.is_main else ():
        say(f"note: {note}")
    labels = [setting.label for setting in asker.settings()]
    config = resolved(order, options, asker, items, data, split)
    stack.callback(folder.claim(crew.rank).release)
    with crew.main_first():
        if crew.is_main:
            folder.begin(config, lambda limit: prompts_mark(limited(everything, limit)))
    runner = Runner(
        order.task,
        asker,
        clips_of(items),
        video_folders(data, order.videos),
        options,
        {item.id: number for number, item in enumerate(everything)},
        folder.rows(everything),
        retry_failed=order.retry_failed,
        rank=crew.rank,
        size=crew.size,
    )
    _work(runner, folder, labels, halt, order, options)
    if not crew.is_main:
        return None
    with halt.heeded():
        crew.wait_for_others(folder, halt.wanted)
    if halt.wanted():
        raise _interrupted(runner, folder, halt, order)
    config = folder.config()  # with the settings that it had before
    rows = _whole(folder, labels_of(config), items, crew)
    results, rows = finish(order.task, folder, config, rows)
    results |= {"notes": notes} if notes else {}
    told = None
    if order.baselines:
        score: Any = getattr(order.task, "baselines")  # noqa: B009 - only some tasks have it
        told = score(data, split, items, options.seed)
    return Finished(results, rows, told)


def check_footage(order: Order, options: CommonOptions) -> None:
    """See that a benchmark of real footage is not run with the shipped model by oversight.

    Raises:
        InputError: it would be.
    """
    if order.anyway or order.task.family == "retrieval" or hasattr(order.task, "prepare"):
        return  # a benchmark that makes its own videos is of the made world
    name = options.model_name()
    if name is None or Path(name).resolve().parent == weights_dir().resolve():
        raise InputError(
            f"{order.task.name} is of real footage, and the shipped model knows only the made "
            "world of the benchmark stage (218 words): its score would mean nothing; give "
            "--model, or --anyway to score it all the same"
        )


def notes_of(asker: Asker) -> list[str]:
    """Which methods of a run have random weights, one line each."""
    notes = [note for s in asker.settings() if s.method is not None for note in s.method.notes()]
    return list(dict.fromkeys(notes))


def load_asker(
    order: Order, options: CommonOptions, stopped: Callable[[], bool]
) -> tuple[Asker, CommonOptions]:
    """Whoever answers the task, and the options with the frames that it usually sees.

    A model is asked; for retrieval one embeds.

    Raises:
        InputError: options that do not go together, or a model that cannot serve them.
    """
    options = options.with_model()
    plain = replace(options, compressor=None, keep=None, recipe=None, tokens=None)
    asker: Asker
    if order.engine == "vllm" and (order.task.family == "retrieval" or order.memory):
        what = "--memory" if order.memory else order.task.name
        raise InputError(f"--engine vllm does not go with {what}: leave one of them out")
    if order.task.family == "retrieval":
        from vidllm.models.retrieval.retriever import load_retriever

        from .retrievers import RetrievalAsker, own_merging

        for option in ("revision", "adapter", "device_map"):
            if getattr(options, option) is not None:
                told = option.replace("_", "-")
                raise InputError(f"--{told} is for models that answer, not for {order.task.name}")
        name = options.model or "tempme"
        retriever = load_retriever(
            name, device=options.device, dtype=options.dtype, attn=options.attn
        )
        usual = retriever.usual_frames
        asker = RetrievalAsker(retriever, order.wanted.settings(own_merging(retriever)), name=name)
    else:
        if options.recipe is not None:
            check_carries(get_recipe(options.recipe), str(options.model_name()), options.model)
        llm = plain.load(order.engine, order.engine_options)
        llm.measures_memory, usual = order.memory, llm.usual_frames
        if (rate := llm.engine.usual_fps) is not None and options.frames is None:
            options = replace(options, fps=options.fps or rate)
        settings = [
            replace(s, method=s.method and llm.engine.with_trained(s.method))
            for s in order.wanted.settings(own_setting(llm))
        ]
        refused: dict[str, str] = {}
        if order.skip_refused:
            settings, refused = served(llm, settings)
        asker = ModelAsker(
            llm,
            order.task,
            settings,
            name=model_name(options.model_name() if options.adapter else options.model),
            max_new_tokens=order.max_new_tokens,
            stopped=stopped,
            refused=refused,
        )
    given = options.frames is not None or options.fps is not None
    return asker, options if given else replace(options, frames=usual)


def _work(
    runner: Runner,
    folder: RunFolder,
    labels: Sequence[str],
    halt: Halt,
    order: Order,
    options: CommonOptions,
) -> None:
    """Ask what is left, with a bar, until it is done or stopped."""
    main = runner.rank == 0
    process = f" of process 1 of {runner.size}" if runner.size > 1 else ""
    known = list(runner.done.values())
    watch = Watch(
        runner.task, labels, runner.left(), known, quiet=not main or options.json, where=process
    )
    journal = folder.journal(runner.rank)
    try:
        with halt.heeded():
            runner.run(journal, halt, watch)
    except (Stopped, KeyboardInterrupt):
        watch.close()
        raise _interrupted(runner, folder, halt, order) from None
    finally:
        watch.close()
        journal.close()


def _interrupted(runner: Runner, folder: RunFolder, halt: Halt, order: Order) -> Interrupted:
    """What to say of a run that was stopped from outside."""
    settings = len(labels_of(folder.config()))
    total = sum(len(clip.items) for clip in runner.clips) * settings
    kept = "nothing is kept without --out DIR"
    if order.out is not None:
        kept = (
            f"{len(folder.rows())} of {total} answers kept in {order.out}: run the same command "
            "again to go on"
        )
    who = f"process {runner.rank + 1} of {runner.size} " if runner.size > 1 else ""
    return Interrupted(f"{who}stopped, {kept}", halt.number or signal.SIGINT)


def _whole(
    folder: RunFolder, labels: Sequence[str], items: Sequence[Item], crew: Crew
) -> dict[Key, Row]:
    """The rows of the run, once all are there.

    Raises:
        WorkError: a process ended before it was done.
    """
    rows = folder.rows()
    wanted = [(label, item.id) for label in labels for item in items]
    found = {key: rows[key] for key in wanted if key in rows}
    if missing := len(wanted) - len(found):
        raise WorkError(
            f"a process of {crew.size} ended before it was done: {len(found)} of {len(wanted)} "
            f"answers kept in {folder.path}, {missing} are missing: run the same command again"
        )
    return found
