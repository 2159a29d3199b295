"""What every head promises, the registry that finds one by name, and what heads share."""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidllm.errors import InputError
from vidllm.errors.registry import Registry


class Head(nn.Module, ABC):
    """A small trained module that reads a clip's features beside texts and gives an answer.

    Padding never changes what is said of real frames, sentences and options, wherever it stands
    in a row and whatever it holds, NaN too.

    Args:
        options: the arguments that build this head again; they are saved with its weights.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def save(self, path: str | Path) -> None:
        """Write weights, name and options to one safetensors file, for `load_head`."""
        from safetensors.torch import save_file

        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(state, path, {"head": self.name, "options": json.dumps(self.options)})

    @contextmanager
    def still(self) -> Iterator[None]:
        """Without dropout and gradients; afterwards every module is in the mode it was in."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode


_REGISTRY: Registry[Head] = Registry("head", base=Head, group="vidllm.encoders")
register_head, head_names, find_head = _REGISTRY.register, _REGISTRY.names, _REGISTRY.find
head_packages = _REGISTRY.packages


def get_head(name: str, **options: Any) -> Head:
    """Build the head called `name`.

    Raises:
        InputError: no head or no option of that name; the message names close matches.
    """
    return _REGISTRY.build(name, options=options)


def load_head(path: str | Path) -> Head:
    """The head that `Head.save` wrote, on the CPU and in eval mode.

    Raises:
        InputError: no such file, or one that holds no head.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"no safetensors weights of a head in {path}") from error
    if "head" not in told or "options" not in told:
        raise InputError(f"{path} does not say which head it holds: write it with Head.save")
    head = get_head(told["head"], **json.loads(told["options"]))
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds weights that do not fit head {told['head']!r}") from error
    return head.to(next(iter(state.values())).dtype).eval()


def check_rows(name: str, what: str, x: Tensor, width: int, mask: Tensor | None) -> Tensor:
    """The mask (B, N) of rows x (B, N, width) that are real; all of them where None is given.

    Raises:
        InputError: shapes that do not fit together.
    """
    if x.dim() != 3 or x.shape[0] == 0 or x.shape[1] == 0 or x.shape[2] != width:
        raise InputError(f"{name} takes {what} (B, N, {width}), not {tuple(x.shape)}")
    rows = tuple(x.shape[:2])
    if mask is None:
        return torch.ones(rows, dtype=torch.bool, device=x.device)
    if tuple(mask.shape) != rows or mask.dtype != torch.bool:
        raise InputError(
            f"{name}: the mask of the {what} must be bool {rows}, not {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    return mask


def check_clips(name: str, video: Tensor, width: int, mask: Tensor | None) -> Tensor:
    """As `check_rows` for a video's frames, of which every clip needs one at least."""
    real = check_rows(name, "video features", video, width, mask)
    if not bool(real.any(1).all()):
        raise InputError(f"{name}: a clip of the batch has no real frame: leave it out")
    return real


def sinusoid(place: Tensor, dim: int) -> Tensor:
    """Sinusoidal position embedding (..., dim) in float32 of places (...) ("Attention is all you
    need", section 3.5): sines in even channels, cosines in odd ones."""
    rate = torch.arange(0, dim, 2, device=place.device, dtype=torch.float32) / dim
    angle = place.float()[..., None] / 10000.0**rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :dim]
