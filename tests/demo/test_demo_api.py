"""What the page calls beside `VideoLLM`: calls, comparisons, offers, twins, times in text."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_tiny import save_hub
from tiny import hub_model, write_video

from vidllm import InputError, Span, Stopped, StopSignal, VideoLLM, load_video
from vidllm.ask.calls import TASKS, Call
from vidllm.ask.comparing import Comparison, compare, first_token, measured, overlap
from vidllm.ask.moments import captioned, curve, pieces
from vidllm.ask.serving import offers
from vidllm.ask.sharing import twin
from vidllm.compressors import build, names
from vidllm.models.answer import Answer, Receipt
from vidllm.progress import Listener
from vidllm.recipes import get_recipe, list_recipes
from vidllm.recipes.models import ships
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode
from vidllm.tokens import budget_of
from vidllm.video import VideoClip

QUESTION = "when does the red star spin?"
RECEIPT = Receipt(
    1, 4, 2, 0.1, 0.05, {"decode": 1.0, "encode": 0.5, "prefill": 0.25, "generate": 9}
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "a clip.mp4", [i / 4 for i in range(8)])


@pytest.fixture(scope="module")
def clip(video: Path) -> VideoClip:
    return load_video(video, frames=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native model, as a folder."""
    place = tmp_path_factory.mktemp("model")
    hub_model("clip", "qwen3", downsample=2).save_pretrained(place)
    build_tokenizer(get_timecode("relative")).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def native(folder: Path) -> VideoLLM:
    return VideoLLM.from_pretrained(folder, keep=1.0)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    return VideoLLM.from_pretrained(save_hub(tmp_path_factory.mktemp("hub"), "qwen2_5_vl"))


@pytest.fixture(params=["native", "hub"])
def llm(request: pytest.FixtureRequest) -> VideoLLM:
    found: VideoLLM = request.getfixturevalue(request.param)
    return found


def plain(answer: Answer) -> Answer:
    """An answer without what the clock and the memory say."""
    return replace(answer, receipt=replace(answer.receipt, seconds={}, peak_mb=None))


@pytest.mark.parametrize("task", TASKS[:-1])
def test_a_call_is_the_methods_own_answer(task: str, native: VideoLLM, clip: VideoClip) -> None:
    call = Call("a clip.mp4", task, "the star spins", compressors="aim", keep=0.5, max_new_tokens=7)
    options: dict[str, Any] = {"compressor": build("aim", keep=0.5), "max_new_tokens": 7}
    made = plain(call.run(native, clip))
    if task == "ask":
        assert made == plain(native.ask(clip, "the star spins", **options))
    elif task == "ground":
        assert made == plain(native.ground_answer(clip, "the star spins", **options))
    elif task == "caption":
        assert made == plain(native.caption(clip, **options))
    else:
        assert list(made.spans) == native.highlights(clip, "the star spins", **options)
    assert Call.from_dict(call.as_dict()) == call


