"""Gradient checkpointing: what backward runs a second time gives the gradients of one run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hf_tiny import Video, hf_inputs, hf_model, tokenizer
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidllm import InputError
from vidllm.ask.compression import compress

#: Between the decoder's layers, with scores of theirs; with signals of the tower, or before both.
INSIDE = ("fastv", "dart", "framefusion", "aim-prune", "mustdrop-filter")
SPECS = (*INSIDE, "visionzip", "holitom", "fastvid", "flashvid", "aim")


def trained(family: str, reentrant: bool | None) -> Any:
    model = copy.deepcopy(hf_model(family)).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
    return model


def gradients(model: Any, family: str, spec: str, inside: bool = True) -> dict[str, Tensor]:
    inputs = hf_inputs(family, [[3, Video(4), 6]])
    with compress(model, spec, keep=0.5, processor=tokenizer()):
        loss = model(**inputs).logits.square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_without_checkpointing(spec: str) -> None:
    family = "qwen2_5_vl" if spec in ("fastv", "visionzip") else "llava_onevision"
    want = gradients(trained(family, None), family, spec)
    if spec in INSIDE and Version(transformers.__version__) < Version("5.23"):
        # Its layers are run a second time with the hooks that are on them.
        with pytest.raises(InputError, match=f"{spec} leaves tokens out .* a second time"):
            gradients(trained(family, False), family, spec)
        return
    for reentrant, inside in ((True, True), (False, False)):
        got = gradients(trained(family, reentrant), family, spec, inside)
        for name, gradient in got.items():
            assert torch.equal(gradient, want[name]), name
        assert {n for n in want if "language_model" in n} <= set(got)


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_merging_inside_a_tower_that_runs_twice_is_refused(family: str) -> None:
    model = trained(family, False)
    with pytest.raises(InputError, match="runs a second time in backward: call model"):
        gradients(model, family, "tome")
    with torch.no_grad(), compress(model, "tome", keep=0.5, processor=tokenizer()):
        model(**hf_inputs(family, [[3, Video(4), 6]]))
    assert gradients(model, family, "tome:tower=false")


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_somebody_checkpoints_whole_are_refused(reentrant: bool) -> None:
    """The hooks of the layers would run inside, once, and be gone in backward."""

    family = "llava_onevision"
    model = trained(family, None)
    decoder = model.model.language_model
    plain = type(decoder).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        kept = decoder.layers
        decoder.layers = nn.ModuleList(Outside(layer, reentrant) for layer in kept)
        try:
            return plain(decoder, *args, **kwargs)
        finally:
            decoder.layers = kept

    decoder.forward = forward
    model.enable_input_require_grads()
    with pytest.raises(InputError, match="runs a second time in backward: switch it off"):
        gradients(model, family, "fastv")
    want = gradients(trained(family, None), family, "aim")
    got = gradients(model, family, "aim")
    assert all(torch.equal(gradient, want[name]) for name, gradient in got.items())


class Outside(nn.Module):
    """A layer whose call is checkpointed, hooks and all."""

    def __init__(self, layer: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.layer, self.reentrant = [layer], reentrant
        self.attention_type = getattr(layer, "attention_type", "full_attention")

    def forward(self, hidden: Tensor, **told: Any) -> Any:
        told["past_key_values"] = None
        return checkpoint(lambda x: self.layer[0](x, **told), hidden, use_reentrant=self.reentrant)
