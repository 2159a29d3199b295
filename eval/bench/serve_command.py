"""``vidllm bench serve``: throughput and latency of vLLM with less and less of every video."""

from __future__ import annotations

from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from vidllm.cli.options import AsJson, Debug, clean_output, emit, say
from vidllm.cli.tables import console
from vidllm.errors import InputError
from vidllm.errors.bounds import read_shares
from vidllm.errors.paths import output_file
from vidllm.errors.writing import csv_text


def serve(
    model: Annotated[str, typer.Option(help="Folder or hub name, of a family that is served.")],
    method: Annotated[str, typer.Option(help="Of ours, for every video.")] = "aim",
    rivals: Annotated[str, typer.Option(help="Methods of vLLM's own beside it: evs,vidcom2.")] = "",
    keeps: Annotated[str, typer.Option(help="Shares of the video tokens kept.")] = "1,0.5,0.25,0.1",
    frames: Annotated[int, typer.Option(min=2, help="Of every video.")] = 32,
    side: Annotated[int, typer.Option(min=28, help="Of a frame, in pixels.")] = 224,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 32,
    requests: Annotated[int, typer.Option(min=1, help="Of every row.")] = 32,
    concurrency: Annotated[str, typer.Option(help="Requests under way at once.")] = "1,4,16",
    out: Annotated[Path, typer.Option(help="CSV file to write.", dir_okay=False)] = Path(
        "eval/results/serving.csv"
    ),
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure vLLM with our methods: requests a second, TTFT, TPOT and KV blocks by share."""
    if find_spec("vllm") is None:
        raise InputError("bench serve needs vllm: pip install 'vidllm[vllm]' (docs/serving.md)")
    from vidllm.models.shipped import find_model

    from .serving_speed import Load, bench_serving, circumstances, serving_table

    names = [part.strip() for part in concurrency.split(",") if part.strip()]
    if not names or not all(part.isdecimal() and 0 < len(part) < 5 for part in names):
        raise InputError(f"--concurrency is a list of counts such as 1,4,16, not {concurrency!r}")
    load = Load(frames, side, answer, requests, [max(1, int(part)) for part in names])
    output_file(out)

    def save(rows: list[dict[str, Any]]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        head = f"# {dumps(circumstances(load))}\n"
        out.write_text(head + csv_text(rows), encoding="utf-8", newline="\n")

    with clean_output(json):
        others = [part.strip() for part in rivals.split(",") if part.strip()]
        shares = read_shares(keeps, "--keeps")
        rows = bench_serving(find_model(model), method, others, shares, load, save, say)
        if json:
            emit({"rows": rows, "csv": str(out)})
        else:
            console(140).print(serving_table(rows))
            say(f"written to {out}")
