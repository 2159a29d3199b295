"""``vidllm bench claim``: what a recipe's paper claims, on the made world, with its ablations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vidllm.cli.options import AsJson, Debug, clean_output, emit, say
from vidllm.cli.tables import console
from vidllm.errors import InputError
from vidllm.errors.paths import output_file
from vidllm.errors.writing import csv_text


def claim(
    recipe: Annotated[str, typer.Argument(help="nasva, tem-adapter, dist or squeezetime.")],
    arms: Annotated[
        str, typer.Option("--arms", help="Only these, comma separated; all by default.")
    ] = "",
    size: Annotated[str, typer.Option(help="small, or tiny for trying out.")] = "small",
    init: Annotated[str, typer.Option(help="Frozen model; the shipped one if absent.")] = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every training; its own if absent.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Of every training; its own if absent.")
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="Training clips; its own if absent.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every arm.")] = 3,
    tested: Annotated[int, typer.Option(min=1, help="Clips of the test.")] = 100,
    long: Annotated[
        int, typer.Option(min=0, help="nasva: clips of the split long, to choose frames of.")
    ] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where frozen features are kept.", file_okay=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write; rows of other arms stay in it.", dir_okay=False),
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure what a recipe's paper claims, on the made world, with its ablations."""
    from .alignment_claim import measure_alignment
    from .choice_claim import measure_choice
    from .claim_rows import ClaimSettings, claim_table
    from .recognition_claim import measure_recognition

    claims: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "nasva": measure_alignment,
        "tem-adapter": measure_choice,
        "dist": partial(measure_recognition, "dist"),
        "squeezetime": partial(measure_recognition, "squeezetime"),
    }
    if recipe not in claims:
        raise InputError(f"no claim of {recipe!r} is measured here: {', '.join(claims)}")
    place = out or Path(f"eval/results/claim-{recipe}.csv")
    output_file(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with clean_output(json), tempfile.TemporaryDirectory(prefix="vidllm-") as temporary:
        home = Path(temporary) if folder is None else folder
        home.mkdir(parents=True, exist_ok=True)
        settings = ClaimSettings(
            home, size, init, steps or 0, batch or 0, clips or 0, seeds, tested, long,
            _place(device), tuple(part.strip() for part in arms.split(",") if part.strip()), place,
        )  # fmt: skip

        def save(rows: list[dict[str, Any]]) -> None:
            place.write_text(csv_text(rows), encoding="utf-8", newline="\n")

        rows = claims[recipe](settings, save)
        if json:
            emit({"rows": rows, "csv": str(place)})
        else:
            console(180).print(claim_table(rows))
            say(f"written to {place}")


def _place(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; use --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
