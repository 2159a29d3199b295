"""One model and several threads: the answers of one thread, or one line that says so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from hf_tiny import Video, hf_inputs, hf_model
from hub_tiny import save_hub
from tiny import hub_model, save_tiny, write_video
from transformers import StoppingCriteria, StoppingCriteriaList

from vidllm import InputError, VideoLLM, load_video
from vidllm.ask.compression import compress
from vidllm.progress import Stopped, StopSignal
from vidllm.video import VideoClip

SMALL = {"max_new_tokens": 5, "do_sample": False}
SPECS = ("fastv", "aim", "dycoke-cache:threshold=0.99", "visionzip")
PROMPTS = ([3, Video(4), 6], [5, Video(6), 2], [9, Video(4), 3], [4, Video(2), 8])
THREADS = 8


def at_once(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """What every piece of work gives; all begin together, each on a thread of its own."""
    ready = Barrier(len(work))

    def run(one: Callable[[], Any]) -> Any:
        ready.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[VideoClip]:
    file = write_video(tmp_path_factory.mktemp("video") / "v.mp4", [0.5 * i for i in range(8)])
    return [load_video(file, frames=4, start=start) for start in (0.0, 1.0)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    folder = save_hub(tmp_path_factory.mktemp("hub"), "qwen2_5_vl")
    return VideoLLM.from_pretrained(folder)


def _same_answers(llm: VideoLLM, clips: list[VideoClip], spec: str) -> None:
    """Eight threads with questions of their own, about two clips that push each other out."""
    method = f"{spec}:keep=0.5"

    def ask(i: int) -> Any:
        return llm.ask(clips[i % 2], f"what is {i}?", compressor=method, max_new_tokens=3)

    want = [ask(i) for i in range(THREADS)]
    got = at_once([lambda i=i: ask(i) for i in range(THREADS)])  # type: ignore[misc]
    for a, b in zip(got, want, strict=True):
        assert a.raw == b.raw and a.kept == b.kept
        assert a.receipt.tokens_kept == b.receipt.tokens_kept
        assert a.receipt.kv_kept_mb == b.receipt.kv_kept_mb


@pytest.mark.parametrize("spec", SPECS)
def test_a_hub_model_answers_threads_as_one(
    hub: VideoLLM, clips: list[VideoClip], spec: str
) -> None:
    _same_answers(hub, clips, spec)


@pytest.mark.parametrize("spec", ["fastv", "aim", "dycoke-cache:threshold=0.99"])
def test_the_own_model_answers_threads_as_one(
    tmp_path_factory: pytest.TempPathFactory, clips: list[VideoClip], spec: str
) -> None:
    folder: Path = save_tiny(tmp_path_factory.mktemp("own"))
    _same_answers(VideoLLM.from_pretrained(folder), clips, spec)


def test_a_tower_that_tells_signals_answers_threads_as_one(
    tmp_path_factory: pytest.TempPathFactory, clips: list[VideoClip]
) -> None:
    folder = save_tiny(tmp_path_factory.mktemp("own"))
    llm = VideoLLM.from_pretrained(folder)
    tower = VideoLLM(hub_model("siglip"), llm.tokenizer)
    _same_answers(tower, clips, "visionzip")


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("spec", SPECS)
def test_threads_in_one_block_take_turns(family: str, spec: str) -> None:
    model = hf_model(family)
    prompts = [hf_inputs(family, [p], seed=n) for n, p in enumerate(PROMPTS)]
    with compress(model, spec, keep=0.4) as c:

        def generate(n: int) -> Any:
            out = model.generate(**prompts[n], **SMALL)
            return out, c.kept[0], c.receipt.tokens_kept

        want = [generate(n) for n in range(4)]
        got = at_once([lambda n=n: generate(n % 4) for n in range(THREADS)])  # type: ignore[misc]
        calls = at_once([lambda n=n: model(**prompts[n]).logits for n in range(4)])  # type: ignore[misc]
        for n in range(4):
            assert torch.equal(calls[n], model(**prompts[n]).logits)
    for n, (out, kept, count) in enumerate(got):
        assert torch.equal(out, want[n % 4][0])
        assert torch.equal(kept, want[n % 4][1]) and count == want[n % 4][2]


def test_what_a_thread_tells_and_reuses_is_its_own() -> None:
    family = "qwen2_5_vl"
    model = hf_model(family)
    prompts = [hf_inputs(family, [[3, Video(4), n]], seed=1) for n in (4, 6)]
    others = [hf_inputs(family, [[5, Video(4), n]], seed=2) for n in (3, 7)]
    with compress(model, "vidcom2", keep=0.5) as c:

        def questions(pair: list[dict[str, Any]]) -> list[Any]:
            with c.reuse() as prefix:
                both = [model.generate(**one, **SMALL) for one in pair]
            assert prefix.reused == 1
            return both

        want = [questions(prompts), questions(others)]
        got = at_once([lambda: questions(prompts), lambda: questions(others)])
        for a, b in zip(got, want, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

        def told(count: int) -> Any:
            c.tell_seconds(([float(i) for i in range(count)], float(count)))
            return model.generate(**hf_inputs(family, [[3, Video(count), 4]]), **SMALL)

        at_once([lambda: told(4), lambda: told(6), lambda: told(2)])


class Waits(StoppingCriteria):
    """Holds a generation at its first token until somebody lets it go on."""

    def __init__(self) -> None:
        self.there, self.on, self.tokens = Event(), Event(), 0

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        self.there.set()
        assert self.on.wait(300)
        self.tokens += 1
        return torch.zeros(len(ids), dtype=torch.bool)


def test_a_worker_generates_in_the_block_of_another_thread() -> None:
    """The library's way of streaming; the account is there for who opened the block."""
    family = "llava_onevision"
    model, inputs = hf_model(family), hf_inputs(family, [[3, Video(4), 6]])
    with compress(model, "fastv", keep=0.5):
        want = model.generate(**inputs, **SMALL)
    held, got = Waits(), []
    with compress(model, "fastv", keep=0.5) as c:
        more = {"stopping_criteria": StoppingCriteriaList([held]), **SMALL}
        worker = Thread(target=lambda: got.append(model.generate(**inputs, **more)))
        worker.start()
        assert held.there.wait(300)
        with pytest.raises(InputError, match="put the methods into one chain"):
            compress(model, "aim", keep=0.5).__enter__()
        lines = at_once([lambda: _refusal(model), lambda: _refusal(model)])
        assert all("compressed already, by another thread" in line for line in lines)
        held.on.set()
    # Leaving waits for the prompt that is under way: for its last token, not for what the worker
    # does with the answer.
    assert held.tokens == SMALL["max_new_tokens"] and c.receipt.tokens_kept == 8
    worker.join()
    assert torch.equal(got[0], want)


