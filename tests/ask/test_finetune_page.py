"""The page on fine-tuning runs, with a tiny model in place of the one that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import TAKES_VIDEOS, save_hub
from test_hub_page import Processor
from transformers import AutoProcessor
from videos import write_video


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="a LoRA needs peft: pip install 'vidllm[lora]'")
    folder = save_hub(tmp_path / "model", "qwen2_5_vl", TAKES_VIDEOS)
    write_video(tmp_path / "match.mp4", 60, size=(64, 48))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", Processor)
    processor = Processor(str(folder))
    video = {"type": "video", "path": "match.mp4"}

    def collate(rows: list[str]) -> dict[str, Any]:
        content = [video, {"type": "text", "text": rows[0]}]
        inputs = dict(processor.apply_chat_template([{"role": "user", "content": content}]))
        labels = inputs["input_ids"].clone()
        labels[:, :-12] = -100
        return {**inputs, "labels": labels}

    text = (root / "docs" / "finetune.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    mine, less = blocks[:2]
    assert len([line for line in mine.splitlines() if line]) <= 12
    added = set(less.splitlines()) - set(mine.splitlines()) - {""}
    assert len([line for line in added if not line.startswith("    ")]) == 2
    space: dict[str, Any] = {"dataset": ["When is it?"] * 4, "collate": collate}
    for block in blocks:
        made = block.replace('"Qwen/Qwen2.5-VL-3B-Instruct"', repr(str(folder)))
        made = made.replace("max_steps=500, ", "max_steps=1, save_strategy='no', ")
        made = made.replace("TrainingArguments(", "TrainingArguments(use_cpu=True, output_dir=")
        exec(made, space)
        torch.manual_seed(0)
    names = {file.name for file in Path("adapter").iterdir()}
    assert {"adapter_model.safetensors", "temporal.safetensors"} <= names
    assert space["c"].receipt.tokens_kept * 4 == space["c"].receipt.tokens_full
    assert "tensor(" in capsys.readouterr().out
