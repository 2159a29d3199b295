"""Files with right checksums and wrong facts, questions without end, folders of other weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from long_tiny import ASKED, indexed, loud
from tiny import save_tiny
from videos import write_video

from vidllm import InputError, VideoIndex, VideoLLM
from vidllm.compressors import Chain, build
from vidllm.errors import VidllmError, WorkError
from vidllm.longvideo.store import IndexFile, write_file
from vidllm.models.folder import check_folder, read_config
from vidllm.models.question import QUESTION_BYTES, check_room
from vidllm.models.shipped import default_model


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    return loud()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("v") / "v.mp4", 60, fps=2, size=(64, 48))


@pytest.fixture(scope="module")
def index(llm: VideoLLM, video: Path) -> VideoIndex:
    return indexed(llm, video, video.with_name("v.vidx"))


def rewritten(
    index: VideoIndex, path: Path, facts: dict[str, Any], tensors: dict[str, Any] | None = None
) -> Path:
    """The same index with other facts or tensors, and right checksums."""
    held = {name: index.tensor(name) for name in index.names()} | (tensors or {})
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in held.items()}
    write_file(path, shapes, {**index.facts, **facts}, held.items())
    return path


def test_facts_of_an_index_that_cannot_be_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    level = index.facts["levels"][0]
    method = index.facts["compressor"]
    for facts in (
        {"fps": 0}, {"fps": "4"}, {"fps": 10**12}, {"duration": -1}, {"until": 10**6},
        {"until": 12.0}, {"complete": 1}, {"complete": None}, {"notes": "none"}, {"notes": [1]},
        {"grid": [2]}, {"grid": [1, 4096]}, {"lost": [[5, 3]]}, {"lost": [[3, 5], [1, 2]]},
        {"lost": [["a", "b"]]}, {"precision": "float16"}, {"precision": "int8"}, {"levels": []},
        {"levels": [{**level, "windows": 10**9}]}, {"levels": [{**level, "tokens": 1}]},
        {"levels": [{**level, "length": 3.0}]}, {"levels": [{**level, "seconds": 7.0}]},
        {"levels": [level] * 3}, {"source": {"name": "v.mp4"}}, {"source": None}, {"model": 7},
        {"compressor": {**method, "keep": 0}}, {"compressor": {**method, "budget": -1}},
        {"carried": "no"}, {"near_error": [1]},
    ):  # fmt: skip
        path = rewritten(index, tmp_path / "bad.vidx", facts)
        with pytest.raises(InputError, match=r"bad\.vidx is damaged: (field|tensor)") as caught:
            VideoIndex.load(path)
        assert "\n" not in str(caught.value), facts


def test_tensors_of_an_index_that_do_not_fit_are_refused(index: VideoIndex, tmp_path: Path) -> None:
    seconds, row = index.tensor("seconds"), index.tensor("row")
    features, span = index.tensor("features.0"), index.tensor("span.0")
    nan = features.clone()
    nan[0, 0, 0] = float("nan")
    for name, tensor in (
        ("seconds", seconds.flip(0)), ("seconds", seconds + 1e4), ("seconds", seconds[:-1]),
        ("seconds", seconds * float("nan")), ("row", row + 10**6), ("row", -row - 1),
        ("row", row.long()), ("features.0", features[..., :-1]), ("features.0", nan),
        ("span.0", -span - 1), ("span.0", span + 1e6), ("span.0", span.double()),
        ("position.0", index.tensor("position.0") + 10**6),
        ("start.0", torch.tensor([9.0]).double()),
        ("thumb_ends", index.tensor("thumb_ends") + 5), ("other", row),
    ):  # fmt: skip
        path = rewritten(index, tmp_path / "bad.vidx", {}, {name: tensor})
        with pytest.raises(InputError, match=r"bad\.vidx is damaged: tensor"):
            IndexFile(path)


def test_facts_that_only_the_model_can_tell_are_refused(
    llm: VideoLLM, index: VideoIndex, tmp_path: Path
) -> None:
    frames = index.facts["levels"][0]["frames"]
    method = index.facts["compressor"]
    for facts in (
        {"model": "0" * 16},
        {"carried": True},
        {"levels": [{**index.facts["levels"][0], "frames": frames + 1}]},
        {"compressor": {**method, "spec": "uniform", "repr": "Uniform(keep=2)"}},
    ):
        path = rewritten(index, tmp_path / "bad.vidx", facts)
        with pytest.raises(InputError):
            VideoIndex.load(path, llm).ask(ASKED)
    same = VideoIndex.load(rewritten(index, tmp_path / "same.vidx", {}), llm)
    assert same.ask(ASKED).text == index.ask(ASKED).text


def test_a_question_has_a_greatest_length(llm: VideoLLM, index: VideoIndex, video: Path) -> None:
    words = "the red star spins " * 1300
    ways: tuple[Callable[[Any], Any], ...] = (
        lambda q: llm.ask(video, q),
        lambda q: llm.ask(video, ["what spins?", q]),
        lambda q: llm.ground(video, q),
        lambda q: llm.highlights(video, q),
        lambda q: llm.preview(video, q, compressor="uniform", tokens=4) if len(q) > 10**5 else
        llm.ask(video, q),
        index.ask,
        index.ground,
    )  # fmt: skip
    for ask in ways:
        with pytest.raises(InputError, match="tokens; this model was trained on questions"):
            ask(words)
        with pytest.raises(InputError, match=f"more than {QUESTION_BYTES}"):
            llm.ask(video, "a" * 10**6)
        with pytest.raises(InputError, match="no text"):
            ask("what \ud800?")
    for question in (None, 7, [], [None], ["a"] * 5000, b"what?"):
        with pytest.raises(InputError):
            llm.ask(video, question)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="for the answer are"):
        llm.ask(video, "what spins?", max_new_tokens=10**8)
    for choices in (["A"] * 1000, [["A" * 100]], [[1, 2]]):
        with pytest.raises(InputError):
            llm.ask(video, "what?", choices=choices)  # type: ignore[call-overload]


def test_prompt_video_and_answer_are_counted_together() -> None:
    check_room(100, text=50, video=40, answer=10)
    check_room(None, text=10**9)
    with pytest.raises(InputError, match="50 tokens of text, 41 of the video and 10 for"):
        check_room(100, text=50, video=41, answer=10)


def test_specs_without_end_are_refused() -> None:
    deep = "protect(" * 300 + "aim" + ")" * 300
    for spec in (deep, ",".join(["uniform"] * 3000), "protect(" * 17 + "aim" + ")" * 17,
                 ",".join(["uniform"] * 65), "random:seed=-1", "aim:keep=nan", "uniform:budget=0",
                 f"uniform:budget={'9' * 5000}", "protect:first=99999999999(aim)"):  # fmt: skip
        with pytest.raises(InputError) as caught:
            build(spec)
        assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match="at most 64 methods"):
        Chain([build("uniform")] * 65)  # type: ignore[list-item]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("m") / "tiny")


def test_a_config_is_held_against_its_weights(folder: Path, tmp_path: Path) -> None:
    check_folder(folder)
    right = json.loads((folder / "config.json").read_text())
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))

    def changed(*keys: str, to: Any) -> None:
        config = json.loads(json.dumps(right))
        inside = config
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = to
        (copy / "config.json").write_text(json.dumps(config))

    for keys in (
        ("text", "num_hidden_layers"), ("text", "vocab_size"), ("text", "hidden_size"),
        ("text", "intermediate_size"), ("text", "num_attention_heads"), ("frames",), ("keep",),
        ("time_tokens",), ("time_token_start",), ("downsample",),
        ("vision", "hidden_size"),
    ):  # fmt: skip
        others = () if keys[0] in ("text", "vision") else ("many", None)
        for value in (10**12, -1, *others):
            changed(*keys, to=value)
            with pytest.raises(InputError, match=r"config\.json is damaged: field"):
                check_folder(copy)
    for text in ("[]", "{", "null", '{"frames": NaN}', '{"a": ' * 2000 + "1" + "}" * 2000, ""):
        (copy / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            read_config(copy)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match="no such file"):
        check_folder(copy)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "time_token_start": 3}))
    with pytest.raises(WorkError, match="its time tokens are not where config"):
        VideoLLM.from_pretrained(copy)
    for words in ("{}", "[1]", "{", '{"version": 3}'):
        (copy / "tokenizer.json").write_text(words)
        with pytest.raises(VidllmError):
            VideoLLM.from_pretrained(copy)


def test_shipped_weights_are_those_that_were_shipped(tmp_path: Path) -> None:
    home = default_model()
    copy = Path(shutil.copytree(home, tmp_path / home.name))
    shutil.copy(home.parent / "manifest.json", tmp_path)
    check_folder(copy)
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 64
    file.write_bytes(data)
    with pytest.raises(WorkError, match=r"model\.safetensors is not the file that was shipped"):
        VideoLLM.from_pretrained(copy)
    file.unlink()
    with pytest.raises(WorkError, match=r"model\.safetensors is missing"):
        check_folder(copy)
