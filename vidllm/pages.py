"""Pages of docs/ that are made from the registries: ``vidllm list KIND --markdown``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidllm.errors import InputError


def page(kind: str) -> str:
    """The page docs/KIND.md.

    Raises:
        InputError: a kind that has no page.
    """
    pages = {"compressors": _compressors, "encoders": _encoders}
    if kind not in pages:
        raise InputError(f"--markdown is for {' and '.join(pages)}, not for {kind}")
    return "\n".join(pages[kind]()) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines]


def _compressors() -> list[str]:
    from vidllm.compressors import STAGES, describe

    found = describe()
    where = {
        "vision": "inside or right after the vision tower",
        "tokens": "between the projector and the decoder",
        "prefill": "between decoder layers, while the prompt is read",
        "cache": "in the KV cache, while answering",
    }
    lines = [
        "# Compressors",
        "",
        "Made by `vidllm list compressors --markdown`; every method keeps an exact budget and the",
        "seconds of every token. Options: `vidllm list compressors NAME --json`. How to add one:",
        "[new-compressor.md](new-compressor.md).",
    ]
    columns = ["name", "what it does", "trained", "reads the question", "needs", "paper"]
    for stage in STAGES:
        rows = []
        for entry in (e for e in found if e["stage"] == stage):
            reads = entry["query_aware"] or any("decoder" in need for need in entry["needs"])
            flags = ["yes" if flag else "" for flag in (entry["trained"], reads)]
            needs = ", ".join(entry["needs"])
            rows.append([f"`{entry['name']}`", entry["summary"], *flags, needs, entry["paper"]])
        if rows:
            lines += ["", f"## {stage}: {where[stage]}", "", *_table(columns, rows)]
    return lines


def _encoders() -> list[str]:
    from vidllm.encoders import heads, temporal, vision

    lines = [
        "# Encoders",
        "",
        "Made by `vidllm list encoders --markdown`. How they compare in speed and in what they",
        "learn: [encoder-results.md](encoder-results.md).",
        "",
        "## Temporal encoders",
        "",
        "`(x (B,T,N,D), seconds (B,T), mask (B,T)) -> (B,T,N,D)`, by name:",
        '`get_temporal("ssd", dim=256, scan="raster")`. Common options: `layers`, `scan` ("raster"',
        'reads a clip as one sequence, "slot" each place over time), `bidirectional`, `time`',
        '("step" or "embedding" tells the true seconds), `gap`, `zero_init` (the start is the',
        "identity). Parameters are those of the default build at width 256. Causal, streaming and",
        "the state (float32, a slot, what is carried from chunk to chunk) are those of",
        "`bidirectional=False`; the default of most reads both ways.",
        "",
    ]
    rows = []
    for entry in temporal.describe():
        size = entry["state_bytes"]
        rows.append(
            [
                f"`{entry['name']}`",
                entry["summary"],
                f"{entry['parameters']:,}",
                "" if size is None else f"{size:,}",
                *("yes" if entry[key] else "no" for key in ("streams", "causal")),
                entry["paper"],
            ]
        )
    columns = ["name", "what it does", "parameters", "state bytes", "streaming", "causal", "paper"]
    lines += _table(columns, rows)
    lines += [
        "",
        "## Vision encoders",
        "",
        "`(frames (B,T,3,H,W), seconds, mask) -> ClipFeatures`, by name:",
        '`get_vision("dist")`; each has a recognition head, so that it can be trained and tested.',
        "Beside them every SigLIP, SigLIP2, CLIP and DINOv2 of transformers:",
        '`load_vision("google/siglip-base-patch16-224", layer=-2)`, frozen or not.',
        "",
    ]
    found = [vision.find_vision(name) for name in vision.vision_names()]
    lines += _table(
        ["name", "what it does", "paper"], [[f"`{c.name}`", c.summary, c.paper] for c in found]
    )
    lines += ["", "## Heads", "", 'Beside a language model: `get_head("nasva", …)`.', ""]
    heads_there = [heads.find_head(name) for name in heads.head_names()]
    lines += _table(
        ["name", "what it does", "paper"],
        [[f"`{c.name}`", c.summary, c.paper] for c in heads_there],
    )
    return lines


def encoder_entries() -> list[dict[str, Any]]:
    """Every encoder and head for `vidllm list encoders`."""
    from vidllm.encoders import heads, temporal, vision

    found: list[dict[str, Any]] = [
        {"name": "conv", "kind": "vision", "summary": "the project's small tower"}
    ]
    found += [
        {"name": name, "kind": "vision", "summary": "a vision model of transformers"}
        for name in vision.HUB_TYPES
    ]
    for cls in (vision.find_vision(name) for name in vision.vision_names()):
        found.append(
            {"name": cls.name, "kind": "vision", "summary": cls.summary, "paper": cls.paper}
        )
    found += [{**entry, "kind": "temporal"} for entry in temporal.describe()]
    for head in (heads.find_head(name) for name in heads.head_names()):
        found.append(
            {"name": head.name, "kind": "head", "summary": head.summary, "paper": head.paper}
        )
    return found
