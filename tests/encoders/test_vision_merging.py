"""Merging inside vision towers: CLIP, SigLIP and DINOv2 with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from authors import mustdrop, tempme, tome
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tower_watch import INSIDE, hooks, lengths

from vidllm.compressors import get
from vidllm.compressors import pyra as pyra_module
from vidllm.encoders.vision import HubTower, build_vision
from vidllm.encoders.vision.merging import merging, tower_layers
from vidllm.errors import InputError
from vidllm.tokens import Keep, Merge, VideoTokens
from vidllm.tokens.tower_plan import TowerShape, TowerStep

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "siglip": {"type": "siglip_vision_model", "image_size": 40, "patch_size": 8},
    "siglip2": {"type": "siglip2_vision_model", "num_patches": 25, "patch_size": 8},
    "clip": {"type": "clip_vision_model", "image_size": 40, "patch_size": 8},
    "dinov2": {"type": "dinov2_with_registers", "image_size": 35, "patch_size": 7},
}


def tower(name: str, layers: int = 4, attention: str = "sdpa", **options: Any) -> HubTower:
    torch.manual_seed(0)
    made = build_vision({**CONFIGS[name], **SIZES, "num_hidden_layers": layers, **options})
    assert isinstance(made, HubTower)
    with torch.no_grad():  # random towers look at everything alike: make them look
        for part_name, weight in made.named_parameters():
            if "q_proj.weight" in part_name or "k_proj.weight" in part_name:
                weight.normal_(0, 0.4)
    made.model.set_attn_implementation(attention)  # type: ignore[operator]
    return made.eval()


def pixels(of: HubTower, frames: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(frames, 3, of.image_size, of.image_size, generator=draw)


def shape(of: HubTower, frames: int) -> TowerShape:
    return TowerShape(of.left, of.special, frames, of.side**2)


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_without_merges_it_is_the_plain_tower_bit_for_bit(name: str) -> None:
    of = tower(name)
    x = pixels(of, 3)
    plain, signals = of.with_signals(x)
    idle = TowerStep(1, "attention", lambda tokens: [])
    with merging(of.model, [idle], shape(of, 3), of.side) as run:
        hidden = of.run(x).last_hidden_state
    assert torch.equal(run.read(hidden).features, plain.flatten(0, 1))
    for method in (*INSIDE, "visionzip"):
        same = of.with_merging(x, get(method), 75, signals=True)
        assert torch.equal(same.features, plain.flatten(0, 1))
        for signal, plane in signals.items():
            assert torch.allclose(same.signals[signal], plane.flatten(0, 1), atol=1e-6)
        few = of.with_merging(x, get(method), 14)
        assert len(few.features) == 14 and len(few.selection.target) == 75
    assert torch.equal(of.with_merging(x, get("tome"), fold=5).features, plain.flatten(1))


def twins(of: HubTower) -> tuple[Tensor, Tensor]:
    """A picture whose 25 patches are copies of 4, without places, and which copy each one is."""
    for part_name, weight in of.model.named_parameters():
        if "position_embed" in part_name:
            weight.data[-25:] = weight.data[-25:-24].clone()
    group = torch.tensor([int(n) for n in "0123110222130221110022221"])
    kinds = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    rows = [torch.cat([kinds[i] for i in line], dim=2) for line in group.view(5, 5).tolist()]
    return torch.cat(rows, dim=1)[None], group


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("place", ["before", "attention"])
def test_merged_copies_weigh_as_many_as_they_are(name: str, attention: str, place: Any) -> None:
    of = tower(name, attention=attention)
    x, group = twins(of)
    plain, signals = of.with_signals(x)
    first = torch.stack([torch.nonzero(group == i)[0, 0] for i in range(4)])
    apart = []
    for proportional in (True, False):
        step = TowerStep(0, place, lambda tokens: [Merge(group, first, "size")])
        with merging(
            of.model, [step], shape(of, 1), 5, proportional=proportional, watched=of.watched
        ) as run:
            hidden = of.run(x).last_hidden_state
        out = run.read(hidden)
        apart.append(float((out.features - plain[0, first]).abs().max()))
        assert len(out) == 4 and out.size.tolist() == torch.bincount(group).tolist()
        if proportional:
            assert torch.allclose(
                out.signals["cls-attention"], signals["cls-attention"][0, first], atol=1e-6
            )
            assert torch.allclose(
                out.signals["vision-keys"], signals["vision-keys"][0, first], atol=1e-5
            )
    assert apart[0] < 1e-5 < 1e-3 < apart[1]


def attend(layer: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention of one layer, written out: the residual sum and the mean keys."""
    norm = layer.layer_norm1(x)
    attention = layer.self_attn
    query, key, value = (
        getattr(attention, f"{n}_proj")(norm).unflatten(-1, (2, -1)).transpose(1, 2) for n in "qkv"
    )
    logits = query @ key.transpose(2, 3) * key.shape[-1] ** -0.5
    if size is not None:
        logits = logits + size.log().transpose(1, 2)[:, None]
    out = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return x + attention.out_proj(out), key.mean(1)


