"""Dense captions: localisation, SODA_c, and the pairs that CIDEr and METEOR are asked about."""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidllm.errors import InputError
from vidllm.eval.scores.caption_scorers import Cider, Meteor, WordF1
from vidllm.eval.scores.captions import (
    Event,
    f_measure,
    localisation,
    localisation_scores,
    order_preserving,
    soda_f,
    soda_scores,
)
from vidllm.eval.scores.matched_captions import caption_score
from vidllm.eval.scores.spans import tiou_matrix

GOLDENS = Path(__file__).parents[1] / "goldens"
HAS_COCO = importlib.util.find_spec("pycocoevalcap") is not None
needs_coco = pytest.mark.skipif(not HAS_COCO, reason="pycocoevalcap is not installed")
needs_java = pytest.mark.skipif(
    not HAS_COCO or shutil.which("java") is None, reason="pycocoevalcap or Java is not installed"
)


def approx(value: object, tolerance: float = 1e-9) -> object:
    return pytest.approx(value, abs=tolerance)


class Found:
    """The share of the reference's words that the candidate has: the scorer of the golden file."""

    name = "found words"
    uses_corpus = False

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        pairs = zip(references, candidates, strict=True)
        return np.asarray([self._one(set(r.split()), set(c.split())) for r, c in pairs])

    def total(self, references: Sequence[str], candidates: Sequence[str]) -> float:
        return float(self.scores(references, candidates).mean())

    def _one(self, true: set[str], said: set[str]) -> float:
        return len(true & said) / len(true)


class Rare(Found):
    """Equal sentences score 1 / (times the reference is in the corpus); keeps what it is asked."""

    name = "rare"
    uses_corpus = True

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        self.calls.append(list(references))
        pairs = zip(references, candidates, strict=True)
        return np.asarray([(r == c) / list(references).count(r) for r, c in pairs])


def golden() -> tuple[Any, list[Event], list[Event]]:
    data = np.load(GOLDENS / "dvc_detection_soda.npz")
    said, true = (
        [Event(*map(float, s), str(c)) for s, c in zip(data[n], data[f"{n}_caps"], strict=True)]
        for n in ("pred", "gt")
    )
    return data, said, true


def test_localisation_is_the_authors_when_official() -> None:
    data, said, true = golden()
    p, r = localisation(data["pred"], data["gt"], official=True)
    assert p == approx(data["precision"], 1e-6) and r == approx(data["recall"], 1e-6)
    assert tiou_matrix(data["gt"], data["pred"], official=True) == approx(data["iou_matrix"], 1e-12)
    scores = localisation_scores([said], [[true]], official=True)
    assert scores["F1"] == approx(float(data["f1"]), 1e-6)
    assert scores["P@0.3"] == approx(2 / 3) and scores["R@0.3"] == approx(3 / 4)
    # by default an IoU of exactly 0.9 reaches 0.9
    assert localisation(data["pred"], data["gt"])[0][3] == approx(1 / 3)


def test_soda_is_the_authors() -> None:
    data, said, true = golden()
    best, pairs = order_preserving(data["dp_scores"])
    assert best == approx(float(data["dp_max"]), 1e-6)
    assert [list(pair) for pair in pairs] == data["dp_pairs"].tolist()
    for official in (True, False):
        scores = soda_scores([said], [[true]], Found(), official=official)
        assert scores["SODA_c (found words)"] == approx(float(data["soda_toy"]), 1e-6)
    assert soda_scores([said], [[true]], Found(), official=True)["SODA_c (found words)"] == approx(
        float(data["soda_toy"]), 1e-12
    )


