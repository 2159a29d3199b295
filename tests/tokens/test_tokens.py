"""VideoTokens: places and seconds from a grid, and what applying a selection does to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, Merge, Mix, VideoTokens, apply_all, apply_rows


def grid(frames: int = 4, rows: int = 2, columns: int = 3, width: int = 5) -> VideoTokens:
    features = torch.randn(frames, rows, columns, width, generator=torch.Generator().manual_seed(0))
    return VideoTokens.from_grid(features, [0.5, 1.5, 2.5, 3.0, 9.0][:frames], 10.0)


def quarter() -> Merge:
    """24 tokens: 0..9 into slot 0, 10 and 11 into slot 1, 12 dropped, the rest into slot 2."""
    target = torch.tensor([0] * 10 + [1] * 2 + [-1] + [2] * 11)
    return Merge(target, torch.tensor([3, 10, 20]))


def test_grid_tokens_are_in_time_and_raster_order_and_cover_midpoint_to_midpoint() -> None:
    tokens = grid()
    assert tokens.frame.tolist() == [f for f in range(4) for _ in range(6)]
    assert tokens.cell[:6].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert tokens.span.dtype == torch.float64
    assert tokens.span[::6].tolist() == [[0.0, 1.0], [1.0, 2.0], [2.0, 2.75], [2.75, 10.0]]
    assert tokens.position.tolist() == tokens.source.tolist() == list(range(24))
    assert tokens.keep == 1.0 and tokens.per_frame().tolist() == [6] * 4


def test_a_range_of_the_video_starts_where_it_starts() -> None:
    tokens = VideoTokens.from_grid(torch.zeros(2, 1, 1, 1), [21.0, 23.0], 24.0, start=20.0)
    assert tokens.span.tolist() == [[20.0, 22.0], [22.0, 24.0]]


def test_a_duration_short_of_the_last_frame_does_not_make_an_inverted_span() -> None:
    tokens = VideoTokens.from_grid(torch.zeros(1, 1, 1, 1), [5.0], 4.9)
    assert tokens.span.tolist() == [[0.0, 5.0]]


@pytest.mark.parametrize(
    ("features", "seconds"),
    [
        (torch.zeros(2, 2, 3), [0.0, 1.0]),
        (torch.zeros(2, 1, 1, 3, dtype=torch.long), [0.0, 1.0]),
        (torch.zeros(2, 0, 1, 3), [0.0, 1.0]),
        (torch.zeros(2, 1, 1, 3), [0.0]),
        (torch.zeros(2, 1, 1, 3), [1.0, 0.0]),
        (torch.zeros(2, 1, 1, 3), [0.0, float("nan")]),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(features: Tensor, seconds: list[float]) -> None:
    with pytest.raises(InputError):
        VideoTokens.from_grid(features, seconds, 2.0)


def test_keeping_takes_rows_and_remembers_who_went() -> None:
    tokens = grid()
    kept = tokens.apply(Keep(torch.tensor([2, 7, 23])))
    assert torch.equal(kept.features, tokens.features[[2, 7, 23]])
    assert kept.position.tolist() == [2, 7, 23] and kept.frame.tolist() == [0, 1, 3]
    assert kept.source[[2, 7, 23]].tolist() == [0, 1, 2] and int((kept.source < 0).sum()) == 21
    assert kept.keep == 3 / 24


def test_merging_means_features_hulls_spans_and_sums_sizes() -> None:
    tokens = grid()
    merged = tokens.apply(quarter())
    expected = torch.stack([tokens.features[a:b].mean(0) for a, b in ((0, 10), (10, 12), (13, 24))])
    assert torch.allclose(merged.features, expected, atol=1e-6)
    assert merged.span.tolist() == [[0.0, 2.0], [1.0, 2.0], [2.0, 10.0]]
    assert merged.size.tolist() == [10, 2, 11]
    assert merged.position.tolist() == [3, 10, 20] and merged.frame.tolist() == [0, 1, 3]
    assert merged.source.tolist() == [0] * 10 + [1] * 2 + [-1] + [2] * 11


def test_provenance_survives_several_rounds() -> None:
    tokens = grid().apply(quarter()).apply(Keep(torch.tensor([0, 2])))
    tokens = tokens.apply(Merge(torch.tensor([0, 0]), torch.tensor([1])))
    assert tokens.source.tolist() == [0] * 10 + [-1] * 3 + [0] * 11
    assert tokens.size.tolist() == [21] and tokens.position.tolist() == [20]


def test_size_weighting_of_two_rounds_is_the_mean_of_the_sources() -> None:
    tokens = grid()
    everything = Merge(torch.zeros(3, dtype=torch.long), torch.tensor([0]), "size")
    merged = tokens.apply(quarter()).apply(everything)
    live = torch.arange(24) != 12
    assert torch.allclose(merged.features[0], tokens.features[live].mean(0), atol=1e-6)


@pytest.mark.parametrize("weighting", ["mean", "size"])
def test_a_token_that_merges_with_nobody_is_bit_equal(weighting: str) -> None:
    tokens = grid().apply(Merge(torch.arange(24) // 8, torch.tensor([0, 8, 16])))
    alone = tokens.apply(
        Merge(torch.tensor([0, 1, 1]), torch.tensor([0, 1]), weighting)  # type: ignore[arg-type]
    )
    assert torch.equal(alone.features[0], tokens.features[0])


@pytest.mark.parametrize("width", [70, 3])  # summed in one go, and member by member
def test_rows_of_a_batch_merge_alike_and_carry_gradients(width: int) -> None:
    x = torch.randn(2, 72, 4, dtype=torch.float64, requires_grad=True)
    target = (torch.arange(72) // width).clamp(max=72 // width - 1)
    first = torch.arange(int(target.max()) + 1) * width
    merge = Merge(target, first)
    merged = apply_rows(x, merge)
    for slot in range(len(merge)):
        assert torch.allclose(merged[:, slot], x[:, target == slot].mean(1))
    assert torch.autograd.gradcheck(lambda rows: apply_rows(rows, merge), x)


def test_ids_and_masks_take_the_row_of_the_representative() -> None:
    ids = torch.arange(48).view(2, 1, 24)
    assert apply_rows(ids, quarter(), dim=-1).tolist() == [[[3, 10, 20]], [[27, 34, 44]]]
    _, extras = grid().apply(
        quarter(), {"mask": torch.arange(24) == 10, "plane": torch.ones(24, 2, 2)}
    )
    assert extras["mask"].tolist() == [False, True, False]
    assert torch.equal(extras["plane"], torch.ones(3, 2, 2))


def test_one_list_of_selections_serves_a_batch() -> None:
    tokens = grid()
    rounds = [quarter(), Merge(torch.tensor([0, 1, 1]), torch.tensor([0, 2]), "size")]
    expected = tokens.apply(rounds[0]).apply(rounds[1]).features
    batch = torch.stack([tokens.features, 2 * tokens.features])
    result = apply_all(batch, rounds)
    assert torch.equal(result[0], expected) and torch.allclose(result[1], 2 * expected)


def test_half_precision_is_averaged_in_single() -> None:
    x = torch.full((300, 1), 1.0078125, dtype=torch.bfloat16)
    everything = Merge(torch.zeros(300, dtype=torch.long), torch.tensor([0]))
    assert torch.equal(apply_rows(x, everything), x[:1])


def test_selections_are_checked() -> None:
    with pytest.raises(WorkError, match="ascending"):
        Keep(torch.tensor([3, 1]))
    with pytest.raises(WorkError, match="at least one"):
        Keep(torch.tensor([], dtype=torch.long))
    with pytest.raises(WorkError, match="representative"):
        Merge(torch.tensor([0, 1]), torch.tensor([1, 0]))
    with pytest.raises(WorkError, match="integer"):
        Keep(torch.tensor([True, False]))
    with pytest.raises(WorkError, match="outside"):
        grid().apply(Keep(torch.tensor([24])))
    with pytest.raises(WorkError, match="met 24"):
        grid().apply(Merge(torch.tensor([0]), torch.tensor([0])))
    with pytest.raises(InputError, match="rows"):
        grid().apply(Keep(torch.tensor([0])), {"mask": torch.zeros(3)})


def test_mix_brings_its_own_features_and_keeps_the_provenance() -> None:
    tokens = VideoTokens.from_grid(torch.randn(2, 1, 2, 3), [0.0, 1.0], 2.0)
    made = torch.randn(3, 5, requires_grad=True)
    mixed = tokens.apply(Mix(made, torch.tensor([0, 2, 2, -1]), torch.tensor([0, 1, 2])))
    assert mixed.features is made
    assert mixed.source.tolist() == [0, 2, 2, -1]
    assert mixed.size.tolist() == [1, 0, 2]
    assert mixed.position.tolist() == [0, 1, 2]
    # A slot that carries nothing covers what its representative covered.
    assert mixed.span.tolist() == [[0.0, 0.5], [0.0, 0.5], [0.0, 2.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": torch.zeros(2, 3)},
        {"target": torch.tensor([0, 3, 0, 0])},
        {"representative": torch.tensor([0, 1, 9])},
        {"span": torch.zeros(2, 2)},
    ],
)
def test_mix_refuses_what_does_not_fit(wrong: dict[str, Tensor]) -> None:
    right = {
        "features": torch.zeros(3, 3),
        "target": torch.tensor([0, 1, 2, -1]),
        "representative": torch.tensor([0, 1, 2]),
    }
    with pytest.raises(WorkError):
        Mix(**{**right, **wrong})


def test_signals_follow_the_tokens() -> None:
    tokens = VideoTokens.from_grid(torch.randn(2, 1, 2, 3), [0.0, 1.0], 2.0)
    tokens = tokens.with_signals(cls_attention=torch.arange(4.0), keys=torch.eye(4))
    kept = tokens.apply(Keep(torch.tensor([1, 3])))
    assert kept.signals["cls-attention"].tolist() == [1, 3]
    merged = kept.apply(Merge(torch.tensor([0, 0]), torch.tensor([1])))
    assert merged.signals["cls-attention"].tolist() == [2]
    assert merged.signals["keys"].tolist() == [[0, 0.5, 0, 0.5]]
    with pytest.raises(InputError, match="needs 4 rows"):
        tokens.with_signals(wrong=torch.zeros(3))
