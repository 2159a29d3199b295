"""Options of a question: a compressor for one call, letters, kept tokens, listeners, costs."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import letters, save_hub
from specs import SPECS
from tiny import hub_model, write_video
from torch import nn

from vidllm import InputError, VideoLLM, compress, load_video
from vidllm.compressors import build
from vidllm.longvideo.build import native_engine
from vidllm.models.answer import Answer
from vidllm.models.families.engine import HubEngine
from vidllm.models.native.model import NativeVideoLLM
from vidllm.models.question import letters_of, prompt_ids
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode
from vidllm.tokens import budget_of
from vidllm.video import VideoClip

TIMES = [0.0, 0.1, 0.5, 0.6, 1.2, 2.0]
QUESTION = "when does the red star spin?"
TOKENIZER = build_tokenizer(get_timecode("relative"))
#: A method of every stage, one that merges in the tower, and one that reads the tower's signals.
STAGES = [None, "aim", "tome", "visionzip", "fastv", "dycoke-cache", "mustdrop-filter"]
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> VideoClip:
    path = write_video(tmp_path_factory.mktemp("video") / "short.mp4", TIMES)
    return load_video(path, frames=6)


@pytest.fixture(scope="module")
def native() -> NativeVideoLLM:
    """Tower with attention and a CLS token, three decoder layers; 4 tokens a frame."""
    return hub_model("clip", "qwen3", downsample=2)


@pytest.fixture(scope="module", params=FAMILIES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub(tmp_path_factory.mktemp("hub") / request.param, request.param)


def spec_of(name: str | None, keep: float = 0.5) -> Any:
    return None if name is None else build(name, keep=keep)


def plain(answer: Answer) -> Answer:
    """An answer without its seconds."""
    return replace(answer, receipt=replace(answer.receipt, seconds={}), notes=())


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


def hooks(model: nn.Module) -> int:
    """Hooks of ours; transformers leaves some of its own."""
    every = [
        h
        for m in model.modules()
        for h in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
    ]
    return sum(getattr(hook, "__module__", "").startswith("vidllm") for hook in every)


def opened(native: NativeVideoLLM) -> VideoLLM:
    return VideoLLM(native, TOKENIZER, keep=1.0)


def test_a_compressor_for_one_call_is_the_models_own(native: NativeVideoLLM, clip: Any) -> None:
    llm = opened(native)
    for name in STAGES[1:]:
        own = VideoLLM(native, TOKENIZER, compressor=name, keep=0.5)
        for question in (QUESTION, [QUESTION, "what happens first?"]):
            options: dict[str, Any] = {"max_new_tokens": 4, "compressor": spec_of(name)}
            one, two = llm.ask(clip, question, **options), own.ask(clip, question, max_new_tokens=4)
            pairs = [(one, two)] if isinstance(one, Answer) else list(zip(one, two, strict=True))
            assert all(plain(a) == plain(b) for a, b in pairs)
    assert llm.ask(clip, QUESTION, max_new_tokens=1).receipt.tokens_kept == 24
    spec = llm.ground_answer(clip, "it spins", compressor="aim:keep=0.25", max_new_tokens=1)
    assert spec.receipt.tokens_kept == 6
    exact = llm.caption(clip, compressor="aim", tokens=5, max_new_tokens=1)
    assert exact.receipt.tokens_kept == 5 and "5 of at most 5" in exact.notes[-2]
    with pytest.raises(InputError, match="such as aim:keep"):
        llm.ask(clip, QUESTION, compressor="aim")
    with pytest.raises(InputError, match="mustdrop-filter,mustdrop-cache"):
        llm.ask(clip, QUESTION, compressor=build("mustdrop-cache", keep=0.5))


def test_the_last_clip_is_encoded_once_and_answers_stay_the_same(
    native: NativeVideoLLM, clip: VideoClip
) -> None:
    llm = opened(native)
    encoded = []
    for name in ["aim", None, "visionzip", "uniform", "fastv", "tome", "aim", "tome"]:
        options: dict[str, Any] = {"compressor": spec_of(name), "max_new_tokens": 5}
        fresh = opened(native).ask(clip, QUESTION, **options, choices=("1", "2"))
        with calls_of(native.vision.model) as seen:
            again = llm.ask(clip, QUESTION, **options, choices=("1", "2"))
        encoded.append(len(seen))
        assert plain(fresh) == plain(again), name
    # Signals are wanted for the first time by visionzip; tome merges inside.
    assert encoded == [1, 0, 1, 0, 0, 1, 0, 0]
    with calls_of(native.vision.model) as seen:
        llm.ask(clip, QUESTION, compressor=build("tome", keep=0.25), max_new_tokens=1)
        llm.preview(clip, compressor=build("tome", keep=0.25))
        method = build("tome", keep=0.3)
        llm.preview(clip, compressor=method)
        method.keep = 0.5  # a method that was changed is another one
        assert len(llm.preview(clip, compressor=method)) == 12
    assert len(seen) == 3
    with calls_of(native.vision.model) as seen, torch.no_grad():
        weight = native.projector[1].weight
        weight.mul_(2)
        changed = llm.ask(clip, QUESTION, max_new_tokens=1, choices=("1", "2"))
        assert plain(changed) == plain(
            opened(native).ask(clip, QUESTION, max_new_tokens=1, choices=("1", "2"))
        )
        weight.mul_(0.5)
    assert len(seen) == 2
    other = replace(clip)
    llm.ask(other, QUESTION, max_new_tokens=1)
    assert len(native_engine(llm).memory.kept) == 1
    del other
    gc.collect()
    assert native_engine(llm).memory.kept == []


def test_hub_models_encode_a_clip_once_too(hub: Path, clip: VideoClip) -> None:
    llm, fresh = VideoLLM.from_pretrained(hub), VideoLLM.from_pretrained(hub)
    assert isinstance(llm.engine, HubEngine)
    encoded = []
    for name in ["aim", None, "visionzip", "dycoke-cache", "fastv", "holitom"]:
        options: dict[str, Any] = {"compressor": spec_of(name), "max_new_tokens": 5}
        wanted = fresh.ask(replace(clip), QUESTION, **options, choices=("A", "B"))
        with calls_of(llm.engine.adapter.tower) as seen:
            answer = llm.ask(clip, QUESTION, **options, choices=("A", "B"))
        encoded.append(len(seen))
        assert plain(wanted) == plain(answer), name
    assert encoded == [1, 0, 1, 0, 0, 0]
    assert hooks(llm.model) == 0


@pytest.mark.parametrize("hub", ["internvl"], indirect=True)
def test_what_merged_in_a_hub_tower_is_nobody_elses(hub: Path, clip: VideoClip) -> None:
    llm, fresh = VideoLLM.from_pretrained(hub), VideoLLM.from_pretrained(hub)
    assert isinstance(llm.engine, HubEngine)
    encoded = []
    for spec in ["tome:keep=0.5", None, "aim:keep=0.5", "tome:keep=0.5", "tome:keep=0.25"]:
        options: dict[str, Any] = {"compressor": spec, "max_new_tokens": 5}
        with calls_of(llm.engine.adapter.tower) as seen:
            answer = llm.ask(clip, QUESTION, **options)
        encoded.append(len(seen))
        assert plain(answer) == plain(fresh.ask(replace(clip), QUESTION, **options)), spec
    assert encoded == [1, 1, 0, 0, 1]


@torch.inference_mode()
def test_letters_are_those_of_a_plain_forward_pass(native: NativeVideoLLM, clip: Any) -> None:
    """Embeddings in one sequence, one pass of the language model, log-softmax of the last row."""
    llm = opened(native)
    answers = llm.ask(
        clip, [QUESTION, "what happens first?"], choices=[("1", "2", "yes"), None], max_new_tokens=2
    )
    assert answers[1].letters is None
    tokens, duration = native_engine(llm).tokens(clip)
    head, tail = prompt_ids(TOKENIZER, QUESTION)
    video = native.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
    text = [native.embed_tokens(torch.tensor(part)) for part in (head, tail)]
    whole = torch.cat([text[0], video, text[1]])[None]
    logits = native.language_model(inputs_embeds=whole).logits[0, -1]
    shares = logits.log_softmax(-1)
    told = answers[0].letters
    assert told is not None and list(told) == ["1", "2", "yes"]
    for letter, value in told.items():
        token = TOKENIZER.convert_tokens_to_ids(letter)
        assert value == pytest.approx(float(shares[token]), abs=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_letters_share_with_all_other_tokens(
    name: str | None, native: NativeVideoLLM, clip: VideoClip
) -> None:
    words = tuple(TOKENIZER.get_vocab())
    words = tuple(w for w in words if w != "<|unknown|>")
    answer = opened(native).ask(
        clip, QUESTION, compressor=spec_of(name), choices=[words], max_new_tokens=1
    )
    assert answer.letters is not None
    unknown = 1 - sum(math.exp(value) for value in answer.letters.values())
    assert 0 < unknown < 0.1
    best = max(answer.letters, key=answer.letters.__getitem__)
    assert answer.raw in ("", best)  # "" where it is the token that ends an answer


@pytest.mark.parametrize("name", [*STAGES, "holitom"])
def test_letters_of_hub_models_are_generates_own_logits(
    name: str | None, hub: Path, clip: VideoClip
) -> None:
    llm = VideoLLM.from_pretrained(hub)
    assert isinstance(llm.engine, HubEngine)
    method = build("none") if name is None else build(name, keep=0.5)
    told = llm.ask(clip, QUESTION, compressor=method, choices=("A", "B", " "), max_new_tokens=2)
    assert told.letters is not None
    with torch.inference_mode(), compress(llm.model, method, processor=llm.tokenizer) as c:
        seen = llm.engine.memory.encode(clip, c._session)
        ids = llm.engine.prompt_ids(seen.placed, QUESTION, False)
        out: Any = llm.model.generate(
            **llm.engine.memory.arguments(seen, c._session, ids),
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    shares = out.logits[0][0].float().log_softmax(-1)
    for letter, value in told.letters.items():
        token = letters().convert_tokens_to_ids(letter)
        assert value == pytest.approx(float(shares[token]), abs=1e-6)
    assert llm.ask(clip, QUESTION, choices=("A", "€"), max_new_tokens=1).letters is None


def test_choices_are_one_entry_a_question(native: NativeVideoLLM, clip: VideoClip) -> None:
    assert letters_of(["q"], ("A", "B")) == letters_of(["q"], [("A", "B")]) == [("A", "B")]
    assert letters_of(["q", "r"], None) == letters_of(["q", "r"], [None, ()]) == [None, None]
    for choices in ([("A",), ("B",)], [], ["AB", "A"], [("A", "")]):
        with pytest.raises(InputError, match="choices"):
            letters_of(["q"] if choices != ["AB", "A"] else ["q", "r"], choices)
    llm = opened(native)
    assert llm.ask(clip, QUESTION, choices=("A", "B"), max_new_tokens=1).letters is None  # unknown
    assert llm.ask(clip, QUESTION, max_new_tokens=1).letters is None


@pytest.mark.parametrize("spec", SPECS)
def test_kept_tokens_are_told_and_previewed(
    spec: str, native: NativeVideoLLM, clip: VideoClip
) -> None:
    llm, method = opened(native), build(spec, keep=0.25)
    answer = llm.ask(clip, QUESTION, compressor=method, max_new_tokens=3)
    kept = answer.kept
    assert kept is not None and len(kept) == answer.receipt.tokens_kept == 6
    assert kept.grid == (6, 2, 2) and kept.seconds.tolist() == clip.seconds.tolist()
    assert int(kept.per_frame().sum()) == 6
    if method.inside_decoder():
        with pytest.raises(InputError, match="while the LLM runs"):
            llm.preview(clip, QUESTION, compressor=method)
    else:
        with calls_of(native.language_model) as seen:
            assert llm.preview(clip, QUESTION, compressor=method) == kept
        assert not seen
    assert hooks(native) == 0


@pytest.mark.parametrize("name", STAGES[1:])
def test_kept_tokens_of_hub_models(name: str, hub: Path, clip: VideoClip) -> None:
    llm = VideoLLM.from_pretrained(hub)
    assert isinstance(llm.engine, HubEngine)
    method = build(name, keep=0.5)
    answer = llm.ask(clip, QUESTION, compressor=method, max_new_tokens=4)
    kept = answer.kept
    assert kept is not None and len(kept) == answer.receipt.tokens_kept == budget_of(
        0.5, kept.total
    )
    assert kept.seconds.tolist() == llm.engine.memory.open(clip).slots
    if method.inside_decoder():
        with pytest.raises(InputError, match="while the LLM runs"):
            llm.preview(clip, QUESTION, compressor=method)
        return
    with calls_of(llm.engine.adapter.decoder.layers[0]) as seen:  # type: ignore[index, union-attr]
        assert llm.preview(clip, QUESTION, compressor=method) == kept
    assert not seen and hooks(llm.model) == 0
    whole = llm.preview(clip, QUESTION, compressor=build("none"))
    assert len(whole) == whole.total and whole.heat().min() == 1
