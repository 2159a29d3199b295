"""Methods that merge inside the vision tower, in a whole model: from a file to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import hub_model, tiny_model, write_video
from torch import Tensor, nn
from tower_watch import INSIDE, hooks, lengths

from vidllm import InputError, VideoLLM
from vidllm.compressors import Chain, Compressor, build, get
from vidllm.compressors.base import InTower
from vidllm.compressors.shared.in_tower import falling, tower_part
from vidllm.encoders.vision import HubTower
from vidllm.longvideo.build import native_engine
from vidllm.models.native.clip_memory import NativeClip
from vidllm.models.native.model import NativeVideoLLM
from vidllm.progress import Stopwatch
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

TIMES = [0.0, 0.1, 0.5, 0.6, 1.2, 2.0]
SECONDS = np.array(TIMES)
QUESTION = "when does the red star spin?"
TOKENIZER = build_tokenizer(get_timecode("relative"))


def model(mixes: bool = True, **options: Any) -> NativeVideoLLM:
    """CLIP's tower with 16 cells a frame; `mixes` leaves it its temporal encoder."""
    made = hub_model("clip", **options)
    if not mixes:
        made.temporal = nn.ModuleList()
    return made


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "short.mp4", TIMES)


def frames() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("name", INSIDE)
def test_from_a_file_to_an_answer_with_fewer_tokens_in_the_tower(
    name: str, downsample: int, video: Path
) -> None:
    made = model(downsample=downsample)
    tower = cast(HubTower, made.vision)
    full = 96 // downsample**2
    with lengths(tower) as seen:
        llm = VideoLLM(made, TOKENIZER, compressor=name, keep=0.25)
        answer = llm.ask(video, QUESTION, max_new_tokens=4)
    assert seen[0] == 6 * 17 > seen[1]  # the second of two layers
    assert (answer.receipt.tokens_full, answer.receipt.tokens_kept) == (full, full // 4)
    assert answer.receipt.kv_kept_mb == pytest.approx(answer.receipt.kv_full_mb / 4)
    assert hooks(made) == 0
    with lengths(tower) as seen:
        outside = VideoLLM(made, TOKENIZER, compressor=f"{name}:tower=false", keep=0.25)
        said = outside.ask(video, QUESTION, max_new_tokens=4)
    assert seen == [6 * 17] * 2 and said.receipt.tokens_kept == full // 4
    clip = outside.sample(video)
    tokens, _ = native_engine(llm).tokens(clip)  # encoded once for several methods: nothing merged
    assert len(tokens) == full
    method = get(name, keep=0.25, tower=False)
    encoded = NativeClip(tokens, method, clip.seconds)
    [same] = llm.engine.generate(clip, encoded, [QUESTION], method, Stopwatch(), 4)
    assert llm.engine.decode(same, QUESTION, clip).raw == said.raw


@pytest.mark.parametrize("spec", ["tome,visionzip", "tempme,storm", "mustdrop,mustdrop-filter"])
def test_what_comes_behind_meets_the_budget_of_the_chain(spec: str, video: Path) -> None:
    llm = VideoLLM(model(), TOKENIZER, compressor=spec, keep=0.25)
    both = llm.ask(video, [QUESTION, "what happens first?"], max_new_tokens=3)
    assert [a.receipt.tokens_kept for a in both] == [24, 24]
    threshold = VideoLLM(model(), TOKENIZER, compressor="mustdrop:threshold=-1")
    assert threshold.ask(video, QUESTION, max_new_tokens=3).receipt.tokens_kept == 24


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("keep", [None, 1.0])
def test_keeping_everything_is_the_plain_model(name: str, keep: float | None, video: Path) -> None:
    made = model(downsample=2)
    plain = VideoLLM(made, TOKENIZER, keep=1.0).ask(video, QUESTION, max_new_tokens=6)
    method = get(name, budget=24) if keep is None else name
    llm = VideoLLM(made, TOKENIZER, compressor=method, keep=keep)
    assert llm.ask(video, QUESTION, max_new_tokens=6).raw == plain.raw
    tokens = made.encode(frames(), SECONDS, 2.0)
    whole = made.encode(frames(), SECONDS, 2.0, inside=(cast(InTower, get(name)), 24))
    assert torch.equal(whole.features, tokens.features)
    assert torch.equal(whole.source, tokens.source) and torch.equal(whole.span, tokens.span)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("downsample", [1, 2])
@torch.inference_mode()
def test_the_tokens_are_the_towers_with_the_books_of_the_grid(name: str, downsample: int) -> None:
    made, bare = model(downsample=downsample), model(False, downsample=downsample)
    method, budget, side = cast(InTower, get(name)), 13, 4 // downsample
    seen = cast(HubTower, bare.vision).with_merging(
        frames(), method, budget, fold=downsample, signals=True
    )
    wants = ("cls-attention",)
    out = bare.encode(frames(), SECONDS, 2.0, wants, (method, budget))
    rows = bare.projector(seen.features)
    assert torch.allclose(out.features, rows, atol=1e-6)
    assert torch.equal(out.signals["cls-attention"], seen.signals["cls-attention"])
    copies = rows[seen.selection.target].view(1, 6, side * side, -1)
    mixed = made.mix(copies, torch.tensor([TIMES]))[0].unflatten(1, (side, side))
    grid = VideoTokens.from_grid(mixed, torch.from_numpy(SECONDS), 2.0).apply(seen.selection)
    told = made.encode(frames(), SECONDS, 2.0, wants, (method, budget))
    assert torch.allclose(told.features, grid.features, atol=1e-5) and len(told) == budget
    for tokens in (out, told):
        for part in ("frame", "cell", "span", "size", "position", "source"):
            assert torch.equal(getattr(tokens, part), getattr(grid, part)), part
        assert tokens.grid == (6, side, side) and int(tokens.source.min()) == 0


def split(spec: str | Compressor, **options: Any) -> tuple[Any, Any]:
    method = build(spec, **options) if isinstance(spec, str) else spec
    return tower_part(method, VideoTokens.blank((8, 4, 4), list(range(8)), 8.0))


def test_a_method_is_split_at_the_tower() -> None:
    inside, rest = split("tome", keep=0.25)
    assert (inside[0].name, inside[1], rest.name) == ("tome", 32, "none")
    inside, rest = split("tome,temporal-pool,fastv", keep=1 / 8)
    assert (inside[1], rest.name, rest.budget) == (64, "temporal-pool,fastv", 16)
    inside, rest = split("tome:keep=0.5,uniform", keep=0.25)
    assert (inside[1], rest.name, rest.budget) == (64, "uniform", 32)
    inside, rest = split("mustdrop:threshold=0.9,uniform", keep=0.25)
    assert (inside[1], rest.budget) == (None, 32)
    inside, rest = split("tempme:keep=0.5,uniform:keep=0.5")
    assert (inside[1], rest.budget) == (64, None)
    inside, rest = split(Chain([get("tome")], keep=0.5))
    assert (inside[1], rest.name) == (64, "none")
    for spec in ("tome:tower=false", "visionzip", "per-scene:scenes=2(tome)", "uniform,fastv"):
        method = build(spec, keep=0.5)
        assert tower_part(method, VideoTokens.blank((8, 4, 4), list(range(8)), 8.0)) == (
            None,
            method,
        )
    assert split("tome,uniform")[0] is None and split("pyra")[0] is None
    with pytest.raises(InputError, match="fewer than the 64"):
        split("tome:keep=0.1,uniform", keep=0.5)


def test_a_tower_without_layers_leaves_the_method_to_its_output(video: Path) -> None:
    made, tokenizer = tiny_model()
    method = get("tome", keep=0.25)
    assert made.tower_part(method, 6) == (None, method)
    answer = VideoLLM(made, tokenizer, compressor=method).ask(video, QUESTION, max_new_tokens=2)
    assert answer.receipt.tokens_kept == answer.receipt.tokens_full // 4


def test_counts_fall_evenly_as_far_as_a_layer_can_halve() -> None:
    shape = TowerShape(12, 1, 2, 196)
    assert falling(shape, 2 * 100, 12) == [2 * (196 - 8 * layer) for layer in range(1, 13)]
    steep = falling(shape, 2 * 3 + 1, 12)
    assert steep[-3:] == [2 * 16, 2 * 8, 7]
    assert steep == sorted(steep, reverse=True) and all(n % 2 == 0 for n in steep[:-1])
    assert falling(TowerShape(0, 1, 2, 196), 5, 0) == []
