"""What happened to each token: maps by hand, of real methods, and through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from vidllm import InputError
from vidllm.compressors import build
from vidllm.tokens import Keep, Merge, Mix, TokenMap, VideoTokens


def tokens(grid: tuple[int, int, int] = (4, 2, 3), width: int = 8) -> VideoTokens:
    features = torch.randn(*grid, width, generator=torch.Generator().manual_seed(0))
    return VideoTokens.from_grid(features, [0.1 * t for t in range(grid[0])], 0.1 * grid[0])


def through_json(made: TokenMap) -> TokenMap:
    return TokenMap.from_dict(json.loads(json.dumps(made.as_dict())))


def test_a_map_by_hand() -> None:
    """Two slots of 1 x 3: the first token stays, two merge across slots, the others leave."""
    clip = tokens((2, 1, 3))
    kept = clip.apply(Merge(torch.tensor([0, 1, -1, -1, 1, -1]), torch.tensor([0, 4])))
    made = TokenMap.of(kept, [0.5, 1.5])
    assert made.grid == (2, 1, 3) and made.total == 6 and len(made) == 2
    assert made.carrier.tolist() == [0, 1, -1, -1, 1, -1] and made.carrier.dtype == np.int32
    assert made.heat().tolist() == [[[1.0, 0.5, 0.0]], [[0.0, 0.5, 0.0]]]
    assert made.heat().dtype == np.float32
    assert made.per_frame().tolist() == [1, 1]  # the merged one stands where its fourth is
    assert made.sizes().tolist() == [1, 2]
    assert through_json(made) == made
    again = TokenMap.of(kept.apply(Keep(torch.tensor([1]))), [0.5, 1.5])
    assert again.carrier.tolist() == [-1, 0, -1, -1, 0, -1] and again.per_frame().tolist() == [0, 1]


def test_new_tokens_may_carry_none() -> None:
    clip = tokens((1, 1, 3))
    mixed = clip.apply(Mix(torch.zeros(2, 8), torch.tensor([1, 1, 1]), torch.tensor([0, 2])))
    made = TokenMap.of(mixed, [0.0])
    assert made.sizes().tolist() == [0, 3] and made.per_frame().tolist() == [2]
    assert made.heat().sum() == pytest.approx(1.0) and through_json(made) == made


@pytest.mark.parametrize("spec", ["aim", "tome", "temporal-pool", "uniform", "vtg-llm", "dycoke"])
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 2, 2), (7, 3, 5)])
def test_maps_of_methods_go_through_json(spec: str, grid: tuple[int, int, int]) -> None:
    clip = tokens(grid, 16)
    for keep in (1.0, 0.5, 0.1):
        kept = build(spec, keep=keep)(clip)
        made = TokenMap.of(kept, [0.1 * t for t in range(grid[0])])
        assert len(made) == len(kept) and int(made.per_frame().sum()) == len(kept)
        assert made.per_frame().tolist() == kept.per_frame().tolist()
        assert made == through_json(made) and 0 <= made.heat().min() <= made.heat().max() <= 1
        if not build(spec).makes_tokens:
            assert made.heat().sum() == pytest.approx(len(kept), rel=1e-5)


def test_a_map_is_small_and_its_numbers_stay_as_they_are() -> None:
    clip = tokens((32, 14, 14), 4)
    seconds = [t * 1001 / 30000 for t in range(32)]
    dropped = TokenMap.of(build("random", keep=0.37)(clip), seconds)
    assert len(json.dumps(dropped.as_dict())) < 4096 and "carrier" not in dropped.as_dict()
    assert dropped.seconds.tolist() == seconds == through_json(dropped).seconds.tolist()
    merged = TokenMap.of(build("aim", keep=0.25)(clip), seconds)
    assert len(json.dumps(merged.as_dict())) < 12_000 and through_json(merged) == merged
    assert dropped != merged and dropped != "a map"
    with pytest.raises(ValueError, match="read-only"):
        dropped.carrier[0] = 1


def test_tokens_out_of_time_order_keep_their_order() -> None:
    made = TokenMap((1, 1, 4), np.zeros(1), np.array([1, -1, 0, -1]), np.array([2, 0]))
    assert through_json(made) == made and made.carrier[2] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"grid": [4, 2]},
        {"grid": [0, 2, 3]},
        {"seconds": [0.0]},
        {"kept": 2},
        {"place": "bits:!!"},
        {"place": "i1:AAAA"},
        {"place": "x:AAAA"},
        {"carrier": "bits:AAAA"},
        {"place": None},
    ],
)
def test_what_is_no_map_is_refused_in_one_line(change: dict[str, Any]) -> None:
    made = TokenMap.of(build("uniform", keep=0.5)(tokens()), [0.0] * 4).as_dict()
    with pytest.raises(InputError) as caught:
        TokenMap.from_dict({**made, **change})
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        TokenMap((1, 1, 2), np.zeros(1), np.array([0, 5]), np.array([0]))
