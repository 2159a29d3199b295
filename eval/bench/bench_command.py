"""``vidllm bench``: measurements on files that it makes, of this machine, for people to repeat."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from vidllm.cli.options import AsJson, Debug, clean_output, emit, one_of, say
from vidllm.cli.tables import console
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import check, read_shares
from vidllm.errors.paths import input_folder

from .bench_rows import (
    counts_of,
    device_of,
    keeper,
    names_of,
    place_of,
    saver,
    show_rows,
)
from .claims.claim_command import claim
from .methods.methods_command import methods
from .serve_command import serve
from .systems.command import systems

if TYPE_CHECKING:
    pass

Out: TypeAlias = Annotated[Path, typer.Option(help="CSV file to write.", dir_okay=False)]
Runs: TypeAlias = Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")]

app = typer.Typer(help="Measure on files that it makes.", no_args_is_help=True)

app.command()(methods)
app.command()(claim)
app.command()(systems)
app.command()(serve)


@app.callback()
def _group() -> None:
    """Measure on files that it makes."""


@app.command()
def video(
    folder: Annotated[
        Path | None, typer.Option(help="Where the files are made and kept.", file_okay=False)
    ] = None,
    seconds_short: Annotated[int, typer.Option(min=1, help="Length of the short file.")] = 60,
    seconds_long: Annotated[int, typer.Option(min=1, help="Length of the long file.")] = 3600,
    frames: Annotated[int, typer.Option(min=1, help="Frames read from each file.")] = 32,
    runs: Runs = 5,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare PyAV, decord and OpenCV on a short and a long file of the same kind."""
    from .video_reading import bench_video, render_table

    with clean_output(json):
        result = bench_video(
            folder,
            seconds_short=seconds_short,
            seconds_long=seconds_long,
            frames=frames,
            runs=runs,
        )
        if json:
            emit(result)
        else:
            console(80).print(render_table(result))