@pytest.mark.parametrize("task", TASKS[:-1])
@pytest.mark.parametrize(
    ("spec", "keep"), [(None, None), ("uniform", 0.25), ("none", None), ("aim,uniform", 0.5),
                       ("per-scene:scenes=2(aim)", 0.5), ("aim:keep=0.5", None)]
)  # fmt: skip
def test_the_program_of_a_call_gives_its_answer(
    task: str,
    spec: str | None,
    keep: float | None,
    folder: Path,
    video: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(video.parent)
    call = Call(video.name, task, 'the "star" spins', str(folder), spec, keep, 5, max_new_tokens=6)
    told: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as said:
        exec(call.python(), told)
    answer = call.run()
    assert plain(told["answer"]) == plain(answer)
    assert answer.receipt.frames == 5
    assert said.getvalue().splitlines()[0] == answer.text
    if task == "ask" and spec == "uniform":
        with redirect_stdout(io.StringIO()):
            exec(call.python(compared=True), told)
        assert plain(told["made"].less) == plain(answer)


def test_a_call_of_an_index_is_asked_of_it(video: Path, tmp_path: Path) -> None:
    copied = tmp_path / "clip.mp4"
    copied.write_bytes(video.read_bytes())
    call = Call(str(copied), "index", QUESTION, fps=4.0, anyway=True)
    told: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(call.python(), told)
    again = call.run()
    assert again.text == told["answer"].text and again.spans == told["answer"].spans
    assert again.receipt.frames == 8


def test_wrong_calls_are_refused(native: VideoLLM, clip: VideoClip) -> None:
    with pytest.raises(InputError, match="task must be one of ask, ground"):
        Call("a.mp4", "sing")
    with pytest.raises(InputError, match="a call has a video"):
        Call.from_dict({"video": "a.mp4", "volume": 11})
    with pytest.raises(InputError, match="a call has a video"):
        Call.from_dict({"task": "ask"})
    with pytest.raises(InputError, match="how much should 'aim' keep"):
        Call("a.mp4", question="q?", compressors="aim").run(native, clip)
    assert "load_video" not in Call("a.mp4").python()
    assert "seed" not in Call("a.mp4").as_dict() and "seed=3" in Call("a.mp4", seed=3).python()


def test_every_offer_tells_what_asking_would_say(llm: VideoLLM, clip: VideoClip) -> None:
    found = offers(llm)
    assert [o.name for o in found if o.kind == "compressor"] == names()
    assert [o.name for o in found if o.kind == "recipe"] == [r.name for r in list_recipes()]
    assert {o.served for o in found} == {True, False}
    for offer in found:
        if offer.kind == "recipe":  # a system is more than its reduction
            recipe = get_recipe(offer.name)
            lacks = recipe.refusal("this model", llm.engine.parts, ships=ships(recipe))
            if lacks:
                assert offer.reason == lacks, offer.name
                continue
        method = build(offer.spec, keep=1.0 if offer.spec == "none" else offer.keep or 0.5)
        try:
            llm.ask(clip, QUESTION, compressor=method, max_new_tokens=1)
        except InputError as error:
            assert offer.reason == str(error), offer.name
        else:
            assert offer.served, offer.name
        assert offer.late == method.inside_decoder()


def test_twins_share_weights_and_no_memory(llm: VideoLLM, clip: VideoClip) -> None:
    other, clips = twin(llm), (clip, replace(clip, frames=255 - clip.frames))
    assert other.model is llm.model and type(other) is type(llm)
    first = [llm.ask(clips[0], QUESTION, max_new_tokens=3), other.ask(clips[1], QUESTION)]
    calls: list[int] = []
    tower = getattr(llm.engine, "adapter", None)
    module = llm.model.vision if tower is None else tower.tower
    mark = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        again = [llm.ask(clips[0], QUESTION, max_new_tokens=3), other.ask(clips[1], QUESTION)]
    finally:
        mark.remove()
    assert not calls  # neither pushed the other's clip out
    assert [plain(a) for a in first] == [plain(a) for a in again]


def test_a_comparison_measures_both(llm: VideoLLM, clip: VideoClip) -> None:
    class Heard(Listener):
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.said = ""

        def stage(self, name: str) -> None:
            self.stages.append(name)

        def text(self, so_far: str) -> None:
            self.said = so_far

    both = Heard(), Heard()
    method = build("uniform", keep=0.25)
    made = compare(llm, clip, QUESTION, compressor=method, max_new_tokens=4, listeners=both)
    full = llm.ask(clip, QUESTION, compressor="none", max_new_tokens=4)
    less = llm.ask(clip, QUESTION, compressor=method, max_new_tokens=4)
    assert (plain(made.full), plain(made.less)) == (plain(full), plain(less))
    for answer, heard in zip((made.full, made.less), both, strict=True):
        assert heard.stages == ["memory", "encode", "compress", "prefill", "generate"]
        assert heard.said == answer.text
        assert answer.receipt.peak_mb is not None and answer.receipt.seconds["encode"] > 0
    total = made.full.receipt.tokens_kept
    assert made.less.receipt.tokens_kept == budget_of(0.25, total) < total
    assert made.as_dict()["agree"] in (True, False)
    assert llm.measures_memory is False
    signal = StopSignal()
    signal.stop()
    with pytest.raises(Stopped):
        measured(llm, clip, QUESTION, listener=signal)


def test_when_two_answers_agree() -> None:
    def answer(text: str, *spans: tuple[float, float]) -> Answer:
        return Answer(text, tuple(Span(*s) for s in spans), RECEIPT)

    assert first_token(RECEIPT) == 1.75
    one = answer("from 2 to 4", (2, 4))
    assert Comparison(one, answer("2 s – 4 s", (2, 4))).overlap == 1.0
    assert Comparison(one, answer("from 2 to 3", (2, 3))).agree
    assert not Comparison(one, answer("from 2 to 4", (8, 9))).agree
    assert not Comparison(one, answer("yes")).agree
    assert Comparison(answer("A  cat"), answer("a cat ")).agree
    assert not Comparison(answer("a cat"), answer("a dog")).agree
    # One span too many costs, on whichever side it is.
    spans = [Span(0, 2), Span(6, 8)]
    assert overlap(spans, spans[:1]) == overlap(spans[:1], spans) == pytest.approx(2 / 3)
    assert overlap([], spans) is None


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("from 16.6 s to 22.1 s", [16.6, 22.1]),
        ("at 0:12, then 1:05 and 2 min 3 s", [12, 65, 123]),
        ("12.3 - 15 seconds, 2 people and 40 cats", [12.3, 15]),
        ("two men, 3 dogs in 2024", []),
        ("[3.5, 7.0] and 9 s", [3.5, 7.0, 9]),
        ("it ends at 500 s", []),  # behind the video
        ("", []),
        ("<b>5 s</b>\n\nnew line", [5]),
    ],
)
def test_every_time_of_an_answer_is_a_piece(text: str, times: list[float]) -> None:
    found = pieces(text, 200.0)
    assert "".join(piece.text for piece in found) == text
    assert [p.seconds for p in found if p.seconds is not None] == pytest.approx(times)


def test_captions_come_with_the_answers_own_spans() -> None:
    text = "from 7.9 s to 12.1 s it turns . from 5.8 s to 13.3 s the house jumps ."
    spans = (Span(7.91, 12.07, 0.5), Span(5.83, 13.32, 0.25))
    rows = captioned(Answer(text, spans, RECEIPT), 41.2)
    assert rows == [(spans[1], "the house jumps"), (spans[0], "it turns")]
    assert captioned(Answer("nothing", (), RECEIPT), 41.2) == []


def test_a_curve_is_the_best_span_at_every_second() -> None:
    seconds = np.arange(6.0)
    spans = [Span(1, 3, 0.2), Span(2, 2, 0.7)]
    assert curve(spans, seconds).tolist() == [0, 0.2, 0.7, 0.2, 0, 0]
    assert curve([], seconds).tolist() == [0] * 6
