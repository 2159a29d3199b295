"""TempMe's claim on the made world: is retrieval kept at half the tower's FLOPs, 95 % fewer tokens?

One dual encoder is trained on frames and what happens in them; every arm begins with it and trains
adapters on clips for equally many steps: without merging, merging inside frames alone, inside
joined rows alone, across joined clips alone, and all of TempMe (arXiv 2409.01156, its ablations).
Beside them stand the start itself and merging without any training. All are measured on one
gallery of clips with variants that differ in one thing, rendered in memory.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from vidllm.cli.options import say
from vidllm.cli.tables import three_digits
from vidllm.compressors import Compressor, build
from vidllm.errors import InputError
from vidllm.models.cost.flops import counted
from vidllm.models.retrieval.retriever import Retriever
from vidllm.recipes import Recipe, get_recipe
from vidllm.recipes.courses import CourseSettings, find_course
from vidllm.recipes.courses.retrieval import plan_of
from vidllm.stage.annotations import video_id
from vidllm.stage.gallery import gallery_scenes
from vidllm.stage.render import render_tracks, to_uint8
from vidllm.stage.scenes import USUAL, Scene
from vidllm.stage.tracks import tracks
from vidllm.stage.training.data import sample_seconds
from vidllm.stage.training.run_folder import STAMP
from vidllm.stage.variants import caption_of, sentences_of
from vidllm.video import VideoClip

from ..run.vectors import write_vector
from ..scores.statistics import bootstrap, paired_bootstrap
from ..tasks.base import Item, Response
from ..tasks.stage_retrieval import StageRetrieval
from .claims.retrieval_claim import verdict

Row = dict[str, Any]
#: Of a training's stamp what a folder must share with the arguments, to go on there.
_BUDGET = ("size", "batch", "start_steps", "steps", "keep", "init")


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: of it. spec: what merges in the tower; "" for nothing. trained: whether adapters are.
    """

    name: str
    spec: str
    trained: bool = True

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


def arms_of(spec: str) -> tuple[Arm, ...]:
    """The arms around a recipe's compressor."""
    return (
        Arm("start", "", trained=False),
        Arm("start merging", spec, trained=False),
        Arm("lora", ""),
        Arm("lora frames", "tome"),
        Arm("lora intra-clip", f"{spec}:across=0"),
        Arm("lora cross-clip", f"{spec}:across=1"),
        Arm("lora both", spec),
    )


@dataclass(frozen=True)
class Gallery:
    """Clips with their captions, and the items of the task that scores them."""

    clips: list[VideoClip]
    captions: list[str]
    items: list[Item]