def _refusal(model: Any) -> str:
    with pytest.raises(InputError) as caught:
        compress(model, "aim", keep=0.5).__enter__()
    return str(caught.value)


def test_calls_of_the_model_beside_an_ask_wait_and_are_plain(
    hub: VideoLLM, clips: list[VideoClip]
) -> None:
    inputs = hf_inputs("qwen2_5_vl", [[3, Video(4), 6]])
    model: Any = hub.model
    with torch.no_grad():
        plain, logits = model.generate(**inputs, **SMALL), model(**inputs).logits
    want = hub.ask(clips[0], "when?", compressor="fastv:keep=0.25", max_new_tokens=4)
    began, calls = Event(), []

    class Beside(StopSignal):
        def stage(self, name: str) -> None:
            if name == "prefill" and not calls:
                for work in (lambda: model.generate(**inputs, **SMALL), _logits(model, inputs)):
                    thread = Thread(target=lambda work=work: calls.append(work()))
                    thread.start()
                    threads.append(thread)
                began.set()

    threads: list[Thread] = []
    listener = Beside()
    got = hub.ask(
        clips[0], "when?", compressor="fastv:keep=0.25", max_new_tokens=4, listener=listener
    )
    for thread in threads:
        thread.join()
    assert got.raw == want.raw and began.is_set() and len(calls) == 2
    for made in calls:
        assert torch.equal(made, logits if made.is_floating_point() else plain)


def _logits(model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return model(**inputs).logits

    return call


def test_who_waits_for_the_model_can_be_stopped(hub: VideoLLM, clips: list[VideoClip]) -> None:
    asked, stopped = Event(), StopSignal()
    said: list[Any] = []

    class Holds(StopSignal):
        def stage(self, name: str) -> None:
            asked.set()
            assert waits_no_more.wait(60)

    waits_no_more = Event()

    def wait_and_stop() -> None:
        try:
            hub.ask(clips[0], "what?", listener=stopped)
        except Stopped as error:
            said.append(str(error))
        waits_no_more.set()

    holder = Thread(target=lambda: hub.ask(clips[0], "what?", max_new_tokens=1, listener=Holds()))
    holder.start()
    assert asked.wait(60)
    waiter = Thread(target=wait_and_stop)
    waiter.start()
    stopped.stop()
    waiter.join(60)
    holder.join(60)
    assert said == ["stopped"]


def test_an_interrupt_leaves_the_turn_to_others() -> None:
    family = "llava_onevision"
    model, inputs = copy.deepcopy(hf_model(family)), hf_inputs(family, [[3, Video(4), 6]])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with compress(model, "fastv", keep=0.5):
        want = model.generate(**inputs, **SMALL)
        handle = model.model.language_model.layers[3].register_forward_pre_hook(interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **SMALL)
        handle.remove()
        got = at_once([lambda: model.generate(**inputs, **SMALL)] * 2)
    assert all(torch.equal(one, want) for one in got)
