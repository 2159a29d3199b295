"""`vidllm serve` and `vidllm bench serve` where there is no vLLM, and what a client sends."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from processes import Run

from vidllm import VideoLLM
from vidllm.cli import serve_command
from vidllm.errors import InputError
from vidllm.eval.bench import bench_command
from vidllm.eval.run import eval_command
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


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--adapter", "x"], "vLLM takes no adapters of vidllm train hub"),
        (["--device-map=auto"], "vLLM spreads a model by --tensor-parallel-size"),
        (["--revision", "v1.0"], "--revision names a version of a model on the hub"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_it_is_looked_for(
    words: list[str], reason: str, tmp_path: Path, cli: Run
) -> None:
    asked = cli("serve", "--model", str(tmp_path), *words)
    assert asked.returncode == 2 and asked.stdout == "" and asked.stderr.count("\n") == 1
    assert reason in asked.stderr


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
def test_without_vllm_a_model_says_what_to_install(tmp_path: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "qwen3_vl", "architectures": ["x"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"engine 'vllm' needs vllm: pip install"):
        VideoLLM.from_pretrained(tmp_path, engine="vllm")
    with pytest.raises(InputError, match="engine is transformers or vllm"):
        VideoLLM.from_pretrained(tmp_path, engine="other")
    with pytest.raises(InputError, match="give engine='vllm'"):
        VideoLLM.from_pretrained(tmp_path, engine_options={"max_model_len": 64})
    with pytest.raises(InputError, match="engine is for models of transformers"):
        VideoLLM.from_pretrained(engine="vllm")  # the shipped one is our own


def test_engine_options_of_a_benchmark_are_an_object() -> None:
    command: Any = typer.main.get_command(eval_command.app)
    for text, reason in (("{", "no JSON"), ("[1]", "a JSON object"), ("3", "a JSON object")):
        words = ["stage", "--engine", "vllm", "--engine-options", text]
        with pytest.raises(InputError, match=reason):
            command.main(args=words, standalone_mode=False)
    with pytest.raises(InputError, match="--engine must be one of transformers, vllm"):
        command.main(args=["stage", "--engine", "sglang"], standalone_mode=False)


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