def bench_retrieval(
    folder: Path,
    *,
    size: str = "small",
    start_steps: int = 3000,
    steps: int = 1500,
    batch: int = 16,
    seeds: int = 1,
    clips: int = 1000,
    version: int = USUAL,
    keep: float | None = None,
    init: str = "",
    device: str = "auto",
    workers: int = 1,
    minutes: float = 0.0,
    save: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Train and measure all arms; a folder that holds some of them goes on where it stopped.

    Args:
        folder: of the trainings, a sub-folder a seed. size, start_steps, steps, batch: of them,
            see the course.
        seeds: trainings of every arm. clips: of the gallery. version: of the made world.
        keep: share of the patches; the recipe's if None. init: a start that is there already.
        minutes: of every training at most, 0 for none.
        save: called with the rows so far.

    Raises:
        InputError: the folder holds trainings of another budget.
    """
    recipe = get_recipe("tempme")
    share = keep if keep is not None else float(recipe.keep or 1.0)
    course = find_course(recipe)
    rows: list[Row] = []

    def start_of(seed: int) -> Path:
        return Path(init) if init else folder / f"seed-{seed}" / "start"

    def settings_of(seed: int, arm: Arm | None = None) -> CourseSettings:
        """Of an arm, or of the start that all begin with."""
        usual = CourseSettings(
            out=str(folder / f"seed-{seed}" / ("start" if arm is None else arm.folder)), size=size,
            batch=batch, seed=seed, device=device, workers=workers, quiet=True, minutes=minutes,
            save_every=200, log_every=50,
        )  # fmt: skip
        if arm is None:
            more = {"start_steps": start_steps}
            return replace(usual, steps=0, more=more, compressor="none")
        spec, begun = arm.spec or "none", str(start_of(seed))
        return replace(usual, steps=steps, init=begun, compressor=spec, keep=share)

    def trained(settings: CourseSettings) -> Path:
        out = Path(settings.out)
        if _is_done(recipe, settings, folder):
            return out
        there = (out / "checkpoint.safetensors").exists()
        return course.train(recipe, replace(settings, resume=there))

    for seed in range(seeds):  # a folder of another budget is refused before anything is trained
        for each in (None, *(arm for arm in arms_of(recipe.compressors) if arm.trained)):
            if each is not None or not init:
                _is_done(recipe, settings_of(seed, each), folder)
    for seed in range(seeds):
        start = start_of(seed)
        if not init:
            say(f"seed {seed}: the start")
            trained(settings_of(seed))
        gallery, values = None, dict[str, dict[str, float]]()
        for arm in arms_of(recipe.compressors):
            say(f"seed {seed}: {arm.name}")
            model = trained(settings_of(seed, arm)) if arm.trained else start
            retriever = Retriever.from_pretrained(
                str(model), device=None if device == "auto" else device
            )
            if gallery is None:
                gallery = gallery_of("test", 1, clips, version, retriever.usual_frames)
            method = build(arm.spec, keep=share) if arm.spec else build("none")
            row, values[arm.name] = measure(retriever, gallery, method, seed)
            told = _stamp(model)
            if arm.name not in ("start", "start merging", "lora"):
                row |= _versus(values["lora"], values[arm.name], gallery, seed)
            rows.append(
                {"seed": seed, "arm": arm.name, "merging": arm.spec or "none", **row,
                 "size": size, "steps": told.get("step", 0), "of": told.get("steps", 0),
                 "batch": batch, "clips": len(gallery.clips), "version": version,
                 "device": str(retriever.model.device)}
            )  # fmt: skip
            save(_relative(rows))
    return _relative(rows)


def gallery_of(split: str, seed: int, count: int, version: int, frames: int) -> Gallery:
    """Clips of `write_gallery`, rendered in memory at the seconds that a file would give."""
    task, found = StageRetrieval(version=version), Gallery([], [], [])
    for scene in gallery_scenes(split, seed, count, version):
        vid, text = video_id(scene), caption_of(sentences_of(scene))
        found.clips.append(_clip(scene, frames))
        found.captions.append(text)
        base = video_id(replace(scene, variant=""))
        groups = {"scene": base, "differs": scene.variant or "nothing"}
        found.items.extend(task.pair(vid, [text], groups=groups))
    return found


def _clip(scene: Scene, frames: int) -> VideoClip:
    seconds = sample_seconds(scene, frames)
    grain = torch.Generator().manual_seed(int(scene.rng(3).integers(2**62)))
    pixels = to_uint8(render_tracks(tracks(scene, seconds), generator=grain)).numpy()
    indices = np.round(seconds * scene.fps).astype(np.int64)
    return VideoClip(pixels, seconds, scene.fps, scene.duration, indices, video_id(scene))


def measure(
    retriever: Retriever, gallery: Gallery, method: Compressor, seed: int
) -> tuple[Row, dict[str, float]]:
    """Scores and costs of a dual encoder on a gallery, and whether each caption found its clip."""
    responses, seconds, left = [], [], 0
    first = gallery.clips[0]
    retriever.embed_video(first, method)  # what only the first call pays shows in no seconds
    flops = counted(lambda: retriever.embed_video(first, method))
    for clip, text in zip(gallery.clips, gallery.captions, strict=True):
        found = retriever.embed_video(clip, method)
        seconds.append(found.receipt.seconds["encode"])
        left = found.receipt.tokens_kept
        for vector in (retriever.embed_text(text), found.vector):
            responses.append(Response(raw=write_vector(vector)))
    task = StageRetrieval()
    scores = task.scores(gallery.items, responses)
    samples = task.samples(gallery.items, responses)
    sure = bootstrap([v for _, v in samples], [c for c, _ in samples], seed=seed)
    tower, frames = retriever.tower, len(first)
    whole = frames * tower.side**2
    row = {
        "tokens": left,
        "tokens_share": (left + frames * tower.special) / (whole + frames * tower.special),
        "gflops": flops / 1e9,
        "ms": 1e3 * statistics.median(seconds),
        "low": sure.low,
        "high": sure.high,
        **scores,
    }
    row["R-Sum"] = sum(float(scores[f"R@{k}"] or 0.0) for k in (1, 5, 10))
    row["V2T R-Sum"] = sum(float(scores[f"V2T R@{k}"] or 0.0) for k in (1, 5, 10))
    return row, {str(k): value for k, (_, value) in enumerate(samples)}


def _versus(
    plain: dict[str, float], other: dict[str, float], gallery: Gallery, seed: int
) -> dict[str, float | None]:
    """R@1 against that of adapters without merging, drawn by scene."""
    texts = [item for item in gallery.items if item.kind == "text"]
    scenes = {str(k): item.groups["scene"] for k, item in enumerate(texts)}
    found = paired_bootstrap(plain, other, scenes, seed=seed)
    return {
        "to_lora": found.value, "to_lora_low": found.low, "to_lora_high": found.high, "p": found.p
    }  # fmt: skip


def _relative(rows: Sequence[Row]) -> list[Row]:
    """The rows with their FLOPs and time as shares of the start's of their seed."""
    first = {row["seed"]: row for row in rows if row["arm"] == "start"}
    return [
        {
            **row,
            "gflops_share": row["gflops"] / first[row["seed"]]["gflops"],
            "speed_up": first[row["seed"]]["ms"] / row["ms"],
        }
        for row in rows
    ]


def retrieval_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    table = Table(caption=verdict(rows), caption_justify="left")
    table.add_column("arm")
    heads = ("seed", "tokens", "share", "GFLOPs", "of start", "ms a clip", "R@1", "95 %", "R@5",
             "R@10", "MdR", "V2T R@1", "R-Sum", "order", "to lora", "p")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        change = row.get("to_lora")
        table.add_row(
            row["arm"], str(row["seed"]), str(row["tokens"]), f"{row['tokens_share']:.1%}",
            f"{row['gflops']:.3g}", f"{row['gflops_share']:.0%}", f"{row['ms']:.1f}",
            three_digits(row["R@1"]), f"{row['low']:.3f}–{row['high']:.3f}",
            three_digits(row["R@5"]), three_digits(row["R@10"]), f"{row['MdR']:g}",
            three_digits(row["V2T R@1"]), three_digits(row["R-Sum"]),
            three_digits(row.get("apart/order")), "" if change is None else f"{change:+.3f}",
            "" if row.get("p") is None else f"{row['p']:.3f}",
        )  # fmt: skip
    return table


def _stamp(folder: Path) -> dict[str, Any]:
    file = folder / STAMP
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _is_done(recipe: Recipe, settings: CourseSettings, folder: Path) -> bool:
    """Whether a training is over.

    Raises:
        InputError: there is one of another budget; `folder` is that of all.
    """
    told, plan = _stamp(Path(settings.out)), plan_of(recipe, settings)
    wanted = {**asdict(plan), "steps": plan.total, "init": Path(settings.init).name}
    for name in _BUDGET:
        if told and told.get(name) != wanted[name]:
            raise InputError(
                f"{folder} holds trainings of another budget ({name.replace('_', '-')} "
                f"{told.get(name)}, not {wanted[name]}): give another --folder"
            )
    return bool(told) and int(told["step"]) >= plan.total
