"""Towers that see single frames: a small convolutional one, and vision models of transformers.

The small one learns from scratch in minutes on a CPU: four strided stages with ConvNeXt-like blocks
(Liu et al., 2022) end in a grid of cells. It is the tower of the shipped weights. Those of
transformers run whole or with merging inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.tokens import Merge, Mix, VideoTokens, split_budget
from vidllm.tokens.tower_plan import Reducer, TowerMethod, TowerShape, TowerTokens

from .layers import cut, to_patches
from .merging import blank, merging, tower_layers
from .signals import SIGNALS, watch


class ConvBlock(nn.Module):
    """x + MLP(norm(depthwise conv(x))), all at one resolution."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, 3 * width, 1)
        self.down = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x))
        return x + self.down(nn.functional.gelu(self.up(hidden)))


class ConvStem(nn.Sequential):
    """Frames (F, 3, S, S) to a grid (F, hidden_size, S / stride, S / stride), in four stages.

    In place of a vision transformer's one large convolution it lets small ones learn from little
    (Xiao et al., 2021, arXiv 2106.14881).

    Args:
        stride: of the whole, 16 or 24 pixels to a cell.
        widths: of the first three stages. blocks: `ConvBlock`s behind the last three.

    Raises:
        InputError: for another stride.
    """

    def __init__(
        self,
        stride: int,
        hidden_size: int,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
    ) -> None:
        if stride not in (16, 24):
            raise InputError(f"a convolutional stem has 16 or 24 pixels to a cell, not {stride}")
        first, (a, b, c) = stride // 8, widths
        super().__init__(
            nn.Conv2d(3, a, 2 * first - 1, stride=first, padding=first - 1),
            nn.BatchNorm2d(a),
            nn.GELU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            *(ConvBlock(b, 5) for _ in range(blocks[0])),
            nn.BatchNorm2d(b),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            *(ConvBlock(c, 5) for _ in range(blocks[1])),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, hidden_size, 3, stride=2, padding=1),
            *(ConvBlock(hidden_size, 3) for _ in range(blocks[2])),
        )

    @property
    def weight(self) -> Tensor:
        """Of the first convolution: transformers asks its patch embedding for the number type."""
        return cast(nn.Conv2d, self[0]).weight


