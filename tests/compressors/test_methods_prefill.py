"""Methods inside the decoder (FastV, PyramidDrop, DART, AIM, MustDrop) and positions after them."""

from __future__ import annotations

import pytest
import torch
from authors import aim, dart, fastv, pyramiddrop
from authors import positions as rope
from goldens import golden
from torch import Tensor

from vidllm.compressors import (
    AimPrune,
    Compressor,
    Dart,
    FastV,
    MustDropFilter,
    PyramidDrop,
    get,
)
from vidllm.compressors.aim_prune import importance_rows, retention
from vidllm.compressors.shared import positions as pos
from vidllm.errors import InputError
from vidllm.tokens import VideoTokens

SIGNALS = {
    "fastv": "decoder-attention",
    "pyramiddrop": "decoder-attention",
    "aim-prune": "decoder-importance",
    "mustdrop-filter": "decoder-text-attention",
    "mustdrop-cache": "prefill-survivors",
    "dart": "decoder-keys",
}


def clip(grid: tuple[int, int, int], seed: int = 0) -> VideoTokens:
    """Random features and every signal that these methods read."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(*grid, 6, generator=draw)
    tokens = VideoTokens.from_grid(features, [float(t) for t in range(grid[0])], grid[0])
    count = len(tokens)
    return tokens.with_signals(
        decoder_attention=torch.rand(count, generator=draw),
        decoder_importance=torch.rand(count, generator=draw),
        decoder_text_attention=torch.rand(count, 3, generator=draw),
        prefill_survivors=torch.rand(count, generator=draw).round(),
        decoder_keys=torch.randn(count, 8, generator=draw),
    )


# The methods as compressors


@pytest.mark.parametrize("name", [*SIGNALS, "mustdrop"])
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 4, 4), (5, 1, 1), (7, 3, 5), (3, 2, 7)])
def test_every_budget_is_met_also_behind_other_methods(
    name: str, grid: tuple[int, int, int]
) -> None:
    whole = clip(grid)
    for tokens in (whole, get("random", keep=0.6, seed=1)(whole)):
        for budget in range(1, len(tokens) + 1, 1 + len(tokens) // 9):
            after = get(name, budget=budget)(tokens)
            assert len(after) == budget and bool((after.position.diff() > 0).all())
            carried = torch.bincount(after.source[after.source >= 0], minlength=budget)
            assert torch.equal(carried.float(), after.size)


@pytest.mark.parametrize("name", SIGNALS)
def test_ties_go_to_the_earlier_token_and_a_missing_signal_is_named(name: str) -> None:
    tokens = clip((3, 2, 2)).with_features(torch.zeros(12, 6))
    with pytest.raises(InputError, match=SIGNALS[name]):
        get(name, keep=0.5)(VideoTokens.from_grid(torch.zeros(3, 2, 2, 6), [0.0, 1.0, 2.0], 3.0))
    flat = tokens.with_signals(**{SIGNALS[name]: torch.zeros_like(tokens.signals[SIGNALS[name]])})
    assert get(name, budget=5)(flat).position.tolist() == [0, 1, 2, 3, 4]


def points(name: str, depth: int, keep: float = 0.125) -> list[tuple[int, float]]:
    method: Compressor = get(name, keep=keep)
    assert isinstance(
        method,
        FastV | PyramidDrop | Dart | AimPrune | MustDropFilter,
    )
    return method.points(depth)


def test_points_are_the_authors_layers() -> None:
    assert points("fastv", 32) == [(2, 0.125)]
    assert points("dart", 32) == [(5, 0.125)] and points("dart", 8) == [(1, 0.125)]
    assert points("pyramiddrop", 32) == [(8, 0.5), (16, 0.25), (24, 0.125)]
    assert [layer for layer, _ in points("mustdrop-filter", 32)] == [3, 7, 11, 15]
    assert points("aim-prune", 28) == [(15 + i, 0.875 - 0.125 * i) for i in range(7)]
    assert points("aim-prune", 28, 0.4)[-1] == (19, 0.4)


@pytest.mark.parametrize("name", [n for n in SIGNALS if n != "mustdrop-cache"])
def test_points_fit_every_depth(name: str) -> None:
    for depth in range(2, 50):
        cuts = points(name, depth, 0.3)
        layers, shares = zip(*cuts, strict=True)
        assert all(a < b for a, b in zip((0, *layers), (*layers, depth), strict=True))
        assert all(a >= b for a, b in zip((1.0, *shares), (*shares, 0.0), strict=True))
        assert shares[-1] == 0.3
    with pytest.raises(InputError, match="decoder"):
        points(name, 1)


# FastV, PyramidDrop, DART


def test_fastv_is_the_authors() -> None:
    data = golden("fastv_a")
    attention, start = data["attention_prev_layer"], int(data["sys_length"])
    kept = fastv.select(attention, start, int(data["image_len"]), int(data["attention_rank"]))
    assert torch.equal(kept, data["keep_idx"])
    assert torch.equal(data["hidden"][:, kept], data["hidden_out"])
    assert fastv.select(attention, 4, 20, 0).tolist() == [*range(4), *range(24, 30)]
    with pytest.raises(InputError, match="cannot keep 21 of 20"):
        fastv.select(attention, 4, 20, 21)
    tokens = clip((5, 2, 2)).with_signals(decoder_attention=attention[0, :, -1, 4:24].mean(0))
    assert torch.equal(get("fastv", budget=10)(tokens).position + 4, kept[4:14])


def test_pyramiddrop_is_the_ports() -> None:
    data = golden("pyramiddrop_3stage")
    hidden, start, left = data["hidden"], int(data["image_start"]), 32
    for stage in range(3):
        q_w, k_w = data[f"q_w{stage}"], data[f"k_w{stage}"]
        kept = pyramiddrop.select(hidden, q_w, k_w, start, 32, data["ratios"], 4, 8, stage)
        assert torch.equal(kept, data[f"kept_in_stage{stage}"])
        padded = torch.cat([hidden, torch.randn(1, 3, 16)], dim=1)
        ragged = pyramiddrop.select(
            padded, q_w, k_w, start, 32, data["ratios"], 4, 8, stage, length=hidden.shape[1]
        )
        assert torch.equal(ragged, kept)
        text = torch.arange(hidden.shape[1])
        text = text[(text < start) | (text >= start + left)]
        hidden, left = hidden[:, torch.cat([text, kept]).sort().values], len(kept)
        assert torch.equal(hidden, data[f"out{stage}"])


def test_pyramiddrop_shares_keys_between_the_heads_of_a_group() -> None:
    draw = torch.Generator().manual_seed(3)
    hidden, q, k = (torch.randn(*s, generator=draw) for s in [(9, 16), (32, 16), (16, 16)])
    repeated = k.view(2, 8, 16).repeat_interleave(2, dim=0).reshape(32, 16)
    shared = pyramiddrop.last_row(hidden, q, k, 8)
    assert torch.allclose(shared, pyramiddrop.last_row(hidden, q, repeated, 8), atol=1e-6)
    assert float(shared.sum()) == pytest.approx(1.0)


def test_dart_is_the_ports() -> None:
    data = golden("dart_a")
    numbers = [int(data[k]) for k in ("image_start", "image_len", "pivot_image", "pivot_text")]
    ratio = float(data["reduction_ratio"])
    hidden, keys = data["hidden_normed"], data["key_cache"]
    assert torch.equal(dart.select(hidden, keys, *numbers, ratio), data["kept_image_idx"])
    steady = dart.select(hidden, keys, *numbers, ratio, faithful=False)
    image = hidden[0, 5:69]
    flat = keys[0, :, 5:69].transpose(0, 1).flatten(1)
    tokens = VideoTokens.from_grid(image.view(4, 4, 4, 16), [0.0, 1.0, 2.0, 3.0], 4.0)
    tokens = tokens.with_signals(decoder_keys=flat)
    text = hidden[0, 69:][
        keys[0, :, 69:].abs().sum(dim=(0, 2)).argsort(descending=True)[:4].sort()[0]
    ]
    assert torch.equal(get("dart", budget=12)(tokens, query=text).position + 5, steady)
    more = set(get("dart", budget=15)(tokens, query=text).position.tolist())
    assert {int(i) - 5 for i in steady} < more and len(more) == 15
    with pytest.raises(InputError, match="query must be"):
        get("dart", budget=12)(tokens, query=text[:, :3])


def test_dart_keeps_what_is_unlike_its_pivot() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]).view(1, 1, 4, 2)
    tokens = VideoTokens.from_grid(features, [0.0], 1.0)
    tokens = tokens.with_signals(decoder_keys=torch.tensor([[9.0], [1.0], [1.0], [1.0]]))
    kept = [get("dart", budget=b, image_pivots=1)(tokens).position.tolist() for b in (1, 2, 3)]
    assert kept == [[0], [0, 3], [0, 2, 3]]


# AIM


def test_aim_importance_and_schedule_are_the_authors() -> None:
    data = golden("aim_importance_a")
    assert torch.allclose(aim.importance(data["logits"]), data["importance"], atol=1e-6)
    schedule = golden("aim_schedule")
    assert retention(28) == schedule["qwen2_28"].tolist()
    assert retention(32, start=13) == schedule["vicuna_32"].tolist()


def causal(length: int, batch: int = 2, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 3, length, length, generator=draw)
    future = torch.ones(length, length).triu(1).bool()
    return logits.masked_fill(future, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("damping", [0.0, 0.15])
def test_aim_importance_by_blocks_of_rows_is_the_same(damping: float) -> None:
    logits = causal(13)
    matrix = torch.softmax(logits / 0.1, dim=-1)
    power = torch.full((2, 3, 13), 1 / 13)
    for _ in range(5):
        power = torch.einsum("bhi,bhij->bhj", power, matrix) * (1 - damping) + damping / 13
    plain = aim.importance(logits, damping=damping)
    assert torch.allclose(plain, power.square().mean(1).sqrt(), atol=1e-6)
    for block in (1, 4, 64):
        by_rows = importance_rows(lambda a, b: matrix[:, :, a:b], 13, damping=damping, block=block)
        assert torch.allclose(by_rows, plain, atol=1e-6)
    alone = importance_rows(lambda a, b: logits[0, :, a:b], 13, damping=damping, temperature=0.1)
    assert torch.allclose(alone, plain[0], atol=1e-6)
    with pytest.raises(InputError, match="softmax rows"):
        importance_rows(lambda a, b: logits[0, :, a:b], 13)


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -65504.0, -torch.inf])
def test_aim_padding_changes_nothing(low: float) -> None:
    logits = causal(9)
    plain = aim.importance(logits, damping=0.1)
    left = torch.full((2, 3, 12, 12), low)
    left[:, :, 3:, 3:] = logits.clamp(min=low)
    assert torch.allclose(aim.importance(left, damping=0.1)[:, 3:], plain, atol=1e-6)
    right = torch.zeros(2, 3, 12, 12).index_fill_(3, torch.arange(9, 12), low)
    right[:, :, :9, :9] = logits
    real = torch.arange(12).expand(2, -1) < 9
    after = aim.importance(right, damping=0.1, mask=real)
    assert torch.allclose(after[:, :9], plain, atol=1e-6) and not after[:, 9:].any()


def test_aim_choice_is_the_authors_layer_by_layer() -> None:
    data = golden("aim_qwen2_prefill_decode")
    state = {k[9:]: v for k, v in data.items() if k.startswith("sd/model.")}
    ends = data["boundaries"][0].tolist()
    place = torch.arange(40)
    protected = ((place < ends[0]) | (place >= ends[1]))[None]
    mask = torch.ones(1, 40, dtype=torch.bool)
    turn = rope.angles(place, rope.inverse_frequencies(8))
    for layer, share in enumerate(retention(28)):
        name = f"layers.{layer}.self_attn"
        x = data["hidden_states"][layer]
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)  # norm weights are 1
        q, k = (
            rope.rotate(
                (x @ state[f"{name}.{p}_proj.weight"].T + state[f"{name}.{p}_proj.bias"])
                .unflatten(-1, (-1, 8))
                .transpose(1, 2),
                turn,
            )
            for p in "qk"
        )
        logits = q @ k.repeat_interleave(2, dim=1).transpose(2, 3) / 8**0.5
        seen = mask[:, None, None] & (place[None] <= place[:, None])
        logits = logits.masked_fill(~seen, torch.finfo(torch.float32).min)
        raw = data["raw_importance"][layer]
        assert torch.allclose(aim.importance(logits), raw, atol=1e-3)
        for faithful in (True, False):
            after = aim.visible(raw, mask, protected, share, faithful=faithful)
            assert torch.equal(after, data["mask_after_layer"][layer])
        mask = after
    assert mask.sum() == data["kept_per_layer"][-1, 0] == 15


def test_aim_rows_of_a_batch_keep_their_own_text() -> None:
    scores = torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    text = torch.arange(10) >= torch.tensor([[8], [5]])
    real = torch.arange(10) >= torch.tensor([[2], [0]])  # the first row is padded on the left
    after = aim.visible(scores, real, text, 0.5, real)
    assert bool((after | ~text).all()) and after.sum(1).tolist() == [2 + 3, 5 + 2]
    theirs = aim.visible(scores, real, text, 0.0, real, faithful=True)
    assert theirs[1].sum() == 2 < 5  # text of the second row is lost


# Positions


@pytest.mark.parametrize(("sections", "interleaved"), [([2, 3, 3], False), ([4, 2, 2], True)])
def test_rotated_keys_stand_where_new_ones_would(sections: list[int], interleaved: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 3, 10, 20, generator=draw)  # 16 channels turn, 4 do not
    frequencies = rope.inverse_frequencies(16)
    axes = rope.section_axes(sections, interleaved)
    assert torch.bincount(axes).tolist() == sections
    video = torch.arange(10).clamp(2, 8) == torch.arange(10)
    video[8] = False
    place = torch.tensor([[0, 1, 2, 2, 4, 4, 6, 6, 7, 8], [0, 1, 2, 2, 2, 2, 2, 2, 7, 8],
                          [0, 1, 2, 3, 2, 3, 2, 3, 7, 8]])  # fmt: skip
    kept = torch.tensor([0, 1, 3, 6, 7, 8, 9])
    keys, values, there = rope.repair(
        rope.rotate(raw, rope.angles(place, frequencies, axes)), raw, kept, place,
        "rotate", frequencies, axes, video,
    )  # fmt: skip
    assert there.tolist() == [[0, 1, 2, 4, 4, 5, 6], [0, 1, 2, 2, 2, 5, 6], [0, 1, 3, 2, 3, 5, 6]]
    expected = rope.rotate(raw[:, :, kept], rope.angles(there, frequencies, axes))
    assert torch.allclose(keys, expected, atol=1e-5) and torch.equal(values, raw[:, :, kept])
    assert torch.equal(pos.contiguous(place, torch.arange(10), video), place)


def test_positions_in_one_dimension_and_from_a_models_tables() -> None:
    raw = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    frequencies, place, kept = (
        rope.inverse_frequencies(8),
        torch.arange(3, 9),
        torch.tensor([0, 2, 5]),
    )
    keys = rope.rotate(raw, rope.angles(place, frequencies))
    same, _, old = rope.repair(keys, raw, kept, place)
    assert torch.equal(same, keys[:, :, kept]) and old.tolist() == [3, 5, 8]
    moved, _, new = rope.repair(keys, raw, kept, place, "rotate", frequencies)
    assert new.tolist() == [3, 4, 5]
    tables = []
    for positions in (old, new):
        angle = rope.angles(positions, frequencies).repeat(1, 2)
        tables.append((1.3 * angle.cos(), 1.3 * angle.sin()))  # with YaRN's scale
    assert torch.allclose(rope.rerotate_tables(same, *tables), moved, atol=1e-6)
    assert rope.section_axes([3, 1, 1], True).tolist() == [0, 1, 2, 0, 0]
    assert rope.section_axes([24, 20, 20], True)[[0, 58, 59, 60, 61]].tolist() == [0, 1, 2, 0, 0]
    with pytest.raises(InputError, match="take turns"):
        rope.section_axes([4, 4, 0], True)
    with pytest.raises(InputError, match="inverse frequencies"):
        rope.repair(keys, raw, kept, place, "rotate")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fastv", {"layer": 0}, "at least 1"),
        ("dart", {"image_pivots": 0}, "image_pivots"),
        ("aim-prune", {"slope": 0.0}, "slope"),
        ("mustdrop", {"window": 1}, "at least 2"),
        ("mustdrop", {"threshold": 0.8, "keep": 0.5}, "either threshold"),
        ("mustdrop-filter", {"global_threshold": 0.0}, "above 0"),
    ],
)
def test_wrong_options_say_what_is_wrong(
    name: str, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        get(name, **options)
