"""STORM as one method, and the wrappers and chains that specs can write."""

from __future__ import annotations

import pytest
import torch
from test_compressors import QUERY, clip

from vidllm.compressors import build, get
from vidllm.errors import InputError


def test_storm_pools_in_time_and_samples_what_is_left() -> None:
    tokens = clip((16, 4, 4))
    quarter = get("storm", keep=0.25)(tokens)
    assert torch.equal(quarter.features, get("temporal-pool", keep=0.25)(tokens).features)
    eighth = get("storm", keep=0.125)(tokens)
    pooled = get("storm", temporal=4, sample=2)(tokens)
    assert len(eighth) == len(pooled) == 32 and pooled.frame.unique().numel() == 2
    assert len(get("storm", temporal=4, spatial=2, sample=2)(tokens)) == 8
    assert len(get("storm", temporal=3)(clip((7, 2, 2)))) == 12  # the last window is shorter


@pytest.mark.parametrize(
    "spec",
    [
        "per-scene:scenes=3(temporal-pool,uniform)",
        "frame-budget(vidcom2)",
        "random:keep=0.9,protect:first=1:last=1(aim)",
    ],
)
def test_a_spec_may_wrap_methods(spec: str) -> None:
    tokens = clip((8, 4, 4))
    after = build(spec, keep=0.25)(tokens, query=QUERY)
    assert len(after) == 32 and bool((after.position.diff() > 0).all())


def test_a_wrong_wrapper_is_refused_in_one_line() -> None:
    for spec in ("per-scen(aim)", "per-scene(aim", "per-scene:size=3(aim)"):
        with pytest.raises(InputError) as error:
            build(spec, keep=0.5)
        assert "\n" not in str(error.value)