def feed(layer: Any, x: Tensor) -> Tensor:
    return x + layer.mlp(layer.layer_norm2(x))


def start(of: HubTower, x: Tensor) -> Tensor:
    hidden = of.model.embeddings(of.normalise(x))  # type: ignore[operator]
    return of.model.pre_layrnorm(hidden) if of.special else hidden  # type: ignore[operator]


def finish(of: HubTower, x: Tensor) -> Tensor:
    x = x if of.special else of.model.post_layernorm(x)  # type: ignore[operator]
    return x[:, of.special :]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_tome_is_the_authors_block_between_attention_and_mlp(name: str) -> None:
    of = tower(name)
    x = pixels(of, 3)
    hidden, size = start(of, x), torch.ones(3, 25 + of.special, 1)
    for layer in tower_layers(of.model):
        hidden, keys = attend(layer, hidden, size)
        merged = tome.merge(keys, hidden, 5, size, class_token=bool(of.special))
        hidden, size = feed(layer, merged.x), merged.size
    with lengths(of) as seen:
        found = of.with_merging(x, get("tome", faithful=True), 15)
    assert seen == [3 * (n + of.special) for n in (25, 20, 15, 10)]
    assert torch.allclose(found.features, finish(of, hidden).flatten(0, 1), atol=1e-5)
    sizes = torch.bincount(found.selection.target).float()
    assert torch.equal(sizes, size[:, of.special :].flatten())


@torch.inference_mode()
def test_tempme_is_the_authors_block_with_joined_rows() -> None:
    of = tower("clip", layers=6)
    method = get("tempme", joins="2-2", faithful=True)
    steps = method.tower_steps(shape(of, 4), 20)  # type: ignore[attr-defined]
    x = pixels(of, 4)
    hidden, size, special, goals = start(of, x), torch.ones(4, 26, 1), 1, []
    todo = list(steps)
    for number, layer in enumerate(tower_layers(of.model)):
        while todo and (todo[0].layer, todo[0].place) == (number, "before"):
            goal = todo.pop(0).decide.keywords["goal"]  # type: ignore[attr-defined]
            hidden, size = (
                torch.cat([y[:, :, :special].flatten(1, 2), y[:, :, special:].flatten(1, 2)], 1)
                for y in (hidden.unflatten(0, (-1, 2)), size.unflatten(0, (-1, 2)))
            )
            special *= 2
            r = hidden.shape[1] - special - goal // len(hidden)
            hidden, size = tempme.merge(hidden, hidden, size, special, r)
        hidden, keys = attend(layer, hidden, size)
        goal = todo.pop(0).decide.keywords["goal"]  # type: ignore[attr-defined]
        assert goal % len(hidden) == 0
        r = hidden.shape[1] - special - goal // len(hidden)
        hidden, size = tempme.merge(hidden, keys, size, special, r)
        hidden = feed(layer, hidden)
        goals.append((len(hidden), hidden.shape[1]))
    assert not todo and goals[-1] == (1, 24)  # 4 CLS tokens and 20 others in one row
    found = of.with_merging(x, method, 20)
    assert torch.allclose(found.features, hidden[0, 4:], atol=1e-5)
    sizes = torch.bincount(found.selection.target).float()
    assert torch.equal(sizes, size[0, 4:, 0])


@torch.inference_mode()
def test_mustdrop_merges_windows_behind_the_first_layer() -> None:
    of = tower("clip", image_size=48)
    x = pixels(of, 2)
    layers = tower_layers(of.model)
    hidden = feed(layers[0], attend(layers[0], start(of, x), None)[0])
    hidden, _ = mustdrop.merge_windows(hidden, (3, 3), -1.0)
    for layer in layers[1:]:
        hidden = feed(layer, attend(layer, hidden, None)[0])
    for options in ({"threshold": -1.0}, {"budget": 8}):
        with lengths(of) as seen:
            found = of.with_merging(x, get("mustdrop", faithful=True, **options))
        assert seen == [2 * 37, *[2 * 5] * 3]
        assert torch.allclose(found.features, hidden[:, 1:].flatten(0, 1), atol=1e-5)
    raster = of.with_merging(x, get("mustdrop", budget=8))
    assert bool((raster.selection.representative.diff() > 0).all())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("method", [*INSIDE, "visionzip"])
