"""TempMe (arXiv 2409.01156): CLIP for text-video retrieval whose video tokens merge over time.

`TempMeVideo` and `TempMeText` are CLIP's towers with LoRA, `TempMe` the pair of them with the
similarity; `contrastive_loss` trains it and `retrieval_metrics` scores it. `load_clip` takes
CLIP's weights or the authors'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidllm.errors import InputError
from vidllm.tokens.matching import match

from .tome import check_shapes, owners, weighted

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OUT = -1e4  # added to the logits of keys that must not be seen; float16 holds it


def merge(
    x: Tensor,
    metric: Tensor,
    size: Tensor | None = None,
    protected: int = 0,
    r: int = 0,
    *,
    padded: bool = False,
) -> tuple[Tensor, Tensor]:
    """TempMe's merge: even rows join odd ones, size-weighted, behind protected rows.

    Of the rows that are not protected, those at even places of the whole sequence are sources,
    the others destinations: positions 0, 2, .. behind an even number of protected rows, else
    1, 3, ... Only they are compared.

    Args:
        x: (B, N, C) tokens. metric: (B, N, D) features to compare.
        size: (B, N, 1) source tokens behind each row; None for ones.
        protected: rows at the front (CLS tokens) that never merge.
        r: rows to remove, at most (N - protected) // 2 happen.
        padded: rows of size 0 stand for nothing: what they hold decides nothing (see `match`).

    Returns:
        (B, N - r, C) and (B, N - r, 1): the protected rows, the sources that stay in their
        order, the destinations in theirs.

    Raises:
        InputError: shapes that do not fit, or more rows protected than there are.
    """
    check_shapes(x, metric, size)
    count = x.shape[1]
    if not 0 <= protected <= count:
        raise InputError(f"{protected} of {count} rows cannot be protected")
    sizes = torch.ones_like(x[..., :1]) if size is None else size
    r = min(r, (count - protected) // 2)
    if r <= 0:
        return x, sizes
    every = torch.arange(count, device=x.device)
    source = every[protected + protected % 2 :: 2]
    destination = every[protected + 1 - protected % 2 :: 2]
    padding = sizes[..., 0] == 0 if padded else None
    pairs = match(metric, r, source, destination, padding)
    rows = x.shape[0]
    front, back = every[:protected].expand(rows, -1), destination.expand(rows, -1)
    stays = torch.cat([front, pairs.kept.sort(dim=1).values, back], dim=1)
    return weighted(x, sizes, owners(stays, pairs), stays.shape[1])


class Step(NamedTuple):
    """One layer of TempMe's schedule, with the counts after it.

    Attributes:
        layer: number of the layer, from 0. frames: clips that the rows of a video stand for.
        cls_num: CLS tokens a row. tokens: tokens a row, CLS included.
        r0: tokens merged across clips where the layer joins clips, else inside a row.
        r1: tokens merged inside a row where the layer joins clips, else -1.
    """

    layer: int
    frames: int
    cls_num: int
    tokens: int
    r0: int
    r1: int


def schedule(
    tokens: int,
    frames: int = 12,
    layers: int = 12,
    merge_layers: Sequence[int] = (8, 9, 10),
    merge_frames: Sequence[int] = (2, 2, 3),
    proportions: tuple[float, float] = (0.3, 0.1),
    tome_r: int = 2,
) -> list[Step]:
    """How many tokens TempMe merges at every layer (its defaults are the paper's for CLIP).

    Before the first of `merge_layers` a layer removes `tome_r` tokens of every frame. A layer of
    `merge_layers` joins M neighbouring clips, merges across them, r0 = min((tok - c) M // 2,
    floor(tok M p0)), and inside the joined row after attention, r1 = min(((tok - c) M - r0) // 2,
    floor((tok M - r0) p1)); later layers merge min((tok - c) // 2, floor(tok p1)). Here tok and
    c are the tokens and CLS tokens of a row before the layer.

    Args:
        tokens: tokens of a frame, CLS included. frames: frames of a video; the authors need the
            product of `merge_frames`, a multiple ends with several rows here.

    Raises:
        InputError: frames that do not divide into clips, or lists that do not fit.
    """
    if len(merge_layers) != len(merge_frames) or sorted(set(merge_layers)) != list(merge_layers):
        raise InputError("merge_layers must ascend, with one number of frames in merge_frames each")
    if tokens < 1 or frames < 1 or any(m < 1 for m in merge_frames):
        raise InputError("tokens, frames and merge_frames must be at least 1")
    joins = dict(zip(merge_layers, merge_frames, strict=True))
    first = min(merge_layers, default=layers)
    across, inside = proportions
    steps, cls_num = [], 1
    for layer in range(layers):
        m = joins.get(layer, 1)
        if frames % m:
            raise InputError(
                f"{frames} clips cannot be joined by {m} at layer {layer}: sample a multiple of "
                "the product of merge_frames"
            )
        frames, cls_num, tokens = frames // m, cls_num * m, tokens * m
        patches = tokens - cls_num
        if m > 1:
            r0 = min(patches // 2, int(tokens * across))
            r1 = min((patches - r0) // 2, int((tokens - r0) * inside))
        else:
            wanted = tome_r if layer < first else int(tokens * inside)
            r0, r1 = min(patches // 2, wanted), -1
        tokens -= r0 + max(r1, 0)
        steps.append(Step(layer, frames, cls_num, tokens, r0, r1))
    return steps


class Attention(nn.Module):
    """CLIP's attention with LoRA on queries, keys and values, unscaled."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads, self.rank = heads, rank
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        if rank:
            self.lora_a = nn.Parameter(torch.empty(rank, width))
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
            self.lora_b = nn.Parameter(torch.zeros(3 * width, rank))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, C) and a bias on the logits → the output (B, N, C) and mean keys (B, N, C / H)."""
        rows = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if self.rank:
            rows = rows + F.linear(F.linear(x, self.lora_a), self.lora_b)
        query, key, value = rows.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out_proj(out.transpose(1, 2).flatten(2)), key.mean(1)


class MLP(nn.Module):
    """CLIP's, with its quick GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class Layer(nn.Module):
    """The parts of a CLIP layer; `clips` that it joins neighbours of have an embedding each."""

    def __init__(self, width: int, rank: int, clips: int = 0) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, width // 64, rank), MLP(width)
        self.place = nn.Parameter(torch.zeros(1, clips, 1, width)) if clips else None


class TextLayer(Layer):
    """Attention and MLP on (B, N, C), with a bias on the logits."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), bias)[0]
        return x + self.mlp(self.ln_2(x))


class VideoLayer(Layer):
    """Join clips and merge across them, attend by size, merge inside rows, and the MLP."""

    def forward(
        self, x: Tensor, size: Tensor, step: Step, joined: int, padded: bool
    ) -> tuple[Tensor, Tensor]:
        """(B, tok, C) rows, CLS first, and sizes (B, tok, 1) → (B / joined, step.tokens, C or 1).

        `joined` rows become one; where `padded`, tokens of size 0 stand for nothing.
        """
        inner = step.r0
        if joined > 1:
            x, size = self._join(x, size, step, joined, padded)
            inner = step.r1
        # Proportional attention: a token counts as the tokens behind it.
        bias = torch.where(size > 0, size.clamp(min=1e-6).log(), _OUT)
        out, keys = self.attn(self.ln_1(x), bias.transpose(1, 2)[:, None].to(x.dtype))
        x, size = merge(x + out, keys, size, step.cls_num, inner, padded=padded)
        return x + self.mlp(self.ln_2(x)), size

    def _join(
        self, x: Tensor, size: Tensor, step: Step, joined: int, padded: bool
    ) -> tuple[Tensor, Tensor]:
        own = step.cls_num // joined

        def regroup(rows: Tensor) -> Tensor:
            clips = rows.unflatten(0, (-1, joined))
            return torch.cat([clips[:, :, :own].flatten(1, 2), clips[:, :, own:].flatten(1, 2)], 1)

        # Compared before the place is added, as the authors do.
        metric, size = regroup(x.detach()), regroup(size)
        if self.place is not None and step.r0 > 0:
            x = (x.unflatten(0, (-1, self.place.shape[1])) + self.place).flatten(0, 1)
        return merge(regroup(x), metric, size, step.cls_num, step.r0, padded=padded)


class Layers(nn.Module):
    """A stack of layers, under the names that CLIP's weights have."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(layers)


class TempMeVideo(nn.Module):
    """CLIP's vision tower over a whole clip: frames (B, T, 3, S, S) to one vector (B, output).

    Early layers remove `tome_r` tokens of every frame; the layers of `merge_layers` join
    `merge_frames` neighbouring clips and merge across them, until one row with T CLS tokens
    stands for the clip (`schedule`). LoRA and places start as nothing.

    Args:
        image_size, patch_size, width, layers, output: of the CLIP model; heads are 64 wide.
        rank: of LoRA; 0 for none. frames: T that the learned places of frames are for (then T
            is fixed); 0 for none, and T any multiple of the product of `merge_frames`.
        faithful: the authors' way with frames that a mask marks as padding: they are left out
            of the final mean only, but merge with real ones and are attended to. By default
            they add nothing from the first join on, and what they hold changes nothing.

    Raises:
        InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        layers: int = 12,
        output: int = 512,
        *,
        rank: int = 8,
        frames: int = 12,
        merge_layers: Sequence[int] = (8, 9, 10),
        merge_frames: Sequence[int] = (2, 2, 3),
        proportions: tuple[float, float] = (0.3, 0.1),
        tome_r: int = 2,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if width % 64 or image_size % patch_size:
            raise InputError("tempme: width must be a multiple of 64, image_size of patch_size")
        self.image_size, self.frames, self.faithful = image_size, frames, faithful
        self.tokens, self.layers = (image_size // patch_size) ** 2 + 1, layers
        self.merge_layers, self.merge_frames = tuple(merge_layers), tuple(merge_frames)
        self.proportions, self.tome_r = proportions, tome_r
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(self.tokens, width) * width**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        clips = [0] * layers
        if frames:
            rows = [frames, *(step.frames for step in self.steps(frames))]
            clips = [before if before > after else 0 for before, after in pairwise(rows)]
        self.transformer = Layers(VideoLayer(width, rank, n) for n in clips)
        self.proj = nn.Parameter(torch.randn(width, output) * width**-0.5)

    def steps(self, frames: int) -> list[Step]:
        """What happens at every layer for clips of so many frames."""
        args = (self.merge_layers, self.merge_frames, self.proportions, self.tome_r)
        return schedule(self.tokens, frames, self.layers, *args)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames (B, T, 3, S, S) in 0..1, mask as in `encode`."""
        mean, std = (frames.new_tensor(stat)[:, None, None] for stat in (_MEAN, _STD))
        return self.encode((frames - mean) / std, mask)

    def encode(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Frames that are normalised already.

        Args:
            pixels: (B, T, 3, S, S). mask: (B, T), nonzero at real frames; None when all are.

        Returns:
            (B, output), the mean of the frames' unit vectors (its norm is at most 1).

        Raises:
            InputError: a number of frames or a mask that does not fit.
        """
        batch, frames = pixels.shape[:2]
        if self.frames not in (0, frames):
            raise InputError(f"tempme: the tower is for {self.frames} frames, not {frames}")
        if mask is not None and mask.shape != (batch, frames):
            raise InputError(f"tempme: the mask must be {(batch, frames)}, not {tuple(mask.shape)}")
        real = (pixels.new_ones(batch, frames) if mask is None else mask.to(pixels.device)) > 0
        padded = mask is not None and not self.faithful
        x = self.conv1(pixels.flatten(0, 1).to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        front = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([front, x], dim=1) + self.positional_embedding)
        size, rows = torch.ones_like(x[..., :1], dtype=torch.float32), frames
        for layer, step in zip(self.transformer.resblocks, self.steps(frames), strict=True):
            joined, rows = rows // step.frames, step.frames
            if padded and joined > 1 and step.cls_num == joined:
                size = size * real.reshape(-1, 1, 1)
            x, size = layer(x, size, step, joined, padded)
        heads = self.ln_post(x[:, : frames // rows].reshape(batch, frames, -1)) @ self.proj
        weight = real[..., None].to(heads.dtype)
        return (F.normalize(heads, dim=-1) * weight).sum(1) / weight.sum(1).clamp(min=1)


class TempMeText(nn.Module):
    """CLIP's text tower with LoRA: token ids (B, L) to (B, output), taken at the largest id."""

    def __init__(
        self,
        vocabulary: int = 49408,
        context: int = 77,
        width: int = 512,
        layers: int = 12,
        output: int = 512,
        *,
        rank: int = 8,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
        self.transformer = Layers(TextLayer(width, rank) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, output) * width**-0.5)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (B, L) with the end-of-text id the largest; mask (B, L), nonzero at real ones."""
        length = ids.shape[1]
        if length > self.positional_embedding.shape[0]:
            raise InputError(f"tempme: {length} words are more than the text tower can read")
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None, None]
        seen = seen if mask is None else seen & (mask[:, None, None, :] > 0)
        bias = torch.where(seen, 0.0, _OUT).to(x.dtype)
        for layer in self.transformer.resblocks:
            x = layer(x, bias)
        end = ids.argmax(dim=-1)
        last = self.ln_final(x)[torch.arange(ids.shape[0], device=ids.device), end]
        return last @ self.text_projection


class TempMe(nn.Module):
    """Both towers and the scale of their similarity."""

    def __init__(self, visual: TempMeVideo, text: TempMeText) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """(Q, C) and (V, C) → (Q, V), cosines times the scale (at most 100)."""
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return scale * F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T

    def forward(
        self, ids: Tensor, frames: Tensor, words: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Similarities (Q, V) of texts (Q, L) and clips (V, T, 3, S, S) in 0..1, with masks."""
        return self.similarity(self.text(ids, words), self.visual(frames, mask))

    def trainable(self) -> list[nn.Parameter]:
        """Freeze all but LoRA and the places of frames, which the paper trains, and give them."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(name.rpartition(".")[2] in ("lora_a", "lora_b", "place"))
        return [weight for weight in self.parameters() if weight.requires_grad]


def contrastive_loss(similarity: Tensor) -> Tensor:
    """Mean of text-to-video and video-to-text cross entropy; pairs stand on the diagonal (B, B)."""
    own = torch.arange(similarity.shape[0], device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def retrieval_metrics(similarity: Tensor, faithful: bool = False) -> dict[str, float]:
    """R@k in percent, median and mean rank of the diagonal in the rows of (Q, Q).

    Rows are queries: pass the transpose for video-to-text. Of equal scores the query's own comes
    last; `faithful` counts the query once at every place among them (the authors' defect).

    Raises:
        InputError: not square, empty, or not finite.
    """
    queries = len(similarity)
    if similarity.shape != (queries, queries) or not queries or not similarity.isfinite().all():
        raise InputError("similarities must be square (Q, Q) and finite")
    own = similarity.diagonal()[:, None]
    ranks = (similarity >= own).sum(1) - 1
    if faithful:
        ranks = (similarity.sort(dim=1, descending=True).values == own).nonzero()[:, 1]
    share = {f"R{k}": 100 * float((ranks < k).double().mean()) for k in (1, 5, 10, 50)}
    middle, mean = float(ranks.double().quantile(0.5)) + 1, float(ranks.double().mean()) + 1
    total = share["R1"] + share["R5"] + share["R10"]
    return {**share, "MR": middle, "MedianR": middle, "MeanR": mean, "RSum": total}


def load_clip(model: TempMe | TempMeVideo | TempMeText, state: Mapping[str, Tensor]) -> None:
    """Take CLIP's weights, or the authors' (whose own parts are named TVPt), under any prefix.

    LoRA and places that are missing stay; places go by the number of clips that they are for.

    Raises:
        InputError: weights that are missing, of another shape, or have no place in the model.
    """
    mark = "visual.conv1.weight"
    prefix = next((key[: -len(mark)] for key in state if key.endswith(mark)), "")
    places = {key: v for key, v in state.items() if "TVPt" in key and v.dim() == 4}
    own = {
        key.removeprefix(prefix).replace("TVPt_LoRA_", "lora_"): value
        for key, value in state.items()
        if key not in places
    }
    if not isinstance(model, TempMeVideo):
        done = ("visual.", "text.", "logit_scale")
        own = {k if k.startswith(done) else f"text.{k}": v for k, v in own.items()}
    if not isinstance(model, TempMe):
        part = "text." if isinstance(model, TempMeText) else "visual."
        inside = {k.removeprefix(part): v for k, v in own.items() if k.startswith(part)}
        own = inside or own
    target = model.state_dict()
    lost = {k for k in own if "lora_" in k} - set(target)
    for key, value in places.items():
        fits = [k for k, v in target.items() if k.endswith("place") and v.shape == value.shape]
        own |= dict.fromkeys(fits, value)
        if not fits and not isinstance(model, TempMeText):
            lost.add(key)
    lost |= {k for k in target if k not in own and not k.endswith(("lora_a", "lora_b", "place"))}
    lost |= {k for k, v in target.items() if k in own and own[k].shape != v.shape}
    if lost:
        raise InputError(f"{len(lost)} weights do not fit the model, as {sorted(lost)[0]}")
    model.load_state_dict({k: own.get(k, v) for k, v in target.items()})
