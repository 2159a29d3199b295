"""What a compressed answer must equal: the full model with the dropped tokens masked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hf_tiny import tokenizer
from torch import Tensor

from vidllm.ask.compression import Compression, compress

NEW = 16


class Run:
    """A compressed answer, and what its text model was given.

    Attributes:
        out: (B, L + 16) ids. logits: (B, 16, vocabulary). start: what entered the text model.
        entered: for every decoder layer the states (B, W, D) that entered it in the prefill.
        layers, cached: as `Compression` has them. first, steps: of a choice at decode steps, the
            first layer that it is about and what each step read. receipt: its account.
    """

    def __init__(self, model: Any, inputs: dict[str, Any], spec: Any, **options: Any) -> None:
        self.start: dict[str, Any] = {}
        self.entered: list[Tensor] = []
        with compress(model, spec, processor=tokenizer(), **options) as c:
            with self.watching(c):
                made = model.generate(
                    **inputs,
                    max_new_tokens=NEW,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            self.layers, self.cached, self.receipt = c.layers, c.cached, c.receipt
            choice = c._session.report.choice if c._session.report else None
            self.first = choice.first if choice else len(self.layers)
            self.steps = choice.history if choice else []
        self.out = made.sequences
        self.logits = torch.stack(made.logits, dim=1)

    @contextmanager
    def watching(self, c: Compression) -> Iterator[None]:
        decoder = c._session.decoder

        def begins(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            if not self.start:
                self.start = dict(kwargs)

        def enters(_module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            if len(self.entered) < len(decoder.layers):
                self.entered.append(args[0] if args else kwargs["hidden_states"])

        handles = [decoder.register_forward_pre_hook(begins, with_kwargs=True)]
        layers = decoder.layers
        firsts = [
            x.input_layernorm if hasattr(x, "input_layernorm") else x.self_attn for x in layers
        ]
        handles += [x.register_forward_pre_hook(enters, with_kwargs=True) for x in firsts]
        yield
        for handle in handles:
            handle.remove()


def packed(rows: list[Tensor], states: Tensor) -> list[Tensor]:
    """The rows (n, D) of left-padded states (B, W, D)."""
    return [state[len(state) - len(row) :] for row, state in zip(rows, states, strict=True)]


@torch.no_grad()
def reference(model: Any, inputs: dict[str, Any], run: Run, merged: bool) -> Tensor:
    """(B, 16, vocabulary) logits of the full model, told the compressed answer.

    Every layer sees of the prompt what it saw in the compressed run, at the same positions. Tokens
    that were merged (`merged`) get the merged features where they came to be.
    """
    core = model.model
    decoder = getattr(core, "language_model", None) or core.text_model
    length, total = inputs["input_ids"].shape[1], run.out.shape[1]
    batch = len(run.out)
    mask = torch.ones_like(run.out)
    mask[:, :length] = inputs["attention_mask"]
    position = mask.cumsum(1) - 1
    position.masked_fill_(mask == 0, 0)
    more: dict[str, Any] = {}
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
        if name in inputs:
            kinds = more[name] = torch.zeros_like(run.out, dtype=torch.int)
            kinds[:, :length] = inputs[name]
    if "mm_token_type_ids" in inputs and hasattr(core, "get_rope_index"):
        kinds = more["mm_token_type_ids"]
        grids = {k: v for k, v in inputs.items() if "grid" in k or "target_sizes" in k}
        position, _ = core.get_rope_index(
            run.out, mm_token_type_ids=kinds, attention_mask=mask, **grids
        )
    elif hasattr(core, "get_rope_index"):  # without kinds of tokens, and with another name for pace
        grids = {k: v for k, v in inputs.items() if "grid_thw" in k}
        pace = inputs.get("video_second_per_grid")
        position, _ = core.get_rope_index(
            run.out, attention_mask=mask, second_per_grids=pace, **grids
        )
    causal = torch.ones(total, total, dtype=torch.bool).tril()

    def allowed(layer: int, own: Tensor | None) -> Tensor:
        """What the layer's own mask lets see (windows, blocks of pictures), less what is gone."""
        table = causal[None].repeat(batch, 1, 1)
        if own is not None:
            seen = own[:, 0] if own.dtype == torch.bool else own[:, 0] == 0
            table = seen.expand(batch, -1, -1).clone()
        for row in range(batch):
            for seen, queries in (
                (run.layers, slice(0, length)),
                (run.cached, slice(length, None)),
            ):
                hidden = torch.ones(length, dtype=torch.bool)
                hidden[seen[layer][row]] = False
                table[row, queries, :length] &= ~hidden
        for step, read in enumerate(run.steps if layer >= run.first else []):
            for row in range(batch):  # a choice at this step, among the row's own tokens
                hidden = torch.ones(length, dtype=torch.bool)
                hidden[run.layers[layer][row][read[row]]] = False
                table[row, length + step, :length] = ~hidden
        table |= torch.eye(total, dtype=torch.bool)
        if decoder.config._attn_implementation == "sdpa":
            return table[:, None]
        return torch.where(table[:, None], 0.0, torch.finfo(torch.float32).min)

    def begin(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs["inputs_embeds"].clone()
        for row, states in enumerate(packed(run.layers[0], run.start["inputs_embeds"])):
            embeds[row, run.layers[0][row]] = states
        new = {**kwargs, "inputs_embeds": embeds}
        deep = run.start.get("deepstack_visual_embeds")
        if deep is not None:
            where = run.start["visual_pos_masks"]
            planes = []
            for mine, theirs in zip(kwargs["deepstack_visual_embeds"], deep, strict=True):
                full, short = torch.zeros_like(embeds), torch.zeros_like(run.start["inputs_embeds"])
                full[kwargs["visual_pos_masks"]] = mine
                short[where] = theirs
                for row, states in enumerate(packed(run.layers[0], short)):
                    full[row, run.layers[0][row]] = states
                planes.append(full[kwargs["visual_pos_masks"]])
            new["deepstack_visual_embeds"] = planes
        return args, new

    def at(layer: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0]
            before = run.layers[max(0, layer - 1)]
            fewer = any(len(a) < len(b) for a, b in zip(run.layers[layer], before, strict=True))
            if merged and fewer:
                hidden = hidden.clone()
                for row, states in enumerate(packed(run.layers[layer], run.entered[layer])):
                    hidden[row, run.layers[layer][row]] = states
            own = kwargs.get("attention_mask")
            return (hidden, *args[1:]), {**kwargs, "attention_mask": allowed(layer, own)}

        return hook

    handles = [
        x.register_forward_pre_hook(at(i), with_kwargs=True) for i, x in enumerate(decoder.layers)
    ]
    handles.append(decoder.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        told = {**inputs, **more, "input_ids": run.out, "attention_mask": mask}
        logits = model(**told, position_ids=position, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
        if hasattr(core, "rope_deltas"):
            core.rope_deltas = None
    return logits[:, length - 1 : -1]


@torch.no_grad()
def shortened(model: Any, inputs: dict[str, Any], run: Run, merged: bool) -> Tensor:
    """(B, 16, vocabulary) logits of a decoder whose layers carry states, told the answer.

    Row by row and without padding, every layer runs by hand on the tokens that it read and no
    others, at their positions in the full prompt.
    """
    decoder, full = model.model.language_model, _told(model, inputs, run)
    length, total = inputs["input_ids"].shape[1], run.out.shape[1]
    found = []
    for row in range(len(run.out)):
        hidden = full["inputs_embeds"][row].clone()
        hidden[run.layers[0][row]] = packed(run.layers[0], run.start["inputs_embeds"])[row]
        angles = decoder.rotary_emb(hidden, full["position_ids"][-3:, row : row + 1])
        answer = torch.arange(length, total)
        for i, layer in enumerate(decoder.layers):
            read = run.layers[i][row]
            if merged and len(read) < len(run.layers[max(0, i - 1)][row]):
                hidden[read] = packed(run.layers[i], run.entered[i])[row]
            columns = torch.cat([read, answer])
            mask = torch.ones(len(columns), len(columns), dtype=torch.bool).tril()[None, None]
            if decoder.config._attn_implementation == "eager":
                mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
            hidden[columns] = layer(
                hidden[None, columns],
                position_embeddings=tuple(t[:, columns] for t in angles),
                attention_mask=mask if hasattr(layer, "self_attn") else None,
            )[0]
        found.append(model.lm_head(decoder.norm(hidden[length - 1 : total - 1])))
    return torch.stack(found)


def _told(model: Any, inputs: dict[str, Any], run: Run) -> dict[str, Any]:
    """What the text model is given for the full prompt and the answer: embeddings, positions."""
    length, caught = inputs["input_ids"].shape[1], {}
    more: dict[str, Any] = {}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        long = torch.full_like(run.out, fill)
        long[:, :length] = inputs[name]
        more[name] = long

    def begins(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        caught.update(kwargs)

    handle = model.model.language_model.register_forward_pre_hook(begins, with_kwargs=True)
    model.model(**{**inputs, **more, "input_ids": run.out}, use_cache=False)
    handle.remove()
    model.model.rope_deltas = None
    return caught
