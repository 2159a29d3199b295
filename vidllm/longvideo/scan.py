"""One question to many windows at once: what each would answer, and how sure it is.

Windows have the same number of tokens, so that they are rows of one batch; what the decoder made
of their video tokens is kept for the next question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from vidllm.models.native.model import NativeVideoLLM

from .times import AnswerTimes

ROWS = 64  # windows in a batch


@dataclass
class Batch:
    """Video tokens of windows as rows.

    Args:
        features: (B, L, D). span: (B, L, 2) seconds in the window. position: (B, L) in the
            uncompressed window. length: seconds of a window, one for all or (B,) of each.
            total: tokens of a window before compression.
    """

    features: Tensor
    span: Tensor
    position: Tensor
    length: float | Tensor
    total: int
    cache: DynamicCache | None = field(default=None, repr=False)
    head: tuple[int, ...] = field(default=(), repr=False)

    def rows(self, part: slice) -> Batch:
        """Some of the windows, without what is kept of them."""
        length = self.length[part] if isinstance(self.length, Tensor) else self.length
        return Batch(self.features[part], self.span[part], self.position[part], length, self.total)

    def bytes(self) -> int:
        """Bytes of the kept cache."""
        layers = [] if self.cache is None else cast(Any, self.cache).layers
        return sum(t.numel() * t.element_size() for x in layers for t in (x.keys, x.values))


@dataclass(frozen=True)
class WindowAnswer:
    """What one window answers.

    Attributes:
        ids: of the answer. sure: mean probability of its tokens, as exp of the mean logarithm.
        times: the two time tokens, by number, of the first span that is read; None without one.
        score: of a span: the IoU with the truth that the model itself expects.
    """

    ids: list[int]
    sure: float
    times: tuple[int, int] | None
    score: float


@torch.inference_mode()
def ask_batch(
    model: NativeVideoLLM,
    batch: Batch,
    head: Sequence[int],
    tail: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    most: int = 48,
    timed: bool = True,
    keep: bool = False,
) -> list[WindowAnswer]:
    """Ask all windows of a batch the same.

    Args:
        head, tail: ids before and after the video. most: new tokens.
        tokenizer: of the model. timed: stop a row as soon as its first span is read.
        keep: keep the cache of the video in `batch` for the next call.
    """
    found: list[WindowAnswer] = []
    reads = AnswerTimes(model.config, tokenizer)
    for start in range(0, len(batch.features), ROWS):
        if len(batch.features) > ROWS:
            part = slice(start, start + ROWS)
            found += _ask_rows(model, batch.rows(part), head, tail, reads, most, timed, False)
            continue
        found += _ask_rows(model, batch, head, tail, reads, most, timed, keep)
    return found


def _ask_rows(
    model: NativeVideoLLM,
    batch: Batch,
    head: Sequence[int],
    tail: Sequence[int],
    reads: AnswerTimes,
    most: int,
    timed: bool,
    keep: bool,
) -> list[WindowAnswer]:
    device, rows = model.device, len(batch.features)
    cache = video_cache(model, batch, head)
    # Whatever ends this call, no next one finds the question in the cache.
    batch.cache, batch.head = None, tuple(head)
    seen = cache.get_seq_length()
    ids = torch.tensor(list(tail), device=device).expand(rows, -1)
    place = len(head) + batch.total
    positions = torch.arange(place, place + len(tail), device=device).expand(rows, -1)
    first, count, eos = reads.ids.start, len(reads.ids), reads.tokenizer.eos_token_id
    said: list[list[int]] = [[] for _ in range(rows)]
    sums = torch.zeros(rows, device=device)
    laws: list[dict[int, Tensor]] = [{} for _ in range(rows)]  # of time tokens, by their place
    done = torch.zeros(rows, dtype=torch.bool, device=device)
    for _ in range(most):
        out = model.language_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logs = out.logits[:, -1].float().log_softmax(-1)
        best, new = logs.max(-1)
        sums += torch.where(done, 0.0, best)
        law = logs[:, first : first + count].exp()
        for row in (~done).nonzero()[:, 0].tolist():
            token = int(new[row])
            if token == eos:
                continue
            if token in reads.ids:
                laws[row][len(said[row])] = law[row]
            said[row].append(token)
            if timed and token in reads.ids and len(laws[row]) == 2 and reads.settled(said[row]):
                done[row] = True
        done |= new == eos
        if bool(done.all()):
            break
        ids, positions = new[:, None], positions[:, -1:] + 1
    if keep:
        cache.crop(seen - cache.get_seq_length())  # a negative number: tokens to take away
        batch.cache = cache
    return [_window_answer(said[row], sums[row], laws[row], reads) for row in range(rows)]


def _window_answer(
    said: list[int], logs: Tensor, laws: Mapping[int, Tensor], reads: AnswerTimes
) -> WindowAnswer:
    """What a row says. `logs`: the sum of its log-probabilities, its end's too."""
    sure = float((logs / (len(said) + 1)).exp())
    found = reads.of(said)
    if found is None:
        return WindowAnswer(said, sure, None, 0.0)
    start, end = (said[at] - reads.ids.start for at in found)
    score = expected_iou((start, end), [laws[at] for at in found])
    return WindowAnswer(said, sure, (start, end), score)


def video_cache(model: NativeVideoLLM, batch: Batch, head: Sequence[int]) -> DynamicCache:
    """The cache of what stands before the question."""
    if batch.cache is not None and batch.head == tuple(head):
        return batch.cache
    device, rows = model.device, len(batch.features)
    kind = model.video_norm.weight.dtype
    video = model.video_embeds(
        batch.features.to(device, kind),
        batch.span.to(device),
        torch.as_tensor(batch.length, dtype=torch.float32, device=device).expand(rows),
    )
    before = model.embed_tokens(torch.tensor(list(head), device=device)).expand(rows, -1, -1)
    places = torch.cat(
        [
            torch.arange(len(head), device=device).expand(rows, -1),
            batch.position.to(device).long() + len(head),
        ],
        dim=1,
    )
    cache = DynamicCache(config=model.language_model.config)
    model.language_model.base_model(
        inputs_embeds=torch.cat([before.to(video.dtype), video], dim=1),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def expected_iou(times: Sequence[int], laws: Sequence[Tensor]) -> float:
    """The IoU of a span with the truth, if the truth is what the model holds for possible.

    The law of the end is the one after the chosen start. Unlike a probability it forgives what
    does not matter: a long span whose ends are a little uncertain scores as high as a short one.

    Args:
        times: numbers of the start and the end token. laws: two (K,) distributions over them.
    """
    start, end = float(times[0]), float(times[1])
    if end < start:
        start, end = end, start
    grid = torch.arange(len(laws[0]), dtype=torch.float32)
    p, q = laws[0].float().cpu(), laws[1].float().cpu()
    low, high = grid[:, None], grid[None]
    inter = (high.clamp(max=end) - low.clamp(min=start)).clamp_min(0)
    hull = (high.clamp(min=end) - low.clamp(max=start)).clamp_min(1e-6)
    return float((p[:, None] * q[None] * (inter / hull)).sum())
