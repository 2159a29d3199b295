"""NaSVA (ECCV 2024): when each sentence happens, by sentences as queries over per-second features.

From the equations of "Multi-Sentence Grounding for Long-term Instructional Video", arXiv
2312.14055. `NaSVA` aligns, grounds and selects; its metric is `alignment.recall_at_1`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.timecode import Span
from vidllm.tokens import VideoTokens

from .base import Head, check_clips, check_rows, register_head, sinusoid

#: What a similarity is at padding: as good as minus infinity, and within the range of float16.
PADDED = -6e4


class _Layer(nn.Module):
    """A post-norm layer whose positions are added to queries and keys only, as in DETR."""

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float, cross: bool) -> None:
        super().__init__()
        kinds = 2 if cross else 1
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, dropout, batch_first=True) for _ in range(kinds)
        )
        self.feed = nn.Sequential(
            nn.Linear(dim, ffn), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn, dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(kinds))
        self.last_norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, place: Tensor, *seen: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """x (B, N, D) reads each of `seen`: values (B, M, D), their positions, padding (B, M)."""
        for attention, norm, (values, where, padding) in zip(
            self.attention, self.norms, seen, strict=True
        ):
            read, _ = attention(
                x + place, values + where, values, key_padding_mask=padding, need_weights=False
            )
            x = norm(x + self.drop(read))
        return self.last_norm(x + self.drop(self.feed(x)))


@register_head("nasva")
class NaSVA(Head):
    """Sentences find their seconds: cosines between decoded sentences and encoded seconds.

    Seconds pass `layers` encoder layers; sentences are the queries of `layers` decoder layers
    over them, and the output of each decoder layer is normalised and compared with the seconds
    in a joint space. The cost is O(S T) for S sentences and T seconds.

    Where sentences come in their order (narrations) a learned embedding tells it; where they do
    not (the steps of a recipe) it is left out, with `order=False` or `ordered=False` of a call.
    Without it the decoder treats its sentences as a set. In training the authors shuffle the
    sentences of half the batches; a shuffled batch is here one without order.

    Not disclosed, so ours: the order embedding is added to queries and keys, as positions are;
    `max_sentences`; and for features that are not one a second, their times place them.

    Args:
        video_dim, text_dim: widths of the features (InternVideo and CLIP-L 768, S3D 512).
        dim: inside. layers: of the encoder, and of the decoder; 0 for an ablation, which compares
            what the linear maps make of sentences and seconds. heads, ffn: of every layer.
        joint_dim: of the space in which cosines are taken. temperature: divides them.
        order: learn an order embedding. max_sentences: how many places it has.
        shuffle: share of training batches whose order is left out.

    Raises:
        InputError: sizes below 1, heads that do not divide dim, or a temperature not above 0.
    """

    paper = "NaSVA, arXiv 2312.14055"
    summary = "sentences as queries over per-second features; grounds them and selects frames"

    def __init__(
        self,
        video_dim: int = 768,
        text_dim: int = 768,
        dim: int = 256,
        layers: int = 3,
        heads: int = 8,
        ffn: int = 2048,
        dropout: float = 0.1,
        joint_dim: int = 64,
        temperature: float = 0.07,
        order: bool = True,
        max_sentences: int = 256,
        shuffle: float = 0.5,
    ) -> None:
        super().__init__(
            video_dim=video_dim, text_dim=text_dim, dim=dim, layers=layers, heads=heads, ffn=ffn,
            dropout=dropout, joint_dim=joint_dim, temperature=temperature, order=order,
            max_sentences=max_sentences, shuffle=shuffle,
        )  # fmt: skip
        sizes = (video_dim, text_dim, dim, layers + 1, heads, ffn, joint_dim, max_sentences)
        if min(sizes) < 1 or dim % heads or temperature <= 0:
            raise InputError(
                f"nasva: sizes must be at least 1, {heads} heads must divide dim {dim}, and the "
                f"temperature {temperature:g} must be above 0"
            )
        self.temperature, self.order, self.shuffle = temperature, order, shuffle
        self.video_dim, self.text_dim, self.dim = video_dim, text_dim, dim
        self.video_in = nn.Sequential(nn.Linear(video_dim, dim), nn.LayerNorm(dim))
        self.text_in = nn.Sequential(nn.Linear(text_dim, dim), nn.LayerNorm(dim))
        self.encoder = nn.ModuleList(
            _Layer(dim, heads, ffn, dropout, cross=False) for _ in range(layers)
        )
        self.decoder = nn.ModuleList(
            _Layer(dim, heads, ffn, dropout, cross=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.video_out = nn.Linear(dim, joint_dim, bias=False)
        self.text_out = nn.Linear(dim, joint_dim, bias=False)
        if order:
            self.order_table = nn.Embedding(max_sentences, dim)

    def similarity(
        self,
        video: Tensor,
        sentences: Tensor,
        mask: Tensor | None = None,
        sentence_mask: Tensor | None = None,
        seconds: Tensor | None = None,
        ordered: bool | None = None,
    ) -> Tensor:
        """Cosine over temperature of every sentence with every second of its own video.

        Args:
            video: (B, T, Dv) one feature a second. sentences: (B, S, Dt).
            mask: (B, T) bool, True at real seconds. sentence_mask: (B, S) bool, at real sentences.
            seconds: (B, T) their times where they are not 0, 1, 2 ... of the real ones.
            ordered: whether the sentences are in order; None for what `order` says.

        Returns:
            (layers, B, S, T) float32, the last layer's is the answer; -6e4 at padding.

        Raises:
            InputError: shapes that do not fit, a video without a second, or an order that the
                head has no embedding for.
        """
        found, frames, real, there = self._embed(
            video, sentences, mask, sentence_mask, seconds, ordered
        )
        score = torch.einsum("lbsj,btj->lbst", found, frames) / self.temperature
        return score.masked_fill(~(real[:, None] & there[..., None]), PADDED)

    forward = similarity

    def loss(
        self,
        video: Tensor,
        sentences: Tensor,
        positive: Tensor,
        mask: Tensor | None = None,
        sentence_mask: Tensor | None = None,
        seconds: Tensor | None = None,
        ordered: bool | None = None,
    ) -> Tensor:
        """InfoNCE of every sentence over all seconds of the whole batch, mean over layers.

        -log(sum of e^A over its own positive seconds / sum over every real second of the batch).
        The mean is over sentences that have a positive second; the others contribute 0 (it is 0
        where none has).

        Args:
            positive: (B, S, T) bool, the seconds in the sentence's window (see `inside`).
            Others: see `similarity`. In training the order is left out of the share `shuffle` of
            calls, unless `ordered` is given.
        """
        rest = (mask, sentence_mask, seconds, ordered)
        return self.loss_and_scores(video, sentences, positive, *rest)[0]

    def loss_and_scores(
        self,
        video: Tensor,
        sentences: Tensor,
        positive: Tensor,
        mask: Tensor | None = None,
        sentence_mask: Tensor | None = None,
        seconds: Tensor | None = None,
        ordered: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`loss`, and the similarities of the last layer (B, S, T) that it was made of.

        Those at padding mean nothing; in training dropout is in them.
        """
        if positive.shape != (*sentences.shape[:2], video.shape[1]) or positive.dtype != torch.bool:
            raise InputError(
                f"nasva: positive must be bool {(*sentences.shape[:2], video.shape[1])}, not "
                f"{positive.dtype} {tuple(positive.shape)}"
            )
        if ordered is None and self.order and self.training:
            ordered = bool(torch.rand(()) >= self.shuffle)
        found, frames, real, there = self._embed(
            video, sentences, mask, sentence_mask, seconds, ordered
        )
        positive = positive & real[:, None] & there[..., None]
        counted = positive.any(2)
        total = frames.new_zeros(())
        for layer in found:  # one at a time: (B, S, B, T) is large
            score = torch.einsum("bsj,ctj->bsct", layer, frames) / self.temperature
            every = score.masked_fill(~real, PADDED).flatten(2).logsumexp(2)
            own = score.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            right = own.masked_fill(~positive, PADDED).logsumexp(2)
            total = total + (every - right).masked_fill(~counted, 0.0).sum()
        scores = own.masked_fill(~real[:, None], PADDED)
        return total / (counted.sum().clamp(min=1) * len(found)), scores

    def ground(
        self,
        video: Tensor,
        seconds: Tensor | Sequence[float],
        sentences: Tensor,
        *,
        duration: float | None = None,
        share: float = 0.7,
        ordered: bool | None = None,
    ) -> list[Span]:
        """When every sentence happens: its best second, and what stands out around it.

        The rule is ours: the longest run around the best second whose cosines lie at least
        `share` of the way up from the lowest cosine of the video to the highest. It covers the
        time from half way to the second before it to half way to the second after it.

        Args:
            video: (T, Dv). seconds: (T,) their times, rising. sentences: (S, Dt).
            duration: end of the video; None for half a step after the last second.
            share: from 0, the whole video, to 1, the best second alone; 0.7 and 0.8 gave the best
                mean IoU of 0.3 to 0.9 on the synthetic scenes of `vidllm.stage`.

        Returns:
            S spans, the score of each its best cosine, in [-1, 1].

        Raises:
            InputError: shapes or times that do not fit, or features that are not finite.
        """
        if not 0.0 <= share <= 1.0:
            raise InputError(f"nasva: share must be from 0 to 1, not {share}")
        times = torch.as_tensor(seconds, dtype=torch.float64).cpu()
        cosine = self._cosine(video, times, sentences, ordered).cpu()
        steps = times.diff() if len(times) > 1 else torch.ones(1)
        if duration is None:
            duration = float(times[-1] + steps[-1] / 2)
        start = max(0.0, float(times[0] - steps[0] / 2))
        edges = VideoTokens.blank((len(times), 1, 1), times, duration, start=start).span
        low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
        below = cosine < low + share * (high - low)
        spans = []
        for row, under in zip(cosine, below, strict=True):
            best = int(row.argmax())
            ends = torch.nonzero(under & (row < row[best])).flatten()
            before, after = ends[ends < best], ends[ends > best]
            first = int(before[-1]) + 1 if len(before) else 0
            last = int(after[0]) - 1 if len(after) else len(row) - 1
            spans.append(Span(float(edges[first, 0]), float(edges[last, 1]), float(row[best])))
        return spans

    def relevance(self, video: Tensor, seconds: Tensor | Sequence[float], query: Tensor) -> Tensor:
        """(T,) how well every second fits the query: the best cosine of its sentences.

        Args:
            video: (T, Dv). seconds: (T,). query: (Q, Dt) sentences without order, or (Dt,) one.
        """
        rows = query[None] if query.dim() == 1 else query
        times = torch.as_tensor(seconds, dtype=torch.float64).cpu()
        return self._cosine(video, times, rows, ordered=False).amax(0)

    def select(
        self, video: Tensor, seconds: Tensor | Sequence[float], query: Tensor, frames: int
    ) -> Tensor:
        """The `frames` most relevant seconds, as indices (min(frames, T),) in time order.

        Of equal ones the earlier; arguments as `relevance`.

        Raises:
            InputError: fewer than one frame, or what `ground` refuses.
        """
        if frames < 1:
            raise InputError(f"nasva: select at least 1 frame, not {frames}")
        score = self.relevance(video, seconds, query)
        return score.argsort(descending=True, stable=True)[:frames].sort().values

    def _cosine(
        self, video: Tensor, times: Tensor, sentences: Tensor, ordered: bool | None
    ) -> Tensor:
        """(S, T) of one video in float32, without dropout and gradients."""
        if video.dim() != 2 or sentences.dim() != 2:
            raise InputError(
                f"nasva takes one video (T, {self.video_dim}) and sentences (S, {self.text_dim}) "
                f"here, not {tuple(video.shape)} and {tuple(sentences.shape)}"
            )
        if times.shape != (len(video),) or not bool(times.isfinite().all()):
            raise InputError(f"nasva: {len(video)} features need as many finite times")
        if not bool(video.isfinite().all() & sentences.isfinite().all().to(video.device)):
            raise InputError("nasva: the features hold NaN or infinite values")
        own = self.video_out.weight  # its device and number type
        with self.still():
            score = self.similarity(
                video[None].to(own),
                sentences[None].to(own),
                seconds=times[None].to(own.device),
                ordered=ordered,
            )
        return score[-1, 0] * self.temperature

    def _embed(
        self,
        video: Tensor,
        sentences: Tensor,
        mask: Tensor | None,
        sentence_mask: Tensor | None,
        seconds: Tensor | None,
        ordered: bool | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Unit rows in float32 of sentences (layers, B, S, J) and seconds (B, T, J); both masks."""
        real = check_clips(self.name, video, self.video_dim, mask)
        there = check_rows(self.name, "sentences", sentences, self.text_dim, sentence_mask)
        if len(sentences) != len(video):
            raise InputError(f"nasva: {len(video)} videos met sentences of {len(sentences)}")
        if seconds is None:
            seconds = real.cumsum(1) - 1
        elif seconds.shape != real.shape:
            raise InputError(
                f"nasva: seconds must be {tuple(real.shape)}, not {tuple(seconds.shape)}"
            )
        x = self.video_in(video.masked_fill(~real[..., None], 0.0))
        place = sinusoid(seconds.masked_fill(~real, 0), self.dim).to(x.dtype)
        for layer in self.encoder:
            x = layer(x, place, (x, place, ~real))
        q = self.text_in(sentences.masked_fill(~there[..., None], 0.0))
        order = self._order(there, q, self.order if ordered is None else ordered)
        # A row without a sentence attends to one of zeros: softmax over nothing is NaN.
        alone = ~there & there.any(1, keepdim=True)
        found = []
        for layer in self.decoder:
            q = layer(q, order, (q, order, alone), (x, place, ~real))
            found.append(self.text_out(self.norm(q)))
        found = found or [self.text_out(self.norm(q))]
        unit = F.normalize(torch.stack(found).float(), dim=-1)
        return unit, F.normalize(self.video_out(x).float(), dim=-1), real, there

    def _order(self, there: Tensor, q: Tensor, ordered: bool) -> Tensor:
        if not ordered:
            return torch.zeros_like(q)
        if not self.order:
            raise InputError("nasva: this head knows no order: build it with order=True")
        place = (there.cumsum(1) - 1).clamp(min=0)
        if place.shape[1] > self.order_table.num_embeddings and bool(
            (place >= self.order_table.num_embeddings).any()
        ):
            raise InputError(
                f"nasva knows the order of {self.order_table.num_embeddings} sentences: give "
                "fewer, or ordered=False"
            )
        return self.order_table(place).to(q.dtype)
