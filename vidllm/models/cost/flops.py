"""FLOPs of decoders, vision transformers and state space layers, reckoned from their shapes.

Matrix products and convolutions only, two operations for a multiplication with its addition, as
``torch.utils.flop_counter`` counts; norms, activations, softmax, rotary embeddings, resizing and
elementwise scans are left out. Attention is counted in full, every query with every key, as that
counter and most papers do; with `causal` half of a prompt's pairs, which is what a fused causal
kernel computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidllm.errors import InputError

from .other_decoders import as_plain

#: One product a row: (rows, width in, width out).
Linear = tuple[int, int, int]


def linears(products: Sequence[Linear]) -> float:
    """FLOPs of linear layers, each (rows, in, out)."""
    return float(sum(2 * rows * wide * out for rows, wide, out in products))


def attention(queries: float, keys: float, width: float) -> float:
    """FLOPs of q k^T and of the weighted sum, `width` = heads * head_dim."""
    return 4.0 * queries * keys * width


@dataclass(frozen=True)
class Decoder:
    """The shape of a decoder LLM with gated MLPs and grouped keys (Qwen2, Qwen3, Llama).

    Attributes:
        layers, width: depth and hidden size. inner: of the MLP, or of all experts of a token
            together. heads, key_heads, head_dim: of the attention. vocab: rows of the output layer.
        routed: numbers of a layer that choose and weigh experts. gated: whether heads have a gate.
        state: layers of linear attention (gated delta rule) by their numbers; mixing: FLOPs of a
            token in one of these, without its MLP.
    """

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int
    vocab: int
    routed: int = 0
    gated: bool = False
    state: tuple[int, ...] = ()
    mixing: float = 0.0

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """The shape that a decoder's transformers config says.

        Raises:
            InputError: a decoder that is not built of gated MLPs and plain attention.
        """
        config = as_plain(config)
        kind = str(config.model_type)
        if not kind.startswith(("qwen2", "qwen3", "llama", "mistral")):
            raise InputError(
                f"the cost of a {kind} decoder is not known: use a Qwen2, Qwen3, Llama or Mistral"
            )
        heads = int(config.num_attention_heads)
        width = int(config.hidden_size)
        kinds = getattr(config, "layer_types", None) or ()
        state = tuple(i for i, kind in enumerate(kinds) if kind == "linear_attention")
        experts = int(getattr(config, "num_experts", 0) or 0)
        return cls(
            layers=int(config.num_hidden_layers),
            width=width,
            inner=_experts_width(config) if experts else int(config.intermediate_size),
            heads=heads,
            key_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or width // heads),
            vocab=int(config.vocab_size),
            routed=experts + bool(getattr(config, "shared_expert_intermediate_size", 0)),
            gated=kind.startswith("qwen3_5"),
            state=state,
            mixing=_delta_rule(config) if state else 0.0,
        )

    @property
    def mixed(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def weights(self) -> int:
        """Weights of one layer of attention that every token is multiplied with."""
        keys = self.key_heads * self.head_dim
        return self.width * ((2 + self.gated) * self.mixed + 2 * keys) + self.feeding

    @property
    def feeding(self) -> int:
        """Those of one MLP, or of a token's experts and their choice."""
        return self.width * (3 * self.inner + self.routed)

    def prefill(
        self, tokens: int | Sequence[int], *, causal: bool = False, logits: int = 1
    ) -> float:
        """FLOPs to read a prompt.

        Args:
            tokens: its length, or one length a layer where tokens leave on the way.
            causal: count half of the pairs. logits: positions that are read out.

        Raises:
            InputError: not one length a layer.
        """
        pairs = 0.5 if causal else 1.0
        layers = sum(
            n * (2.0 * self.feeding + self.mixing)
            if i in self.state
            else 2.0 * self.weights * n + pairs * attention(n, n, self.mixed)
            for i, n in enumerate(self._each(tokens))
        )
        return layers + linears([(logits, self.width, self.vocab)])

    def decode(self, cached: int | Sequence[int], steps: int) -> float:
        """FLOPs of `steps` passes of one token each behind `cached` tokens (one count a layer).

        Every pass reads what is cached, the tokens of the passes before, and itself.
        """
        own = steps * (steps + 1) / 2
        layers = sum(
            steps * (2.0 * self.feeding + self.mixing)
            if i in self.state
            else 2.0 * self.weights * steps + attention(1, steps * n + own, self.mixed)
            for i, n in enumerate(self._each(cached))
        )
        return layers + linears([(steps, self.width, self.vocab)])

    def kv_bytes(self, tokens: int | Sequence[int], element_size: int = 2) -> int:
        """Bytes of the KV cache of so many tokens (one count a layer)."""
        held = sum(n for i, n in enumerate(self._each(tokens)) if i not in self.state)
        return 2 * self.key_heads * self.head_dim * element_size * held

    def _each(self, tokens: int | Sequence[int]) -> Sequence[int]:
        counts = [tokens] * self.layers if isinstance(tokens, int) else tokens
        if len(counts) != self.layers or min(counts) < 0:
            raise InputError(f"give one count a layer, {self.layers} of at least 0")
        return counts


