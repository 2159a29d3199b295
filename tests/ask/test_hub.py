"""The high door for models of the hub: prompts, true seconds, answers, budgets, many questions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_tiny import FAMILIES
from hub_tiny import TAKES_TEXT, TAKES_VIDEOS, letters, save_hub
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor
from transformers.video_utils import VideoMetadata
from videos import write_video

from vidllm import InputError, VideoLLM, WorkError, load_video
from vidllm.ask.options import choose_frames
from vidllm.models.families.engine import HubEngine
from vidllm.models.families.pixels import video_pixels
from vidllm.models.families.scripts import SCRIPTS, chat, in_words
from vidllm.tokens import budget_of
from vidllm.video import VideoClip

TIMES = [0.0, 0.4, 1.1, 1.5, 2.3, 3.0, 3.6, 4.4]
#: Chat templates of every kind; the others use the family's documented one.
TEMPLATES = {"qwen2_5_vl": TAKES_VIDEOS, "qwen3_vl": TAKES_VIDEOS, "internvl": TAKES_TEXT}
QUESTION = "When does it start?"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
PROMPTS = {
    "qwen2_5_vl": CHAT.format("<img>{}</img>" + QUESTION),
    "qwen3_vl": CHAT.format("{}" + QUESTION),
    "llava_onevision": CHAT.format("{}\n" + QUESTION),
    "internvl": CHAT.format("{}\n" + QUESTION),
    "smolvlm": "<|im_start|>User: {}" + QUESTION + "<end_of_utterance>\nAssistant:",
    "video_llama_3": SYSTEM + CHAT.format("{}\n" + QUESTION),
}
PROCESSORS: dict[str, Any] = {
    "qwen2_5_vl": Qwen2_5_VLProcessor,
    "qwen3_vl": Qwen3VLProcessor,
    "llava_onevision": LlavaOnevisionProcessor,
    "internvl": InternVLProcessor,
    "smolvlm": processing_smolvlm.SmolVLMProcessor,
    "video_llama_3": VideoLlama3Processor,
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose frames are unevenly far apart."""
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", times=TIMES, size=(64, 48))


@pytest.fixture(scope="module")
def clip(video: Path) -> VideoClip:
    return load_video(video, frames=6)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: str = request.param
    return save_hub(tmp_path_factory.mktemp("hub") / family, family, TEMPLATES.get(family))


@pytest.fixture(scope="module")
def plain(folder: Path) -> VideoLLM:
    return opened(folder)


def opened(folder: Path, **options: Any) -> VideoLLM:
    return VideoLLM.from_pretrained(folder, **options)


def engine_of(llm: VideoLLM) -> HubEngine:
    assert isinstance(llm.engine, HubEngine)
    return llm.engine


def from_the_library(
    family: str, clip: VideoClip, pixels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    """What the family's processor writes for a video, told a file of these very seconds."""
    monkeypatch.setattr(processing_smolvlm, "num2words", in_words)
    told = VideoMetadata(
        total_num_frames=10_000,
        fps=10.0,
        duration=clip.duration,
        frames_indices=[round(10 * float(s)) for s in clip.seconds],
    )
    processor = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<img>",
        vision_end_token="</img>",
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<image>",
        video_token="<video>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        image_seq_len=4,
        image_seq_length=4,
        num_image_tokens=16,
        _calculate_timestamps=lambda *a: Qwen3VLProcessor._calculate_timestamps(None, *a),
    )
    given = {**pixels, "video_metadata": [told]}
    if family == "internvl":
        given["pixel_values_videos"] = pixels["pixel_values"][None]
    return str(PROCESSORS[family].replace_video_token(processor, given, 0))


