"""The measurement behind ``vidllm bench recognition``: vision encoders that must see time.

Every encoder is trained with its head on clips that come in pairs of the same pictures in another
order (`StagePairs`), and tested on new actors, places and backgrounds. Shares of right answers:

- `accuracy` among all ten classes: chance 10 %, without time at best 50 %;
- `kind`, whether the pair was right, which single pictures show: chance 20 %;
- `order`, which of the two it is when the pair is given: chance 50 %, and without time exactly so;
- `shuffled`, `order` once more of the same model on the same clips, their frames in random order:
  what is left of it then did not come of time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidllm.cli.tables import table
from vidllm.errors import InputError
from vidllm.stage.order_pairs import PAIRS, StagePairs

from .measure import spread_cell
from .recognition import RecognitionSettings, fit_recognition, recognition_logits

if TYPE_CHECKING:
    from rich.table import Table

SCORES = ("accuracy", "kind", "order", "shuffled")
FRAMES, SIZE = 16, 32
_SEED = 10**6  # clips between those of one training seed and the next


@dataclass(frozen=True)
class Setup:
    """An encoder at a size that trains in minutes on a core, and the rate that suits it."""

    options: dict[str, Any]
    lr: float


#: Ours, as small as the pictures: all layers of the full encoders, narrow. The image transformer
#: beside DiST is frozen at random weights; nothing pretrained is needed.
SETUPS: dict[str, Setup] = {
    "dist": Setup(
        {
            "vit": {
                "type": "clip_vision_model",
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "patch_size": 8,
                "image_size": SIZE,
            },
            "temporal": 32,
            "width": 64,
        },
        1e-3,
    ),
    "squeezetime": Setup(
        {
            "image_size": SIZE,
            "chunk": FRAMES,
            "widths": (16, 24, 32, 48),
            "blocks": (1, 1, 1, 1),
            "expansion": 2,
            "inner": 8,
        },
        3e-3,
    ),
    "framewise": Setup(
        {
            "tower": {
                "type": "conv",
                "image_size": SIZE,
                "hidden_size": 64,
                "widths": (16, 32, 48),
                "blocks": (1, 1, 1),
            }
        },
        2e-3,
    ),
}


@dataclass(frozen=True)
class _Shuffled:
    """The clips of a task with their frames in random order, the seconds as they were."""

    task: StagePairs

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    def clip(self, index: int) -> tuple[Tensor, Tensor, int]:
        frames, seconds, label = self.task.clip(index)
        # The two of a pair differently, or a blind model could not tell that it is blind.
        drawn = torch.Generator().manual_seed(index)
        return frames[torch.randperm(len(frames), generator=drawn)], seconds, label


def pair_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of right answers from logits (B, 10) and labels (B,): see the head of this file.

    Returns:
        accuracy, kind, order, and order of every pair as "order move", …
    """
    kind, way = labels // 2, labels % 2
    best = logits.argmax(1)
    two = logits.unflatten(1, (-1, 2))[torch.arange(len(labels)), kind]
    right = (two.argmax(1) == way).float()
    scores = {
        "accuracy": (best == labels).float().mean(),
        "kind": (best // 2 == kind).float().mean(),
        "order": right.mean(),
    }
    scores |= {f"order {name}": right[kind == i].mean() for i, name in enumerate(PAIRS)}
    return {name: round(float(value), 4) for name, value in scores.items()}


def bench_recognition(
    names: Sequence[str] = (),
    *,
    steps: int = 2000,
    seeds: int = 3,
    batch: int = 16,
    tested: int = 400,
    device: str = "cpu",
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train every encoder with the same budget to tell the ten classes, and test it on new scenes.

    Args:
        names: vision encoders of `SETUPS`; none for all.
        steps, batch: of the training; no clip is seen twice.
        seeds: trainings each, with clips of their own. tested: clips, the same for all.
        save: gets the rows so far after every training, so that nothing measured is lost.

    Returns:
        A row an encoder and seed: encoder, seed, accuracy, kind, order, shuffled (see the head of
        this file), order of every pair, parameters (trained), steps, batch, tested, device,
        seconds of the training.

    Raises:
        InputError: an unknown name, or counts below 1.
    """
    if min(steps, seeds, batch) < 1:
        raise InputError("bench: counts start at 1")
    whole = 2 * len(PAIRS)
    if tested < whole or tested % whole:
        raise InputError(f"bench: clips to test must be a multiple of {whole}, not {tested}")
    for name in names:
        if name not in SETUPS:
            raise InputError(f"no vision encoder {name!r} to train here: use {', '.join(SETUPS)}")
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    test = StagePairs("val", FRAMES, SIZE)
    rows: list[dict[str, Any]] = []
    for name in names or SETUPS:
        for seed in range(seeds):
            began = time.perf_counter()
            settings = RecognitionSettings(
                name,
                SETUPS[name].options,
                steps=steps,
                batch=batch,
                lr=SETUPS[name].lr,
                warmup=min(50, steps // 10),
                seed=seed,
                device=device,
            )
            train = StagePairs("train", FRAMES, SIZE, first=seed * _SEED)
            model, _ = fit_recognition(settings, train)
            took = time.perf_counter() - began
            scores = pair_scores(*recognition_logits(model, test, tested, batch))
            mixed = pair_scores(*recognition_logits(model, _Shuffled(test), tested, batch))
            scores = {k: scores[k] for k in SCORES[:3]} | {"shuffled": mixed["order"]} | scores
            rows.append(
                {
                    "encoder": name,
                    "seed": seed,
                    **scores,
                    "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                    "steps": steps,
                    "batch": batch,
                    "tested": tested,
                    "device": where,
                    "seconds": round(took, 1),
                }
            )
            if save is not None:
                save(rows)
    return rows


def recognition_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table: means over the seeds, lowest and highest in brackets."""
    columns = [*SCORES, *(f"order {name}" for name in PAIRS)]
    found = []
    for name in dict.fromkeys(row["encoder"] for row in rows):
        mine = [row for row in rows if row["encoder"] == name]
        found.append([name, *(spread_cell([row[column] for row in mine]) for column in columns)])
    title = "Right answers: all ten (chance 10 %), kind (20 %), order (50 %)"
    return table(found, left=("encoder",), right=columns, title=title)
