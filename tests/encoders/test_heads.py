"""Heads: what all of them promise; tem-adapter against references, leaks, and what it learns."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidllm.encoders.heads import Head, NaSVA, TemAdapter, get_head, head_names, load_head
from vidllm.errors import InputError

TINY = {
    "tem-adapter": {"dim": 16, "width": 8, "heads": 4, "ffn": 24, "gamma": 0.5},
    "nasva": {"video_dim": 6, "text_dim": 5, "dim": 16, "layers": 2, "heads": 4, "ffn": 24},
}


def tem(**options: object) -> TemAdapter:
    torch.manual_seed(0)
    head = get_head("tem-adapter", **{**TINY["tem-adapter"], **options}).eval()
    assert isinstance(head, TemAdapter)
    return head


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded_masks() -> Tensor:
    """Padding behind, before, on both sides and in the middle of clips of 9 frames."""
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, :5] = mask[1, 3:] = mask[2, 2:7] = True
    mask[3, [0, 4, 5, 8]] = True
    return mask


def train(
    head: Head, optimizer: torch.optim.Optimizer, steps: int, loss: Callable[[int], Tensor]
) -> None:
    head.train()
    rate = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    head.eval()


def test_heads_are_found_by_name_with_the_papers_sizes() -> None:
    assert head_names() == ["nasva", "tem-adapter"]
    with pytest.raises(InputError, match="did you mean tem-adapter"):
        get_head("temadapter")
    with pytest.raises(InputError, match="takes temperature"):
        get_head("nasva", temprature=1)
    for wrong in ({"dim": 20, "heads": 16}, {"heads": 0}, {"width": 12, "heads": 16}):
        with pytest.raises(InputError, match="heads"):
            get_head("tem-adapter", **wrong)
    for wrong in ({"heads": 7}, {"temperature": 0.0}, {"layers": -1}):
        with pytest.raises(InputError, match="nasva: sizes"):
            get_head("nasva", **wrong)
    sizes = [sum(p.numel() for p in get_head(name).parameters()) / 1e6 for name in head_names()]
    assert 8 < sizes[0] < 10 and 7 < sizes[1] < 9


@pytest.mark.parametrize("name", head_names())
def test_a_saved_head_is_the_same_again(name: str, tmp_path: Path) -> None:
    head = get_head(name, **TINY[name]).eval()
    head.save(tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors")
    assert type(again) is type(head) and again.options == head.options and not again.training
    width = 6 if name == "nasva" else 16
    given = draw(2, 4, width), draw(2, 3, 5 if name == "nasva" else width)
    assert torch.equal(again(*given), head(*given))
    half = get_head(name, **TINY[name]).to(torch.bfloat16)
    half.save(tmp_path / "half.safetensors")
    assert next(load_head(tmp_path / "half.safetensors").parameters()).dtype == torch.bfloat16
    (tmp_path / "text").write_text("no weights")
    for path in (tmp_path / "text", tmp_path / "none"):
        with pytest.raises(InputError, match="no safetensors weights"):
            load_head(path)


@pytest.mark.parametrize("before", [0, 3])
def test_a_predicted_frame_has_not_been_seen_and_faithful_has(before: int) -> None:
    head, faithful = tem(), tem(faithful=True)
    video, text = draw(1, 7 + before, 16), draw(1, 16, seed=2)
    mask = (torch.arange(7 + before) >= before)[None]
    with torch.no_grad():
        base, leaky = (h.next_frames(video, text, mask) for h in (head, faithful))
        for t in range(before, 7 + before):
            changed = video.clone()
            changed[:, t:] = draw(*changed[:, t:].shape, seed=3)
            assert torch.equal(head.next_frames(changed, text, mask)[:, : t + 1], base[:, : t + 1])
            after = head.next_frames(changed, text, mask)[:, t + 1 :]
            assert after.numel() == 0 or (after - base[:, t + 1 :]).abs().amax(2).min() > 1e-4
            seen = faithful.next_frames(changed, text, mask)[0, before:] - leaky[0, before:]
            assert (seen.abs().amax(1) > 1e-5).all()  # the memory shows every frame everywhere
    assert (base[:, :before] == 0).all()


def test_no_gradient_of_the_frame_error_comes_from_the_frame_that_is_predicted() -> None:
    head, video, options = tem(), draw(1, 6, 16).requires_grad_(), draw(1, 3, 16, seed=2)
    _, error = head.losses(video, options, torch.tensor([1]))
    (grad,) = torch.autograd.grad(error, video)
    assert (grad[:, -1] == 0).all() and (grad[:, :-1].abs().amax(2) > 0).all()


def test_options_see_their_own_clip_and_faithful_those_of_others() -> None:
    head, faithful = tem(), tem(faithful=True)
    video, options = draw(2, 5, 16), draw(2, 3, 16, seed=2)
    other = video.clone()
    other[1] = draw(5, 16, seed=3)
    with torch.no_grad():
        assert torch.equal(head.scores(video, options)[0], head.scores(other, options)[0])
        moved = faithful.scores(video, options)[0] - faithful.scores(other, options)[0]
        assert moved[0] == 0 and moved[1].abs() > 1e-3 and moved[2] == 0
        # As released: texts b0o0 b0o1 .. beside frames v0 v1 v0 v1 ..
        nothing = torch.zeros(6, 5, dtype=torch.bool)
        rows = faithful.semantic(options.reshape(6, 1, 16), video.repeat(3, 1, 1), nothing)
        memory = faithful.temporal(video, nothing[:2]).mean(1)
        expected = torch.einsum("bkd,bd->bk", rows.view(2, 3, 16), memory)
        assert torch.allclose(faithful.scores(video, options), expected, atol=1e-5)
        rows = head.semantic(
            options.reshape(6, 1, 16), video.repeat_interleave(3, 0), nothing
        ).view(2, 3, 16)
        expected = torch.einsum("bkd,bd->bk", rows, memory)
        assert torch.allclose(head.scores(video, options), expected, atol=1e-5)


def test_the_loss_of_tem_adapter_is_that_of_a_loop() -> None:
    video, options, answer = draw(3, 5, 16), draw(3, 4, 16, seed=2), torch.tensor([2, 0, 3])
    head, faithful = tem(rank_weight=0.3), tem(faithful=True, rank_weight=0.3)
    there = torch.ones(3, 4, dtype=torch.bool)
    there[0, 3] = there[1, 1] = False
    scores, hinge = head.scores(video, options, None, there), 0.0
    assert (scores == -torch.inf).equal(~there)
    for b, right in enumerate(answer.tolist()):
        for j in range(4):
            if there[b, j] and j != right:
                hinge += max(0.0, 1.0 + (scores[b, j] - scores[b, right]).item())
    right = options[torch.arange(3), answer]
    error = (head.next_frames(video, right) - video).square().mean()
    loss = head.loss(video, options, answer, None, there)
    assert loss.item() == pytest.approx(0.3 * hinge + error.item(), abs=1e-5)
    theirs, scores = faithful.losses(video, options, answer)[0], faithful(video, options)
    rows = (1 + scores - scores.gather(1, answer[:, None])).clamp(min=0)
    assert theirs.item() == pytest.approx(rows.sum().item(), abs=1e-4)  # counts 1 for each clip


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_padding_changes_nothing_for_tem_adapter(faithful: bool, grad: bool) -> None:
    head, mask = tem(faithful=faithful), padded_masks()
    video, options = draw(4, 9, 16), draw(4, 3, 16, seed=2)
    there = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0]]).bool()
    with torch.set_grad_enabled(grad):
        full = head.scores(video, options, mask, there)
        loss = head.loss(video, options, torch.tensor([0, 1, 2, 1]), mask, there)
        frames = head.next_frames(video, options[:, 0], mask)
        if not faithful:  # there a clip reads others of its batch
            for b in range(4):
                one, texts = video[b : b + 1, mask[b]], options[b : b + 1, there[b]]
                assert torch.allclose(head.scores(one, texts)[0], full[b, there[b]], atol=1e-5)
                alone = head.next_frames(one, options[b : b + 1, 0])[0]
                assert torch.allclose(alone, frames[b, mask[b]], atol=1e-5)
        video[~mask], options[~there] = float("nan"), float("inf")
        assert torch.equal(head.scores(video, options, mask, there), full)
        again = head.loss(video, options, torch.tensor([0, 1, 2, 1]), mask, there)
        assert torch.equal(again, loss) and loss.isfinite()


def test_tem_adapter_refuses_what_does_not_fit() -> None:
    head, video, options = tem(), draw(2, 4, 16), draw(2, 3, 16)
    none = torch.zeros(2, 4, dtype=torch.bool)
    for given, why in (
        ((video[0], options), "takes video features"),
        ((video[..., :8], options), r"\(B, N, 16\)"),
        ((video, options[:1]), "2 clips met options of 1"),
        ((video, options, none), "no real frame"),
        ((video, options, none[:, :2]), "mask of the video"),
        ((video, options, None, torch.ones(2, 3)), "must be bool"),
    ):
        with pytest.raises(InputError, match=why):
            head.scores(*given)
    there = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    for answer, why in (([0, 3], "none of its"), ([-1, 0], "none of its"), ([2, 0], "none of its")):
        with pytest.raises(InputError, match=why):
            head.loss(video, options, torch.tensor(answer), None, there)
    with pytest.raises(InputError, match="whole numbers"):
        head.loss(video, options, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", head_names())
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_in_bf16_are_finite_and_reach_every_weight(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    head = get_head(name, **TINY[name])
    kind = torch.float32 if autocast else torch.bfloat16
    head.to(kind)
    mask = padded_masks()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if isinstance(head, NaSVA):
            positive = draw(4, 3, 9, seed=4) > 0
            given = draw(4, 9, 6).to(kind), draw(4, 3, 5).to(kind), positive, mask
            loss = head.loss(*given, ordered=True)
        else:
            assert isinstance(head, TemAdapter)
            answer = torch.tensor([0, 1, 2, 0])
            loss = head.loss(draw(4, 9, 16).to(kind), draw(4, 3, 16).to(kind), answer, mask)
    loss.backward()
    for part, weight in head.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), part
        # What moves all options alike does not change the hinge.
        assert weight.grad.abs().max() > 0 or re.fullmatch(r"semantic.text_out.*bias", part), part


def test_tem_adapter_learns_what_came_first() -> None:
    """Two of six events in 12 frames, at any two places; the options differ in their order."""
    kinds, seen = torch.Generator().manual_seed(0), []
    for _ in range(3):
        seen.append(torch.randn(6, 32, generator=kinds))
    look, first, then = seen[0], seen[1] / 32**0.5, seen[2] / 32**0.5

    def batch(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        chance = torch.Generator().manual_seed(seed)
        a, b, c = torch.rand(count, 6, generator=chance).argsort(1)[:, :3].T
        at = torch.rand(count, 12, generator=chance).argsort(1)[:, :2].sort(1).values
        video = 0.3 * torch.randn(count, 12, 32, generator=chance)
        for column, what in enumerate((a, b)):
            video[torch.arange(count), at[:, column]] += look[what]
        pairs = ((a, b), (b, a), (a, c), (c, b))
        options = torch.stack([first[one] + then[two] for one, two in pairs], dim=1)
        order = torch.rand(count, 4, generator=chance).argsort(1)
        options = options.gather(1, order[..., None].expand_as(options))
        return video, options, (order == 0).byte().argmax(1)

    torch.manual_seed(0)
    plain = {"dropout": 0.0, "semantic_dropout": 0.0, "rank_weight": 0.1}
    head = TemAdapter(32, width=16, heads=4, ffn=32, **plain)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    train(head, optimizer, 100, lambda step: head.loss(*batch(64, step)))
    video, options, answer = batch(400, 10**6)
    with torch.no_grad():
        right, turned = (
            head.scores(v, options).argmax(1) == answer for v in (video, video.flip(1))
        )
    assert right.float().mean() > 0.75  # chance 0.25; without order at best 0.5
    assert turned.float().mean() < 0.25  # backwards, the other order is the right one
