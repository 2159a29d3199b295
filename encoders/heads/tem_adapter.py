"""Tem-Adapter (ICCV 2023): options scored against a clip, with next-frame prediction beside it.

From the paper's equations: "Tem-adapter: Adapting Image-Text Pretraining for Video Question
Answer", arXiv 2308.08414.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidllm.errors import InputError

from .base import Head, check_clips, check_rows, register_head, sinusoid

#: What of the two aligners there is.
ALIGNERS = ("both", "temporal", "semantic", "none")


class SemanticAligner(nn.Module):
    """Texts refined by the frames: text + gamma * delta, with gamma small at first.

    One pre-norm decoder layer of a small width (GELU, feed-forward of four times the width). A
    text is one token that attends to itself and to all frames, never to the other texts.
    """

    def __init__(self, dim: int, width: int, heads: int, dropout: float, gamma: float) -> None:
        super().__init__()
        self.text_in = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.video_in = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.LayerNorm(width))
        self.layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.text_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, text: Tensor, frames: Tensor, padding: Tensor) -> Tensor:
        """Texts (B, K, D), frames (B, T, D), padding (B, T) True where there is no frame."""
        others = ~torch.eye(text.shape[1], dtype=torch.bool, device=text.device)
        delta = self.layer(
            self.text_in(text),
            self.video_in(frames),
            tgt_mask=others,
            memory_key_padding_mask=padding,
        )
        return text + self.gamma * self.text_out(delta)


class TemporalAligner(nn.Module):
    """One post-norm encoder layer over the frames, and a decoder layer that predicts them."""

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float, faithful: bool) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(dim, heads, ffn, dropout, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(dim, heads, ffn, dropout, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.faithful = faithful
        if not faithful:
            self.begin = nn.Parameter(torch.zeros(dim))

    def placed(self, frames: Tensor) -> Tensor:
        """Frames (B, T, D) with their positions."""
        place = torch.arange(frames.shape[1], device=frames.device)
        return self.drop(frames + sinusoid(place, frames.shape[2]).to(frames.dtype))

    def forward(self, frames: Tensor, padding: Tensor) -> Tensor:
        """The memory M (B, T, D) of frames (B, T, D), each seeing all of them."""
        return self.encoder(self.placed(frames), src_key_padding_mask=padding)

    def predict(self, frames: Tensor, text: Tensor, padding: Tensor) -> Tensor:
        """Every frame from those before it and a text (B, D) that is added to the memory."""
        count = frames.shape[1]
        later = torch.ones(count, count, dtype=torch.bool, device=frames.device).triu(1)
        masks = {"tgt_key_padding_mask": padding, "memory_key_padding_mask": padding}
        if self.faithful:
            placed = self.placed(frames)
            memory = self.encoder(placed, src_key_padding_mask=padding) + text[:, None]
            return self.decoder(placed, memory, tgt_mask=later, **masks)
        begin = self.begin.to(frames.dtype).expand(len(frames), 1, -1)
        past = self.placed(torch.cat([begin, frames[:, :-1]], dim=1))
        memory = self.encoder(past, src_mask=later, src_key_padding_mask=padding)
        memory = memory + text[:, None]
        return self.decoder(past, memory, tgt_mask=later, memory_mask=later, **masks)


@register_head("tem-adapter")
class TemAdapter(Head):
    """Multiple choice over frozen image and text features of one space, such as CLIP's.

    score(option) = <refined option text, mean over time of the memory>; training adds the error
    of predicting every frame's features from those before it (see `SemanticAligner` and
    `TemporalAligner`). The authors fuse question and option into one sentence for the text.

    Two defects of the authors' code are corrected, and `faithful=True` gives them back:

    1. Their autoregressive decoder sees what it is to predict: its input is not shifted, so that
       position t holds frame t, and the memory it reads was encoded from all frames. Here its
       input is shifted by one behind a learned begin, and the memory is made from that shifted
       input with a causal mask, by the same encoder layer. So that the frame does not come in
       with the text either, that text is the one before the semantic aligner (theirs is refined,
       as we read them).
    2. Their frames are tiled as v0 v1 .. v0 v1 .. beside texts in the order b0o0 b0o1 .., so that
       option o of clip b is refined by the frames of clip (b K + o) mod B. Here it is its own.

    Also theirs: the hinge counts the right option, which adds `margin` for every clip and no
    gradient. Here it does not, and `faithful` counts it.

    Args:
        dim: width of the frames' and the texts' features. width: of the semantic aligner.
        heads: of every attention; they divide both widths. ffn: of the temporal aligner.
        dropout: in the temporal aligner and after positions. semantic_dropout: in the other one.
        gamma: at first, for every channel.
        margin: of the hinge. rank_weight: of the hinge in the loss.
        faithful: keep the defects.
        aligners: "both", or for ablations "temporal" or "semantic" alone, or "none", which leaves
            <text, mean of the frames>. Without the temporal one no frames are predicted.

    Raises:
        InputError: widths that the heads do not divide, or aligners that there are not.
    """

    paper = "Tem-Adapter, arXiv 2308.08414"
    summary = "scores the options of a multiple choice question; predicts the next frame to learn"

    def __init__(
        self,
        dim: int = 512,
        width: int = 128,
        heads: int = 16,
        ffn: int = 2048,
        dropout: float = 0.1,
        semantic_dropout: float = 0.2,
        gamma: float = 1e-4,
        margin: float = 1.0,
        rank_weight: float = 0.01,
        faithful: bool = False,
        aligners: str = "both",
    ) -> None:
        super().__init__(
            dim=dim, width=width, heads=heads, ffn=ffn, dropout=dropout,
            semantic_dropout=semantic_dropout, gamma=gamma, margin=margin,
            rank_weight=rank_weight, faithful=faithful, aligners=aligners,
        )  # fmt: skip
        if min(dim, width, heads, ffn) < 1 or dim % heads or width % heads:
            raise InputError(
                f"tem-adapter: {heads} heads must divide dim {dim} and width {width}: choose others"
            )
        if aligners not in ALIGNERS:
            raise InputError(f"tem-adapter: aligners are {', '.join(ALIGNERS)}, not {aligners!r}")
        self.dim, self.faithful = dim, faithful
        self.margin, self.rank_weight = margin, rank_weight
        self.semantic: SemanticAligner | None = None
        self.temporal: TemporalAligner | None = None
        if aligners in ("both", "semantic"):
            self.semantic = SemanticAligner(dim, width, heads, semantic_dropout, gamma)
        if aligners in ("both", "temporal"):
            self.temporal = TemporalAligner(dim, heads, ffn, dropout, faithful)

    def scores(
        self,
        video: Tensor,
        options: Tensor,
        mask: Tensor | None = None,
        options_mask: Tensor | None = None,
    ) -> Tensor:
        """How well every option fits its clip; softmax over options is no part of the paper.

        Args:
            video: (B, T, D) features of frames. options: (B, K, D) features of texts.
            mask: (B, T) bool, True at real frames. options_mask: (B, K) bool, True at real ones.

        Returns:
            (B, K); -inf at padded options.

        Raises:
            InputError: shapes that do not fit, or a clip without a frame.
        """
        frames, padding, _ = self._packed(video, mask)
        texts, there = self._texts(options, options_mask, len(video))
        score = self._score(self._refined(texts, frames, padding), frames, padding)
        return score.masked_fill(~there, -torch.inf)

    def forward(
        self,
        video: Tensor,
        options: Tensor,
        mask: Tensor | None = None,
        options_mask: Tensor | None = None,
    ) -> Tensor:
        """`scores`."""
        return self.scores(video, options, mask, options_mask)

    def loss(
        self,
        video: Tensor,
        options: Tensor,
        answer: Tensor,
        mask: Tensor | None = None,
        options_mask: Tensor | None = None,
    ) -> Tensor:
        """rank_weight * hinge + frame error (see `losses`)."""
        hinge, error = self.losses(video, options, answer, mask, options_mask)
        return self.rank_weight * hinge + error

    def losses(
        self,
        video: Tensor,
        options: Tensor,
        answer: Tensor,
        mask: Tensor | None = None,
        options_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both parts of the loss without weights, in float32.

        The hinge is the sum of max(0, margin + s_j - s_answer) over wrong options and over the
        batch; the error is the mean square over real frames and channels, and the frames that
        are to be predicted get no gradient of it.

        Args:
            answer: (B,) long, the right option. Others: see `scores`.

        Raises:
            InputError: as `scores`, or an answer that is no real option.
        """
        frames, padding, _ = self._packed(video, mask)
        texts, there = self._texts(options, options_mask, len(video))
        if tuple(answer.shape) != (len(video),) or answer.is_floating_point():
            raise InputError(f"tem-adapter: answer must be ({len(video)},) whole numbers")
        answer = answer.to(texts.device).long()
        inside = (answer >= 0) & (answer < texts.shape[1])
        if not bool((inside & there.gather(1, (answer * inside)[:, None])[:, 0]).all()):
            raise InputError("tem-adapter: an answer is none of its clip's options")
        right = answer[:, None]
        refined = self._refined(texts, frames, padding)
        score = self._score(refined, frames, padding).float()
        hinge = (self.margin + score - score.gather(1, right)).clamp(min=0)
        counted = there if self.faithful else there.scatter(1, right, False)
        hinge = hinge.masked_fill(~counted, 0.0).sum()
        if self.temporal is None:
            return hinge, hinge.new_zeros(())
        known = (refined if self.faithful else texts)[torch.arange(len(texts)), answer]
        guess = self.temporal.predict(frames, known, padding)
        error = (guess.float() - frames.detach().float())[~padding].square().mean()
        return hinge, error

    def next_frames(self, video: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """Every frame's features (B, T, D) as predicted from the frames before it and a text.

        Args:
            video: (B, T, D). text: (B, D), such as the right answer. mask: (B, T) bool.

        Returns:
            (B, T, D), zeros at padding; with `faithful` frame t itself is seen.
        """
        if self.temporal is None:
            raise InputError("tem-adapter predicts no frames without its temporal aligner")
        frames, padding, order = self._packed(video, mask)
        if tuple(text.shape) != (len(video), self.dim):
            raise InputError(
                f"tem-adapter takes one text a clip, {(len(video), self.dim)}, not "
                f"{tuple(text.shape)}"
            )
        guess = self.temporal.predict(frames, text, padding).masked_fill(padding[..., None], 0.0)
        return torch.zeros_like(guess).scatter(1, order[..., None].expand_as(guess), guess)

    def _packed(self, video: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Real frames first, then zeros; what is padding then (B, T); where each came from."""
        real = check_clips(self.name, video, self.dim, mask)
        order = torch.argsort((~real).byte(), dim=1, stable=True)
        padding = ~real.gather(1, order)
        frames = video.gather(1, order[..., None].expand_as(video))
        return frames.masked_fill(padding[..., None], 0.0), padding, order

    def _texts(self, options: Tensor, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        there = check_rows(self.name, "option features", options, self.dim, mask)
        if len(options) != batch:
            raise InputError(f"tem-adapter: {batch} clips met options of {len(options)}")
        return options.masked_fill(~there[..., None], 0.0), there

    def _refined(self, texts: Tensor, frames: Tensor, padding: Tensor) -> Tensor:
        if self.semantic is None:
            return texts
        if not self.faithful:
            return self.semantic(texts, frames, padding)
        batch, count, dim = texts.shape
        crossed = texts.reshape(count, batch, dim).transpose(0, 1)  # row b K + o to clip row % B
        refined = self.semantic(crossed, frames, padding)
        return refined.transpose(0, 1).reshape(batch, count, dim)

    def _score(self, texts: Tensor, frames: Tensor, padding: Tensor) -> Tensor:
        memory = frames if self.temporal is None else self.temporal(frames, padding)
        memory = memory.masked_fill(padding[..., None], 0.0)
        mean = memory.sum(1) / (~padding).sum(1, keepdim=True).to(memory.dtype)
        return torch.einsum("bkd,bd->bk", texts, mean)
