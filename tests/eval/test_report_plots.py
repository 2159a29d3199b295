"""The report's numbers behind plots: Pareto fronts, labels, span errors, letters; and the plots."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_data import make_run

from vidllm.eval.report.answer_plots import category_bars
from vidllm.eval.report.answers import (
    bin_masks,
    calibration_error,
    letter_accuracy,
    said_spans,
    span_errors,
    true_spans,
)
from vidllm.eval.report.gallery import needle_pictures
from vidllm.eval.report.load import Row, load_run
from vidllm.eval.report.outcome import (
    Category,
    Outcome,
    best_of,
    flop_unit,
    name_of,
    representatives,
    split_label,
)
from vidllm.eval.report.pareto import front
from vidllm.eval.report.plots import (
    costs_of,
    relative_over_keep,
    score_against,
    score_limits,
    seconds_by_stage,
)
from vidllm.eval.report.study import sections
from vidllm.eval.report.style import DARK, LIGHT, looks, number, png, spread
from vidllm.eval.tasks.base import Item, Response


def outcome(label: str, score: float | None, tokens: float = 10.0, **more: object) -> Outcome:
    method, keep = split_label(label)
    return Outcome(label, method, keep, score=score, tokens_kept=tokens, tokens_full=100, **more)  # type: ignore[arg-type]


def row(
    text: str, parsed: object, spans: tuple[tuple[float, float], ...] = (), **more: object
) -> Row:
    response = Response(text=text, spans=spans, **more)  # type: ignore[arg-type]
    return Row("none@1", "q", response, parsed, None, Path(), 0)


@pytest.mark.parametrize(
    ("costs", "scores", "ahead"),
    [
        ([], [], []),
        ([3.0], [0.5], [0]),
        ([1, 2, 3], [0.1, 0.2, 0.3], [0, 1, 2]),
        ([1, 2, 3], [0.3, 0.2, 0.1], [0]),
        ([3, 1, 2], [0.3, 0.1, 0.05], [1, 0]),  # in order of cost
        ([1, 1, 2], [0.1, 0.2, 0.2], [1]),  # dearer and no better is off it
        ([1, 1, 2], [0.2, 0.2, 0.4], [0, 1, 2]),  # equal points stay together
        ([1, math.nan, 2], [0.2, 0.9, math.nan], [0]),
    ],
)
def test_the_pareto_front_of_hand_made_points(
    costs: list[float], scores: list[float], ahead: list[int]
) -> None:
    assert front(costs, scores) == ahead


def test_the_pareto_front_is_what_no_other_point_beats() -> None:
    draw = np.random.default_rng(0)
    costs, scores = draw.integers(0, 12, 80), draw.integers(0, 12, 80)
    better = [
        any(
            costs[j] <= costs[i]
            and scores[j] >= scores[i]
            and (costs[j] < costs[i] or scores[j] > scores[i])
            for j in range(80)
        )
        for i in range(80)
    ]
    assert (
        sorted(front(costs.tolist(), scores.tolist())) == np.flatnonzero(~np.array(better)).tolist()
    )


def test_labels_are_moved_apart_and_stay_inside() -> None:
    draw = np.random.default_rng(1)
    for count in (1, 2, 5, 12):
        places = draw.uniform(0, 1, count).tolist()
        moved = spread(places, 0.07, 0.0, 1.0)
        assert min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
        assert all(b - a >= 0.07 - 1e-9 for a, b in itertools.pairwise(sorted(moved)))
        order = np.argsort(places, kind="stable")
        assert np.all(np.diff(np.asarray(moved)[order]) >= 0)  # nobody overtakes
    assert spread([0.2, 0.8], 0.07, 0, 1) == [0.2, 0.8]  # what is apart stays
    crowded = sorted(spread([0.5] * 30, 0.07, 0, 1))
    assert np.diff(crowded).min() == pytest.approx(1 / 29)
    assert spread([], 0.1, 0, 1) == []


def test_numbers_have_the_digits_that_count() -> None:
    assert [number(v) for v in (0, 0.0251, 128.0, 1536.4, -3.5)] == [
        "0",
        "0.0251",
        "128",
        "1\u2009536",
        "−3.5",
    ]
    assert number(0.5, bare=False) == "0.500"
    assert flop_unit([3e11]) == (1e12, "TFLOPs")
    assert flop_unit([3e8]) == (1e9, "GFLOPs")
    assert flop_unit([]) == (1.0, "FLOPs")


def test_the_best_of_each_share_is_found() -> None:
    some = [
        outcome("none@1", 0.9, 100),
        outcome("aim@0.5", 0.8, 50),
        outcome("uniform@0.5", 0.7, 50),
        outcome("aim@0.25", 0.6, 25),
        outcome("uniform@0.25", 0.6, 25),
        outcome("evs@0.1", 0.5),
    ]
    assert best_of(some, lambda o: o.score) == {"aim@0.5"}  # a tie of all and a lone one have none
    assert best_of(some, lambda o: o.tokens_kept, least=True) == set()
    assert [o.label for o in representatives(some)] == ["none@1", "aim@0.5", "aim@0.25", "evs@0.1"]
    assert [o.label for o in representatives(some, 3)] == ["none@1", "aim@0.5", "evs@0.1"]
    assert representatives([outcome("aim@0.5", None)]) == []


def test_a_number_of_tokens_is_a_share_as_measured() -> None:
    budget = outcome("(aim+uniform):budget=40@1", 0.5, 40)
    assert budget.share == 0.4 and name_of(budget) == "(aim+uniform):budget=40"
    assert name_of(outcome("aim@0.125", 0.5)) == "aim 12.5 %"
    assert outcome("none@1", 0.5, 90).share == 1.0
    for wrong in ("aim", "@0.5", "aim@half"):
        with pytest.raises(ValueError, match=r"method@share|could not convert"):
            split_label(wrong)


def test_every_method_has_a_look_of_its_own() -> None:
    names = [f"m{k}" for k in range(20)]
    for theme in (LIGHT, DARK):
        found = looks([*names, "random"], theme)
        assert len({(found[n].colour, found[n].marker, str(found[n].dashes)) for n in names}) == 20
        assert found["random"].colour == theme.soft and found["none"].colour == theme.ink


def test_spans_are_read_by_what_the_task_is_about() -> None:
    one = Item("q", "v", "v", "?", [1.0, 2.0])
    several = Item("q", "v", "v", "?", {"answer": "from {} to {}", "spans": [[1, 2], [4, 5]]})
    dense = Item("q", "v", "v", "?", [[[0, 1, "a"], [2, 3, "b"]], [[0, 9, "c"]]])
    rated = Item("q", "v", "v", "?", [[1, 2, 3, 4], [5, 4, 3, 2]])
    letters = Item("q", "v", "v", "?", {"answer": "A", "spans": [[1, 2]]}, choices=("x", "y"))
    assert true_spans(one, "grounding") == [(1, 2)]
    assert true_spans(several, "made") == [(1, 2), (4, 5)]
    assert true_spans(dense, "captions") == [(0, 1), (2, 3)]
    assert true_spans(one, "alignment") == true_spans(letters, "grounding") == []
    assert true_spans(rated, "highlights") == true_spans(rated, "grounding") == []
    assert said_spans(row("", [[1, 2, 0.9]]), one, "grounding") == [(1, 2)]
    assert said_spans(row("", None, ((3.0, 4.0),)), one, "grounding") == [(3, 4)]
    assert said_spans(row("", "B"), one, "grounding") == []
    assert said_spans(row("", [math.nan, 2]), one, "grounding") == []


def test_span_errors_by_hand() -> None:
    items = {
        "a": Item("a", "v", "v", "?", [2.0, 4.0], duration=10.0),
        "b": Item("b", "v", "v", "?", [[0.0, 1.0], [6.0, 8.0]], duration=20.0),
        "c": Item("c", "v", "v", "?", [0.0, 5.0]),
        "d": Item("d", "v", "v", "?", "a word"),
        "e": Item("e", "v", "v", "?", [0.0, 5.0]),
    }
    rows = {
        "a": row("", [1.0, 4.0]),
        "b": row("", [[7.0, 9.0], [0.0, 1.0]], duration=25.0),
        "c": row("no idea", None),
        "d": row("a word", "a word"),
    }
    found = span_errors(items, rows, "grounding")
    assert found.start.tolist() == [-1.0, 1.0] and found.end.tolist() == [0.0, 1.0]
    assert found.duration.tolist() == [10.0, 25.0]
    assert found.iou.tolist() == pytest.approx([2 / 3, 1 / 3, 0.0]) and found.missing == 1
    assert len(span_errors(items, rows, "captions").iou) == 0


def test_letters_and_their_calibration_by_hand() -> None:
    def asked(name: str, truth: str) -> Item:
        return Item(name, "v", "v", "?", truth, choices=("x", "y"))

    def said(letter: str | None, a: float, b: float) -> Row:
        known = {"A": math.log(a), "B": math.log(b)}
        return row(letter or "", letter, letters=known)

    items = {name: asked(name, truth) for name, truth in zip("pqrs", "ABAB", strict=True)}
    items["t"] = asked("t", "A")
    rows = {
        "p": said("A", 0.6, 0.2),  # right both ways, 0.75 sure
        "q": said("A", 0.2, 0.6),  # generated wrong, most probable right
        "r": said(None, 0.3, 0.3),  # a tie is wrong, as is no letter
        "s": said("B", 0.9, 0.1),
        "t": row("A", "A"),  # no log-probabilities
    }
    found = letter_accuracy(items, rows)
    assert found is not None and found.n == 4
    assert (found.generated, found.likely, found.agree) == (0.5, 0.5, 0.25)
    assert found.confidence.tolist() == pytest.approx([0.75, 0.75, 0.5, 0.9])
    # Bins (0.7, 0.8]: 1 against 0.75; (0.4, 0.5]: 0 against 0.5; (0.8, 0.9]: 0 against 0.9.
    assert found.ece == pytest.approx(0.5 * 0.25 + 0.25 * 0.5 + 0.25 * 0.9)
    assert letter_accuracy({"t": items["t"]}, rows) is None
    edges = np.array([0.0, 0.1, 0.1001, 1.0])
    assert [int(np.flatnonzero([m[k] for m in bin_masks(edges)])[0]) for k in range(4)] == [
        0,
        0,
        1,
        9,
    ]
    assert calibration_error(np.array([0.8]), np.array([1.0])) == pytest.approx(0.2)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    more = {"seconds": {"decode": 0.1, "prefill": 0.2}, "flops": {"prefill": 2e9}}
    groups = {"length": {"short": Category(0.5, 0.4, 0.6, 9), "long": Category(0.3, n=4)}}
    return [
        outcome("none@1", 0.7, 100, low=0.6, high=0.8, relative=1.0, groups=groups, **more),
        outcome("aim@0.5", 0.65, 50, relative=0.93, groups=groups, **more),
        outcome("aim@0.1", 0.5, 10, relative=0.71, **more),
        outcome("random@0.5", None, 50),
    ]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_plots_are_pictures_and_leave_matplotlib_alone(theme, outcomes: list[Outcome]) -> None:  # type: ignore[no-untyped-def]
    before = dict(matplotlib.rcParams)
    tokens = costs_of(outcomes)[0]
    figures = [
        score_against(theme, outcomes, tokens, "mIoU"),
        score_against(theme, outcomes[3:], tokens, "mIoU"),  # nothing to draw
        relative_over_keep(theme, outcomes, "mIoU"),
        seconds_by_stage(theme, outcomes),
        category_bars(theme, outcomes[:2], "length", "mIoU", palette=["aim"]),
    ]
    for figure in figures:
        picture = Image.open(io.BytesIO(png(figure))).convert("RGB")
        assert picture.width > 600
        ground = tuple(int(theme.paper[k : k + 2], 16) for k in (1, 3, 5))
        assert picture.getpixel((0, 0)) == ground
    again = score_against(theme, outcomes, tokens, "mIoU")
    assert png(again) == png(figures[0])
    assert dict(matplotlib.rcParams) == before


def test_plots_have_one_scale_that_holds_the_reference(outcomes: list[Outcome]) -> None:
    low, high = score_limits(outcomes)
    assert low < 0.5 and high > 0.8
    assert score_limits([]) == (0.0, 1.0)
    assert [cost.name for cost in costs_of(outcomes)] == ["tokens", "flops", "seconds"]
    assert [cost.name for cost in costs_of(outcomes[3:])] == ["tokens"]


def test_the_needle_test_has_its_heat_maps(tmp_path: Path) -> None:
    import vidllm.eval.tasks.needle  # noqa: F401  (registers it)

    items = [
        Item(
            id=f"{minutes}-{depth}-{kind}",
            vid=f"{minutes}-{depth}",
            video=f"{minutes}-{depth}",
            prompt="?",
            truth=[1.0, 2.0] if kind == "when" else "it spins",
            kind=kind,
            duration=60.0 * minutes,
            groups={"length": f"{minutes} min", "depth": f"{depth} %"},
        )
        for minutes in (1, 10)
        for depth in (0, 50, 100)
        for kind in ("when", "what")
    ]
    names, jumps = ("none@1", "aim@0.5"), Response(text="it jumps", duration=60.0)
    said = {(name, item.id): jumps for name in names for item in items}
    folder = make_run(tmp_path, "needle", items=items, settings=names, said=said)
    (part,) = sections([load_run(folder)])[0].parts
    (maps,) = needle_pictures(part)
    assert maps.name == "needle-heatmap" and maps.light != maps.dark
    assert Image.open(io.BytesIO(maps.light)).width == 2 * maps.width


def test_no_text_of_a_plot_is_cut_off_or_stands_on_another(outcomes: list[Outcome]) -> None:
    many = [outcomes[0]] + [
        outcome(f"method-number-{k}@{keep}", 0.6 + 0.001 * k - 0.1 / keep / 10, 100 * keep)
        for k in range(12)
        for keep in (0.5, 0.1)
    ]
    figure = score_against(LIGHT, many, costs_of(many)[0], "mIoU")
    png(figure)
    axes = figure.axes[0]
    page = figure.bbox
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 13
    for box in [*boxes, axes.xaxis.label.get_window_extent(), axes.title.get_window_extent()]:
        assert box.x0 >= page.x0 and box.x1 <= page.x1
        assert box.y0 >= page.y0 and box.y1 <= page.y1
    ordered = sorted(boxes, key=lambda box: box.y0)
    for below, above in itertools.pairwise(ordered):
        assert above.y0 - below.y0 > 0.6 * below.height