def _experts_width(config: Any) -> int:
    """Inner width of the experts that one token goes through, the shared one included."""
    shared = int(getattr(config, "shared_expert_intermediate_size", 0) or 0)
    return int(config.num_experts_per_tok) * int(config.moe_intermediate_size) + shared


_CHUNK = 64  # tokens of the delta rule's chunks


def _delta_rule(config: Any) -> float:
    """FLOPs of one token in a layer of the gated delta rule (arXiv 2412.06464), chunk by chunk:
    its projections and short convolution, products of keys and queries with those of its chunk, and
    with the state."""
    keys = int(config.linear_num_key_heads) * int(config.linear_key_head_dim)
    heads, wide = int(config.linear_num_value_heads), int(config.linear_value_head_dim)
    key, values = int(config.linear_key_head_dim), heads * wide
    weights = int(config.hidden_size) * (2 * keys + 3 * values + 2 * heads)
    weights += int(config.linear_conv_kernel_dim) * (2 * keys + values)
    return 2.0 * (weights + heads * (_CHUNK * (2 * key + wide) + 3 * key * wide))


#: The decoder that most 7B video-LLMs are built on.
QWEN2_7B = Decoder(28, 3584, 18944, 28, 4, 128, 152064)


@dataclass(frozen=True)
class VisionTransformer:
    """The shape of a vision transformer on one frame, or on the frames of one slot.

    Attributes:
        layers, width, inner: depth, hidden size, width of the MLP.
        rows, columns: patches of a frame. patch: numbers in a patch, with its channels (and
            frames, where a patch covers more than one).
        special: tokens beside the patches (CLS, registers). gated: whether the MLP has a gate.
        window: patches of a side of the windows that attend to themselves; 0 for all to all.
        whole: layers that attend to all in spite of a window.
        head: whether an attention pool of one query stands behind it (SigLIP).
    """

    layers: int
    width: int
    inner: int
    rows: int
    columns: int
    patch: int
    special: int = 0
    gated: bool = False
    window: int = 0
    whole: tuple[int, ...] = ()
    head: bool = False

    def flops(self, slots: int) -> float:
        """FLOPs for so many frames, or slots of frames."""
        patches = self.rows * self.columns
        length = patches + self.special
        d, mlp = self.width, (3 if self.gated else 2) * self.width * self.inner
        one = linears([(patches, self.patch, d)])
        one += self.layers * 2.0 * length * (4 * d * d + mlp)
        for layer in range(self.layers):
            if self.window and layer not in self.whole:
                sides = _split(self.rows, self.window), _split(self.columns, self.window)
                one += sum(attention(a * b, a * b, d) for a in sides[0] for b in sides[1])
            else:
                one += attention(length, length, d)
        if self.head:
            one += linears([(1, d, d), (length, d, 2 * d), (1, d, d)]) + attention(1, length, d)
            one += 2.0 * mlp
        return slots * one


def _split(length: int, part: int) -> list[int]:
    return [min(part, length - start) for start in range(0, length, part)]


def ssd(
    tokens: int,
    *,
    dim: int,
    layers: int = 1,
    state: int = 64,
    head_dim: int = 64,
    expand: int = 2,
    chunk: int = 64,
    bidirectional: bool = True,
    groups: int = 1,
    sequences: int = 1,
) -> float:
    """FLOPs of the ssd temporal encoder on `sequences` sequences of `tokens` tokens.

    In and out projections, and the chunked form of the scan (Mamba-2, arXiv 2405.21060, section
    6): products inside a chunk, what a chunk adds to the state, and what earlier chunks give. The
    decays, the state carried over chunks and the short convolution are elementwise.
    """
    inner, ways = expand * dim, 1 + bidirectional
    heads, maps = inner // head_dim, groups * state
    wide = inner + (inner + 2 * maps) + ways * heads
    chunks = _split(tokens, chunk)
    inside = sum(2.0 * q * q * ways * (maps + inner) for q in chunks)  # C B^T, that times inputs
    added = 2.0 * tokens * ways * inner * state
    given = added if len(chunks) > 1 else 0.0
    layer = linears([(tokens, dim, wide), (tokens, inner, dim)]) + inside + added + given
    return sequences * layers * layer


def counted(call: Callable[[], object]) -> float:
    """What torch's counter counts while `call` runs.

    Attention runs as plain products, since the counter misses the fused kernel of a CPU.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return float(counter.get_total_flops())


def kv_bytes_per_token(config: Any, element_size: int) -> int:
    """Bytes that one token takes in the KV cache of a decoder with this transformers config."""
    config = as_plain(config)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ()
    layers = config.num_hidden_layers - sum(kind == "linear_attention" for kind in kinds)
    return int(2 * layers * heads * width * element_size)