def test_the_dynamic_programme_finds_the_best_of_all_matches() -> None:
    draw = np.random.default_rng(3)
    for rows, columns in ((1, 1), (1, 4), (4, 2), (3, 5), (5, 5)):
        table = draw.uniform(size=(rows, columns)) * (draw.uniform(size=(rows, columns)) < 0.7)
        best, pairs = order_preserving(table)
        every = (
            sum(table[i, j] for i, j in zip(some, others, strict=True))
            for k in range(min(rows, columns) + 1)
            for some in itertools.combinations(range(rows), k)
            for others in itertools.combinations(range(columns), k)
        )
        assert best == approx(max(every)) == approx(sum(table[i, j] for i, j in pairs))
        steps = list(itertools.pairwise(pairs))
        assert all(i < k and j < m for (i, j), (k, m) in steps)
    assert soda_f(np.zeros((0, 3))) == (0.0, 0.0, 0.0)


def test_soda_by_hand() -> None:
    true = [Event(0, 10, "a cat"), Event(10, 20, "a dog")]
    same = soda_scores([true], [[true]], WordF1())
    assert same["SODA_c (word-F1)"] == approx(1.0)
    swapped = [Event(10, 20, "a dog"), Event(0, 10, "a cat")]  # sorted by time first
    assert soda_scores([swapped], [[true]], WordF1())["SODA_c (word-F1)"] == approx(1.0)
    official = soda_scores([swapped], [[true]], WordF1(), official=True)
    assert official["SODA_c (word-F1)"] == approx(0.5)
    half = soda_scores([[Event(0, 5, "a cat")]], [[true]], WordF1())
    assert half["SODA_c (word-F1) P"] == approx(0.5) and half["SODA_c (word-F1) R"] == approx(0.25)
    assert half["SODA_c (word-F1)"] == approx(1 / 3)


def test_videos_without_captions_stay_unless_official() -> None:
    true = [Event(0, 10, "a cat")]
    said, truth = [true, None, []], [[true]] * 3
    assert soda_scores(said, truth, WordF1())["SODA_c (word-F1)"] == approx(1 / 3)
    official = soda_scores(said, truth, WordF1(), official=True)
    assert official["SODA_c (word-F1)"] == approx(1.0, 1e-8)  # 1e-8 in the union
    assert localisation_scores(said, truth)["F1"] == approx(1 / 3)
    assert localisation_scores(said, truth, official=True)["F1"] == approx(1.0)
    assert localisation_scores(said, truth)["parse_failures"] == approx(2 / 3)
    for official, value, videos in ((False, 1 / 3, 3), (True, 1.0, 1)):
        found = caption_score(said, truth, WordF1(), official=official)
        assert found.value == approx(value) and found.unanswered == 2 and found.videos == videos
    assert caption_score([None], [[true]], WordF1(), official=True).value is None
    assert soda_scores([None], [[true]], WordF1(), official=True)["SODA_c (word-F1)"] is None


def test_two_annotators() -> None:
    one, two = [Event(0, 10, "a cat")], [Event(0, 10, "x"), Event(20, 30, "y")]
    said = [[Event(0, 10, "a cat")]]
    mean = soda_scores(said, [[one, two]], WordF1())
    assert mean["SODA_c (word-F1)"] == approx(0.5)
    scores = localisation_scores(said, [[one, two]])
    assert scores["R"] == approx(0.75) and scores["F1"] == approx((1 + 2 / 3) / 2)
    assert localisation_scores(said, [[one, two]], official=True)["R"] == approx(1.0)
    for bad in ([], [[]], [one, []]):
        with pytest.raises(InputError, match="video 0 has no true event"):
            localisation_scores(said, [bad])
    with pytest.raises(InputError, match="start before end"):
        localisation_scores(said, [[[Event(3, 1, "a")]]])


