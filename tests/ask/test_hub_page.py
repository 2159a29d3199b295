"""The page on compressing one's own model runs, and the native model has the same options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_tiny import TAKES_VIDEOS, letters, save_hub
from pages import run_page
from tiny import save_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature
from videos import write_video

from vidllm import InputError, VideoLLM, load_video
from vidllm.models.families.engine import HubEngine
from vidllm.models.families.pixel_files import pixel_options
from vidllm.models.families.pixels import video_pixels
from vidllm.models.families.scripts import beside, write


class Processor:
    """Stands in for AutoProcessor, which takes torchvision: the same inputs, made here."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = letters()
        self.llm = VideoLLM.from_pretrained(folder)
        self.options = pixel_options(folder)
        self.chat_template = TAKES_VIDEOS
        self.video_processor = SimpleNamespace(to_dict=lambda: self.options)

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        (folder / "video_preprocessor_config.json").write_text(json.dumps(self.options))

    def apply_chat_template(self, chat: list[dict[str, Any]], **_: Any) -> BatchFeature:
        llm = self.llm
        assert isinstance(llm.engine, HubEngine)
        video, question = chat[0]["content"]
        clip = load_video(video["path"], frames=8)
        seen = llm.engine.memory.open(clip)
        text = write(llm.engine.script, llm.engine.chat, seen.placed, question["text"])
        ids = torch.tensor([letters()(text)["input_ids"]])
        pixels = video_pixels(llm.engine.kind, torch.from_numpy(clip.frames.copy()), self.options)
        told = beside(llm.engine.adapter, seen.placed, ids, seen.length)
        mask = torch.ones_like(ids)
        return BatchFeature({"input_ids": ids, "attention_mask": mask, **pixels, **told})

    def decode(self, ids: torch.Tensor) -> str:
        return str(letters().decode(ids))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "match.mp4", 60, size=(64, 48))


def test_the_page_runs(
    root: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_hub(tmp_path / "model", "qwen2_5_vl", TAKES_VIDEOS)
    monkeypatch.chdir(video.parent)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", Processor)
    text = (root / "docs" / "your-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    mine, more = blocks[:2]
    assert len([line for line in mine.splitlines() if line]) <= 12
    added = set(more.splitlines()) - set(mine.splitlines()) - {""}
    assert len([line for line in added if "out = " not in line]) == 3
    name = '"Qwen/Qwen2.5-VL-3B-Instruct"'
    assert sum(name in block for block in blocks) == 1
    space: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace(name, repr(str(folder))), space)
    said = capsys.readouterr().out
    assert "video tokens 24 -> 6 (25.0 %)" in said
    assert "<img><video 96></img>When is the first goal?" in said
    assert re.search(r"frames, keep [\d.]+: \d+ of at most 1568 video tokens", said)
    assert space["first"].receipt.frames == 16
    assert re.search(r"^vidcom2 .* by vidcom2 · ", said, re.M)
    assert VideoLLM.from_pretrained("my-model").ask("match.mp4", "When?", max_new_tokens=1).raw
    families = re.findall(r"^\| ([A-Z][^|]+?) \|.*\| (\d+) \|$", text, re.M)
    from vidllm.models.families.scripts import SCRIPTS
    from vidllm.models.families.served import FAMILIES

    told = {named: int(frames) for named, frames in families}
    for kind, (family, _, _) in FAMILIES.items():
        rows = [n for row, n in told.items() if row == family or row.startswith(f"{family} ")]
        assert rows == [SCRIPTS[kind].frames]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_examples_run(
    page: str,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_hub(tmp_path / "model", "qwen2_5_vl", TAKES_VIDEOS)
    monkeypatch.chdir(video.parent)
    processor = Processor(str(folder))
    content = [{"type": "video", "path": "match.mp4"}, {"type": "text", "text": "When?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}])
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    given = {"model": model, "processor": processor, "inputs": inputs}
    names = run_page(page, given, {'"Qwen/Qwen2.5-VL-3B-Instruct"': repr(str(folder))})
    assert "video tokens 24 -> 6 (25.0 %)" in capsys.readouterr().out
    assert names["answer"].receipt.method == "vidcom2"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield save_tiny(tmp_path_factory.mktemp("native") / "n")


def test_a_number_of_tokens_for_the_native_model(native: Path, video: Path) -> None:
    llm = VideoLLM.from_pretrained(native, compressor="aim", frames="auto", tokens=30)
    answer = llm.ask(video, "what happens?", max_new_tokens=1)
    assert answer.receipt.tokens_kept == 30 < answer.receipt.tokens_full
    assert "30 of at most 30 video tokens" in answer.notes[-1]
    plain = VideoLLM.from_pretrained(native, keep=1)
    cells = plain.count(48, 64, 1)
    one = plain.ask(video, "what?", frames="auto", tokens=3 * cells, max_new_tokens=1)
    assert one.receipt.frames == 3 and one.receipt.tokens_kept == 3 * cells
    with pytest.raises(InputError, match="nothing removes any"):
        plain.ask(video, "what?", frames=4, tokens=3 * cells)
    with pytest.raises(InputError, match="only one of frames and fps"):
        plain.ask(video, "what?", frames="auto", tokens=9, fps=1.0)
    with pytest.raises(InputError, match="a number or 'auto'"):
        plain.ask(video, "what?", frames="some", tokens=9)


def test_the_prompt_of_the_native_model(native: Path, video: Path) -> None:
    llm = VideoLLM.from_pretrained(native)
    cells = llm.count(48, 64, 1)
    shown = llm.prompt_text(video, "what happens?", frames=4)
    assert f"<video {4 * cells}>" in shown and "what happens" in shown
    llm.config.stamps = True
    told = llm.prompt_text(video, "what happens?", frames=4)
    assert told.count(f"<video {cells}>") == 4
    assert re.findall(r"<t(\d+)>", told) == sorted(re.findall(r"<t(\d+)>", told), key=int)
