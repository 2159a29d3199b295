"""The measurement behind ``vidllm bench learning``: what temporal encoders learn to remember.

A clip is a row of frames in which events happen: an event has one of six kinds and lasts some
frames, noise lies between. Some frames after every event stands a cue, a frame that shows nothing
else, and there three things are asked: of what kind the last event was (memory), of what kind the
one before it was (order), and whether the last one was long (duration). The answer is never in the
frame or near it: an encoder without memory is at chance, and one with a short reach too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidllm.cli.tables import table
from vidllm.encoders.temporal import get_alike, temporal_names
from vidllm.errors import InputError

from .measure import spread_cell

if TYPE_CHECKING:
    from rich.table import Table

KINDS, WIDTH, DIM = 6, 16, 64
#: Frames that an event lasts, from its end to the cue, and from the cue to the next event.
LASTS, WAITS, GAPS = (2, 13), (10, 16), (2, 12)
LONG = 8  # frames: an event that lasts at least so many is long
ASKED = ("memory", "order", "duration")
TRAINED_ON, TESTED_ON = (64, 128, 256), (64, 128, 256, 512)
NOTHING = -100  # the label of frames at which nothing is asked
#: Sizes for this width where the defaults are meant for an LLM's; the layers are the same for all.
OPTIONS: dict[str, dict[str, Any]] = {
    "ssd": {"head_dim": 16, "state": 16, "chunk": 16},
    "mambamixer": {"slots": 1},  # a frame here is one token
    "storm": {"sizes": {"head_dim": 16, "state": 16, "chunk": 16}},
}
LAYERS = 2


def draw_clips(count: int, frames: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Clips drawn at random.

    Returns:
        `x` (B, T, WIDTH); `memory`, `order` and `duration` (B, T) long: the answers at the cues,
        NOTHING elsewhere; `seconds` (B, T) of a clip of 2 frames a second.
    """

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    signs = torch.linspace(0, 3.14159, (KINDS + 1) * WIDTH).mul(17).sin().view(KINDS + 1, WIDTH)
    clips = {key: torch.full((count, frames), NOTHING) for key in ASKED}
    x = 0.3 * torch.randn(count, frames, WIDTH, generator=generator)
    for row in range(count):
        at, before = between(0, 8), NOTHING
        while True:
            lasts, which, wait = between(*LASTS), between(0, KINDS - 1), between(*WAITS)
            cue = at + lasts + wait
            if cue >= frames:
                break
            x[row, at : at + lasts] += signs[which]
            x[row, cue] += signs[KINDS]
            clips["memory"][row, cue] = which
            clips["order"][row, cue] = before
            clips["duration"][row, cue] = int(lasts >= LONG)
            before, at = which, cue + between(*GAPS)
    seconds = torch.arange(frames).float().div(2).expand(count, -1)
    return {"x": x, **clips, "seconds": seconds}


class Reader(nn.Module):
    """A linear layer in, the encoder, and a linear reading of every frame."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inward = nn.Linear(WIDTH, DIM)
        self.encoder = _build(name)
        self.norm = nn.LayerNorm(DIM)
        self.outward = nn.Linear(DIM, 2 * KINDS + 2)

    def forward(self, clips: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of every answer: memory and order (B, T, KINDS), duration (B, T, 2)."""
        tokens = self.inward(clips["x"])[:, :, None]
        mixed = self.encoder(tokens, clips["seconds"])[:, :, 0]
        said = self.outward(self.norm(mixed)).split([KINDS, KINDS, 2], dim=-1)
        return dict(zip(ASKED, said, strict=True))


def _build(name: str) -> nn.Module:
    return get_alike(name, DIM, layers=LAYERS, scan="slot", **OPTIONS.get(name, {}))


def _loss(logits: Tensor, answers: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=NOTHING)


def _train(name: str, seed: int, steps: int, batch: int, rate: float) -> Reader:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    model = Reader(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        clips = draw_clips(batch, TRAINED_ON[step % len(TRAINED_ON)], generator)
        said = model(clips)
        loss = torch.stack([_loss(said[key], clips[key]) for key in ASKED]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def _accuracy(model: Reader, frames: int, clips: int) -> dict[str, float]:
    """Shares of right answers on clips that are the same for every encoder and seed."""
    drawn = draw_clips(clips, frames, torch.Generator().manual_seed(7))
    found = {}
    for key, logits in model(drawn).items():
        asked = drawn[key] != NOTHING
        found[key] = float((logits.argmax(-1) == drawn[key])[asked].float().mean())
    return found


def bench_learning(
    names: Sequence[str] = (),
    *,
    steps: int = 400,
    seeds: int = 3,
    batch: int = 16,
    rate: float = 3e-3,
    clips: int = 64,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train every encoder with the same budget and test it on lengths seen and not seen.

    Args:
        names: registered encoders; none for all. steps, batch, rate: of the training.
        seeds: trainings each. clips: for the test of each length.
        save: gets the rows so far after every training, so that nothing measured is lost.

    Returns:
        A row an encoder, seed and length: encoder, seed, frames, memory, order and duration
        (shares of right answers; chance is 0.17, 0.17 and 0.5), parameters, steps.

    Raises:
        InputError: an unknown name, or counts below 1.
    """
    if min(steps, seeds, batch, clips) < 1:
        raise InputError("bench: counts start at 1")
    chosen = list(names) or temporal_names()
    for name in chosen:
        _build(name)
    rows: list[dict[str, Any]] = []
    for name in chosen:
        for seed in range(seeds):
            model = _train(name, seed, steps, batch, rate)
            size = sum(p.numel() for p in model.encoder.parameters())
            for frames in TESTED_ON:
                scores = {k: round(v, 4) for k, v in _accuracy(model, frames, clips).items()}
                rows.append(
                    {
                        "encoder": name,
                        "seed": seed,
                        "frames": frames,
                        **scores,
                        "parameters": size,
                        "steps": steps,
                    }
                )
            if save is not None:
                save(rows)
    return rows


def learning_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table: means over the seeds, lowest and highest in brackets."""
    lengths = sorted({row["frames"] for row in rows})
    found = []
    for name in dict.fromkeys(row["encoder"] for row in rows):
        mine = [row for row in rows if row["encoder"] == name]
        cells = [
            spread_cell([row[key] for row in mine if row["frames"] == frames])
            for key in ASKED
            for frames in lengths
        ]
        found.append([name, *cells])
    return table(
        found,
        left=("encoder",),
        right=[f"{what} {frames}" for what in ASKED for frames in lengths],
        title="Right answers: memory, order (chance 17 %), duration (50 %)",
    )
