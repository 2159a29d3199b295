"""`vidllm serve` and `vidllm bench serve` where there is no vLLM, and what a client sends."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import typer

from vidllm.cli import serve_command
from vidllm.errors import InputError
from vidllm.eval.bench import bench_command
from vidllm.models.serving.client import chat_request
from vidllm.models.serving.plugin import check_model
from vidllm.video import VideoClip


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
@pytest.mark.parametrize(
    ("app", "words"), [(serve_command.app, []), (bench_command.app, ["serve"])]
)
def test_without_vllm_both_say_what_to_install(app: typer.Typer, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    with pytest.raises(InputError, match=r"pip install 'vidllm\[vllm\]'"):
        command.main(args=[*words, "--model", "x"], standalone_mode=False)


def test_a_folder_of_another_architecture_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"architectures": ["InternVLForConditionalGeneration"]}')
    with pytest.raises(InputError, match="does not serve InternVLForConditionalGeneration"):
        check_model(str(tmp_path))
    file.write_text('{"architectures": ["Qwen3VLForConditionalGeneration"]}')
    check_model(str(tmp_path))
    file.write_text("[]")
    with pytest.raises(InputError, match="no configuration"):
        check_model(str(tmp_path))


def test_a_request_has_every_frame_and_its_millisecond() -> None:
    seconds = np.array([0.0, 0.4004, 3.25])
    clip = VideoClip(
        frames=np.zeros((3, 28, 28, 3), np.uint8),
        seconds=seconds,
        fps=25.0,
        duration=4.0,
        indices=np.arange(3),
        path="made",
    )
    request = chat_request(clip, "when?", compressor="aim", keep=0.25)
    video, question = request["messages"][0]["content"]
    assert len(video["video_url"]["url"].split(",")) == 1 + 3
    assert question == {"type": "text", "text": "when?"}
    extra = request["extra_body"]
    assert extra["mm_processor_kwargs"] == {"compressor": "aim", "keep": 0.25}
    facts = extra["media_io_kwargs"]["video"]
    assert [n / facts["fps"] for n in facts["frames_indices"]] == [0.0, 0.4, 3.25]
    assert facts["total_num_frames"] / facts["fps"] == facts["duration"] == 4.0
    assert "mm_processor_kwargs" not in chat_request(clip, "when?")["extra_body"]
