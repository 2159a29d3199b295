"""DART (arXiv 2502.11494): a few pivots stay, and the tokens that resemble them least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidllm.errors import InputError
from vidllm.tokens import Keep, Selection, VideoTokens

from .base import Compressor
from .registry import register
from .shared.kernels import cosines
from .shared.segments import unit

FLOOR = 1e-8  # the port's floor of a norm


def _strongest(norms: Tensor, count: int) -> list[int]:
    """The `count` largest of (N,) norms, the largest first; of equal ones the earlier."""
    best: list[int] = torch.argsort(norms, descending=True, stable=True)[:count].tolist()
    return best


def _pick(cosine: Tensor, rounds: Sequence[tuple[int, int]], taken: Tensor) -> Tensor:
    """Let pivots take tokens in turn, each those still free with the lowest cosine to it.

    Args:
        cosine: (P, N). rounds: (pivot's row, tokens that it takes), in order.
        taken: (N,) bool, what is not free; of equal tokens the earlier is taken.
    """
    taken = taken.clone()
    for pivot, count in rounds:
        free = int(taken.numel() - taken.sum())
        order = torch.argsort(cosine[pivot].masked_fill(taken, torch.inf), stable=True)
        taken[order[: min(count, free)]] = True
    return taken


@register("dart")
@dataclass
class Dart(Compressor):
    """Keep pivots (the largest keys) and, for each pivot in turn, the tokens least like it.

    Pivots take turns in the order of the sequence, where the port has the order of a Python
    set. Its rule keeps up to 15 percent fewer tokens than asked; here the pivots in turn take
    one token more each until the budget is met, and with a budget below the number of image
    pivots only the strongest of these stay. Cosines are those of the signal "decoder-normed",
    the states after the model's last norm, as in the port; without it those of the features.

    The query, where one is given, holds states of the text behind the video in the features'
    space; its `text_pivots` largest rows (L1) are pivots too. Who knows the text's keys passes
    just the rows with the largest keys, as the authors choose them. Without a query the image
    pivots take all.

    Attributes:
        image_pivots, text_pivots: pivots of each kind.
        layer: the decoder layer (from 0) before which tokens leave; None for the authors' 5,
            in proportion where a decoder has fewer than 32 layers.
    """

    image_pivots: int = field(default=4, metadata={"help": "pivots among the video tokens"})
    text_pivots: int = field(default=4, metadata={"help": "pivots among the question's tokens"})
    layer: int | None = field(
        default=None, metadata={"help": "decoder layer before which tokens leave"}
    )

    stage = "prefill"
    needs = ("decoder-keys",)
    uses = ("decoder-normed",)
    paper = "DART, arXiv 2502.11494"
    summary = "a few pivots stay, and the tokens least like them"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_pivots < 1 or self.text_pivots < 0:
            raise InputError("dart: image_pivots must be at least 1 and text_pivots at least 0")
        if self.layer is not None and self.layer < 1:
            raise InputError(f"dart: layer must be at least 1, not {self.layer}")

    def points(self, depth: int) -> list[tuple[int, float]]:
        """One cut.

        Raises:
            InputError: a decoder of one layer, or not deep enough for `layer`.
        """
        layer = max(1, int(5 * min(depth, 32) / 32 + 0.5)) if self.layer is None else self.layer
        if layer >= depth:
            raise InputError(f"dart: cannot prune before layer {layer} of a decoder with {depth}")
        return [(layer, self.keep)]

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Pivots, equal turns, and one more round for the remainder."""
        norms = self.signal(tokens, "decoder-keys").flatten(1).abs().sum(dim=1)
        if not bool(torch.isfinite(norms).all()):
            raise InputError("dart: the decoder's keys hold NaN or infinite values")
        image = sorted(_strongest(norms, min(self.image_pivots, budget)))
        states = tokens.signals.get("decoder-normed", tokens.features).detach()
        pivots = unit(states[image], FLOOR)
        if query is not None and self.text_pivots:
            if query.dim() != 2 or query.shape[1] != states.shape[1]:
                raise InputError(
                    f"dart: the query must be (Q, {states.shape[1]}) as the features are, not "
                    f"{tuple(query.shape)}"
                )
            rows = query.detach().to(states.device)
            text = sorted(_strongest(rows.float().abs().sum(dim=1), self.text_pivots))
            pivots = torch.cat([pivots, unit(rows[text], FLOOR)])
        each, more = divmod(budget - len(image), len(pivots))
        rounds = [(row, each) for row in range(len(pivots))] + [(row, 1) for row in range(more)]
        taken = torch.zeros(len(tokens), dtype=torch.bool, device=states.device)
        taken[image] = True
        cosine = torch.cat([near.T for _, near in cosines(states, pivots, FLOOR)], dim=1)
        return Keep(torch.nonzero(_pick(cosine, rounds, taken)).flatten())
