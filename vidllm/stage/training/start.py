"""Starting from a trained model: every weight that has a place in the new one, which may be larger.

A deeper decoder takes the trained layers into its middle; its own layers before and behind them
start as the identity (their outputs are zero), so that it says at first what the trained one says.
A ViT takes the convolutions of a trained conv tower as its stem. Words go by their spelling.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vidllm.compressors.mrt5 import DeleteGate
from vidllm.errors import InputError
from vidllm.models.loading import load_native
from vidllm.models.native.model import NativeVideoLLM

_LAYER = re.compile(r"(language_model\.model\.layers\.)(\d+)(\..*)")
_CONV_STEM, _VIT_STEM = "vision.stem.", "vision.model.embeddings.patch_embedding."
_WORDS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
#: What a decoder layer adds to its input goes through one of these.
_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def start_from(
    model: NativeVideoLLM, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Take over every weight of the trained model in `folder` that has a place in `model`.

    Raises:
        InputError: none has, or it is no model folder.
    """
    trained, _ = load_native(str(folder), None)
    own = model.state_dict()
    named = _renamed(trained, model)
    fitting = {k: v for k, v in named.items() if k in own and own[k].shape == v.shape}
    if not any(v.dim() > 1 for v in fitting.values()):
        raise InputError(f"no weight of {folder} fits the model to be trained: use the same size")
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    for name in _WORDS:
        if own[name].shape[1] == named[name].shape[1]:
            fitting[name] = words_by_spelling(own[name], named[name], words, tokenizer.get_vocab())
    layers = {m[2] for m in map(_LAYER.match, fitting) if m}
    for name in own:
        match = _LAYER.match(name)
        if layers and match and match[2] not in layers and name.endswith(_OUTPUTS):
            fitting[name] = torch.zeros_like(own[name])
    model.load_state_dict(fitting, strict=False)


def start_gate(gate: DeleteGate, folder: str | Path) -> None:
    """Take over MrT5's gate of the trained model in `folder`, where it has one of this width."""
    file = Path(folder) / "mrt5.safetensors"
    if not file.is_file():
        return
    trained, own = load_file(file), gate.state_dict()
    if {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in own.items()}:
        gate.load_state_dict(trained)


def _renamed(trained: NativeVideoLLM, model: NativeVideoLLM) -> dict[str, Tensor]:
    """The trained weights under the names, and with the kernels, that they have in `model`."""
    own = model.state_dict()
    count = (int(m.config.text["num_hidden_layers"]) for m in (model, trained))
    before = max(0, next(count) - next(count)) // 2
    named = {}
    for name, value in trained.state_dict().items():
        match = _LAYER.match(name)
        if match:
            name = f"{match[1]}{int(match[2]) + before}{match[3]}"
        elif name.startswith(_CONV_STEM) and name not in own:
            name = _VIT_STEM + name.removeprefix(_CONV_STEM)
        wanted = own[name].shape if name in own else value.shape
        if value.dim() == 4 and wanted[:2] == value.shape[:2] and wanted[2] > value.shape[2]:
            margin = (wanted[2] - value.shape[2]) // 2
            value = F.pad(value, [margin] * 4)
        named[name] = value
    return named


def words_by_spelling(
    fresh: Tensor, trained: Tensor, words: dict[str, int], own: dict[str, int]
) -> Tensor:
    """Rows of words that both models know from `trained`, the others from `fresh`.

    Args:
        fresh, trained: (V, D) tables. words: the row of every word in `trained`; own: in `fresh`.
    """
    both = [(own[word], row) for word, row in words.items() if word in own]
    to, taken = (torch.tensor(rows) for rows in zip(*both, strict=True))
    return fresh.clone().index_copy_(0, to, trained[taken].to(fresh.dtype))