class ConvTower(nn.Module):
    """Frames (F, 3, S, S) in 0..1 to cells (F, (S/16)², hidden_size), row by row.

    `image_size` S must be a multiple of 16. A learned embedding of the cell's place is added.
    """

    #: A convolution attends to nothing: no signals beside the cells.
    provides: tuple[str, ...] = ()

    def __init__(
        self,
        image_size: int = 64,
        hidden_size: int = 192,
        widths: Sequence[int] = (24, 64, 128),
        blocks: Sequence[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.side = image_size // 16
        self.stem = ConvStem(16, hidden_size, widths, blocks)
        self.norm = nn.LayerNorm(hidden_size)
        self.place = nn.Parameter(torch.zeros(self.side**2, hidden_size))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = ((frames - 0.4) * 3.0).contiguous(memory_format=torch.channels_last)
        grid = self.stem(pixels)
        return self.norm(grid.flatten(2).transpose(1, 2)) + self.place


#: Types of transformers vision configs that are known to work here.
HUB_TYPES: tuple[str, ...] = (
    "siglip_vision_model",
    "siglip2_vision_model",
    "clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
)
_CLIP_STATS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class HubTower(nn.Module):
    """A vision model of transformers: normalises its own way, drops CLS and register tokens.

    Args:
        layer: hidden state to give, −2 as LLaVA does; only the layers that it needs are kept
            (see `layers.cut`). None for the model's own output.
        frozen: no gradient, neither to the weights nor through them, and no dropout: the model
            stays in evaluation mode.

    Raises:
        InputError: a layer that is not there; a SigLIP2 of free shape that has no square grid.
    """

    #: What `with_signals` can tell beside the cells.
    provides: tuple[str, ...] = SIGNALS

    def __init__(self, model: nn.Module, layer: int | None = None, *, frozen: bool = False) -> None:
        super().__init__()
        config: Any = model.config
        self.depth = int(config.num_hidden_layers)
        self.left = self.depth if layer is None else cut(model, layer)
        if not self.left:
            self.provides = ()
        self.model, self.frozen = model, frozen
        if frozen:
            model.requires_grad_(False).eval()
        self.hidden_size = int(config.hidden_size)
        kind = str(config.model_type)
        #: Of SigLIP2 only this type takes patches of any shape; its fixed sizes are SigLIPs.
        self.patches = int(config.patch_size) if kind == "siglip2_vision_model" else 0
        if self.patches:
            self.side = math.isqrt(int(config.num_patches))
            if self.side**2 != int(config.num_patches):
                raise InputError(
                    f"a SigLIP2 tower of {config.num_patches} patches has no square grid: "
                    "use one whose number of patches is a square, or one of fixed size"
                )
            self.image_size = self.side * self.patches
        else:
            self.image_size = int(config.image_size)
            self.side = self.image_size // int(config.patch_size)
        #: Tokens before the cells: CLS and registers.
        self.special = 0
        if not kind.startswith("siglip"):
            self.special = 1 + int(getattr(config, "num_register_tokens", 0))
        stats = ((0.5,) * 3, (0.5,) * 3) if kind.startswith("siglip") else _CLIP_STATS
        mean, std = _IMAGENET_STATS if kind.startswith("dinov2") else stats
        # Plain numbers, not buffers: loading builds modules without data and would lose them.
        self.mean, self.std = mean, std

    def train(self, mode: bool = True) -> HubTower:
        """As `nn.Module.train`; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:  # loading a whole model may have put fresh weights in their place
            self.model.requires_grad_(False).eval()
        return self

    def normalise(self, frames: Tensor) -> Tensor:
        """Frames (F, 3, S, S) in 0..1 → the pixels that the model was trained on."""
        mean = frames.new_tensor(self.mean).view(1, 3, 1, 1)
        std = frames.new_tensor(self.std).view(1, 3, 1, 1)
        return (frames - mean) / std

    def run(self, frames: Tensor, **options: Any) -> Any:
        """The model's output for frames (F, 3, S, S) in 0..1; no graph of it where it is frozen."""
        pixels = self.normalise(frames).to(next(self.model.parameters()).dtype)
        given = {"pixel_values": pixels}
        if self.patches:  # any shape of picture would do; a square one is what every tower gets
            shape = torch.full((len(frames), 2), self.side, device=frames.device)
            given["spatial_shapes"] = shape
            given["pixel_values"] = to_patches(pixels, self.patches)
            given["pixel_attention_mask"] = shape.new_ones(len(frames), self.side**2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model(**given, **options)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = self.run(frames).last_hidden_state
        return hidden[:, hidden.shape[1] - self.side**2 :]

    def every_layer(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The output of every layer (F, special + N, D), without a final norm, first layer first.

        CLS and register tokens stand before the cells.
        """
        return tuple(self.run(frames, output_hidden_states=True).hidden_states[1:])

    def with_signals(self, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, and what the tower thinks of every cell (see `signals.Watch.read`).

        Attention is read in the last layer but one where there is a CLS token (as VisionZip does),
        else in the last; of a model cut short before it, in the last that is left.
        """
        with watch(self.model, self.watched - self.left) as seen:
            cells = self(frames)
        return cells, seen.read(self.side**2)

    @property
    def watched(self) -> int:
        """The layer whose attention and keys are read (see `with_signals`)."""
        return min(self.depth - (2 if self.special else 1), self.left - 1)

    def with_merging(
        self,
        frames: Tensor,
        method: Reducer,
        budget: int | None = None,
        *,
        fold: int = 1,
        batch: int = 64,
        signals: bool = False,
    ) -> TowerTokens:
        """Run one clip with tokens that merge between the layers, so that later ones see fewer.

        Args:
            frames: (T, 3, S, S) in 0..1, the frames of one clip.
            method: a compressor; one without `tower_steps` acts on the tower's output.
            budget: exact number of tokens; None for what the method's own options say.
            fold: side of the square of cells that merges as one token and comes out as one, the
                cells on its channels (for projectors that fold them).
            batch: frames that run at once; merges across frames stay inside a batch.
            signals: also give what `with_signals` does, for every token.

        Returns:
            The tokens, and the merge of the clip's T * (side / fold)² original tokens into them.

        Raises:
            InputError: a wrong budget or fold, an attention implementation that takes no mask,
                or frames that make NaN or infinite features.
        """
        return merge_clip(self, frames, method, budget, fold=fold, batch=batch, signals=signals)


def build_tower(config: dict[str, Any]) -> ConvTower | HubTower:
    """The tower of single frames of a config dict: {"type": "conv", …} or a transformers type.

    Those of transformers also take `layer` and `frozen` (see `HubTower`), a CLIP also `stem`:
    options of a `ConvStem` in the place of its patch embedding, {} for the usual ones.

    Raises:
        InputError: for a type that is not known.
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind == "conv":
        return ConvTower(**options)
    if kind not in HUB_TYPES:
        raise InputError(f"no vision tower '{kind}': use conv or one of {', '.join(HUB_TYPES)}")
    from transformers import AutoConfig, AutoModel

    how = {key: options.pop(key) for key in ("layer", "frozen") if key in options}
    stem = options.pop("stem", None)
    settings = AutoConfig.for_model(kind, **options)
    # The towers are called through `HubTower`, which needs no attention pooling head.
    model = AutoModel.from_config(settings)
    if stem is not None:
        if kind != "clip_vision_model":
            raise InputError(f"a {kind} takes no stem: only clip_vision_model does")
        width, patch = int(settings.hidden_size), int(settings.patch_size)
        embeddings = getattr(model, "vision_model", model).embeddings
        embeddings.patch_embedding = ConvStem(patch, width, **stem)
    return HubTower(model, **how)


def load_vision(
    name: str, layer: int | None = None, *, frozen: bool = False
) -> tuple[HubTower, dict[str, Any]]:
    """A pretrained tower by its name on the hub (or a folder), with its config dict.

    `layer` and `frozen` as for `HubTower`.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(name)
    config = getattr(config, "vision_config", config)
    if config.model_type not in HUB_TYPES:
        raise InputError(
            f"'{name}' is a {config.model_type}, not a vision tower: "
            f"use one of {', '.join(HUB_TYPES)}"
        )
    model = AutoModel.from_pretrained(name, config=config)
    settings = {k: v for k, v in config.to_diff_dict().items() if k != "model_type"}
    if layer is not None:
        settings["layer"] = layer
    if frozen:
        settings["frozen"] = True
    return HubTower(model, layer, frozen=frozen), {"type": config.model_type, **settings}


def to_pixels(frames: Tensor, size: int) -> Tensor:
    """Frames (F, H, W, 3) uint8 to (F, 3, size, size) float32 in 0..1, resized with antialiasing.

    The aspect ratio is not kept: every frame fills the square, as the tower was trained.
    """
    pixels = frames.permute(0, 3, 1, 2).to(torch.float32) / 255
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp_(0, 1)


def merge_clip(
    tower: HubTower,
    frames: Tensor,
    method: Reducer | TowerMethod,
    budget: int | None,
    *,
    fold: int,
    batch: int,
    signals: bool,
) -> TowerTokens:
    """The work of `HubTower.with_merging`."""
    side, layers = tower.side // fold, len(tower_layers(tower.model))
    if not len(frames) or tower.side % fold:
        raise InputError(f"{len(frames)} frames of {tower.side}² cells do not fold by {fold}")
    if budget is not None and budget < 1:
        raise InputError(f"budget must be at least 1, not {budget}")
    sizes = [len(part) for part in frames.split(batch)]
    acting = cast(TowerMethod, method) if layers and hasattr(method, "tower_steps") else None
    if acting is not None and budget is None:
        budget = acting.tower_budget(blank(len(frames), side))
    goals: list[int | None] = [None] * len(sizes)
    if acting is not None and budget is not None:  # inside, a frame has one token at least
        spare = [size * (side * side - 1) for size in sizes]
        more = max(0, min(budget - len(frames), sum(spare)))
        extra = split_budget(more, spare) if more else [0] * len(sizes)
        goals = [size + e for size, e in zip(sizes, extra, strict=True)]
    parts = []
    for part, goal in zip(frames.split(batch), goals, strict=True):
        shape = TowerShape(layers, tower.special, len(part), side * side)
        whole = goal is not None and goal >= len(part) * side * side
        steps = [] if acting is None or whole else acting.tower_steps(shape, goal)
        proportional = acting is not None and acting.proportional
        watched = tower.watched if signals or method.needs else None
        with merging(
            tower.model,
            steps,
            shape,
            tower.side,
            fold=fold,
            proportional=proportional,
            watched=watched,
        ) as run:
            hidden = tower.run(part).last_hidden_state
        parts.append(run.read(hidden))
    tokens = _joined(parts, side)
    if not bool(torch.isfinite(tokens.features).all()):
        raise InputError("the vision tower gives NaN or infinite values for this video")
    if acting is None or (budget is not None and len(tokens) > budget):
        tokens, _ = method.run(tokens, budget)
    merge = Merge(tokens.source, tokens.position, "size")
    return TowerTokens(tokens.features, merge, dict(tokens.signals))


def _joined(parts: Sequence[VideoTokens], side: int) -> VideoTokens:
    """One clip of clips that follow each other."""
    source, place, slots, cells = [], [], 0, 0
    for part in parts:
        source.append(torch.where(part.source < 0, -1, part.source + slots))
        place.append(part.position + cells)
        slots, cells = slots + len(part), cells + part.total
    features = torch.cat([part.features for part in parts])
    whole = blank(sum(part.grid[0] for part in parts), side)
    whole = whole.apply(Mix(features, torch.cat(source), torch.cat(place)))
    names = parts[0].signals
    planes = {name: torch.cat([part.signals[name] for part in parts]) for name in names}
    return whole.with_signals(**planes)
