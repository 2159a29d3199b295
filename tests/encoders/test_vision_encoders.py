"""Vision encoders: towers of transformers by layer, DiST and SqueezeTime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import hub_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from vidllm.encoders.vision import (
    DistEncoder,
    HubTower,
    SqueezeTimeEncoder,
    VisionEncoder,
    build_vision,
    get_vision,
    load_vision,
    vision_names,
)
from vidllm.encoders.vision.heads import MeanHead, build_head
from vidllm.errors import InputError
from vidllm.models.native.model import slot_seconds

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}
DINO = {**SMALL, "mlp_ratio": 2}
DINO.pop("intermediate_size")
NAFLEX = {k: v for k, v in SMALL.items() if k != "image_size"}
TOWERS: dict[str, dict[str, Any]] = {
    "siglip": {"type": "siglip_vision_model", **SMALL},
    "siglip2": {"type": "siglip2_vision_model", **NAFLEX, "num_patches": 16},
    "clip": {"type": "clip_vision_model", **SMALL},
    "dinov2": {"type": "dinov2", **DINO},
    "registers": {"type": "dinov2_with_registers", **DINO, "num_register_tokens": 2},
}
SQUEEZE = {
    "image_size": 32,
    "chunk": 4,
    "widths": (8, 16, 16, 16),
    "blocks": (1, 1, 1, 1),
    "expansion": 2,
    "inner": 4,
}
TINY: dict[str, dict[str, Any]] = {
    "dist": {"vit": TOWERS["clip"], "temporal": 16, "width": 32},
    "squeezetime": SQUEEZE,
    "framewise": {"tower": TOWERS["siglip"]},
}
EVERY = pytest.mark.parametrize("name", list(TINY))
TOWER = pytest.mark.parametrize("tower", list(TOWERS))


def encoder(name: str, **options: Any) -> VisionEncoder:
    torch.manual_seed(0)
    return get_vision(name, **{**TINY[name], **options}).eval()


def clips(frames: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    pixels = torch.rand(batch, frames, 3, 32, 32, generator=generator)
    return pixels, torch.rand(batch, frames, generator=generator).cumsum(1)


@TOWER
def test_every_hidden_layer_can_be_read_and_later_ones_are_left_out(tower: str) -> None:
    torch.manual_seed(0)
    whole = build_vision(TOWERS[tower]).eval()
    assert isinstance(whole, HubTower)
    frames = clips(3, 1)[0][0]
    with torch.no_grad():
        states = whole.run(frames, output_hidden_states=True).hidden_states
        assert len(whole.every_layer(frames)) == 3
    for layer in (-4, -3, -2, -1, 0, 1, 2, 3):
        part = build_vision({**TOWERS[tower], "layer": layer}).eval()
        fitting = {k: v for k, v in whole.state_dict().items() if k in part.state_dict()}
        part.load_state_dict(fitting)
        with torch.no_grad():
            assert torch.allclose(part(frames), states[layer][:, whole.special :], atol=1e-6)
        left = {k.split(".layers.")[-1][0] for k in part.state_dict() if ".layers." in k}
        assert tower.startswith(("dino", "reg")) or len(left) == layer % 4
    for layer in (4, -5):
        with pytest.raises(InputError, match="has 3 layers"):
            build_vision({**TOWERS[tower], "layer": layer})


@TOWER
def test_a_frozen_tower_has_no_gradient_and_stays_in_evaluation_mode(tower: str) -> None:
    model = nn.Sequential(build_vision({**TOWERS[tower], "frozen": True}), nn.Linear(32, 1))
    model.train()
    assert not any(m.training for m in model[0].model.modules())  # type: ignore[union-attr,operator]
    cells = model[0](clips(2, 1)[0][0])
    assert cells.grad_fn is None and not any(p.requires_grad for p in model[0].parameters())
    model[1](cells).sum().backward()
    free = build_vision(TOWERS[tower]).train()
    assert free(clips(2, 1)[0][0]).requires_grad and free.model.training


def test_cls_attention_of_a_cut_tower_is_that_of_the_same_layer() -> None:
    for tower in ("clip", "siglip", "siglip2"):
        torch.manual_seed(0)
        whole = build_vision(TOWERS[tower]).eval()
        last = -2 if tower == "clip" else -1
        part = build_vision({**TOWERS[tower], "layer": last}).eval()
        assert isinstance(whole, HubTower) and isinstance(part, HubTower)
        state = whole.state_dict()
        part.load_state_dict({k: state[k] for k in part.state_dict()})
        frames = clips(2, 1)[0][0]
        with torch.no_grad():
            one, two = (model.with_signals(frames)[1] for model in (whole, part))
        assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)
    assert not build_vision({**TOWERS["clip"], "layer": 0}).provides


def test_siglip2_of_free_shape_sees_squares_as_its_own_processor_cuts_them() -> None:
    torch.manual_seed(0)
    model = build_vision(TOWERS["siglip2"]).eval()
    assert isinstance(model, HubTower) and (model.side, model.image_size) == (4, 32)
    frames = clips(2, 1)[0][0]
    rows = [
        ((frame - 0.5) / 0.5)[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8].permute(1, 2, 0).flatten()
        for frame in frames
        for r in range(4)
        for c in range(4)
    ]
    own = model.model(
        pixel_values=torch.stack(rows).view(2, 16, -1),
        pixel_attention_mask=torch.ones(2, 16, dtype=torch.long),
        spatial_shapes=torch.tensor([[4, 4]] * 2),
    ).last_hidden_state
    assert torch.allclose(model(frames), own, atol=1e-6)
    with pytest.raises(InputError, match="no square grid"):
        build_vision({**TOWERS["siglip2"], "num_patches": 15})


def test_towers_load_by_name_with_a_layer_and_come_back_by_their_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {k: v for k, v in TOWERS["clip"].items() if k != "type"}
    AutoModel.from_config(AutoConfig.for_model("clip_vision_model", **options)).save_pretrained(
        tmp_path
    )
    tower, config = load_vision(str(tmp_path), -2, frozen=True)
    again = build_vision(config)
    again.load_state_dict(tower.state_dict())
    frames = clips(2, 1)[0][0]
    assert torch.equal(tower(frames), again(frames)) and isinstance(again, HubTower)
    assert again.frozen and again.left == 2
    assert {"layer", "frozen"}.isdisjoint(load_vision(str(tmp_path))[1])
    side = DistEncoder.from_pretrained(str(tmp_path), temporal=8, width=16)
    assert torch.equal(side.vit.every_layer(frames)[1], tower.every_layer(frames)[1])


@EVERY
@pytest.mark.parametrize("frames", [1, 5, 8])
def test_slots_know_their_seconds(name: str, frames: int) -> None:
    model = encoder(name)
    pixels, seconds = clips(frames)
    with torch.no_grad():
        seen = model(pixels, seconds)
    slots = -(-frames // model.stride)
    assert seen.features.shape == (2, slots, seen.grid[0] * seen.grid[1], model.hidden_size)
    assert seen.grid == (model.side, model.side) and bool(seen.mask.all())
    assert seen.frames.sum(1).tolist() == [frames] * 2
    for row in range(2):
        t = seconds[row]
        for s in range(slots):
            first, end = s * model.stride, min(frames, (s + 1) * model.stride)
            low = t[0] if first == 0 else (t[first - 1] + t[first]) / 2
            high = t[-1] if end == frames else (t[end - 1] + t[end]) / 2
            assert torch.allclose(seen.span[row, s], torch.stack([low, high]))
            assert torch.allclose(seen.seconds[row, s], (t[first] + t[end - 1]) / 2)
    tokens = seen.tokens(1, duration=9.0)
    assert tokens.grid == (slots, *seen.grid) and len(tokens) == slots * model.side**2
    assert float(tokens.span[0, 0]) == 0.0 and float(tokens.span[-1, 1]) == 9.0
    inner = tokens.span.unflatten(0, (slots, -1))
    assert torch.equal(inner[1:, 0, 0], inner[:-1, 0, 1])


@EVERY
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(name: str, training: bool) -> None:
    """Before or behind, whatever stands there; batch statistics see real frames only."""
    model, head = encoder(name).train(training), build_head(encoder(name), 3).eval()
    pixels, seconds = clips(11)
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[0, :5], mask[1, 2:11] = True, True
    pixels[~mask], seconds[~mask] = float("nan"), -1.0
    with torch.no_grad():
        full = model(pixels, seconds, mask)
        logits = head(full)
        for row in range(2):
            if training and name == "squeezetime":  # alone it would have other statistics
                continue
            real = mask[row]
            alone = model(pixels[row : row + 1, real], seconds[row : row + 1, real])
            count = alone.features.shape[1]
            assert full.mask[row].tolist() == [s < count for s in range(full.mask.shape[1])]
            assert torch.allclose(full.features[row, :count], alone.features[0], atol=1e-5)
            assert torch.allclose(full.seconds[row, :count], alone.seconds[0])
            assert torch.allclose(logits[row], head(alone)[0], atol=1e-5)
        wider = torch.cat([pixels, torch.full_like(pixels, 7.0)], 1)
        more = torch.cat([mask, torch.zeros_like(mask)], 1)
        other = model(wider, torch.cat([seconds, seconds], 1), more)
        assert torch.allclose(head(other), logits, atol=1e-5)


def test_dist_keeps_no_graph_through_its_vit() -> None:
    model = encoder("dist").train()
    pixels, seconds = clips(6)
    kept: list[Tensor] = []
    inside = [False]
    for module in model.vit.model.modules():
        module.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    model.vit.model.register_forward_hook(lambda *_: inside.__setitem__(0, False))

    def pack(x: Tensor) -> Tensor:
        assert not inside[0]
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        seen = model(pixels, seconds)
        loss = build_head(model, 3)(seen).square().sum()
    assert kept and seen.cls is not None and seen.cls.grad_fn is None
    vit = {id(p) for p in model.vit.parameters()}
    waiting, done = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in done:
            continue
        done.add(node)
        assert id(getattr(node, "variable", None)) not in vit
        waiting += [following for following, _ in node.next_functions]
    loss.backward()
    for key, weight in model.named_parameters():
        assert (weight.grad is None) == key.startswith("vit."), key
    assert not model.vit.model.training and not any(p.requires_grad for p in model.vit.parameters())


def test_dist_of_every_tower_and_alpha() -> None:
    for tower in TOWERS:
        model = encoder("dist", vit=TOWERS[tower], alpha=3)
        seen = model(*clips(7))
        assert seen.features.shape == (2, 3, 16, 32) and seen.cls is not None
        special = model.vit.special
        assert seen.special is None if not special else seen.special.shape == (2, 3, special, 32)
        assert build_head(model, 5)(seen).shape == (2, 5)


@pytest.mark.parametrize("name", ["dist", "squeezetime"])
def test_the_order_of_frames_counts_and_of_single_frames_it_does_not(name: str) -> None:
    for kind, differs in ((name, True), ("framewise", False)):
        model = encoder(kind)
        head = build_head(model, 3).eval()
        pixels, seconds = clips(8)
        one, two = head(model(pixels, seconds)), head(model(pixels.flip(1), seconds))
        assert bool((one - two).abs().max() > 1e-4) == differs


def test_squeezetime_folds_colours_first_and_takes_chunks_apart() -> None:
    model = encoder("squeezetime")
    assert isinstance(model, SqueezeTimeEncoder)
    pixels, seconds = clips(10)
    folded = model.fold(pixels[:, :4])
    red = (pixels[:, 2, 0] - 0.485) / 0.229
    blue = (pixels[:, 1, 2] - 0.406) / 0.225
    assert torch.allclose(folded[:, 2], red) and torch.allclose(folded[:, 2 * 4 + 1], blue)
    whole = model(pixels, seconds)
    last = torch.cat([pixels[:, 8:], pixels[:, -1:], pixels[:, -1:]], 1)
    for s, part in enumerate((pixels[:, :4], pixels[:, 4:8], last)):
        alone = model(part, seconds[:, :4])
        assert torch.allclose(whole.features[:, s], alone.features[:, 0], atol=1e-5)
    head = MeanHead(32, 3).eval()
    weighed = (whole.features.mean(2) * torch.tensor([4.0, 4.0, 2.0])[:, None]).sum(1) / 10
    assert torch.allclose(head(whole), head.classes(weighed), atol=1e-5)
    big = torch.rand(1, 4, 3, 64, 96)
    assert model(big, torch.zeros(1, 4)).grid == (2, 3)


def test_the_sizes_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        squeeze, dist = get_vision("squeezetime"), get_vision("dist")
    assert (squeeze.side, squeeze.hidden_size, squeeze.stride) == (7, 2048, 16)
    assert squeeze.stem[0].weight.shape == (64, 48, 5, 5)  # type: ignore[index,union-attr]
    assert (dist.side, dist.hidden_size, dist.stride, len(dist.temporal)) == (14, 384, 2, 12)
    assert dist.stem.weight.shape == (96, 3, 5, 16, 16)


@EVERY
def test_bf16_gradients_are_finite_and_every_weight_learns(name: str) -> None:
    model = encoder(name).train()
    head = build_head(model, 3)
    both = nn.ModuleList([model, head]).to(torch.bfloat16)
    pixels, seconds = clips(9)
    logits = head(model(pixels, seconds))
    assert logits.dtype == torch.bfloat16
    nn.functional.cross_entropy(logits.float(), torch.tensor([0, 2])).backward()
    for key, weight in both.named_parameters():
        if weight.requires_grad and ".head." not in key:  # SigLIP's own pooling is not used
            assert weight.grad is not None and bool(weight.grad.isfinite().all()), key


def test_what_does_not_fit_is_refused() -> None:
    assert {"dist", "squeezetime", "framewise"} <= set(vision_names())
    assert isinstance(build_vision({"type": "squeezetime", **SQUEEZE}), SqueezeTimeEncoder)
    for name, options, message in (
        ("squeeztime", {}, "did you mean squeezetime"),
        ("dist", {"alhpa": 2}, "alpha"),
        ("dist", {"vit": {"type": "conv"}}, "image transformer"),
        ("dist", {"stem": 4}, "odd"),
        ("framewise", {"tower": {"type": "dinov2", "stem": {}}}, "takes no stem"),
        ("framewise", {"tower": {"type": "clip_vision_model", "stem": {}}}, "16 or 24 pixels"),
        ("squeezetime", {"image_size": 40}, "multiples of 32"),
        ("squeezetime", {"blocks": (1, 1)}, "four stages"),
        ("framewise", {"tower": {"type": "squeezetime", **SQUEEZE}}, "single frames"),
    ):
        with pytest.raises(InputError, match=message):
            get_vision(name, **options)
    model = encoder("dist")
    pixels, seconds = clips(4)
    for given, message in (
        ((pixels[0], seconds), "B, T, 3, H, W"),
        ((pixels, seconds[:, :2]), "seconds"),
        ((pixels, seconds, torch.ones(2, 4)), "mask"),
        ((pixels, seconds, torch.tensor([[True] * 4, [False] * 4])), "no real frame"),
        ((pixels[..., :16], seconds), "32×32"),
    ):
        with pytest.raises(InputError, match=message):
            model(*given)
    with pytest.raises(InputError, match="two chunks"):
        encoder("squeezetime").train()(pixels[:1], seconds[:1])


@pytest.mark.parametrize(("kind", "slots"), [("squeezetime", 5), ("dist", 10)])
def test_a_whole_model_sees_slots_with_their_seconds(kind: str, slots: int) -> None:
    """20 frames through a tower that folds time: tokens, spans and stamps are those of slots."""
    model = hub_model({"type": kind, **TINY[kind]}, downsample=1)
    seconds = np.arange(20) * 0.5
    size = model.vision.image_size
    tokens = model.encode(torch.rand(20, 3, size, size), seconds, 10.0)
    assert tokens.grid[0] == slots and len(tokens) == slots * model.grid_side**2
    assert tokens.span[0, 0] == 0 and tokens.span[-1, 1] == 10
    assert bool((tokens.span[1:, 0] >= tokens.span[:-1, 0]).all())
    told = slot_seconds(tokens)
    assert len(told) == slots and bool((np.diff(told) > 0).all())
    prefix = model.prefill([3], tokens, 10.0, [[40]] * slots)
    assert prefix.length == 1 + len(tokens) + slots
