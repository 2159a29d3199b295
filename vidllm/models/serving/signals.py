"""What vLLM's vision tower thinks of its own tokens, for methods that read its attention or keys.

As in `hooks.vision_tower`: a hook catches what goes into one attention layer, and only the queries
and keys of that layer are computed again. It catches nothing while no video's method reads signals.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vidllm.encoders.vision.signals import SIGNALS

from ..hooks.vision_tower import Sight, fold_groups, packed_signals
from .choice import Choice


def wanted(choice: Choice) -> list[str]:
    """Signals that a choice reads, for it leaves tokens out."""
    method = choice.method
    idle = method.keep == 1.0 and method.budget is None and all(m.is_free() for m in method.methods)
    wants = {*method.needs, *method.uses} & set(SIGNALS)
    return [] if idle else sorted(wants)


class TowerWatch:
    """The inputs of one attention layer of a tower that packs all frames in a row.

    Args:
        attention: vLLM's, of Qwen's towers.
    """

    def __init__(self, attention: nn.Module) -> None:
        self.attention: Any = attention
        self.on = False
        self._sight: Sight | None = None
        attention.register_forward_pre_hook(self._catch, with_kwargs=True)

    def _catch(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.on:
            return
        named = dict(
            zip(("x", "cu_seqlens", "rotary_pos_emb_cos", "rotary_pos_emb_sin"), args, strict=False)
        )
        named |= kwargs
        turns = [named[f"rotary_pos_emb_{part}"] for part in ("cos", "sin")]
        layer = self.attention
        told = {
            "cu_seqlens": named["cu_seqlens"],
            "position_embeddings": [torch.cat([turn, turn], dim=-1) for turn in turns],
        }
        plain = SimpleNamespace(
            num_heads=layer.num_attention_heads_per_partition,
            qkv=lambda hidden: layer.qkv(hidden)[0],  # beside the bias that it may leave out
        )
        seen: Any = plain
        self._sight = Sight({}, attention=seen, hidden=named["x"].detach(), arguments=told)

    def read(self, group: int) -> dict[str, Tensor]:
        """Signals of the tokens of the tower's last call, one row a token of `group` patches.

        Heads of other ranks of a tensor-parallel tower are in the mean. Nothing where the tower is
        compiled, so that no hook ran.
        """
        if self._sight is None:
            return {}
        planes = fold_groups(packed_signals(self._sight), group)
        self._sight = None
        ranks = int(self.attention.tp_size)
        if ranks > 1:
            from vllm.distributed import tensor_model_parallel_all_reduce

            planes = {n: tensor_model_parallel_all_reduce(p) / ranks for n, p in planes.items()}
        return planes
