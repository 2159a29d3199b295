"""Loading as people load: places, number types, fewer bits, the hub's cache, and model objects."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from hub_tiny import TAKES_VIDEOS, save_hub
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from transformers import AutoModelForImageTextToText
from videos import write_video

from vidllm import InputError, VideoLLM, WorkError, load_video
from vidllm.compressors import build
from vidllm.models.hub import unreachable
from vidllm.models.loading import DEFAULT_METHOD
from vidllm.video import VideoClip

QUESTION = "When does it start?"
APART = Path(__file__).parents[2] / "build" / "quantization"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub(tmp_path_factory.mktemp("hub") / "qwen2_5_vl", "qwen2_5_vl", TAKES_VIDEOS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> VideoClip:
    times = [0.0, 0.4, 1.1, 1.5, 2.3, 3.0]
    file = write_video(tmp_path_factory.mktemp("video") / "v.mp4", times=times, size=(64, 48))
    return load_video(file, frames=6)


@pytest.fixture(scope="module")
def plain(folder: Path) -> VideoLLM:
    return VideoLLM.from_pretrained(folder, keep=0.5)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def raw(plain: VideoLLM, clip: VideoClip) -> str:
    return said(plain, clip)


def said(llm: VideoLLM, clip: VideoClip, **options: Any) -> str:
    return llm.ask(clip, QUESTION, max_new_tokens=6, **options).raw


def refused(name: Any, words: str, **options: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        VideoLLM.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


def test_a_share_without_a_method_has_a_good_one_and_says_so(
    folder: Path, plain: VideoLLM, clip: VideoClip, raw: str
) -> None:
    answer = plain.ask(clip, QUESTION, max_new_tokens=6)
    assert answer.receipt.method == DEFAULT_METHOD == plain.compressor.name
    assert f"(50 %) by {DEFAULT_METHOD} · " in str(answer.receipt)
    assert json.loads(json.dumps(answer.as_dict()))["receipt"]["method"] == DEFAULT_METHOD
    whole = VideoLLM.from_pretrained(folder)
    same = whole.ask(clip, QUESTION, max_new_tokens=6, keep=0.5)
    assert (same.raw, same.receipt.method) == (raw, DEFAULT_METHOD)
    none = whole.ask(clip, QUESTION, max_new_tokens=6)
    assert none.receipt.method == "none" and " by " not in str(none.receipt)
    assert said(plain, clip, keep=1.0) == none.raw
    other = whole.ask(clip, QUESTION, max_new_tokens=2, keep=0.5, compressor="evs")
    assert other.receipt.method == "evs"
    assert other.receipt.tokens_kept == answer.receipt.tokens_kept
    kept = whole.preview(clip, keep=0.5)
    assert len(kept) == answer.receipt.tokens_kept
    auto = whole.ask(clip.path, QUESTION, frames="auto", tokens=9, keep=0.5, max_new_tokens=1)
    assert auto.receipt.tokens_kept == 9 and auto.receipt.frames > 3
    with pytest.raises(InputError, match="an instance has its own"):
        whole.ask(clip, QUESTION, keep=0.5, compressor=build("aim", keep=0.5))
    with pytest.raises(InputError, match="keep must be above 0"):
        whole.ask(clip, QUESTION, keep=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_number_types_by_name_or_torchs_own(folder: Path, dtype: Any) -> None:
    assert VideoLLM.from_pretrained(folder, dtype=dtype).model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int8, "float8", 3])
def test_other_number_types_are_refused(folder: Path, dtype: Any) -> None:
    refused(folder, "dtype must be auto or one of float32, bfloat16, float16", dtype=dtype)


def test_places_change_nothing(folder: Path, clip: VideoClip, raw: str, tmp_path: Path) -> None:
    disk = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    for options in ({"device_map": "auto"}, {"device_map": disk, "offload_folder": tmp_path}):
        llm = VideoLLM.from_pretrained(folder, keep=0.5, **options)
        assert said(llm, clip) == raw
        assert said(llm, clip) == raw  # from the remembered clip
    refused(folder, "device and device_map both say", device="cpu", device_map="auto")
    refused(folder, "max_memory goes with device_map", max_memory={"cpu": "1GB"})


def test_attention_of_the_whole_or_of_a_part(folder: Path, clip: VideoClip, raw: str) -> None:
    parts = {"text_config": "eager", "vision_config": "sdpa"}
    for value in ("eager", parts):
        llm = VideoLLM.from_pretrained(folder, keep=0.5, attn_implementation=value)
        assert llm.config.text_config._attn_implementation == "eager"
        assert said(llm, clip) == raw
    refused(folder, "no attention 'nonsense': give sdpa, eager", attn_implementation="nonsense")
    refused(folder, "are the same", attn="sdpa", attn_implementation="eager")


def test_what_was_loaded_is_saved(
    plain: VideoLLM, clip: VideoClip, raw: str, tmp_path: Path
) -> None:
    plain.save_pretrained(tmp_path / "saved" / "here")
    again = VideoLLM.from_pretrained(tmp_path / "saved" / "here", keep=0.5)
    assert said(again, clip) == raw
    assert again.prompt_text(clip, QUESTION) == plain.prompt_text(clip, QUESTION)
    with pytest.raises(InputError, match="is a file: give a folder"):
        plain.save_pretrained(clip.path)


def test_a_model_of_ones_own(model: Any, folder: Path, clip: VideoClip, raw: str) -> None:
    """As it is, dispatched, and with a LoRA, which answers as the merged model does."""
    assert said(VideoLLM.from_pretrained(model, processor=folder, keep=0.5), clip) == raw
    here = torch.device("cpu")
    moved = accelerate.cpu_offload(copy.deepcopy(model), execution_device=here)
    assert moved.device.type == "meta"
    llm = VideoLLM.from_pretrained(moved, processor=str(folder), keep=0.5)
    assert said(llm, clip) == raw
    assert said(llm, clip, compressor="aim-prune", keep=0.5) == said(
        VideoLLM.from_pretrained(model, processor=folder, compressor="aim-prune", keep=0.5), clip
    )


def test_a_model_with_a_lora(
    model: Any, folder: Path, clip: VideoClip, raw: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(copy.deepcopy(model), config)
    llm = VideoLLM.from_pretrained(trained, processor=folder, keep=0.5)
    answer = said(llm, clip)
    llm.save_pretrained(tmp_path)
    refused(tmp_path, "holds an adapter of PEFT and no model: load its base model")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    assert said(VideoLLM.from_pretrained(again, processor=tmp_path, keep=0.5), clip) == answer
    merged = VideoLLM.from_pretrained(trained.merge_and_unload(), processor=folder, keep=0.5)
    assert said(merged, clip) == answer != raw
    prompts = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        token_dim=32,
        num_layers=4,
        num_attention_heads=4,
    )
    prompted = peft.get_peft_model(copy.deepcopy(model), prompts)
    refused(prompted, "PROMPT_TUNING puts tokens of its own", processor=folder)


def test_a_model_of_ones_own_is_refused_in_one_line(
    model: Any, folder: Path, plain: VideoLLM
) -> None:
    refused(model, r"comes without its processor: give processor=AutoProcessor\.")
    refused(model, "does not say how pixels are made", processor=plain.tokenizer)
    refused(model, "device_map says how a model is loaded", processor=folder, device_map="auto")
    refused(model, "dtype says how a model is loaded", processor=folder, dtype="float16")
    refused(torch.compile(model), r"pass model\._orig_mod", processor=folder)
    refused(torch.nn.Linear(2, 2), "a Linear model is not served", processor=folder)
    refused(3, "a model is a name, a folder, or a model object")
    compiled = copy.deepcopy(model)
    compiled.compile()
    refused(compiled, "it is compiled, and compiled code", processor=folder, keep=0.5)


def test_folders_and_options_that_do_not_do(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path, "holds no model: config.json is missing")
    refused(folder, "has no keyword 'nonsense': it takes name, recipe, ", nonsense=3)
    refused(folder, "revision names a version of a model on the hub", revision="main")
    refused(None, "device_map is for models of transformers", device_map="auto")
    refused(folder, "quantization_config is one of transformers", quantization_config="4bit")
    refused(folder, "Unknown quantization type", quantization_config={"quant_method": "none"})
    if importlib.util.find_spec("bitsandbytes") is None:
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        refused(folder, "requires bitsandbytes: `pip install", quantization_config=config)


def test_a_name_on_the_hub_comes_from_its_cache(
    folder: Path, clip: VideoClip, raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision of it; offline what is not there is said in one line."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "tuned").write_text("a" * 40)
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / ("a" * 40)).symlink_to(folder)
    where = {"revision": "tuned", "token": "secret", "local_files_only": True}
    llm = VideoLLM.from_pretrained("someone/tiny", keep=0.5, **where)
    assert said(llm, clip) == raw
    away = "^no model 'someone/tiny': .*the local cache lacks it, and the hub is not asked "
    refused("someone/tiny", away + r"\(HF_HUB_OFFLINE is set\)$", revision="other", token="secret")
    refused("someone/tiny", away + r"\(local_files_only\)$", local_files_only=True)


def test_what_the_hub_says_is_passed_on() -> None:
    def caused(kind: type[Exception]) -> OSError:
        error = OSError("several\nlines")
        error.__cause__ = kind.__new__(kind)
        return error

    for kind, words in (
        (GatedRepoError, "'a/b' is gated on the hub: ask for access"),
        (RevisionNotFoundError, "the hub has no such revision of 'a/b'"),
    ):
        line = str(unreachable("a/b", caused(kind)))
        assert line.startswith(words) and "\n" not in line


def test_saving_that_fails_is_said_in_one_line(
    plain: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left\non the device")

    monkeypatch.setattr(plain.model, "save_pretrained", full)
    with pytest.raises(WorkError, match=r"cannot be saved in .*: no space left$"):
        plain.save_pretrained(tmp_path)


@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_fewer_bits(package: str, tmp_path: Path) -> None:
    """In a process of its own, for the packages stand beside the environment."""
    paths = [] if importlib.util.find_spec(package) else [str(APART)]
    if paths and not (APART / package).is_dir():
        pytest.skip(f"no {package}: pip install --no-deps --target build/quantization {package}")
    program = Path(__file__).parents[1] / "kit" / "quantized.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), *paths])}
    script = [sys.executable, str(program), package, str(tmp_path)]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weight"] in ("Params4bit", "Int8Tensor")
    assert len(set(found["answers"])) == 1  # loaded, as an object, with an idle LoRA, saved
    assert found["kept"] * 2 == found["full"] and found["logits"]