def test_prompts_and_answers_are_those_of_transformers(
    plain: VideoLLM, clip: VideoClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own text, ids and `generate`, with the clip's true seconds."""
    frames = torch.from_numpy(clip.frames.copy())
    pixels = video_pixels(engine_of(plain).kind, frames, engine_of(plain).memory.options)
    text = PROMPTS[engine_of(plain).kind].format(
        from_the_library(engine_of(plain).kind, clip, pixels, monkeypatch)
    )
    ids = torch.tensor([letters()(text)["input_ids"]])
    beside: dict[str, Any] = {}
    if "qwen" in engine_of(plain).kind:
        beside["mm_token_type_ids"] = 2 * (ids == 102).int()
    if engine_of(plain).kind == "qwen2_5_vl":
        step = 2 * float(clip.seconds[-1] - clip.seconds[0]) / 5
        beside["second_per_grid_ts"] = torch.tensor([step])
    out = plain.model.generate(
        input_ids=ids, **pixels, **beside, max_new_tokens=12, do_sample=False, eos_token_id=97
    )
    answer = plain.ask(clip, QUESTION, max_new_tokens=12)
    assert answer.raw == letters().decode(out[0, ids.shape[1] :]).strip()
    count = (ids >= 101).sum() - (ids >= 103).sum()  # of <image> and <video>
    newline = int(engine_of(plain).kind == "llava_onevision")
    assert answer.receipt.tokens_full == answer.receipt.tokens_kept == int(count) - newline
    stages = ["decode", "encode", "compress", "prefill", "generate"]
    assert list(answer.receipt.seconds) == stages and answer.receipt.frames == 6
    shown = plain.prompt_text(clip, QUESTION)
    runs = [int(count) for count in re.findall(r"<video (\d+)>", shown)]
    assert sum(runs) == int(count) and QUESTION in shown


def test_the_prompt_tells_the_true_seconds(plain: VideoLLM, clip: VideoClip) -> None:
    shown = plain.prompt_text(clip, QUESTION)
    seconds = clip.seconds.tolist()
    if engine_of(plain).kind == "qwen3_vl":
        middles = [(a + b) / 2 for a, b in zip(seconds[::2], seconds[1::2], strict=True)]
        wanted = [f"<{t:.1f} seconds><img><video" for t in middles]
    elif engine_of(plain).kind == "video_llama_3":
        wanted = [f"Time {t:.1f}s:<video" for t in seconds]
    elif engine_of(plain).kind == "smolvlm":
        wanted = [f"\nFrame from 00:{int(t):02d}:<fake" for t in seconds] + ["six frames", "0:00:0"]
    elif engine_of(plain).kind == "internvl":
        wanted = [f"Frame{n}: <img><video 4></img>" for n in range(1, 7)]
    else:
        wanted = ["<video "]
    assert all(words in shown for words in wanted), shown
    told = plain.prompt_text(clip, QUESTION, times=True)
    assert ",".join(f"{t:.2f}s" for t in seconds) + "." in told


@pytest.mark.parametrize("spec", ["aim", "fastv"])
def test_compressed_answers_and_several_questions(folder: Path, clip: VideoClip, spec: str) -> None:
    llm = opened(folder, compressor=spec, keep=0.5)
    calls: list[int] = []
    engine_of(llm).adapter.tower.register_forward_hook(lambda *_: calls.append(1))
    two = llm.ask(clip, [QUESTION, "What happens?"], max_new_tokens=6)
    assert isinstance(two, list) and len(calls) == 1
    for answer in two:
        full, kept = answer.receipt.tokens_full, answer.receipt.tokens_kept
        assert kept == budget_of(0.5, full) < full
        assert answer.receipt.kv_kept_mb < answer.receipt.kv_full_mb
        assert ("reads the question" in " ".join(answer.notes)) == (spec == "fastv")
    again = llm.ask(clip, "What happens?", max_new_tokens=6)
    assert len(calls) == 1 and again.raw == two[1].raw  # the encoded video is reused
    seen = engine_of(llm).memory.last(clip)
    assert seen is not None and (seen.prefix is None) == (spec == "fastv")  # and its keys
    assert seen.prefix is None or seen.prefix[1].reused >= 2
    other = llm.ask(load_video(clip.path, frames=4), QUESTION, max_new_tokens=1)
    assert len(calls) == 2 and other.receipt.frames == 4


def test_methods_are_told_the_clips_seconds(folder: Path, clip: VideoClip) -> None:
    """Also where the prompt rounds them or does not tell them."""
    from vidllm.compressors import build

    llm = opened(folder)
    method = build("uniform", keep=0.5)
    seen: list[Any] = []
    method.plan = lambda tokens, budget, query=None: (  # type: ignore[method-assign]
        seen.append(tokens),
        type(method).plan(method, tokens, budget, query),
    )[1]
    llm.compressor = method
    llm.ask(clip, QUESTION, max_new_tokens=1)
    slots = engine_of(llm).memory.open(clip).slots
    spans = seen[0].span.double()
    firsts = [float(spans[seen[0].frame == f][0, 1]) for f in range(len(slots) - 1)]
    edges = [(a + b) / 2 for a, b in pairwise(slots)]
    assert firsts == pytest.approx(edges, abs=1e-5)


def test_frames_and_keep_for_a_number_of_tokens(folder: Path, video: Path) -> None:
    for spec, tokens in (("aim", 60), ("aim", 7), ("temporal-pool,uniform", 40)):
        llm = opened(folder, compressor=spec, frames="auto", tokens=tokens)
        answer = llm.ask(video, QUESTION, max_new_tokens=1)
        full, kept = answer.receipt.tokens_full, answer.receipt.tokens_kept
        assert kept == min(full, tokens)
        assert answer.notes[-1].endswith(f": {kept} of at most {tokens} video tokens")
    plain = opened(folder)
    one = plain.count(48, 64, 1)
    answer = plain.ask(video, QUESTION, frames="auto", tokens=3 * one, max_new_tokens=1)
    assert one <= answer.receipt.tokens_kept <= 3 * one
    with pytest.raises(InputError, match="give more tokens or a compressor"):
        plain.ask(video, QUESTION, frames="auto", tokens=1)
    with pytest.raises(InputError, match="nothing removes any"):
        plain.ask(video, QUESTION, frames=8, tokens=1)
    with pytest.raises(InputError, match="give tokens"):
        plain.ask(video, QUESTION, frames="auto")


def test_the_most_frames_that_fit() -> None:
    assert choose_frames(100, 1.0, 1000, lambda t: 7 * t) == 14
    assert choose_frames(100, 0.25, 1000, lambda t: 7 * t) == 58  # 406 tokens: 100 of them stay
    assert choose_frames(98, 1.0, 10, lambda t: 7 * t) == 10
    assert choose_frames(5, 0.5, 10, lambda t: 100 * t) == 1
    pairs = [choose_frames(n, 0.5, 100, lambda t: 10 * -(-t // 2)) for n in (10, 12, 15)]
    assert pairs == [4, 6, 6]


def test_what_a_model_says_becomes_spans(
    folder: Path, clip: VideoClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's words are put into its mouth; all around them is real."""
    llm = opened(folder)
    asked: list[str] = []

    def says(text: str) -> Callable[..., torch.Tensor]:
        def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            asked.append(letters().decode(input_ids[0]))
            engine_of(llm).memory.adapter.model(
                input_ids=input_ids[:, :2]
            )  # a call, so that there is a report
            new = torch.tensor([letters()(text)["input_ids"]])
            return torch.cat([input_ids, new], dim=1)

        return generate

    monkeypatch.setattr(llm.model, "generate", says("It is from 0:01 to 00:00:03.<|im_end|>"))
    answer = llm.ground_answer(clip, "the ball falls.")
    origin = float(clip.seconds[0]) if engine_of(llm).kind == "qwen2_5_vl" else 0.0
    assert [tuple(s)[:2] for s in answer.spans] == [(1.0 + origin, 3.0 + origin)]
    assert answer.text == "It is from 0:01 to 00:00:03." and not answer.failed
    assert "the video: the ball falls? Answer with" in asked[-1]
    named = engine_of(llm).script.clock == "none"  # then the seconds stand before the question
    assert ("These frames are located at" in asked[-1]) == named
    assert llm.ground(clip, "the ball falls", times=False) == list(answer.spans)
    assert "These frames are located at" not in asked[-1]
    monkeypatch.setattr(llm.model, "generate", says("I do not know."))
    lost = llm.ground_answer(clip, "the ball falls")
    assert lost.failed and lost.spans == () and llm.highlights(clip, "it falls") == []
    assert "the answer names no time" in lost.notes
    assert llm.caption(clip).failed and "one event a line" in asked[-1]
    thought = "<think>from 0 to 1 s?</think><answer>1 s to 3 s</answer><|im_end|>"
    monkeypatch.setattr(llm.model, "generate", says(thought))
    answer = llm.ground_answer(clip, "the ball falls")
    assert [tuple(s)[:2] for s in answer.spans] == [(1.0 + origin, 3.0 + origin)]
    monkeypatch.setattr(llm.model, "generate", says("<think>from 1 to 3 s, so"))
    endless = llm.ground_answer(clip, "the ball falls")
    assert endless.failed and any("still thinking" in note for note in endless.notes)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield save_hub(tmp_path_factory.mktemp("qwen") / "q", "qwen2_5_vl", TAKES_VIDEOS)


def test_what_cannot_be_served_is_refused(qwen: Path, clip: VideoClip, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lfm3_vl"}')
    with pytest.raises(InputError, match=r"lfm3_vl .* use one of Qwen2\.5-VL, Qwen3-VL"):
        VideoLLM.from_pretrained(tmp_path)
    for lost, words in (
        ("tokenizer.json", "put tokenizer.json"),
        ("video_preprocessor_config.json", "preprocessor_config.json"),
    ):
        part = tmp_path / lost
        part.mkdir()
        for file in qwen.iterdir():
            if file.name != lost:
                (part / file.name).write_bytes(file.read_bytes())
        with pytest.raises(InputError, match=words) as caught:
            VideoLLM.from_pretrained(part)
        assert "\n" not in str(caught.value)
    (tmp_path / lost / "video_preprocessor_config.json").write_text(json.dumps({}))
    (tmp_path / lost / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
    with pytest.raises(WorkError, match="no place for a video"):
        VideoLLM.from_pretrained(tmp_path / lost)
    with pytest.raises(InputError, match="mustdrop-filter,mustdrop-cache"):
        opened(qwen, compressor="mustdrop-cache", keep=0.5)
    llm = opened(qwen)
    for question in ("", " ", [], "what is <video> here?", "say <|im_end|>"):
        with pytest.raises(InputError):
            llm.ask(clip, question)
    with pytest.raises(InputError, match="tokens must be"):
        llm.ask(clip, QUESTION, tokens=0)


def test_other_numbers_and_attention(qwen: Path, clip: VideoClip) -> None:
    llm = opened(qwen, compressor="aim", keep=0.5, dtype="bfloat16", attn="eager", device="cpu")
    assert llm.model.dtype == torch.bfloat16
    assert llm.model.config._attn_implementation == "eager"
    assert llm.ask(clip, QUESTION, max_new_tokens=2).receipt.tokens_kept == 9


def test_the_command_line(
    cli: Callable[..., Any], refused: Callable[..., str], qwen: Path, video: Path, tmp_path: Path
) -> None:
    done = cli(
        *("ask", video, QUESTION, "--model", qwen, "--compressor", "aim", "--json"),
        *("--frames", "auto", "--tokens", "9", "--show-prompt", "--max-new-tokens", "4"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["receipt"]["tokens_kept"] == 9 and said["notes"][-1] in done.stderr
    assert "<img><video 24></img>When does it start?" in done.stderr
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    line = refused(cli("ground", video, "it starts", "--model", tmp_path))
    assert "a bert model" in line and "SmolVLM2" in line


def test_smolvlms_chat_is_the_librarys_for_videos() -> None:
    turn: Any = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q"}]}]
    template = processing_smolvlm.DEFAULT_CHAT_TEMPLATE
    text = letters().apply_chat_template(
        turn, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    script = SCRIPTS["smolvlm"]
    marks = {name: text for name, (_, text) in script.marks.items()}
    assert chat(script, letters(), TAKES_TEXT, marks).replace("{question}", "Q") == text


def test_numbers_in_words() -> None:
    for number, words in (
        (0, "zero"),
        (13, "thirteen"),
        (64, "sixty-four"),
        (128, "one hundred and twenty-eight"),
        (1001, "one thousand and one"),
        (1234, "one thousand, two hundred and thirty-four"),
    ):
        assert in_words(number) == words