def test_every_budget_is_exact_and_every_patch_is_carried(name: str, method: str) -> None:
    of = tower(name, layers=3)
    for frames, batch in ((1, 64), (7, 64), (7, 3)):
        x, total = pixels(of, frames), frames * 25
        for budget in sorted({1, frames, total // 5 + 1, total - 1}):
            out = of.with_merging(x, get(method), budget, batch=batch)
            tokens = VideoTokens.from_grid(torch.rand(frames, 5, 5, 2), range(frames), frames)
            after = tokens.apply(out.selection)
            assert out.features.shape == (budget, 32) and len(after) == budget
            assert bool((after.source >= 0).all()) and float(after.size.sum()) == total
            assert bool((after.position.diff() > 0).all())
            assert torch.equal(after.position, out.selection.representative)
    x = pixels(of, 4)
    whole = of.with_merging(x, get(method), 20, batch=2, signals=True)
    parts = [of.with_merging(half, get(method), 10, signals=True) for half in x.split(2)]
    if method != "visionzip":  # it shares the budget out over the whole clip, behind the tower
        merged = torch.cat([part.features for part in parts])
        assert torch.allclose(whole.features, merged, atol=1e-5)
    assert set(whole.signals) == {"cls-attention", "vision-keys"}
    assert len(whole.signals["cls-attention"]) == 20


@torch.inference_mode()
@pytest.mark.parametrize("method", INSIDE)
def test_sdpa_and_eager_agree_also_on_rows_of_unequal_length(method: str) -> None:
    outs = [
        tower("clip", attention=kind).with_merging(pixels(tower("clip"), 5), get(method), 38)
        for kind in ("sdpa", "eager")
    ]
    assert torch.allclose(outs[0].features, outs[1].features, atol=1e-5)
    assert torch.equal(outs[0].selection.target, outs[1].selection.target)
    other = tower("clip")
    other.model.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
    with pytest.raises(InputError, match="tower=false"):
        other.with_merging(pixels(other, 1), get(method), 5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("method", INSIDE)
def test_later_layers_see_fewer_tokens_and_flops_fall(name: str, method: str) -> None:
    of = tower(name, layers=6)
    x = pixels(of, 4)
    with FlopCounterMode(display=False) as plain:
        of(x)
    flops = []
    for budget in (50, 20):
        with FlopCounterMode(display=False) as fewer, lengths(of) as seen:
            of.with_merging(x, get(method), budget)
        flops.append(fewer.get_total_flops())
        assert seen == sorted(seen, reverse=True) and seen[0] == 4 * (25 + of.special) > seen[-1]
    assert flops[1] < flops[0] < 0.9 * plain.get_total_flops()
    assert flops[1] < 0.75 * plain.get_total_flops()


def test_nothing_stays_on_the_tower_after_an_exception() -> None:
    of = tower("clip")
    x = pixels(of, 2)

    def fail(tokens: VideoTokens) -> list[Keep]:
        raise RuntimeError("stop")

    with (
        pytest.raises(RuntimeError, match="stop"),
        merging(of.model, [TowerStep(2, "attention", fail)], shape(of, 2), of.side),
    ):
        of.run(x)
    assert hooks(of.model) == 0
    with pytest.raises(InputError, match="NaN"):
        of.with_merging(x * torch.nan, get("tome"), 9)
    for wrong in (0, -1):
        with pytest.raises(InputError, match="budget"):
            of.with_merging(x, get("tome"), wrong)
    with pytest.raises(InputError, match="fold"):
        of.with_merging(x, get("tome"), 9, fold=2)
    assert hooks(of.model) == 0 and torch.equal(of(x), tower("clip")(x))


def test_pyra_modulates_inside_with_one_modulation_a_layer() -> None:
    of = tower("siglip")
    x = pixels(of, 2)
    torch.manual_seed(1)
    with torch.no_grad():
        plain = of.with_merging(x, get("tome"), 20).features
    each = nn.ModuleList([pyra_module.Modulation(32, 4) for _ in range(4)])
    method = get("pyra", modulation=each)
    assert torch.allclose(of.with_merging(x, method, 20).features, plain, atol=1e-5)
    of.with_merging(x, method, 20).features.square().sum().backward()
    for modulation in each:
        assert float(modulation.w_b.grad.abs().max()) > 0  # type: ignore[union-attr]
        nn.init.normal_(modulation.w_b)  # type: ignore[arg-type]
    assert not torch.allclose(of.with_merging(x, method, 20).features, plain, atol=1e-3)
    with pytest.raises(InputError, match="4 modulations do not fit a tower of 3"):
        three = tower("siglip", layers=3)
        three.with_merging(x, method, 20)
    with pytest.raises(InputError, match="width 16"):
        of.with_merging(x, get("pyra", modulation=pyra_module.Modulation(16, 4)), 20)
