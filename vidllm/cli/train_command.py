"""`vidllm train`: the project's own model from nothing, a recipe, or adapters of a hub model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.errors.paths import input_folder, output_file, output_folder
from vidllm.errors.registry import did_you_mean
from vidllm.models.model_options import AdapterFolder, DeviceMap, Revision

from .options import AsJson, Debug, clean_output, emit, say

app = typer.Typer(add_completion=False)


@app.command()
def train(
    ctx: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="stage, footage, hub, or a recipe: see below.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder of the result.")],
    size: Annotated[
        str, typer.Option(help="small (as shipped) or tiny (for trying out).")
    ] = "small",
    vision: Annotated[
        str,
        typer.Option(help="Vision tower: vit, or conv as in the first model; for a recipe any."),
    ] = "vit",
    temporal: Annotated[
        str,
        typer.Option(help="Temporal encoder: ssd or identity; for a recipe any that is listed."),
    ] = "ssd",
    reduction: Annotated[
        bool, typer.Option(help="Train under a mixture of token reductions.")
    ] = True,
    steps_see: Annotated[int, typer.Option(min=0, help="Steps of the vision tower.")] = 1500,
    steps_mix: Annotated[int, typer.Option(min=0, help="Steps of the temporal encoders.")] = 600,
    steps_answer: Annotated[int, typer.Option(min=0, help="Steps of the whole model.")] = 4080,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a recipe; its own if absent.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips in a batch.")] = 8,
    clips: Annotated[
        int, typer.Option(min=1, help="Clips whose cells are kept on disk, 0.4 MB each.")
    ] = 8000,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 8e-4,
    half_clips: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the steps with every other frame only."),
    ] = None,
    init: Annotated[
        str, typer.Option(help="Model to start from; of a recipe the shipped one if absent.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="hub: the model that is fine-tuned; folder or hub name.")
    ] = "",
    revision: Revision = None,
    adapter: AdapterFolder = None,
    device_map: DeviceMap = None,
    time_code: Annotated[
        str | None, typer.Option(help="How a recipe tells time: relative, absolute or text.")
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(metavar="SPEC@WEIGHT;…", help="Reductions that a recipe meets in training."),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Of a recipe: stage, or a folder of videos with annotations.")
    ] = "stage",
    task: Annotated[
        str | None,
        typer.Option(help="With --data DIR: the task whose format its files have."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="With --data DIR: which of its splits.")] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=0, help="Rank of a recipe's adapters, or of hub's; 0 for none."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="What one course alone takes."),
    ] = None,
    cells: Annotated[
        str, typer.Option(help="File of cells to use or make; a folder for several.")
    ] = "",
    minutes: Annotated[float, typer.Option(min=0, help="Stop and save after; 0 is never.")] = 0.0,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between two saves; a killed run loses what is newer.")
    ] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 for all.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compressor: Annotated[str, typer.Option(help="Default compressor of the result.")] = "mrt5",
    keep: Annotated[float, typer.Option(help="Default share of tokens kept.")] = 0.125,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    layers: Annotated[
        str, typer.Option(help="footage: layers of the vision tower, comma separated.")
    ] = "",
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train a model from nothing, in stages; a stopped run goes on with --resume.

    A recipe of `vidllm list recipes` is trained from the shipped model or from --init, as it says
    (docs/recipes.md); options that are named change it.

    RECIPE hub fine-tunes the Hugging Face model --model on videos of your own with fewer tokens:
    a LoRA, a temporal encoder, learned reducers, new ones or those of --adapter
    (docs/finetune.md).

    RECIPE footage measures for the model in --out what its world looks like, so that footage of
    other kinds is noticed (docs/footage.md).
    """
    if recipe != "hub":
        _refuse(ctx, HUB_ONLY, "is for hub: footage measures --out, a recipe starts from --init")
    if recipe == "footage":
        _footage(out, seed, layers, json)
        return
    if layers:
        raise InputError("--layers is for the recipe footage")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, not '{device}'")
    if recipe == "hub":
        _hub(ctx, own or [], json)
        return
    if recipe != "stage":
        _recipe(recipe, ctx, own or [], json)
        return
    _refuse(ctx, RECIPE_ONLY, "is for recipes: vidllm list recipes")
    output_folder(out, "--out")
    if init:
        input_folder(init, "--init")
    if cells:
        output_file(cells, "--cells")
    with clean_output(json):
        from vidllm.compressors import build
        from vidllm.stage.training.loop import train as run
        from vidllm.stage.training.run_folder import steps_of
        from vidllm.stage.training.settings import TrainSettings

        build(compressor, keep=keep)
        names = {item.name for item in fields(TrainSettings)}
        given = {name: value for name, value in ctx.params.items() if name in names}
        folder = run(TrainSettings(**given, reduce=reduction, compressors=compressor))
        _told(folder, *steps_of(folder), json)


