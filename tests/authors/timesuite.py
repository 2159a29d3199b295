"""TimeSuite (OpenGVLab/TimeSuite): the parameters of its position encoding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vidllm.compressors.timesuite import Tape

_INNER = (("0", "depthwise"), ("1", "pointwise"), ("2.layer_norm", "norm"))
_OUTER = (("DwConv1", "down1"), ("DwConv2", "down2"), ("UpConv1", "up1"), ("UpConv0", "up0"))
_REFERENCE = {
    "linear_input": "enter",
    "linear_output": "leave",
    "fc.0": "middle",
    "fc.1.layer_norm": "middle_norm",
    **{f"{a}.{i}": f"{b}.{j}" for a, b in _OUTER for i, j in _INNER},
}


def load_tape(tape: Tape, state: Mapping[str, Tensor]) -> None:
    """Take the parameters under the authors' names ("DwConv1.0.weight" and so on).

    A prefix that ends in a slash is ignored.
    """
    own = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition("/")[2].rpartition(".")
        own[f"{_REFERENCE.get(part, part)}.{leaf}"] = value
    tape.load_state_dict(own)
