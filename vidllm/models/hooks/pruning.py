"""Compressors of the stage "prefill": video tokens leave between the decoder's layers.

While a prompt is read, hooks on the layers take out the tokens that a method names, for good:
later layers neither compute nor cache them. Positions stay those of the full sequence. What a
method needs of the layer before is computed from that layer's queries and keys for the few rows
that count (`probe`), beside any attention implementation. The rows of a batch may lose different
numbers of tokens and hold several videos.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vidllm.compressors import Compressor
from vidllm.compressors.aim_prune import importance_rows
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens, cut_counts
from vidllm.tokens.video_tokens import Keep, Selection, chosen

from .batches import gather, pack
from .layers import TOKEN_WISE, Views, attends, cut_mask, cut_points, mask_of, still_there, views_of

#: Signals that the decoder gives to methods of the stages "prefill" and "cache".
DECODER_SIGNALS: tuple[str, ...] = (
    "decoder-attention",
    "decoder-text-attention",
    "decoder-keys",
    "decoder-importance",
    "decoder-normed",
    "prefill-survivors",
)
_TEMPERATURE = 0.1  # of AIM's softmax
_BLOCK = 2**18  # numbers of an attention matrix at a time
_PIVOTS = 4  # words of the question that a method may compare with (DART)


def probe(
    method: Compressor,
    attention: nn.Module,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    video: Tensor,
    words: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """The method's needs, from hidden states (L, D) of one prompt that enter an attention layer.

    Args:
        cos, sin: (L, d) of the positions.
        video: (V,) long, where the video's tokens stand. words: (W,) those of the text behind it.

    Returns:
        The signals, and the summed size (W,) of the words' keys.

    Raises:
        InputError: a method that reads the question, and no question.
    """
    width = int(attention.head_dim)  # type: ignore[arg-type]
    keys = heads(attention, "k", hidden, width, cos, sin)  # (H_kv, L, d)
    video, words = video.to(hidden.device), words.to(hidden.device)
    out: dict[str, Tensor] = {}
    for need in method.needs:
        if need == "decoder-keys":
            out[need] = keys[:, video].transpose(0, 1).flatten(1)
        elif need == "decoder-attention":
            last = torch.tensor([len(hidden) - 1], device=hidden.device)
            out[need] = _rows(attention, hidden, keys, cos, sin, last).mean(0)[-1, video]
        elif need == "decoder-text-attention":
            if not len(words):
                raise InputError(f"{method.name} needs a question after the video")
            rows = _rows(attention, hidden, keys, cos, sin, words)
            out[need] = rows.mean(0)[:, video].T
        elif need == "decoder-importance":
            out[need] = _importance(attention, hidden, keys, cos, sin)[video]
    return out, keys[:, words].abs().sum((0, 2))


def _importance(
    attention: nn.Module, hidden: Tensor, keys: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """(L,) AIM's importance, of the half of its matrix that is not masked, by groups of heads."""
    length, width = keys.shape[1:]
    query = heads(attention, "q", hidden, width, cos, sin)
    query *= float(attention.scaling) / _TEMPERATURE  # type: ignore[arg-type]
    groups = query.view(len(keys), -1, length, width)
    size = _BLOCK if hidden.device.type == "cpu" else _BLOCK * 64
    block = max(32, size // (groups.shape[1] * length))
    late = torch.ones(block, block, dtype=torch.bool, device=hidden.device).triu(1)
    squares = query.new_zeros(length)
    for key, asking in zip(keys, groups, strict=True):

        def rows(start: int, stop: int, asking: Tensor = asking, key: Tensor = key) -> Tensor:
            logits = asking[:, start:stop].flatten(0, 1) @ key[:stop].T
            logits = logits.view(-1, stop - start, stop)
            mine = late[: stop - start, : stop - start]
            logits[..., start:].masked_fill_(mine, torch.finfo(logits.dtype).min)
            return logits

        squares += importance_rows(rows, length, block=block, temperature=1.0).square()
    return (squares / len(keys)).sqrt()


def pivots(normed: Tensor, size: Tensor) -> Tensor:
    """Of the words' normed states (W, D) those with the largest keys."""
    return normed[size.topk(min(_PIVOTS, len(normed))).indices]


def heads(
    attention: nn.Module, kind: str, hidden: Tensor, width: int, cos: Tensor, sin: Tensor
) -> Tensor:
    """Queries or keys (H, L, d) of hidden states (L, D), as the attention layer makes them.

    A head's gate, where its queries have one (Qwen3.5), stands behind them in the same projection.
    """
    projected = getattr(attention, f"{kind}_proj")(hidden)
    if kind == "q" and projected.shape[-1] == 2 * _width_out(attention):
        projected = projected.unflatten(-1, (-1, 2 * width))[..., :width].flatten(-2)
    norm = getattr(attention, f"{kind}_norm", None) or nn.Identity()
    whole = getattr(norm, "weight", hidden[0]).shape[-1] != width  # over all heads at once
    x = (
        norm(projected).unflatten(-1, (-1, width))
        if whole
        else norm(projected.unflatten(-1, (-1, width)))
    )
    x = x.transpose(0, 1)
    return _turned(attention, x, cos, sin).float()


def _turned(attention: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads (H, L, d), turned by the pairs that the layer's own module turns, in its first
    dimensions; not at all in layers that see everything beside others whose windows slide, where
    such a decoder leaves positions out."""
    own: Any = attention
    if (
        getattr(own, "sliding_window", None) is not None
        and getattr(own, "is_sliding", True) is False
    ):
        return x
    library = sys.modules[type(attention).__module__]
    found = (getattr(library, f"rotate_half{end}", None) for end in ("_llm", "_text", ""))
    rotate = next((f for f in found if f is not None), _rotate_half)
    width = cos.shape[-1]
    first = x[..., :width]
    return torch.cat([first * cos + rotate(first) * sin, x[..., width:]], dim=-1)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def _width_out(attention: nn.Module) -> int:
    """The width of all heads together; 0 where the layer does not say it."""
    return int(getattr(getattr(attention, "o_proj", None), "in_features", 0))


def _rows(
    attention: nn.Module,
    hidden: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    which: Tensor,
) -> Tensor:
    """Causal attention (H, R, L) of the query rows `which` (R,)."""
    width = keys.shape[-1]
    query = heads(attention, "q", hidden[which], width, cos[which], sin[which])
    every = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    logits = query @ every.transpose(-1, -2) * float(attention.scaling)  # type: ignore[arg-type]
    late = torch.arange(keys.shape[1], device=hidden.device)[None] > which[:, None]
    logits = logits.masked_fill(late, torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1)


@dataclass
class VideoRun:
    """One video on its way through the decoder.

    Attributes:
        row: of the batch. tokens: what is left of it; their features are not read.
        at: (V,) long, where they stand among the row's tokens, without padding.
        budget: exact number that the last cut leaves.
        cuts: layer → exact count left before it runs. caught: signals of the layer before.
    """

    row: int
    tokens: VideoTokens
    at: Tensor
    budget: int
    cuts: dict[int, int] = field(default_factory=dict)
    caught: dict[str, Tensor] = field(default_factory=dict)
    query: Tensor | None = None


class Pruner:
    """What one pass over a batch of prompts needs: which tokens are still there, the next cuts.

    Args:
        layers: the decoder layers.
        norm: the decoder's last norm, for methods that compare normed states.
        method: the compressor, with `points`.
        runs: the videos.
        valid: (B, N) bool, False for padding.
        text: for every row (n,) bool, which of its tokens are text, without padding; None for
            all that belong to none of the videos.
        planes: (B, N, D) each, what is added to the hidden states after the first layers
            (DeepStack), reduced in the same cuts.
        left: whether padding goes before the tokens.
        attention: the name of the decoder's attention, whose masks it takes. views: how its
            layers see; None where every layer sees all before.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        method: Compressor,
        runs: Sequence[VideoRun],
        valid: Tensor,
        *,
        text: Sequence[Tensor] | None = None,
        planes: Sequence[Tensor] = (),
        left: bool = True,
        attention: str = "sdpa",
        views: Views | None = None,
    ) -> None:
        self.layers, self.norm, self.method, self.runs = layers, norm, method, list(runs)
        self.views = views or views_of(None, len(layers))
        self.attention = attention
        self.planes, self.left, self.valid = list(planes), left, valid.cpu()
        #: For every row the columns that are still there, of the N at first.
        self.rows = [torch.nonzero(row).flatten() for row in self.valid]
        self.text = text
        #: For every layer that has run, those columns.
        self.history: list[list[Tensor]] = []
        #: For every such layer (B, W) bool, which of its columns hold a token.
        self.lives: list[Tensor] = []
        self.seconds = 0.0
        self.shrunk = False
        self.index = torch.arange(valid.shape[1]).expand(len(valid), -1)
        self.live = self.valid
        #: For every such layer (B, W) long, their numbers among the N columns.
        self.tables: list[Tensor] = []
        self._masks: dict[tuple[int, int, bool], Any] = {}
        for run in self.runs:
            if len(run.at) and bool((run.at.diff() <= 0).any()):
                raise InputError(
                    f"{method.name} needs video tokens in time order: leave out faithful"
                )
            run.cuts = self._cuts(run)

    def _cuts(self, run: VideoRun) -> dict[int, int]:
        """Layer → exact count left before it runs; the last cut lands on the budget."""
        depth, total = len(self.layers), len(run.tokens)
        method = self.method
        if all(getattr(method, option) is None for option in method.fixed):
            method = replace(method, keep=run.budget / total, budget=None)
        points = cut_points(method, self.layers)
        if not points or not 0 <= points[0][0] <= points[-1][0] < depth:
            raise InputError(f"{method.name} prunes at no layer of a model with {depth}")
        return cut_counts(total, points, run.budget)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, and off again whatever happens."""
        self.outside = torch.is_grad_enabled(), in_checkpoint()
        handles = []
        ahead = {layer for run in self.runs for layer in run.cuts}
        try:
            for i, layer in enumerate(self.layers):
                handles.append(layer.register_forward_pre_hook(self._before(i), with_kwargs=True))
                if i + 1 in ahead and self.method.needs and not self.method.own_layer:
                    attention = cast(nn.Module, layer.self_attn)
                    handles.append(
                        attention.register_forward_pre_hook(self._watcher(i + 1), with_kwargs=True)
                    )
                if i < len(self.planes):
                    handles.append(layer.register_forward_hook(self._add(i)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, i: int) -> Any:
        def hook(_layer: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + self.planes[i].to(output[0]), *output[1:])
            return output + self.planes[i].to(output)

        return hook

    def _due(self, i: int) -> list[VideoRun]:
        return [run for run in self.runs if run.cuts.get(i, len(run.tokens)) < len(run.tokens)]

    def _before(self, i: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.outside != (torch.is_grad_enabled(), in_checkpoint()):
                raise InputError(
                    f"{self.method.name} leaves tokens out between the decoder's layers, which "
                    "gradient checkpointing runs a second time in backward: switch it off, for "
                    "example with model.gradient_checkpointing_disable()"
                )
            hidden = args[0] if args else kwargs["hidden_states"]
            due = self._due(i)
            if due:
                if self.method.own_layer:
                    angles = tuple(gather(t, self.index) for t in kwargs["position_embeddings"])
                    normed = _entering(layer)(hidden)
                    self._watch(i, cast(nn.Module, layer.self_attn), normed, angles)
                began = time.perf_counter()
                hidden = self._cut(i, hidden, due)
                self.seconds += time.perf_counter() - began
            self.history.append(list(self.rows))
            self.lives.append(self.live)
            self.tables.append(self.index)
            if not self.shrunk:
                return None
            cut = {
                **kwargs,
                "attention_mask": self._masked(i, kwargs.get("attention_mask"), hidden),
            }
            cut["position_embeddings"] = tuple(map(self._left, kwargs["position_embeddings"]))
            for name in ("position_ids", *TOKEN_WISE):
                if isinstance(kwargs.get(name), Tensor):
                    cut[name] = self._left(kwargs[name])
            others = [self._left(x) if isinstance(x, Tensor) else x for x in args[1:]]
            if args:
                return (hidden, *others), cut
            return args, {**cut, "hidden_states": hidden}

        return hook

    def _left(self, x: Tensor) -> Tensor:
        """Of what stands beside the states, (B, N, ...) or (3, B, N), the rows that are left; as
        it is where the decoder has cut it to the last rows by itself."""
        if x.dim() == 3 and x.shape[-1] == self.valid.shape[1] and x.shape[1] == len(self.valid):
            return torch.stack([gather(plane, self.index) for plane in x])
        return gather(x, self.index) if x.shape[1] == self.valid.shape[1] else x

    def _masked(self, i: int, mask: Any, hidden: Tensor) -> Any:
        """The mask of what is left; made once for all layers that see alike between two cuts."""
        layer, store, count = self.layers[i], self.views.stores[i], hidden.shape[1]
        key = (id(mask), store if store < i else -1, attends(layer))
        if key in self._masks:
            return self._masks[key]
        if store == i and not (isinstance(mask, Tensor) and mask.dim() == 4):
            made = mask_of(layer, self.attention, self.live, count, hidden)
        else:
            queries, live = self.index[:, -count:], self.live[:, -count:]
            if mask is not None and mask.shape[2] == count < self.valid.shape[1]:
                queries = torch.arange(count).expand(len(queries), -1)
            keys = self.tables[store]
            alive = still_there(self.rows, keys, self.lives[store])
            made = cut_mask(mask, queries, keys, live, alive)
            made = made.to(hidden.device)
        self._masks[key] = made
        return made

    def _watcher(self, layer: int) -> Any:
        def hook(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._watch(layer, attention, hidden, kwargs["position_embeddings"])

        return hook

    @torch.no_grad()  # no gradient goes through a choice, and backward may run the layer again
    def _watch(
        self, layer: int, attention: nn.Module, hidden: Tensor, angles: tuple[Tensor, ...]
    ) -> None:
        """Catch what the method needs before `layer` from states that enter an attention layer."""
        for run in self._due(layer):
            began = time.perf_counter()
            live = self.live[run.row].to(hidden.device)
            cos, sin = (t[run.row if len(t) > 1 else 0, live] for t in angles)
            run.caught, keys = probe(
                self.method, attention, hidden[run.row, live], cos, sin, run.at, self._words(run)
            )
            run.query = keys
            self.seconds += time.perf_counter() - began

    def _words(self, run: VideoRun) -> Tensor:
        """Places of the text behind a video, among the row's tokens."""
        count = len(self.rows[run.row])
        if self.text is not None:
            there = torch.isin(self.valid[run.row].nonzero().flatten(), self.rows[run.row])
            words = torch.nonzero(self.text[run.row][there]).flatten()
        else:
            every = torch.ones(count, dtype=torch.bool)
            for other in self.runs:
                if other.row == run.row:
                    every[other.at] = False
            words = torch.nonzero(every).flatten()
        return words[words > int(run.at[-1])]

    def _cut(self, i: int, hidden: Tensor, due: Sequence[VideoRun]) -> Tensor:
        """Let the method choose, and take the others out of the hidden states (B, W, D)."""
        planes = [hidden, *self.planes[i:]]
        lines: list[list[Tensor]] = []
        for row, columns in enumerate(self.rows):
            live = self.live[row].to(hidden.device)
            line = [plane[row, live.to(plane.device)] for plane in planes]
            stays = torch.ones(len(columns), dtype=torch.bool)
            for run in due:
                if run.row == row:
                    line = self._choose(i, run, line, stays)
            kept = torch.nonzero(stays).flatten()
            renumber = stays.cumsum(0) - 1
            for run in self.runs:
                if run.row == row:
                    run.at = renumber[run.at]
            self.rows[row] = columns[kept]
            lines.append([x[kept.to(x.device)] for x in line])
        self.shrunk = True
        self._masks.clear()
        self.index, self.live = pack(self.rows, self.left)
        packed = []
        for number, plane in enumerate(planes):
            full = plane.new_zeros(len(self.rows), self.live.shape[1], plane.shape[-1])
            full[self.live.to(plane.device)] = torch.cat([line[number] for line in lines])
            packed.append(full)
        self.planes[i:] = packed[1:]
        return packed[0]

    def _choose(self, i: int, run: VideoRun, line: list[Tensor], stays: Tensor) -> list[Tensor]:
        """One video's cut: marks in `stays` what leaves; returns the planes with merged rows."""
        hidden = line[0]
        signals = {**run.tokens.signals, **run.caught}
        query: Tensor | None = None
        if "decoder-normed" in self.method.uses:
            normed = self.norm(hidden)
            signals["decoder-normed"] = normed[run.at.to(hidden.device)]
            words = self._words(run)
            if len(words) and run.query is not None:
                query = pivots(normed[words.to(hidden.device)], run.query)
        deep = {f"deepstack-{n}": x[run.at.to(x.device)] for n, x in enumerate(line[1:])}
        view = replace(
            run.tokens, features=hidden[run.at.to(hidden.device)], signals={**signals, **deep}
        )
        after, rounds = self.method.run(view, run.cuts[i], query)
        stay = run.at[_survivors(rounds, len(view))]
        if bool((stay.diff() <= 0).any()):
            raise InputError(
                f"{self.method.name} must leave video tokens in time order here: leave out faithful"
            )
        stays[run.at] = False
        stays[stay] = True
        if any(not _is_keep(selection) for selection in rounds):
            merged = [after.features, *(after.signals[name] for name in deep)]
            line = [x.clone() for x in line]
            for x, rows in zip(line, merged, strict=True):
                x[stay.to(x.device)] = rows.to(x.dtype)
        run.tokens, run.at = bare(after, signals=True), stay  # not the states it was chosen by
        return line


def bare(tokens: VideoTokens, signals: bool = False) -> VideoTokens:
    """The books: features, DeepStack's planes and, but for `signals`, the tower's signals would
    be held for the whole of the decoder."""
    tower = {n: p for n, p in tokens.signals.items() if signals and not n.startswith("deepstack-")}
    return replace(tokens, features=tokens.features[:, :0].clone(), signals=tower)


def _survivors(rounds: Sequence[Selection], count: int) -> Tensor:
    index = torch.arange(count)
    for selection in rounds:
        index = index[chosen(selection)]
    return index


def _entering(layer: nn.Module) -> nn.Module:
    """The norm before a layer's attention; none where the layer norms what comes out of it."""
    norm = None if getattr(layer, "norm_after", False) else getattr(layer, "input_layernorm", None)
    return nn.Identity() if norm is None else cast(nn.Module, norm)


def _is_keep(selection: Selection) -> bool:
    return isinstance(selection, Keep)


def in_checkpoint() -> bool:
    """Whether this code runs inside `torch.utils.checkpoint`, which backward runs again; the
    reentrant one shows only in that no gradients are kept."""
    top = cast(Any, torch._C._autograd)._top_saved_tensors_default_hooks(True)
    return top is not None and getattr(top[0], "__module__", "") == "torch.utils.checkpoint"