@app.command()
def compressors(
    methods: Annotated[
        str, typer.Option("--methods", help="Names or patterns, comma separated; all by default.")
    ] = "",
    frames: Annotated[str, typer.Option(help="Lengths of the clips.")] = "32,128",
    side: Annotated[int, typer.Option(min=1, help="Tokens along one side of a frame.")] = 14,
    width: Annotated[int, typer.Option(min=1, help="Width of a token.")] = 3584,
    runs: Runs = 3,
    out: Out = Path("eval/results/compressors-cost.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time every compressor at real sizes, beside the prefill that it saves."""
    from .compressor_cost import bench_compressors, compressor_table

    with clean_output(json):
        rows = bench_compressors(
            names_of(methods),
            frames=counts_of("--frames", frames),
            side=side,
            width=width,
            runs=runs,
            save=saver(out),
        )
        show_rows(rows, compressor_table, out, json)


@app.command()
def encoders(
    names: Annotated[
        str, typer.Option("--encoders", help="Encoders or rivals, comma separated; all by default.")
    ] = "",
    lengths: Annotated[
        str, typer.Option(help="Lengths of the sequences in tokens.")
    ] = "512,1024,2048,4096,8192,16384,32768",
    dims: Annotated[str, typer.Option(help="Widths of a token.")] = "256,1024",
    ways: Annotated[str, typer.Option(help="Directions that a layer reads.")] = "1,2",
    runs: Runs = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    out: Out = Path("eval/results/encoders-cost.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time one layer of every temporal encoder beside Mamba without kernels and attention."""
    from .encoder_cost import bench_encoders, encoder_table

    with clean_output(json):
        import torch

        where = device_of(device)
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"--dtype must be float32 or bfloat16, not {dtype!r}")
        rows = bench_encoders(
            names_of(names),
            lengths=counts_of("--lengths", lengths),
            dims=counts_of("--dims", dims),
            ways=counts_of("--ways", ways),
            runs=runs,
            device=where,
            dtype=getattr(torch, dtype),
            save=saver(out),
        )
        show_rows(rows, encoder_table, out, json)


@app.command()
def learning(
    names: Annotated[
        str, typer.Option("--encoders", help="Temporal encoders, comma separated; all by default.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every training.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every encoder.")] = 3,
    out: Out = Path("eval/results/encoders-learning.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train every temporal encoder to remember what happened, in what order and for how long."""
    from .encoder_learning import bench_learning, learning_table

    with clean_output(json):
        rows = bench_learning(names_of(names), steps=steps, seeds=seeds, save=saver(out))
        show_rows(rows, learning_table, out, json)


@app.command()
def recognition(
    names: Annotated[
        str,
        typer.Option(
            "--encoder", "--encoders", help="Vision encoders, comma separated; all by default."
        ),
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every training.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every encoder.")] = 3,
    tested: Annotated[int, typer.Option(min=1, help="Clips of the test, tens.")] = 400,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "cpu",
    out: Out = Path("eval/results/encoders-recognition.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train vision encoders to tell actions that differ only in the order of their pictures."""
    from .recognition_runs import bench_recognition, recognition_table

    with clean_output(json):
        rows = bench_recognition(
            names_of(names),
            steps=steps,
            seeds=seeds,
            tested=tested,
            device=device_of(device),
            save=saver(out),
        )
        show_rows(rows, recognition_table, out, json)


@app.command()
def families(
    names: Annotated[
        str, typer.Option("--families", help="Model types, comma separated; all by default.")
    ] = "",
    frames: Annotated[str, typer.Option(help="Frames of the token grid.")] = "32,128",
    keeps: Annotated[str, typer.Option(help="Shares of the video tokens kept.")] = (
        "1,0.5,0.25,0.1,0.05"
    ),
    out: Out = Path("eval/results/families.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Build every served family at its real size without memory, and count what it would do."""
    with clean_output(json):
        from .family_sizes import bench_families, families_table

        rows = bench_families(
            names_of(names),
            frames=counts_of("--frames", frames),
            keeps=read_shares(keeps, "--keeps"),
            save=saver(out),
        )
        show_rows(rows, families_table, out, json)


@app.command()
def models(
    names: Annotated[
        str, typer.Option("--models", help="Published models, comma separated.")
    ] = "qwen2.5-vl-7b,llava-onevision-7b",
    methods: Annotated[
        str, typer.Option("--methods", help="Names or patterns; all without training by default.")
    ] = "",
    frames: Annotated[str, typer.Option(help="Lengths of the clips.")] = "32,128",
    keeps: Annotated[str, typer.Option(help="Shares of the video tokens kept.")] = (
        "1,0.5,0.25,0.1,0.05"
    ),
    scale: Annotated[
        float | None,
        typer.Option(help="Of width, depth, vocabulary and frames; 1 on a GPU, else 0.1."),
    ] = None,
    runs: Runs = 3,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16; auto is bfloat16 on a GPU.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write; eval/results/models-DEVICE.csv.", dir_okay=False),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure prefill, TTFT, decoding and memory at real sizes, beside the FLOPs predicted."""
    with clean_output(json):
        import torch

        from .model_cost import bench_models, device_name, models_table

        where = device_of(device)
        one_of("--dtype", dtype, ("auto", "float32", "bfloat16"))
        half = dtype == "bfloat16" or (dtype == "auto" and where == "cuda")
        if out is None:
            words = re.findall(r"[a-z0-9]+", device_name(where).lower())
            out = Path("eval/results") / f"models-{'-'.join(words)}.csv"
        rows = bench_models(
            names_of(names),
            names_of(methods),
            frames=counts_of("--frames", frames),
            keeps=read_shares(keeps, "--keeps"),
            scale=(1.0 if where == "cuda" else 0.1) if scale is None else scale,
            runs=runs,
            new_tokens=new_tokens,
            device=where,
            dtype=torch.bfloat16 if half else torch.float32,
            save=saver(out),
        )
        show_rows(rows, models_table, out, json)


@app.command()
def long(
    parts: Annotated[
        str, typer.Option(help="What to measure, comma separated.")
    ] = "speed,memory,static,hits,frames,library",
    clips: Annotated[int, typer.Option(min=1, help="Clips of stage in each part.")] = 30,
    folder: Annotated[
        Path | None, typer.Option(help="Where files are made and kept.", file_okay=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of stage.")] = 1,
    out: Out = Path("eval/results/long.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Index long videos and ask them: speed, memory, reuse, hits by length and depth."""
    from .long_videos import bench_long, long_table

    with clean_output(json):
        rows, keep = keeper(out, "{part} · {case} · {measure}: {value:g}")
        bench_long(names_of(parts), place_of(folder, "bench"), keep, clips=clips, seed=seed)
        show_rows(rows, long_table, out, json)


@app.command()
def retrieval(
    folder: Annotated[
        Path | None, typer.Option(help="Of the trainings, which go on there.", file_okay=False)
    ] = None,
    size: Annotated[str, typer.Option(help="small or tiny.")] = "small",
    start_steps: Annotated[
        int, typer.Option(min=0, help="Steps of the dual encoder that all arms begin with.")
    ] = 3000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of every arm.")] = 1500,
    batch: Annotated[int, typer.Option(min=1, help="Scenes in a batch, each with a variant.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every arm.")] = 3,
    clips: Annotated[int, typer.Option(min=2, help="Clips of the gallery.")] = 1000,
    version: Annotated[int, typer.Option(help="Version of the made world.")] = 1,
    keep: Annotated[
        float | None, typer.Option(help="Share of the patches kept; the recipe's if absent.")
    ] = None,
    init: Annotated[str, typer.Option(help="Folder of a dual encoder to begin with.")] = "",
    minutes: Annotated[float, typer.Option(min=0, help="Of a training at most; 0 is none.")] = 0.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw scenes.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    out: Out = Path("eval/results/retrieval.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Test TempMe's claim: retrieval with and without merging in the tower, and its ablations."""
    from .claims.retrieval_claim import verdict
    from .retrieval_arms import bench_retrieval, retrieval_table

    with clean_output(json):
        if keep is not None:
            check("keep", keep, "--keep")
        if init:
            input_folder(init, "--init")
        rows = bench_retrieval(
            place_of(folder, "bench-retrieval"),
            size=size,
            start_steps=start_steps,
            steps=steps,
            batch=batch,
            seeds=seeds,
            clips=clips,
            version=version,
            keep=keep,
            init=init,
            device=device_of(device),
            workers=workers,
            minutes=minutes,
            save=saver(out),
        )
        if json:
            emit({"rows": rows, "verdict": verdict(rows), "csv": str(out)})
        else:
            show_rows(rows, retrieval_table, out, json)


@app.command()
def kills(
    targets: Annotated[
        str, typer.Option(help="What is killed, comma separated.")
    ] = "eval,index,train",
    number: Annotated[
        int, typer.Option("--kills", min=1, help="How often each target is killed.")
    ] = 20,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where runs are made; those that fail stay.", file_okay=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the moments and signals.")] = 0,
    out: Out = Path("docs/results/kills.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Kill eval, index and train at random moments; they must end as if nothing had been."""
    from .kills import bench_kills, counts, kills_table

    with clean_output(json):
        where = place_of(folder, "bench-kills")
        rows, keep = keeper(out, "{target} · run {run} · {signal}: {outcome}")
        bench_kills(names_of(targets), where, kills=number, seed=seed, keep=keep)
        if json:
            emit({"rows": rows, "counts": counts(rows), "csv": str(out)})
        else:
            show_rows(rows, kills_table, out, json)
        if failed := [row for row in rows if row["outcome"] in ("failed", "other bytes")]:
            first = failed[0]
            raise WorkError(
                f"{len(failed)} starts did not end as they should, the first in {first['kept']}: "
                f"{first['said']}"
            )


@app.command()
def fuzz(
    targets: Annotated[
        str, typer.Option(help="What is damaged, comma separated.")
    ] = "media,indexes,runs,weights,bombs",
    number: Annotated[
        int, typer.Option(min=1, help="Cases of each target; of media ten times as many.")
    ] = 300,
    first: Annotated[int, typer.Option(min=0, help="Number of the first case.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the damage.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the work is done; files of what fails stay.", file_okay=False),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="CSV file to write: counts of outcomes.", dir_okay=False)
    ] = Path("docs/results/fuzz.csv"),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Damage media, indexes, runs and weights; all must be read rightly or refused in one line."""
    from .fuzz.campaign import bench_fuzz, counts, fuzz_table
    from .fuzz.outcomes import FAULTS

    with clean_output(json):
        where = place_of(folder, "bench-fuzz")
        save, done = saver(out), 0

        def keep(row: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            if row["outcome"] in FAULTS:
                name = f"{row['target']} {row['number']}, {row['mutation']}"
                say(f"{name}: {row['outcome']}: {row['said']}")
            elif done % 500 == 0:
                say(f"{done} cases")

        rows = bench_fuzz(
            names_of(targets), where, number=number, first=first, seed=seed, keep=keep
        )
        save(counts(rows))
        if json:
            faults = [row for row in rows if row["outcome"] in FAULTS]
            emit({"counts": counts(rows), "faults": faults, "csv": str(out)})
        else:
            show_rows(rows, fuzz_table, out, json)
        if failed := [row for row in rows if row["outcome"] in FAULTS]:
            first_one = failed[0]
            raise WorkError(
                f"{len(failed)} of {len(rows)} cases are faults, the first in "
                f"{first_one['kept']}: {first_one['said']}"
            )


@app.command()
def footage(
    clips: Annotated[int, typer.Option(min=1, help="Of every version, split and treatment.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Of stage.")] = 9,
    model: Annotated[str | None, typer.Option(help="As for ask.")] = None,
    other: Annotated[
        Path | None,
        typer.Option(help="More footage, a sub-folder a kind.", file_okay=False),
    ] = None,
    out: Out = Path("eval/results/footage.csv"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Count how often known footage is refused, and how often other footage is not."""
    from .footage_runs import bench_footage, footage_table

    with clean_output(json):
        from vidllm.ask.video_llm import VideoLLM

        llm = VideoLLM.from_pretrained(model)
        rows = bench_footage(llm, clips=clips, seed=seed, other=other, jobs=jobs, save=saver(out))
        show_rows(rows, footage_table, out, json)
