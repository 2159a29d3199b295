"""Pages of docs/ made from registries and test results: ``vidllm list KIND --markdown``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from vidllm.errors import InputError

from .catalogue import encoder_summaries
from .tables import markdown_table


def page(kind: str) -> str:
    """The page docs/KIND.md.

    Raises:
        InputError: a kind that has no page, or results that are not there.
    """
    pages = {"compressors": _compressors, "encoders": _encoders, "models": _models}
    if kind not in pages:
        raise InputError(f"--markdown is for {', '.join(pages)}, not for {kind}")
    return "\n".join(pages[kind]()) + "\n"


def _compressors() -> list[str]:
    from vidllm.compressors import STAGES, describe

    found = [entry for entry in describe() if entry["package"] == "vidllm"]
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
        "",
        "A method that *needs training* has parameters, and **no trained ones are shipped**:",
        "until you train it and give `NAME:weights=FILE` it runs on random weights (`pyra` and",
        "`timesuite` on ones that do nothing), and every answer carries a note that says so.",
    ]
    columns = ["name", "what it does", "needs training", "reads the question", "needs", "paper"]
    for stage in STAGES:
        rows = []
        for entry in (e for e in found if e["stage"] == stage):
            reads = entry["query_aware"] or any("decoder" in need for need in entry["needs"])
            flags = ["yes" if flag else "" for flag in (entry["trained"], reads)]
            needs = ", ".join(entry["needs"])
            rows.append([f"`{entry['name']}`", entry["summary"], *flags, needs, entry["paper"]])
        if rows:
            lines += ["", f"## {stage}: {where[stage]}", "", *markdown_table(columns, rows)]
    lines += ["", "## Where two are one", "", "Two names that leave the very same tokens:", ""]
    lines += [f"- `{e['name']}`: {e['same_as']}." for e in found if e["same_as"]]
    lines += [
        "- On a grid of 2 × 2 (our first model's) at 25 % and 12.5 %, all that merge whole",
        "  frames have one way to do it, to the last digits: `spatial-pool`, `tome`, `mustdrop`,",
        "  `visionzip`, untrained `pyra` and untrained `timesuite`.",
    ]
    return lines


def _encoders() -> list[str]:
    from vidllm.encoders import heads, temporal, vision

    lines = [
        "# Encoders",
        "",
        "A *vision encoder* turns frames into video tokens. A *temporal encoder* mixes these",
        "tokens over time, before the LLM. A token that is pruned or merged away behind it has",
        "already passed on what it showed. You need this page to choose an encoder for training:",
        "`vidllm train RECIPE --temporal NAME` ([recipes.md](recipes.md)),",
        "`vidllm train hub --temporal NAME` ([finetune.md](finetune.md)), or `get_temporal(NAME)`",
        "in code of your own.",
        "",
        "How they compare in speed and in what they learn:",
        "[encoder-results.md](encoder-results.md). The tables are made by",
        "`vidllm list encoders --markdown`.",
        "",
        "## Temporal encoders",
        "",
        '`get_temporal("ssd", dim=256, scan="raster")` makes one by name. All have one interface:',
        "`(x (B,T,N,D), seconds (B,T), mask (B,T)) -> (B,T,N,D)`. Common options:",
        "",
        "- `layers`, `bidirectional`, `gap`.",
        '- `scan`: "raster" reads a clip as one sequence, "slot" reads each place over time.',
        '- `time`: "step" or "embedding" tells the encoder the true seconds.',
        "- `zero_init`: at the start of a training the encoder is the identity.",
        "",
        "Parameters are those of the default build at width 256. Most encoders read in both",
        "directions by default. The columns *causal*, *streaming* and *state bytes* are for",
        "`bidirectional=False`. The state is what a slot carries from chunk to chunk, in float32.",
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
    lines += markdown_table(columns, rows)
    lines += [
        "",
        "## Vision encoders",
        "",
        '`get_vision("dist")` makes one by name. Its interface is',
        "`(frames (B,T,3,H,W), seconds, mask) -> ClipFeatures`. Each has a recognition head, so",
        "that it can be trained and tested.",
        '`load_vision("google/siglip-base-patch16-224", layer=-2)` loads any SigLIP, SigLIP2, CLIP',
        "or DINOv2 of transformers, frozen or not.",
        "",
    ]
    found = [vision.find_vision(name) for name in vision.vision_names()]
    lines += markdown_table(
        ["name", "what it does", "paper"], [[f"`{c.name}`", c.summary, c.paper] for c in found]
    )
    lines += ["", "## Heads", "", 'Beside a language model: `get_head("nasva", …)`.', ""]
    heads_there = [heads.find_head(name) for name in heads.head_names()]
    lines += markdown_table(
        ["name", "what it does", "paper"],
        [[f"`{c.name}`", c.summary, c.paper] for c in heads_there],
    )
    return lines


def models_matrix() -> dict[str, Any]:
    """What the tests of hub models found: eval/results/models-matrix.json.

    Raises:
        InputError: an install without it.
    """
    # Data of another room, not its code: read by its place, as tasks are found by entry points.
    file = files("vidllm.eval") / "results" / "models-matrix.json"
    if not file.is_file():
        raise InputError(
            "the results of the model tests are not installed: run this in the repository "
            "(make models makes them)"
        )
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _models() -> list[str]:
    from vidllm.models.cost.presets import PRESETS
    from vidllm.models.families.served import EXAMPLES, FAMILIES

    found = models_matrix()
    versions, matrix = found["versions"], found["matrix"]
    every = {kind: FAMILIES[kind][0] for kind in FAMILIES if kind in matrix}
    # Those that every method is tried on; the others share their code and are tried with a few.
    most = max(len(specs) for ways in matrix.values() for specs in ways.values())
    families = {k: n for k, n in every.items() if len(max(matrix[k].values(), key=len)) == most}
    sharing = {kind: name for kind, name in every.items() if kind not in families}
    lines = [
        "# Models",
        "",
        "Made by `vidllm list models --markdown` from the results of the tests in",
        "[models-matrix.json](../eval/results/models-matrix.json), which `make models` writes:",
        f"transformers {versions['transformers']}, torch {versions['torch']}, Python "
        f"{versions['python']}, tiny random models of every",
        "family in float32 on a CPU. A cell counts what passed, of what was tried. For one and",
        "two prompts these are compressors and chains at keep=0.4: the logits of 16 greedy tokens",
        "are those of the full model with the dropped tokens masked at the same positions, to",
        "1e-5, and the tokens are the same. Under keep=1.0: bit-equal to the plain model. Where",
        "layers carry a state (Qwen3.5) the full model is that on the shortened sequence, layer",
        "by layer, at the same positions.",
        "",
        "## Families",
        "",
    ]
    hubs = {
        kind: [f"`{p.hub}`" for p in PRESETS.values() if p.hub and p.config["model_type"] == kind]
        or [f"`{EXAMPLES[kind]}`" for known in (EXAMPLES,) if kind in known]
        for kind in every
    }
    lines += markdown_table(
        ["family", "`model_type`", "for example", "all tests"],
        [
            [name, f"`{kind}`", ", ".join(hubs[kind]), _share(_outcomes(found, kind))]
            for kind, name in every.items()
        ],
    )
    lines += ["", "## Family × stage × attention × batch", ""]
    columns = ["family", "stage"]
    ways = sorted({way for specs in matrix.values() for way in specs}, reverse=True)
    columns += [f"{way}, {batch}" for way in ways for batch in ("1 prompt", "2 unequal prompts")]
    rows = []
    stages = _stages(matrix)
    for kind, name in every.items():
        for stage in dict.fromkeys(stage for found_in in stages.values() for stage in found_in):
            specs = [spec for spec, acts in stages.items() if stage in acts]
            if kind in sharing and not any(_cells(matrix[kind], w, s) for w in ways for s in specs):
                continue
            cells = [
                _share([matrix[kind].get(way, {}).get(spec, {}).get(batch, "") for spec in specs])
                for way in ways
                for batch in ("one", "two")
            ]
            whole = [
                matrix[kind].get(w, {}).get(s, {}).get("whole", "") for w in ways for s in specs
            ]
            rows.append([name, stage, *cells, _share(whole)])
    lines += [*markdown_table([*columns, "keep=1.0"], rows), ""]
    lines += [
        "The second of the two prompts has an image and two videos of unequal sizes; the first is",
        "padded on the left. A chain counts in every stage in which it acts. `NAME:tower=false`",
        "merges behind the vision tower, for families that cannot merge inside it (see below).",
        "",
        "## Compressor × family",
        "",
        f"Both attentions ({', '.join(ways)}), one and two prompts, and keep=1.0:",
        "",
    ]
    lines += markdown_table(
        ["compressors", "stage", *families.values()],
        [
            [
                f"`{spec}`",
                ", ".join(acts),
                *(
                    _share([o for way in ways for o in _cells(matrix[kind], way, spec)])
                    for kind in families
                ),
            ]
            for spec, acts in stages.items()
            if any(spec in own for kind in families for own in matrix[kind].values())
        ],
    )
    if sharing:
        tried = [s for s in stages if any(s in own for k in sharing for own in matrix[k].values())]
        lines += [
            "",
            "The other families differ from these in facts alone (names, sizes, what their layers",
            "are) and run the same code. They are tried with one method of every kind, for which",
            "the columns stand; a dash is a method that the family refuses by name and reason, or",
            "that was not tried, as another family with the same tower and layers stands for it.",
            "",
        ]
        lines += markdown_table(
            ["family", *(f"`{spec}`" for spec in tried)],
            [
                [
                    name,
                    *(
                        _share([o for way in ways for o in _cells(matrix[kind], way, spec)])
                        for spec in tried
                    ),
                ]
                for kind, name in sharing.items()
            ],
        )
    lines += ["", f"## What else is tested, on the first {len(families)} families", ""]
    lines += markdown_table(
        ["test", *families.values()],
        [
            [test.removeprefix("test_").replace("_", " "), *(own.get(k, "–") for k in families)]
            for test, own in found["tests"].items()
            if set(families) <= set(own)
        ],
    )
    lines += [
        "",
        'What stands there instead of "passed": FlashAttention\'s kernels need a GPU and have not',
        "run here; the library's own code around them ran on plain products in their place",
        '("passed on a stand-in"). Beams fail in transformers itself with the inputs that the',
        "processor of VideoLLaMA3 makes, plain as well; they pass without its",
        "`video_compression_mask`.",
        "",
        "## What is refused, and why",
        "",
    ]
    lines += markdown_table(
        ["asked for", "family", "answer"], _refusals(found["refused"], families, every)
    )
    return lines


def _stages(matrix: dict[str, Any]) -> dict[str, list[str]]:
    """Every tested spec with the stages in which it acts, in the order of the stages."""
    from vidllm.compressors import STAGES, build

    specs = sorted({spec for ways in matrix.values() for own in ways.values() for spec in own})
    found: dict[str, list[str]] = {}
    for spec in specs:
        made = build(spec, keep=0.5)
        found[spec] = list(dict.fromkeys(item.stage for item in made.methods))
    return dict(sorted(found.items(), key=lambda pair: [STAGES.index(s) for s in pair[1]]))


def _cells(ways: dict[str, Any], way: str, spec: str) -> list[str]:
    own = ways.get(way, {}).get(spec, {})
    return [own.get(cell, "") for cell in ("one", "two", "whole")] if own else []


def _outcomes(found: dict[str, Any], kind: str) -> list[str]:
    own = [
        o
        for specs in found["matrix"][kind].values()
        for cells in specs.values()
        for o in cells.values()
    ]
    own += [tests[kind] for tests in found["tests"].values() if kind in tests]
    return own


def _share(outcomes: Sequence[str]) -> str:
    tried = [outcome for outcome in outcomes if outcome]
    passed = sum(outcome.startswith("passed") for outcome in tried)
    return f"{passed} of {len(tried)}" if tried else "–"


def _refusals(
    refused: dict[str, Any], families: dict[str, str], every: dict[str, str]
) -> list[list[str]]:
    """One row a case and answer; what all `families` answer alike is one row."""
    rows = []
    for case, own in refused.items():
        answers: dict[str, list[str]] = {}
        for kind, name in every.items():
            if kind in own:
                answers.setdefault(own[kind].replace(name, "MODEL"), []).append(name)
        for answer, names in answers.items():
            who = "all" if set(families.values()) <= set(names) else ", ".join(names)
            rows.append([case, who, answer.replace("|", "\\|")])
    return rows


def encoder_entries() -> list[dict[str, Any]]:
    """As `encoder_summaries`, with what is measured on temporal encoders."""
    from vidllm.encoders import temporal

    known = {entry["name"]: entry for entry in temporal.describe()}
    return [
        {**known[entry["name"]], "kind": "temporal"} if entry["kind"] == "temporal" else entry
        for entry in encoder_summaries()
    ]
