"""What every temporal encoder promises, and the registry that finds one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.errors.registry import Registry


class TemporalEncoder(nn.Module, ABC):
    """Mix the tokens of a clip over time; the number of tokens does not change.

    The valid outputs never depend on what stands at padded frames.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    @abstractmethod
    def forward(self, x: Tensor, seconds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch of clips.

        Args:
            x: (B, T, N, D) tokens, N of them a frame in raster order.
            seconds: (B, T) float, the time of every frame in seconds.
            mask: (B, T) bool, True at real frames; None when no frame is padding. The
                padding stands before or after the real frames of a clip.

        Returns:
            (B, T, N, D); padded frames come back as they were given.
        """

    @property
    def causal(self) -> bool:
        """Whether a frame's output depends on earlier frames alone."""
        return False

    @property
    def streams(self) -> bool:
        """Whether `stream` works, as this encoder was built."""
        return False

    def reset_parameters(self) -> None:
        """Initialise again, after a general initialiser went over the model."""

    def stream(self, x: Tensor, seconds: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Encode the next frames of a video whose earlier frames are behind `state`.

        Chunks of any size give what `forward` gives for the whole clip; the state does not grow.

        Args:
            x: (B, T, N, D) the next T frames. seconds: (B, T), later than those before.
            state: what the last call returned, None at the start of a video.

        Returns:
            (B, T, N, D) and the state after these frames.

        Raises:
            InputError: this encoder reads the clip backwards too, or needs all of it.
        """
        raise InputError(f"{self.name} needs the whole clip and cannot stream")

    def check(self, x: Tensor, seconds: Tensor, mask: Tensor | None) -> None:
        """Raise InputError when the shapes do not fit together."""
        if x.dim() != 4:
            raise InputError(f"a temporal encoder takes (B, T, N, D) tokens, not {tuple(x.shape)}")
        batch = tuple(x.shape[:2])
        if tuple(seconds.shape) != batch:
            raise InputError(
                f"seconds must be {batch} for these tokens, not {tuple(seconds.shape)}"
            )
        if mask is not None and (tuple(mask.shape) != batch or mask.dtype != torch.bool):
            raise InputError(
                f"mask must be bool {batch} for these tokens, not {mask.dtype} {tuple(mask.shape)}"
            )


_REGISTRY: Registry[TemporalEncoder] = Registry("temporal encoder", given=("dim",))
register_temporal, temporal_names = _REGISTRY.register, _REGISTRY.names
options_of = _REGISTRY.options


def tensors_in(state: Any) -> list[Tensor]:
    """The tensors of a streaming state, whatever holds them."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [t for value in state.values() for t in tensors_in(value)]
    if isinstance(state, list | tuple):
        return [t for value in state for t in tensors_in(value)]
    return tensors_in(vars(state)) if hasattr(state, "__dict__") else []


def state_bytes(encoder: TemporalEncoder, dim: int, slots: int = 1, frames: int = 8) -> int | None:
    """Bytes that the encoder carries between chunks of a video of `slots` tokens a frame.

    None where it cannot stream. Measured on `frames` frames of zeros; a state that is still
    growing then (a window that is not full) counts as it is.
    """
    if not encoder.streams:
        return None
    example = next(iter(encoder.parameters()), torch.zeros(()))
    x = torch.zeros(1, frames, slots, dim, dtype=example.dtype, device=example.device)
    with torch.no_grad():
        _, state = encoder.stream(x, torch.arange(frames, device=x.device)[None].float())
    return sum(t.numel() * t.element_size() for t in tensors_in(state))


def get_temporal(name: str, dim: int, **options: Any) -> TemporalEncoder:
    """Build the encoder called `name` for tokens of width `dim`.

    Raises:
        InputError: no encoder or no option of that name; the message names close matches.
    """
    return _REGISTRY.build(name, dim, options=options)


def get_alike(name: str, dim: int, **options: Any) -> TemporalEncoder:
    """As `get_temporal`, without the options that this encoder does not have: for comparisons."""
    known = options_of(name)
    return get_temporal(name, dim, **{k: v for k, v in options.items() if k in known})


def describe(dim: int = 256) -> list[dict[str, Any]]:
    """What is registered, for lists and pages.

    Each has name, summary, paper, options; `parameters` of the default build at width `dim`;
    `causal` and `streams` of the build that reads forwards alone (where there is one), and
    `state_bytes`, what that carries between chunks for one slot in float32 (None: no stream).
    """
    found = []
    for name in temporal_names():
        ahead = get_alike(name, dim, bidirectional=False, scan="slot").eval()
        found.append(
            {
                "name": name,
                "summary": ahead.summary,
                "paper": ahead.paper,
                "options": options_of(name),
                "parameters": sum(p.numel() for p in get_temporal(name, dim).parameters()),
                "causal": ahead.causal,
                "streams": ahead.streams,
                "state_bytes": state_bytes(ahead, dim),
            }
        )
    return found
