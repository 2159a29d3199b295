"""`vidllm train`: the project's own model from nothing, or a recipe."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from vidllm.errors import InputError
from vidllm.errors.paths import input_folder, output_file, output_folder

from .options import AsJson, Debug, clean_output, emit, say

app = typer.Typer(add_completion=False)


@app.command()
def train(
    ctx: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="stage, footage, or a recipe: see below.")
    ],
    out: Annotated[str, typer.Option("--out", help="Folder of the result.")],
    size: Annotated[
        str, typer.Option(help="small (as shipped) or tiny (for trying out).")
    ] = "small",
    vision: Annotated[
        str, typer.Option(help="Vision tower: vit, or conv as in the first model.")
    ] = "vit",
    temporal: Annotated[str, typer.Option(help="Temporal encoder: ssd or identity.")] = "ssd",
    reduction: Annotated[
        bool, typer.Option(help="Train under a mixture of token reductions.")
    ] = True,
    steps_see: Annotated[int, typer.Option(min=0, help="Steps of the vision tower.")] = 3000,
    steps_mix: Annotated[int, typer.Option(min=0, help="Steps of the temporal encoders.")] = 1000,
    steps_answer: Annotated[int, typer.Option(min=0, help="Steps of the whole model.")] = 9000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a recipe; its own if absent.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips in a batch.")] = 8,
    clips: Annotated[
        int, typer.Option(min=1, help="Clips whose cells are kept on disk, 0.4 MB each.")
    ] = 20000,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 8e-4,
    init: Annotated[str, typer.Option(help="Folder of a model to start from.")] = "",
    cells: Annotated[str, typer.Option(help="File of cells to use or make.")] = "",
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

    A RECIPE of `vidllm list recipes` that has a course is trained as it says.

    RECIPE footage measures for the model in --out what its world looks like, so that footage of
    other kinds is noticed (docs/footage.md).
    """
    if recipe == "footage":
        _footage(out, seed, layers, json)
        return
    if recipe != "stage":
        _course(recipe, ctx, json)
        return
    if layers:
        raise InputError("--layers is for the recipe footage")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, not '{device}'")
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
        step, steps = steps_of(folder)
        if json:
            emit({"out": str(folder), "step": step, "steps": steps})
        if step < steps:
            say(f"step {step} of {steps} saved in {folder}: go on with --resume")
        else:
            say(f"saved in {folder}")


def _course(name: str, ctx: typer.Context, json: bool) -> None:
    """Train a recipe by its course."""
    from vidllm.recipes import get_recipe
    from vidllm.recipes.courses import CourseSettings, find_course

    recipe, given = get_recipe(name), ctx.params
    output_folder(given["out"], "--out")
    named = ("out", "size", "init", "steps", "minutes", "save_every", "resume", "seed", "threads",
             "device")  # fmt: skip
    told = {key: given[key] for key in named}
    more = {}
    for key, value in given.items():
        if not str(ctx.get_parameter_source(key)).endswith("COMMANDLINE"):
            continue  # the course's own, where nobody says
        if key in ("batch", "clips", "lr"):
            more[key] = value  # by name, for it may be what other courses have anyway
        elif key not in (*named, "recipe", "json", "debug"):
            raise InputError(f"--{key.replace('_', '-')} is for vidllm train stage: leave it out")
    with clean_output(json):
        from vidllm.stage.training.run_folder import steps_of

        folder = find_course(recipe).train(recipe, CourseSettings(**told, more=more, quiet=json))
        step, steps = steps_of(folder)
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
