"""The baseline `uniform`: exact, in time order, even over frames and over the cells of the grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidllm.compressors import build
from vidllm.tokens import Keep, VideoTokens, budget_of

SHARES = (0.7, 0.5, 1 / 3, 0.25, 0.125, 0.1, 0.03)


def blank(grid: tuple[int, int, int]) -> VideoTokens:
    return VideoTokens.blank(grid, [float(t) for t in range(grid[0])], float(grid[0]))


def per_cell(tokens: VideoTokens) -> Tensor:
    _, rows, columns = tokens.grid
    return torch.bincount(tokens.cell[:, 0] * columns + tokens.cell[:, 1], minlength=rows * columns)


@pytest.mark.parametrize(
    "grid",
    [(64, 2, 2), (37, 2, 2), (32, 14, 14), (7, 14, 14), (1, 14, 14), (20, 1, 7), (9, 5, 1),
     (6, 1, 1), (24, 16, 16), (5, 3, 8)],
)  # fmt: skip
@pytest.mark.parametrize("keep", SHARES)
def test_every_frame_and_every_cell_is_kept_equally_often(
    grid: tuple[int, int, int], keep: float
) -> None:
    whole = blank(grid)
    left = build("uniform", keep=keep)(whole)
    assert len(left) == budget_of(keep, len(whole))
    assert (left.position.diff() > 0).all()
    for counts in (left.per_frame(), per_cell(left)):
        assert counts.max() - counts.min() <= 1
    again = build("uniform", keep=keep)(whole)
    assert torch.equal(left.position, again.position)


def test_a_quarter_of_two_by_two_goes_round_the_corners() -> None:
    """A stride of 4 through the sequence would keep one corner of every frame."""
    left = build("uniform", keep=0.25)(blank((8, 2, 2)))
    corners = (2 * left.cell[:, 0] + left.cell[:, 1]).tolist()
    assert left.frame.tolist() == list(range(8))
    assert sorted(corners[:4]) == sorted(corners[4:]) == [0, 1, 2, 3]
    assert corners[:2] == [0, 3]  # the far corner comes next


@pytest.mark.parametrize(("keep", "most"), [(0.5, 2), (0.25, 2), (0.125, 4)])
def test_what_is_kept_of_a_frame_is_spread_over_it(keep: float, most: int) -> None:
    left = build("uniform", keep=keep)(blank((28, 14, 14)))
    before: set[int] = set()
    for frame in range(28):
        cells = left.cell[left.frame == frame]
        for axis in (0, 1):
            lines = torch.bincount(cells[:, axis], minlength=14)
            assert lines.max() - lines.min() <= most
        now = set((14 * cells[:, 0] + cells[:, 1]).tolist())
        assert not now & before  # the next frame keeps others, as long as there are others
        before = now if keep <= 0.5 else set()


def test_ragged_frames_give_in_proportion() -> None:
    """Behind another method frames have different numbers of tokens, of different cells."""
    draw = torch.Generator().manual_seed(1)
    stays = torch.rand(30 * 36, generator=draw) < torch.linspace(0.1, 1, 30).repeat_interleave(36)
    ragged = blank((30, 6, 6)).apply(Keep(stays.nonzero()[:, 0]))
    for keep in SHARES:
        left = build("uniform", keep=keep)(ragged)
        assert len(left) == budget_of(keep, len(ragged))
        share = ragged.per_frame() * len(left) / len(ragged)
        assert ((left.per_frame() - share).abs() < 1).all()
        counts, there = per_cell(left), per_cell(ragged)
        common = counts[there == there.max()]  # cells that are in as many frames
        assert common.max() - common.min() <= 2


@pytest.mark.parametrize("first", ["lita:keep=0.5", "temporal-pool:keep=0.5", "flextok:keep=0.5"])
def test_it_acts_behind_methods_whose_tokens_have_no_cell(first: str) -> None:
    whole = VideoTokens.from_grid(
        torch.randn(12, 4, 4, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(12.0),
        12.0,
    )
    left = build(f"{first},uniform", keep=0.2)(whole)
    assert len(left) == budget_of(0.2, len(whole))
    assert (left.frame.diff() >= 0).all() or first.startswith("flextok")