def test_matched_captions_by_hand() -> None:
    true = [Event(0, 10, "a cat"), Event(20, 30, "a dog")]
    said = [Event(0, 6, "a cat"), Event(0, 10, "a cow"), Event(50, 60, "a cat")]
    found = caption_score([said], [[true]], WordF1())
    # 0.3 and 0.5: pairs 1 and 1/2 and one unmatched; 0.7 and 0.9: pair 1/2 and two unmatched
    assert found.by_tau == approx({0.3: 0.5, 0.5: 0.5, 0.7: 0.5 / 3, 0.9: 0.5 / 3})
    assert found.value == approx(1 / 3) and found.idf is None and found.name == "word-F1"
    official = caption_score([said], [[true]], WordF1(), official=True)
    assert official.value == approx(1 / 3)  # random letters have no word in common


def test_idf_comes_from_the_true_sentences_each_once() -> None:
    truth = [[[Event(0, 10, "a"), Event(20, 30, "b")]], [[Event(0, 10, "a")]]]
    said = [[Event(0, 10, "a"), Event(0, 9, "a"), Event(1, 10, "c")], [Event(0, 10, "a")]]
    scorer = Rare()
    corpus = caption_score(said, truth, scorer, taus=(0.5,))
    assert corpus.idf == "corpus" and all(call == ["a", "b", "a"] for call in scorer.calls)
    assert len(scorer.calls) == 3  # the first event has three matches
    assert corpus.value == approx(((0.5 + 0.5 + 0) / 3 + 0.5) / 2)
    scorer = Rare()  # theirs: the pairs are the corpus, so that predictions change the idf
    official = caption_score(said, truth, scorer, taus=(0.5,), official=True)
    assert official.idf == "video" and scorer.calls == [["a", "a", "a"], ["a"]]


def test_official_random_letters_are_seeded() -> None:
    truth, said = [[[Event(0, 10, "a")]]], [[Event(50, 60, "a")]]
    calls = []
    for seed in (1, 1, 2):
        scorer = Rare()
        caption_score(said, truth, scorer, official=True, seed=seed)
        calls.append(scorer.calls)
    assert calls[0] == calls[1] != calls[2] and all(len(c[0][0]) >= 10 for c in calls)


def test_word_f1() -> None:
    pairs = [("A cat sat.", "a CAT"), ("", ""), ("a a b", "a"), ("x", "y")]
    found = WordF1().scores([r for r, _ in pairs], [c for _, c in pairs])
    assert found == approx([2 * 2 / 5, 0, 2 / 4, 0]) and WordF1().total([], []) == 0.0
    assert f_measure(0, 0) == 0.0


def test_a_missing_package_or_java_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", refuse)
        patch.setattr("importlib.import_module", lambda name: refuse(name))
        for make in (Meteor, Cider, lambda: Cider("plain")):
            with pytest.raises(InputError, match=r'pip install "vidllm\[captions\]"') as error:
                make()
            assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="ptb or plain"):
        Cider("words")


@needs_coco
def test_cider_of_pycocoevalcap_with_plain_tokens() -> None:
    texts = ["a cat sits on the mat", "a dog runs in the park", "two men play chess outside"]
    cider = Cider("plain")
    assert cider.scores(texts, texts) == approx([10.0] * 3, 1e-6) and cider.total([], []) == 0.0
    assert cider.scores(texts, [*texts[1:], ""])[2] == 0.0
    assert cider.scores(texts[:1], texts[:1]) == approx([0.0])  # the idf of a corpus of one
    events = [Event(10 * k, 10 * k + 10, text) for k, text in enumerate(texts)]
    assert caption_score([events], [[events]], cider).value == approx(10.0, 1e-6)


@needs_java
def test_meteor_of_pycocoevalcap() -> None:
    meteor = Meteor()
    found = meteor.scores(["A cat sits.", "a dog", "a\nman"], ["a cat sits", "", "a man"])
    assert found[0] > 0.9 and found[1] == 0.0 and found[2] > 0.4
    assert meteor.total(["a cat sits"], ["a cat sits"]) > 0.9
    events = [Event(0, 10, "a cat sits on the mat")]
    assert soda_scores([events], [[events]], meteor)["SODA_c"] == approx(1.0, 0.05)
