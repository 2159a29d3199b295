"""Schemas of the files in a run's folder; they are validated where they are opened."""

from __future__ import annotations

from vidllm.errors.schema import (
    Anything,
    Array,
    Boolean,
    Either,
    Integer,
    Nullable,
    Number,
    Object,
    Schema,
    String,
)

#: Grows when the files become other ones.
FORMAT = 1

_COUNT, _AMOUNT = Integer(0), Number(0)
_NUMBERS = Object(other=_AMOUNT)

#: What `costs.costs_of` writes.
COST = Object(
    optional={
        **dict.fromkeys(
            ("frames", "tokens_full", "tokens_kept", "kv_full_mb", "kv_kept_mb", "peak_mb"),
            Nullable(_AMOUNT),
        ),
        "flops": Nullable(_NUMBERS),
        "seconds": _NUMBERS,
        "spent": _NUMBERS,
        "shared_by": Integer(1),
        "own": Array(String()),
    }
)
#: A map of kept tokens, see `TokenMap.as_dict`.
KEPT = Object(
    {
        "grid": Array(Integer(1, 1 << 16), 3, 3),
        "seconds": Array(Number(0, 1e9)),
        "kept": _COUNT,
        "place": String(longest=1 << 30),
    },
    {"carrier": String(longest=1 << 30)},
)
#: A row of a journal or of answers.jsonl, see `journal.row_of`.
ROW = Object(
    {
        "setting": String(),
        "number": _COUNT,
        **dict.fromkeys(("id", "vid", "video", "prompt", "kind", "text", "raw"), String()),
        "truth": Anything(),
        **dict.fromkeys(("duration", "official_duration"), Nullable(_AMOUNT)),
        **dict.fromkeys(("start", "end"), Nullable(Number())),
        "choices": Array(String()),
        "groups": Object(other=String()),
        "spans": Array(Array(Number(), 2, 2)),
        "letters": Nullable(Object(other=Nullable(Number()))),
        "error": Nullable(String()),
        "frames": Nullable(_COUNT),
        "parsed": Anything(),
        "value": Nullable(Number(0, 1 + 1e-9)),
        "kept": Nullable(KEPT),
    },
    {"cost": COST, "attempt": _COUNT},
    other=Anything(),
)
#: A row of costs.jsonl.
COST_ROW = Object({"setting": String(), "id": String()}, COST.optional)
_SETTING = Object(
    {"label": String()},
    {"compressor": String(), "keep": Number(0, 1), "tokens": Nullable(Integer(1))},
)
#: run.json.
CONFIG = Object(
    {
        "format": Integer(1),
        "task": String(),
        "items": _COUNT,
        "seed": _COUNT,
        "settings": Array(_SETTING, 1),
    },
    {
        **dict.fromkeys(("family", "split", "data", "python"), String()),
        **dict.fromkeys(
            ("prompts", "commit", "model", "recipe", "reader", "attn"), Nullable(String())
        ),
        "limit": Nullable(_COUNT),
        "clips": _COUNT,
        "options": Object(other=Anything()),
        "videos": Array(String()),
        "files": Object(other=String()),
        "frames": Nullable(Either(Integer(1), String(enum=("auto",)))),
        "fps": Nullable(_AMOUNT),
        "tokens": Nullable(Integer(1)),
        "limits": Object(other=Number()),
        "versions": Object(other=Nullable(String())),
    },
    other=Anything(),
)
_SCORES: Schema = Object(other=Nullable(Number()))
_BOUNDS = {"low": Nullable(Number()), "high": Nullable(Number())}
_MEANS = Object(
    optional={**COST.optional, "total_seconds": Nullable(_AMOUNT)},
    other=Anything(),
)
_OUTCOME = Object(
    {
        "label": String(),
        "headline": Object(
            {"name": String(), "value": Nullable(Number()), **_BOUNDS}, other=Anything()
        ),
        "scores": _SCORES,
        "official": _SCORES,
        "by_group": Object(
            other=Object(
                other=Object({"value": Number(), "n": _COUNT, **_BOUNDS}, other=Anything())
            )
        ),
        "answers": _COUNT,
        "parse_failures": _COUNT,
        "failed_videos": Object(other=Array(String())),
        "costs": _MEANS,
        "sums": Object({"answers": _COUNT, "seconds": _NUMBERS}, other=Anything()),
        "relative": Nullable(
            Object(
                optional={
                    **_BOUNDS,
                    **dict.fromkeys(("share", "difference"), Nullable(Number())),
                    "p": Nullable(Number(0, 1 + 1e-9)),
                },
                other=Anything(),
            )
        ),
    },
    {"unofficial": Nullable(String())},
    other=Anything(),
)
#: results.json; what it has in common with run.json is compared with that.
RESULTS = Object(
    {
        "settings": Array(_SETTING, 1),
        "headline": String(),
        "headline_of": Nullable(String()),
        "answers": _COUNT,
        "expected": _COUNT,
        "finished": Boolean(),
        "results": Object(other=_OUTCOME),
    },
    other=Anything(),
)
