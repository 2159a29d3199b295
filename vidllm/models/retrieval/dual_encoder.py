"""The project's own dual encoder: transformers' CLIP behind a convolutional stem.

Beside CLIP's parts it has what TempMe (arXiv 2409.01156) trains in its tower besides LoRA: for
every join of clips an embedding that tells the joined rows apart, zero at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from vidllm.encoders.vision import HubTower
from vidllm.encoders.vision.frame_tower import ConvStem
from vidllm.encoders.vision.merging import MergingRun, RowEmbedding, merging, tower_layers
from vidllm.tokens.tower_plan import TowerMethod, TowerShape


class DualConfig(CLIPConfig):
    """What a dual encoder is made of, as transformers saves it.

    Args:
        text_config, vision_config, projection_dim: as CLIP's.
        stem: options of a `ConvStem` in the place of the patch embedding; None for CLIP's own.
        rows: for every join of clips how many rows it puts together, None for no embedding.
        frames: sampled by default.
        compressors, keep: what merges inside the tower by default.
        recipe: the system that it was trained as, "" for none.
    """

    model_type = "vidllm-dual"
    stem: dict[str, Any] | None = None
    rows: list[int] | None = None
    frames: int = 12
    compressors: str = "none"
    keep: float = 1.0
    recipe: str = ""


class JoinEmbedding(nn.Module):
    """For every join of clips a vector for each of the rows that it puts together, zero at first.

    For a clip with another number of frames the rows are interpolated.
    """

    def __init__(self, rows: Sequence[int], width: int) -> None:
        super().__init__()
        self.joins = nn.ParameterList(nn.Parameter(torch.zeros(n, width)) for n in rows)

    def forward(self, join: int, rows: int) -> Tensor | None:
        """(rows, C) for a join by its number; None for one that has no embedding."""
        if join >= len(self.joins):
            return None
        table: Tensor = self.joins[join]
        if len(table) == rows:
            return table.clone()  # torch's counter of FLOPs takes no bare parameter as an output
        line = table.T[None]
        return F.interpolate(line, size=rows, mode="linear", align_corners=True)[0].T


class DualEncoder(CLIPModel):
    """Texts and frames to vectors of one space."""

    config_class = DualConfig
    config: DualConfig

    def __init__(self, config: DualConfig) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        if config.stem is not None:
            stem = ConvStem(int(vision.patch_size), int(vision.hidden_size), **config.stem)
            self.vision_model.embeddings.patch_embedding = stem
        self.join_embedding = JoinEmbedding(config.rows or [], int(vision.hidden_size))


AutoConfig.register(DualConfig.model_type, DualConfig)
AutoModel.register(DualConfig, DualEncoder)


def merged_pass(
    tower: HubTower,
    frames: Tensor,
    method: TowerMethod,
    budget: int | None,
    *,
    clips: int = 1,
    embedding: RowEmbedding | None = None,
) -> tuple[Tensor, MergingRun]:
    """Run clips through a tower whose tokens merge between the layers; it may train.

    Args:
        frames: (clips * T, 3, S, S) in 0..1, clip by clip. method: merges inside the tower.
        budget: tokens of one clip that are left beside CLS and registers; None for what the
            method's own options say. embedding: see `merging`.

    Returns:
        The tower's last hidden states, and where in them everything is.
    """
    model, cells = tower.model, tower.side**2
    shape = TowerShape(len(tower_layers(model)), tower.special, len(frames), cells, clips)
    steps = method.tower_steps(shape, None if budget is None else budget * clips)
    how: dict[str, Any] = {"proportional": method.proportional, "embedding": embedding}
    how["watched"] = tower.watched if method.needs else None
    with merging(model, steps, shape, tower.side, **how) as run:
        hidden = tower.run(frames).last_hidden_state
    return hidden, run


def heads_of(tower: HubTower, hidden: Tensor, run: MergingRun) -> Tensor:
    """(F, C): the CLS token of every frame behind CLIP's last norm, wherever its row went."""
    heads = hidden.flatten(0, 1)[run.front[:, 0].to(hidden.device)]
    normed: Tensor = tower.model.post_layernorm(heads)  # type: ignore[operator]
    return normed
