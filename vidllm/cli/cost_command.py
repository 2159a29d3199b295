"""``vidllm cost``: FLOPs, KV cache and the limit of any speed-up, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidllm.errors import InputError
from vidllm.errors.bounds import read_shares
from vidllm.models.model_options import DTYPES

from .options import AsJson, Debug, clean_output, emit, hide_bars, one_of, tell
from .tables import console, table

if TYPE_CHECKING:
    from rich.table import Table

    from vidllm.compressors import Compressor
    from vidllm.models.cost.papers import Paper
    from vidllm.models.cost.prediction import Cost
    from vidllm.models.cost.shapes import Shape

app = typer.Typer(help="Predict FLOPs and KV cache, and how much faster a run can get at most.")

_WIDE = 130  # columns of a table where there is no terminal
_MOST_TOKENS = 2**24  # video tokens that are reckoned with
_ASSUMED = (
    "FLOPs of matrix products and convolutions, two a multiplication with its addition, as "
    "torch.utils.flop_counter counts",
    "the compressor's own work is not in them (vidllm bench compressors measures it); of a method "
    "that merges inside the vision tower the tower is counted whole",
    "one question; all weights and tokens in one pass, no batching, no speculation",
)


@dataclass(frozen=True)
class _Row:
    keep: float | None
    method: str
    cost: Cost
    times: dict[str, float] | None


@app.command()
def cost(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Preset such as qwen2.5-vl-7b, shipped name, folder or hub name; the shipped "
            "model, or the recipe's own, if absent.",
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames that the model sees.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Shares of the video tokens kept, such as 1,0.5,0.25.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A named system: vidllm list recipes.")] = None,
    compressor: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="Token reducers, in order."),
    ] = None,
    text: Annotated[int, typer.Option(min=1, help="Tokens of the prompt beside the video.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 128,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels of a side of a frame, for models that take any."),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Of the cache: {', '.join(DTYPES)}.")] = "bfloat16",
    attention: Annotated[
        str, typer.Option(help="full: every pair counts. causal: half of the prompt's pairs.")
    ] = "full",
    seconds: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE=S[,STAGE=S]",
            help="Measured seconds of an uncompressed run, by stage; prefill (or llm) shrinks.",
        ),
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="Reckon a paper's numbers again: aim or storm.")
    ] = None,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predict FLOPs and KV cache, and how much faster a run can get at most."""
    one_of("--dtype", dtype, DTYPES)
    one_of("--attention", attention, ("full", "causal"))
    hide_bars()
    with clean_output(json):
        if paper is not None:
            if any(v is not None for v in (model, frames, keep, recipe, compressor, size, seconds)):
                raise InputError("--paper has its own settings: leave out model, frames and keep")
            _show_paper(paper, json)
            return
        measured = None if seconds is None else _seconds(seconds)
        shares: list[float | None] = [None] if keep is None else [*read_shares(keep)]
        from vidllm.models.cost.prediction import cost_of, even_plan, limit, plan_of, timed
        from vidllm.models.cost.shapes import shape_of

        shape = shape_of(_model(model, recipe), size)
        count = shape.frames if frames is None else frames
        if math.prod(shape.grid(count)) > _MOST_TOKENS:
            raise InputError(
                f"--frames {count} are {math.prod(shape.grid(count))} video tokens, more than "
                f"{_MOST_TOKENS}: fewer frames, or a smaller --size"
            )
        methods = [_method(shape, recipe, compressor, share) for share in shares]
        grid, depth = shape.grid(count), shape.decoder.layers
        settings: dict[str, Any] = {
            "text": text,
            "answer": max_new_tokens,
            "causal": attention == "causal",
            "element_size": 4 if dtype == "float32" else 2,
        }
        plain = even_plan(grid[0] * grid[1] * grid[2], depth)
        full = cost_of(shape, plain, count, **settings)
        rows = []
        for share, method in zip(shares, methods, strict=True):
            found = cost_of(shape, plan_of(method, grid, depth), count, **settings)
            times = None if measured is None else timed(measured, found.prefill / full.prefill)
            rows.append(_Row(share, method.name, found, times))
        most = limit(full, cost_of(shape, even_plan(0, depth), count, **settings))
        notes = [*_ASSUMED, *shape.notes, *_notes(settings, dtype, measured is not None)]
        if keep is not None and recipe is None and compressor is None:
            notes.append("no compressor is named: any that keeps as many tokens costs the same")
        if json:
            emit(
                {
                    "model": shape.name,
                    "kind": shape.kind,
                    "frames": count,
                    "grid": list(grid),
                    **settings,
                    "full": full.as_dict(),
                    "rows": [_plain(row, full) for row in rows],
                    "limit": {
                        "flops": most,
                        "seconds": rows[0].times["limit"] if rows[0].times else None,
                    },
                    "assumptions": notes,
                }
            )
            return
        console(_WIDE).print(_table(shape, count, full, rows))
        tell(f"Limit of the end-to-end speed-up, by FLOPs with no video token left: {most:.2f} ×")
        if rows[0].times:
            tell(f"Limit by the measured seconds, with no prefill: {rows[0].times['limit']:.2f} ×")
        _tell_notes(notes)


