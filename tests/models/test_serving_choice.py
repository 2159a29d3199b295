"""What can be served by vLLM, and where tokens stand in its prompts; both without vLLM."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vidllm.compressors import names
from vidllm.errors import InputError
from vidllm.models.serving.choice import COMPRESSOR, KEEP, Choice, from_environment, served
from vidllm.models.serving.places import (
    COLUMNS,
    Region,
    attach,
    check_apart,
    detach,
    extent,
    grid_places,
    lay_out,
    put,
)
from vidllm.models.serving.reduction import reduce_video
from vidllm.tokens import budget_of

VIDEO, TEXT = 7, 1


@pytest.mark.parametrize("name", [name for name in names() if name != "none"])
def test_every_method_is_served_with_its_exact_count_or_refused_by_name(name: str) -> None:
    spec = f"{name}:tower=false" if name in ("mustdrop", "tome", "tempme", "pyra") else name
    try:
        choice = served(spec, 0.3)
    except InputError as error:
        assert name in str(error) and "cannot be served by vLLM: " in str(error)
        return
    rows = torch.randn(5 * 3 * 4, 16, generator=torch.Generator().manual_seed(1))
    told = {"cls-attention": rows[:, 0].abs(), "vision-keys": rows}
    left, numbers = reduce_video(rows, 16, (5, 3, 4), [0.0, 1, 2, 3, 4], 5.0, choice, told)
    assert len(left) == len(numbers) == choice.count((5, 3, 4)) == budget_of(0.3, 60)
    assert bool((numbers.diff() > 0).all())


@pytest.mark.parametrize(
    ("spec", "keep", "reason"),
    [
        ("semvid", 0.3, "reads the question"),
        ("fastv", 0.3, "inside the decoder"),
        ("fastv,dycoke-cache", 0.3, "one method inside the decoder|inside the decoder"),
        ("tome", 0.3, "tome:tower=false"),
        ("aim:faithful=true", 0.3, "time order"),
        ("mustdrop:tower=false:threshold=0.9", None, "content"),
        ("aim", None, "how much"),
        ("nope", 0.3, "no compressor"),
    ],
)
def test_a_refusal_names_its_reason(spec: str, keep: float | None, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        served(spec, keep)


def test_the_environment_names_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMPRESSOR, raising=False)
    monkeypatch.delenv(KEEP, raising=False)
    assert from_environment() is None
    monkeypatch.setenv(KEEP, "0.25")
    with pytest.raises(InputError, match=COMPRESSOR):
        from_environment()
    monkeypatch.setenv(COMPRESSOR, "dycoke,uniform")
    assert from_environment() == Choice("dycoke,uniform", 0.25)
    for wrong in ("a quarter", "0", "1.5", "nan"):
        monkeypatch.setenv(KEEP, wrong)
        with pytest.raises(InputError, match=KEEP):
            from_environment()


def test_a_request_may_choose_otherwise_and_names_no_files() -> None:
    engine = Choice("aim", 0.25)
    assert engine.asked({}) is engine
    assert engine.asked({"keep": 0.5}) == Choice("aim", 0.5)
    assert engine.asked({"compressor": "evs"}) == Choice("evs", 0.25)
    assert engine.asked({"compressor": "none"}).count((2, 2, 2)) == 8
    for wrong in ({"keep": 2}, {"keep": "much"}, {"compressor": 3}, {"compressor": "fastv"}):
        with pytest.raises(InputError):
            engine.asked(wrong)
    with pytest.raises(InputError, match="files"):
        engine.asked({"compressor": "flextok:weights=there", "keep": 0.5})


def test_a_grid_that_a_method_does_not_fit_is_refused_before_the_tower_runs() -> None:
    choice = served("protect:first=1(vidcom2)", 0.3)
    assert choice.count((8, 4, 4)) == 38
    with pytest.raises(InputError, match="16 protected"):
        choice.count((2, 4, 4))


def test_a_choice_travels_with_its_video() -> None:
    for choice in (Choice("per-scene:scenes=4(aim)", 0.1), Choice("temporal-pool:k=2"), Choice()):
        assert Choice.unpack(choice.pack()) == choice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_survive_half_precision(dtype: torch.dtype) -> None:
    places = torch.tensor([[0, 7201, 300_000], [0, 257, 65_537], [1, 2, 255]])
    rows = torch.randn(3, 4).to(dtype)
    carried = attach(rows, places, lead=9)
    assert carried.shape == (3, 4 + COLUMNS) and carried.dtype == dtype
    back, numbers = detach(carried)
    assert torch.equal(back, rows)
    assert torch.equal(numbers, torch.cat([places, torch.tensor([[0, 1, 2], [9, 9, 9]])]))


def _prompt(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[Region], np.ndarray]:
    """Text, a video of 3 x 2 x 5 of which `keep` stays, text, the same video, text."""
    places = grid_places((3, 2, 5), 2.0)
    left, full = len(keep), places.shape[1]
    ids = [TEXT] * 4 + [VIDEO] * left + [TEXT] * 3 + [VIDEO] * left + [TEXT] * 2
    takes = extent(places)
    regions = [Region(4, left, takes), Region(7 + left, left, takes)]
    whole = [Region(4, full, takes, places), Region(7 + full, full, takes, places)]
    truth, _ = lay_out(len(ids) + 2 * (full - left), whole)
    stays = torch.cat([torch.arange(4), 4 + keep, torch.arange(3) + 4 + full])
    stays = torch.cat([stays, 7 + full + keep, torch.arange(2) + 7 + 2 * full])
    return torch.tensor(ids), truth[:, stays], regions, places


@pytest.mark.parametrize("chunk", [1, 3, 5, 100])
def test_places_are_those_of_the_whole_prompt_whatever_the_chunks(chunk: int) -> None:
    keep = torch.tensor([0, 3, 11, 12, 29])
    ids, truth, regions, places = _prompt(keep)
    carried = attach(torch.randn(len(keep), 4), torch.from_numpy(places)[:, keep])
    positions, delta = lay_out(len(ids), regions)
    text = ids == TEXT
    assert torch.equal(positions[:, text], truth[:, text])  # final from the start
    assert delta == int(truth.max()) + 1 - len(ids)
    for start in range(0, len(ids), chunk):
        brought = []
        for region in regions:
            low, high = max(start, region.offset), min(start + chunk, region.offset + region.length)
            if low < high:
                brought.append(carried[low - region.offset : high - region.offset])
        if brought:
            positions = put(ids, brought, positions, start, VIDEO)
    assert torch.equal(positions, truth)


def test_a_cached_prefix_leaves_the_rest_right() -> None:
    """Of the first video only the end is computed, behind a prefix of 6 tokens that is cached."""
    keep = torch.tensor([0, 3, 11, 12, 29])
    ids, truth, regions, places = _prompt(keep)
    carried = attach(torch.randn(len(keep), 4), torch.from_numpy(places)[:, keep])
    positions, _ = lay_out(len(ids), regions)
    positions = put(ids, [carried[2:], carried], positions, 6, VIDEO)
    assert torch.equal(positions[:, 6:], truth[:, 6:])


def test_where_videos_may_stand() -> None:
    assert check_apart([(2, 4), (7, 4)], 20) == ""
    assert "without a word" in check_apart([(6, 4), (2, 4)], 20)
    assert "question" in check_apart([(2, 4)], 6)


def test_a_video_on_which_a_method_fails_keeps_its_count() -> None:
    rows = torch.full((8, 6), torch.nan)
    left, numbers = reduce_video(rows, 3, (2, 2, 2), [0.0, 1.0], 2.0, Choice("aim", 0.5), {})
    assert left.shape == (4, 6) and len(numbers) == 4


def test_nothing_imports_vllm_before_the_plug_in_is_called() -> None:
    code = (
        "import sys, vidllm.models.serving.plugin as p, vidllm.models.serving.reduction; "
        "p.register(); print('vllm' in sys.modules)"
    )
    plain = {name: value for name, value in os.environ.items() if "VIDLLM_COMPRESSOR" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain
    )
    assert done.stdout.strip() == "False"