#: Options of hub alone: the model, and how it is loaded.
HUB_ONLY = ("model", "revision", "adapter", "device_map")
#: Options that hub does not take.
NOT_HUB = ("size", "vision", "reduction", "steps_see", "steps_mix", "steps_answer", "clips",
           "half_clips", "init", "time_code", "mixture", "cells")  # fmt: skip
#: Options of the stage training alone, and of recipes alone.
STAGE_ONLY = ("reduction", "steps_see", "steps_mix", "steps_answer", "half_clips")
RECIPE_ONLY = ("steps", "time_code", "mixture", "data", "task", "split", "lora", "own")
#: Options of which a recipe has its own value.
OF_RECIPE = ("vision", "temporal", "frames", "compressor", "keep", "batch", "clips", "lr",
             "save_every")  # fmt: skip


def _recipe(name: str, ctx: typer.Context, own: list[str], json: bool) -> None:
    """Train a recipe by its course."""
    from vidllm.recipes import get_recipe, list_recipes
    from vidllm.recipes.courses import CourseSettings, find_course

    known = [recipe.name for recipe in list_recipes()]
    if name not in known:
        hint = did_you_mean(name, ["stage", "footage", "hub", *known], n=3)
        raise InputError(f"no training recipe '{name}': {hint}")
    recipe, given = get_recipe(name), ctx.params
    course = find_course(recipe)
    _refuse(ctx, STAGE_ONLY, "is for the training of stage, not of a recipe")
    output_folder(given["out"], "--out")
    named = ("out", "size", "init", "time_code", "mixture", "data", "task", "lora", "steps",
             "minutes", "resume", "seed", "workers", "threads", "device")  # fmt: skip
    told = {key: given[key] for key in named}
    told |= {key: given[key] for key in OF_RECIPE if _said(ctx, key)}
    more = _own(given, own)
    with clean_output(json):
        from vidllm.stage.training.run_folder import steps_of

        folder = course.train(recipe, CourseSettings(**told, more=more, quiet=json))
        _told(folder, *steps_of(folder), json)


def _hub(ctx: typer.Context, own: list[str], json: bool) -> None:
    """Fine-tune a hub model by adapters."""
    from vidllm.recipes.courses import CourseSettings

    given = ctx.params
    _refuse(ctx, NOT_HUB, "is not for hub: see docs/finetune.md")
    output_folder(given["out"], "--out")
    named = ("out", "data", "task", "lora", "steps", "minutes", "resume", "seed", "workers",
             "threads", "device")  # fmt: skip
    told = {key: given[key] for key in named}
    told |= {key: given[key] for key in OF_RECIPE if _said(ctx, key)}
    more = _own(given, own)
    more |= {key: given[key] for key in HUB_ONLY if key != "model" and given[key] is not None}
    with clean_output(json):
        from vidllm.recipes.courses.hub import train as run
        from vidllm.stage.training.run_folder import steps_of

        folder = run(CourseSettings(**told, init=given["model"], more=more, quiet=json))
        _told(folder, *steps_of(folder), json)


def _own(given: Mapping[str, Any], own: list[str]) -> dict[str, Any]:
    """What one course alone takes."""
    more = {key: given[key] for key in ("cells", "split") if given[key]}
    for option in own:
        key, equals, value = option.partition("=")
        if not equals or not key or not value:
            raise InputError(f"--option must be NAME=VALUE, not {option!r}")
        more[key.strip()] = value.strip()
    return more


def _said(ctx: typer.Context, key: str) -> bool:
    """Whether a user gave this option."""
    return str(getattr(ctx.get_parameter_source(key), "name", "")) == "COMMANDLINE"


def _refuse(ctx: typer.Context, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        if _said(ctx, key):
            shown = "option" if key == "own" else key.replace("_", "-")
            raise InputError(f"--{shown} {why}")


def _told(folder: Path, step: int, steps: int, json: bool) -> None:
    if json:
        emit({"out": str(folder), "step": step, "steps": steps})
    if step < steps:
        say(f"step {step} of {steps} saved in {folder}: go on with --resume")
    else:
        say(f"saved in {folder}")


def _footage(out: str, seed: int, layers: str, json: bool) -> None:
    with clean_output(json):
        from vidllm.models.shipped import manifest, weights_dir, write_manifest
        from vidllm.stage.training.calibration import calibrate_folder

        names = [name.strip() for name in layers.split(",") if name.strip()]
        known = calibrate_folder(Path(out), seed=seed, layers=names)
        if Path(out).resolve().parent == weights_dir().resolve():  # its checksums are kept there
            shipped = manifest()
            write_manifest(str(shipped["default"]), str(shipped["sample"]))
        if json:
            emit({"out": out, "threshold": known.card.threshold, "made": known.card.made})
        say(f"saved in {out}")