def _seconds(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise InputError(
                f"--seconds is a list such as vision=1,prefill=3, not {text!r}"
            ) from None
    from vidllm.models.cost.prediction import timed

    timed(found, 1.0)  # refuses what makes no sense, before a model is looked at
    return found


def _model(model: str | None, recipe: str | None) -> str | None:
    """The model that is named, or else the recipe's own where that ships; None for the default."""
    from vidllm.recipes import get_recipe
    from vidllm.recipes.models import ships

    if model is None and recipe is not None and ships(named := get_recipe(recipe)):
        return named.weights
    return model


def _method(
    shape: Shape, recipe: str | None, compressor: str | None, keep: float | None
) -> Compressor:
    from vidllm.models.loading import choose_compressor
    from vidllm.models.native.config import NativeConfig
    from vidllm.recipes import get_recipe

    if recipe is not None:
        named = get_recipe(recipe)
        if compressor is None:
            mixing = () if shape.temporal is None else named.temporal_names
            named.check_model(shape.name, named.parts(temporal=mixing))
            compressor, keep = named.compressors, named.keep if keep is None else keep
    own = NativeConfig(compressors=shape.own[0], keep=shape.own[1])
    return choose_compressor(own, compressor, keep)


def _notes(settings: dict[str, Any], dtype: str, measured: bool) -> list[str]:
    pairs = (
        "by half in the prompt, as a causal kernel computes it"
        if settings["causal"]
        else "in full, every query with every key (--attention causal counts half)"
    )
    notes = [
        f"attention {pairs}",
        f"{settings['text']} text tokens; an answer of {settings['answer']}, read token by token",
        f"KV cache of the video tokens in {'bfloat16' if dtype == 'auto' else dtype}, behind the "
        "prefill, without the text",
        "the limit lets every video token vanish: vision, temporal encoders, the text and the "
        "answer stay",
    ]
    if measured:
        notes.append(
            "seconds: prefill (llm) shrinks as its FLOPs do, every other stage keeps its time"
        )
    else:
        notes.append(
            "decoding waits for memory, so its share of the time is above its share of FLOPs: "
            "--seconds takes measured times"
        )
    return notes


def _plain(row: _Row, full: Cost) -> dict[str, Any]:
    return {
        "keep": row.keep,
        "compressor": row.method,
        **row.cost.as_dict(),
        "prefill_fold": full.prefill / row.cost.prefill,
        "speed_up": full.total / row.cost.total,
        "seconds": row.times,
    }


def _table(shape: Shape, frames: int, full: Cost, rows: list[_Row]) -> Table:
    scale, unit = (1e12, "TFLOPs") if full.total >= 1e11 else (1e9, "GFLOPs")
    timed = rows[0].times is not None
    columns = ["tokens", "in last layer", "vision", "temporal", "prefill", "decode", "all"]
    columns += ["prefill ×", "all ×", "KV MB", *(["seconds ×"] if timed else [])]
    found = []
    for row in [_Row(None, "(all tokens)", full, None), *rows]:
        cost = row.cost
        parts = (cost.vision, cost.temporal, cost.prefill, cost.decode, cost.total)
        cells = [
            row.method if row.keep is None else f"{row.method} {row.keep:g}",
            cost.plan.entering,
            cost.plan.last,
            *(f"{part / scale:.4g}" for part in parts),
            f"{full.prefill / cost.prefill:.2f}",
            f"{full.total / cost.total:.2f}",
            f"{cost.kv_bytes / 1e6:.4g}",
        ]
        if timed:
            cells.append(f"{row.times['speed_up']:.2f}" if row.times else "1.00")
        found.append(cells)
    title = f"{shape.name}, {frames} frames: {unit} of one question"
    return table(found, left=("compressor",), right=columns, title=title)


def _show_paper(name: str, json: bool) -> None:
    from vidllm.models.cost.papers import PAPERS

    one_of("--paper", name, tuple(PAPERS))
    found: Paper = PAPERS[name]()
    if json:
        emit({"paper": name, **found.as_dict()})
        return
    cells = [
        (
            claim.what,
            "–" if claim.published is None else f"{claim.published:.3g}",
            f"{claim.ours:.4g}",
        )
        for claim in found.claims
    ]
    heads = ("published", "reckoned here")
    console(_WIDE).print(table(cells, left=("what",), right=heads, title=found.title))
    _tell_notes(found.assumptions)


def _tell_notes(notes: list[str] | tuple[str, ...]) -> None:
    tell("Assumed:\n" + "\n".join(f"- {note}" for note in notes))
