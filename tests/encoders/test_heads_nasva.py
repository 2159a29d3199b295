"""NaSVA: the head against references and what it learns; the frame selector built on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_heads import TINY, draw, padded_masks, train
from torch import Tensor

from vidllm.compressors import build
from vidllm.compressors.nasva import Nasva
from vidllm.encoders.heads import (
    NaSVA,
    Recall,
    get_head,
    inside,
    load_head,
    mean_recall,
    recall_at_1,
)
from vidllm.errors import InputError, WorkError
from vidllm.stage.scenes import make_scene
from vidllm.stage.words import ACTION_INDEX
from vidllm.tokens import Keep, VideoTokens


def nasva(**options: object) -> NaSVA:
    torch.manual_seed(0)
    head = get_head("nasva", **{**TINY["nasva"], "joint_dim": 8, **options}).eval()
    assert isinstance(head, NaSVA)
    return head


def test_padding_changes_nothing_for_nasva() -> None:
    mask, there = padded_masks(), torch.ones(4, 3, dtype=torch.bool)
    there[1, 0] = there[2, 2] = False
    there[3] = False  # a video without a sentence
    head, video, sentences = nasva(), draw(4, 9, 6), draw(4, 3, 5, seed=2)
    seconds = draw(4, 9, seed=3).abs().cumsum(1)
    positive = draw(4, 3, 9, seed=4) > 0
    for times in (None, seconds):
        full = head.similarity(video, sentences, mask, there, times)
        loss = head.loss(video, sentences, positive, mask, there, times)
        assert full.shape == (2, 4, 3, 9) and loss.isfinite()
        assert (full == -6e4).equal(~(mask[:, None] & there[..., None]).expand(2, 4, 3, 9))
        for b in range(3):
            one = None if times is None else times[b : b + 1, mask[b]]
            alone = head.similarity(
                video[b : b + 1, mask[b]], sentences[b : b + 1, there[b]], seconds=one
            )
            assert torch.allclose(alone[:, 0], full[:, b, there[b]][..., mask[b]], atol=1e-4)
        bad = [x.masked_fill(~m[..., None], float("nan")) for x, m in ((video, mask),)]
        bad.append(sentences.masked_fill(~there[..., None], float("inf")))
        stamps = None if times is None else times.masked_fill(~mask, float("nan"))
        assert torch.equal(head.similarity(*bad, mask, there, stamps), full)
        assert torch.equal(head.loss(*bad, positive, mask, there, stamps), loss)


def test_infonce_is_that_of_a_loop_over_the_batch() -> None:
    head, mask, there = nasva().double(), padded_masks(), torch.rand(4, 3) < 2
    there[0, 1] = False
    video, sentences = draw(4, 9, 6).double(), draw(4, 3, 5, seed=2).double()
    positive = draw(4, 3, 9, seed=4) > 0.8
    positive[2, 1] = False
    loss = head.loss(video, sentences, positive, mask, there)
    found, frames, _, _ = head._embed(video, sentences, mask, there, None, None)
    layers = []
    for layer in found:
        terms = []
        for b in range(4):
            for s in range(3):
                own = [t for t in range(9) if positive[b, s, t] and mask[b, t] and there[b, s]]
                if own:
                    score = (frames @ layer[b, s]).detach() / 0.07
                    top = sum(math.exp(score[b, t]) for t in own)
                    every = sum(math.exp(score[c, t]) for c, t in torch.nonzero(mask).tolist())
                    terms.append(-math.log(top / every))
        layers.append(sum(terms) / len(terms))
    assert loss.item() == pytest.approx(sum(layers) / len(layers), abs=1e-6)
    own = head.similarity(video, sentences)
    assert torch.allclose(own[-1, 1, 2], frames_of(head, video, sentences), atol=1e-6)
    nothing = head.loss(video, sentences, torch.zeros_like(positive), mask, there)
    nothing.backward()
    assert nothing.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def frames_of(head: NaSVA, video: Tensor, sentences: Tensor) -> Tensor:
    found, frames, _, _ = head._embed(video, sentences, None, None, None, None)
    return torch.nn.functional.cosine_similarity(frames[1], found[-1, 1, 2][None]) / 0.07


def test_order_is_told_where_it_means_something() -> None:
    head, video, sentences = nasva(), draw(1, 9, 6), draw(1, 4, 5, seed=2)
    turn = torch.tensor([2, 0, 3, 1])
    plain = head.similarity(video, sentences, ordered=False)
    turned = head.similarity(video, sentences[:, turn], ordered=False)
    assert torch.allclose(turned, plain[:, :, turn], atol=1e-4)
    told = head.similarity(video, sentences)
    assert (head.similarity(video, sentences[:, turn]) - told[:, :, turn]).abs().max() > 1e-2
    assert nasva(order=False).similarity(video, sentences).shape == plain.shape
    with pytest.raises(InputError, match="knows no order"):
        nasva(order=False).similarity(video, sentences, ordered=True)
    with pytest.raises(InputError, match="order of 3 sentences"):
        nasva(max_sentences=3).similarity(video, sentences)
    positive = torch.ones(1, 4, 9, dtype=torch.bool)
    positive[..., 4:] = False
    for shuffle, ordered in ((0.0, True), (1.0, False)):
        own = nasva(shuffle=shuffle, dropout=0.0).train()
        given = own.loss(video, sentences, positive, ordered=ordered)
        assert torch.equal(own.loss(video, sentences, positive), given)


def test_grounding_grows_around_the_best_second() -> None:
    head, video, sentences = nasva().train(), draw(12, 6), draw(3, 5, seed=2)
    seconds = (torch.arange(12) * 2.0 + 31).tolist()
    head.decoder[0].eval()
    last = head.ground(video, seconds, sentences, share=1.0)
    assert head.training and not head.decoder[0].training and head.decoder[1].training
    cosine = head.eval().similarity(video[None], sentences[None], seconds=torch.tensor([seconds]))
    best = cosine[-1, 0].argmax(1).tolist()
    assert [(s.start, s.end) for s in last] == [(2 * b + 30, 2 * b + 32) for b in best]
    best_cosine = [float(c.max()) * 0.07 for c in cosine[-1, 0].detach()]
    assert [s.score for s in last] == pytest.approx(best_cosine)
    for share in (0.9, 0.7, 0.5, 0.2, 0.0):
        spans = head.ground(video, seconds, sentences, share=share, duration=54.5)
        assert all(a.start <= b.start and a.end >= b.end for a, b in zip(spans, last, strict=True))
        last = spans
    assert {(s.start, s.end) for s in last} == {(30.0, 54.5)}
    (one,) = head.ground(video[:1], [4.0], sentences[:1])
    assert (one.start, one.end) == (3.5, 4.5)
    (flat,) = head.ground(video[:1].expand(1, 6), [0.0], sentences[:1], duration=9.0)
    assert (flat.start, flat.end) == (0.0, 9.0)


def test_selection_takes_the_most_relevant_seconds_in_time_order() -> None:
    head, video, query = nasva(), draw(10, 6), draw(2, 5, seed=2)
    score = head.relevance(video, range(10), query)
    rows = head.similarity(video[None], query[None], ordered=False)[-1, 0] * 0.07
    assert torch.allclose(score, rows.amax(0), atol=1e-6)
    for frames in (1, 4, 10, 99):
        picked = head.select(video, range(10), query, frames)
        assert len(picked) == min(frames, 10) and (picked.diff() > 0).all()
        assert score[picked].min() >= score.sort(descending=True).values[: len(picked)].min()
    assert head.relevance(video, range(10), query[0]).shape == score.shape
    bad = video.clone()
    bad[3, 2] = float("nan")
    for given, why in (
        ((video, range(9), query, 2), "10 features need as many"),
        ((bad, range(10), query, 2), "NaN or infinite"),
        ((video, range(10), query, 0), "at least 1 frame"),
        ((video[None], range(10), query, 2), "takes one video"),
    ):
        with pytest.raises(InputError, match=why):
            head.select(*given)
    with pytest.raises(InputError, match="share must be"):
        head.ground(video, range(10), query, share=1.5)


def test_recall_counts_what_can_be_placed() -> None:
    windows = [[(2.4, 3.6)], [], [(0, 1), (8, 9)], [(5, 6)], [(7, 7.5)]]
    assert recall_at_1([2.0, 1.0, 8.5, None, math.nan], windows) == Recall(1, 4)
    assert recall_at_1([2.0, 1.0, 8.5, None, 8.0], windows, outward=True) == Recall(3, 4)
    assert math.isnan(recall_at_1([1.0], [[]]).value) and Recall(1, 4).value == 0.25
    assert mean_recall([Recall(1, 4), Recall(3, 3), Recall(0, 0)]) == 0.625
    assert recall_at_1([1.0], [[(math.nan, math.nan)]], outward=True).total == 0
    with pytest.raises(InputError, match="end before"):
        recall_at_1([1.0], [[(3.0, 2.0)]])
    with pytest.raises(InputError, match="as many seconds"):
        recall_at_1([1.0], windows)
    nan = float("nan")
    found = inside(torch.arange(4.0)[None], torch.tensor([[[0.5, 2.0], [nan, nan], [0.2, 0.8]]]))
    assert found.tolist() == [[[False, True, True, False], [False] * 4, [False] * 4]]


def stage_batch(split: str, first: int, count: int) -> tuple[Tensor, ...]:
    """Synthetic scenes: what happens at 32 times, and up to 4 of it asked for by a text."""
    chance = torch.Generator().manual_seed(0)
    seen, said = (torch.randn(72, 32, generator=chance) for _ in range(2))
    video, text = torch.zeros(count, 32, 32), torch.zeros(count, 4, 32)
    windows, seconds = torch.full((count, 4, 2), float("nan")), torch.zeros(count, 32)
    for b in range(count):
        scene = make_scene(split, first + b, 1)
        seconds[b] = (torch.arange(32) + 0.5) * scene.duration / 32
        kinds = [9 * scene.actors[e.actor].colour + ACTION_INDEX[e.action] for e in scene.events]
        for kind, event in zip(kinds, scene.events, strict=True):
            video[b, (seconds[b] >= event.start) & (seconds[b] <= event.end)] += seen[kind]
        once = [e for e, kind in enumerate(kinds) if kinds.count(kind) == 1][:4]
        for s, e in enumerate(once):
            text[b, s] = said[kinds[e]]
            windows[b, s] = torch.tensor([scene.events[e].start, scene.events[e].end])
    video += 0.3 * torch.randn(video.shape, generator=chance)
    return video, text, windows, ~windows.isnan().any(2), seconds


def test_nasva_learns_to_find_what_a_text_says() -> None:
    video, text, windows, there, seconds = stage_batch("train", 0, 320)
    positive = inside(seconds, windows)
    torch.manual_seed(0)
    head = NaSVA(32, 32, 64, 1, 4, 64, dropout=0.0, joint_dim=32, order=False)

    def loss(step: int) -> Tensor:
        i = torch.arange(16 * step, 16 * step + 16) % 320
        return head.loss(video[i], text[i], positive[i], None, there[i], seconds[i])

    train(head, torch.optim.AdamW(head.parameters(), 2e-3, weight_decay=5e-5), 100, loss)
    video, text, windows, there, seconds = stage_batch("val", 0, 60)
    with torch.no_grad():
        at = head.similarity(video, text, None, there, seconds)[-1].argmax(2)
        wrong = head.similarity(video, text.roll(1, 0), None, there, seconds)[-1].argmax(2)
    hit, missed = (inside(seconds, windows).gather(2, a[..., None])[there] for a in (at, wrong))
    chance = inside(seconds, windows).float().mean(2)[there].mean()
    assert hit.float().mean() > 0.85 and chance < 0.2
    assert missed.float().mean() < 2 * chance  # another clip's text finds nothing
    b = int(there.sum(1).argmax())
    spans = head.ground(video[b], seconds[b], text[b, there[b]])
    true = windows[b, there[b]].tolist()
    overlap = [min(s.end, e) - max(s.start, a) for s, (a, e) in zip(spans, true, strict=True)]
    assert sum(o > 0 for o in overlap) >= len(overlap) - 1


def clip(seconds: list[float], cells: int = 3, width: int = 6) -> VideoTokens:
    features = draw(len(seconds), 1, cells, width)
    return VideoTokens.from_grid(features, seconds, seconds[-1] + 0.25)


@pytest.mark.parametrize("head", [False, True])
def test_the_selector_meets_every_budget_with_whole_frames(head: bool) -> None:
    tokens, query = clip([0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]), draw(4, 6, seed=5)
    method = Nasva(head=nasva(video_dim=6, text_dim=6) if head else None)
    thinned = tokens.apply(Keep(torch.tensor([0, 1, 2, 4, 9, 10, 11, 12, 17, 20])))
    for before in (tokens, thinned):
        score, second = method.relevance(before, query)
        per_token = score[second]
        for budget in range(1, len(before)):
            after = method(before, budget=budget, query=query)
            assert len(after) == budget and (after.position.diff() > 0).all()
            assert torch.equal(after.source[after.position], torch.arange(budget))
            kept = torch.isin(before.position, after.position)
            cut = per_token[kept].min()
            assert per_token[~kept].max() <= cut  # nothing better was dropped
            assert len(before.frame[kept & (per_token == cut)].unique()) == 1
    assert method(clip([1.0]), budget=3, query=query).features.shape == (3, 6)


def test_the_selector_finds_what_looks_like_the_question() -> None:
    seconds = [0.1, 0.4, 0.8, 1.2, 1.6, 2.1, 2.5, 2.9, 3.3, 3.8]
    tokens, query = clip(seconds), draw(1, 6, seed=5)
    marked = tokens.features.clone()
    marked[tokens.frame == 6] += 9 * query
    tokens = tokens.with_features(marked)
    # Frames 5 and 6 cover 1.85 to 2.7 s and share a feature; 7 would make it 3.1 s.
    after = build("nasva", budget=5)(tokens, query=query)
    assert after.per_frame().tolist() == [0, 0, 0, 0, 0, 3, 2, 0, 0, 0]
    after = build("nasva:every=0.3", budget=2)(tokens, query=query)
    assert after.per_frame().tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    same = build("nasva", budget=4)(tokens.with_features(torch.ones(30, 6)), query=query)
    assert same.per_frame().tolist() == [3, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    rough = build("nasva", budget=8)(tokens.to(dtype=torch.bfloat16), query=query.bfloat16())
    assert rough.features.dtype == torch.bfloat16


def test_the_selector_takes_a_trained_head_and_refuses_what_does_not_fit(tmp_path: Any) -> None:
    tokens, query = clip([float(t) for t in range(8)]), draw(3, 5, seed=5)
    head = nasva()
    head.save(tmp_path / "head.safetensors")
    loaded: Any = load_head(tmp_path / "head.safetensors")
    after = Nasva(budget=9, head=loaded)(tokens, query=query)
    means, times = tokens.features.view(8, 3, 6).mean(1), tokens.span.view(8, 3, 2)[:, 0].mean(1)
    best = head.select(means, times, query.mean(0), 3)
    assert after.frame.unique().equal(best)
    with pytest.raises(InputError, match="give it a query"):
        build("nasva", keep=0.5)(tokens)
    with pytest.raises(InputError, match="width of the video features"):
        build("nasva", keep=0.5)(tokens, query=query)
    with pytest.raises(InputError, match=r"sentences \(B, N, 5\)"):
        Nasva(budget=9, head=loaded)(tokens, query=draw(3, 6))
    for every in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="every must be"):
            Nasva(every=every)
    with pytest.raises(InputError, match="load_head"):
        build("nasva:head=file.safetensors")
    with torch.no_grad():
        loaded.video_out.weight.fill_(math.nan)
    with pytest.raises(WorkError, match="finite numbers"):
        Nasva(budget=9, head=loaded)(tokens, query=query)
