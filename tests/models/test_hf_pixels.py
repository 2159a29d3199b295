"""Pixels of hub models: equal to transformers' own video processors, which need torchvision.

What those make is kept in goldens/pixels_*.npz (shapes, hashes and some values of every tensor),
written by `hf_pixels_library.py`. Where a torchvision is at hand, in the environment or by itself
in build/torchvision, that program runs again and is compared with anew.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_pixels_library import CASES, FOLDERS, PACKED, Case, clips, environment, plain, shown
from hf_pixels_library import write_folder as write
from hf_tiny import FAMILIES, hf_model

from vidllm.errors import InputError
from vidllm.models.families import pixels
from vidllm.models.families.pixel_files import complete, pixel_options
from vidllm.models.families.pixels import target_sizes, tokens_per_frame, video_pixels

TESTS = Path(__file__).parents[1]
APART = TESTS.parent / "build" / "torchvision"
GREY = 3 / 255  # of the range: other kernels round otherwise, here and there
_EDGES = {"shortest_edge": 64, "longest_edge": 4096}
#: Options under which the tiny models take their frames.
TINY: dict[str, dict[str, Any]] = {
    **{family: {"size": _EDGES, "patch_size": 4} for family in PACKED},
    **{family: {"size": {"height": 32, "width": 32}} for family in ("llava_onevision", "internvl")},
    "smolvlm": {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 32}},
}


@cache
def ours(family: str) -> dict[str, np.ndarray[Any, Any]]:
    found = {}
    for name, case in CASES[family].items():
        made = video_pixels(family, case.frames(), case.options)
        found.update({f"{name}/{key}": value for key, value in shown(made)})
    return found


def golden(family: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(TESTS / "goldens" / f"pixels_{family}.npz") as file:
        return dict(file)


def agree(family: str, theirs: dict[str, np.ndarray[Any, Any]]) -> None:
    """To the bit under the torch that made them; else but for a few values, by a grey level."""
    pixel_keys = {key for key in theirs if key.split("/")[-1] in ("shape", "hash", "values")}
    made = ours(family)
    assert pixel_keys == set(made)
    exact = str(theirs["environment"]) == environment()
    for key in sorted(pixel_keys):
        a, b = made[key], theirs[key]
        if exact or key.endswith("shape") or np.issubdtype(b.dtype, np.integer):
            assert np.array_equal(a, b), f"{family}: {key}"
        elif np.issubdtype(b.dtype, np.floating):
            # Without fast kernels for bytes, the library's bilinear filter goes through floats.
            share = 0.7 if key.startswith("bilinear") else 0.97
            assert a.dtype == b.dtype and (np.abs(a - b) < 1e-5).mean() > share, f"{family}: {key}"
            assert np.abs(a - b).max() <= GREY * np.ptp(b), f"{family}: {key}"


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_that_the_library_made(family: str) -> None:
    agree(family, golden(family))


def test_pixels_are_those_that_the_library_makes_here(tmp_path: Path) -> None:
    paths = [] if importlib.util.find_spec("torchvision") else [str(APART)]
    if paths and not (APART / "torchvision").is_dir():
        pytest.skip(
            "no torchvision to compare with: pip install --no-deps --target build/torchvision "
            "torchvision==(the one of this torch)"
        )
    script = [sys.executable, str(TESTS / "kit" / "hf_pixels_library.py"), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for family in FAMILIES:
        with np.load(tmp_path / f"pixels_{family}.npz") as file:
            theirs = dict(file)
        assert str(theirs["environment"]) == environment()
        agree(family, theirs)
        stored = golden(family)
        assert set(theirs) == set(stored)  # else the goldens are old: run the program again
        for key in theirs:
            if key == "sizes" or key.startswith("files/"):
                assert np.array_equal(theirs[key], stored[key]), f"{family}: {key}"


@pytest.mark.parametrize("family", PACKED)
def test_sizes_of_many_clips(family: str) -> None:
    refused = 0
    theirs = golden(family)["sizes"].tolist()
    for ((frames, height, width), options), expected in zip(clips(family), theirs, strict=True):
        settings = complete(family, options)
        if expected == [0, 0]:
            refused += 1
            with pytest.raises(InputError, match="too narrow"):
                target_sizes(family, height, width, frames, settings)
        else:
            assert list(target_sizes(family, height, width, frames, settings)[-1]) == expected
    assert 0 < refused < 80


@pytest.mark.parametrize("layout", FOLDERS)
def test_options_are_those_that_the_library_reads(layout: str, tmp_path: Path) -> None:
    family = FOLDERS[layout][0]
    write(layout, tmp_path / "model")
    found = pixel_options(str(tmp_path / "model"))
    assert plain(found) == str(golden(family)[f"files/{layout}"])
    assert complete(family, found) == found == pixel_options(str(tmp_path / "model"), family)


def test_a_single_frame_of_qwen3_stands_still_for_a_pair() -> None:
    """The library refuses it; two equal frames are what it makes of a picture."""
    frame = Case((1, 70, 91)).frames()
    made = video_pixels("qwen3_vl", frame, {})
    pair = video_pixels("qwen3_vl", frame.expand(2, -1, -1, -1), {})
    assert all(torch.equal(made[key], pair[key]) for key in pair)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_clip_do_not_show(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((7, 61, 90), TINY[family])
    frames = case.frames()
    whole = video_pixels(family, frames, case.options)
    monkeypatch.setattr(pixels, "_BATCH", 1)
    strided = frames.movedim(1, 2).contiguous().movedim(2, 1)
    parts = video_pixels(family, strided, case.options)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clip", [(4, 60, 90), (1, 16, 40), (5, 200, 33), (2, 3, 5)])
def test_tokens_are_counted_before_anything_runs(family: str, clip: tuple[int, int, int]) -> None:
    model = hf_model(family).model
    frames = Case(clip).frames()
    inputs = video_pixels(family, frames, TINY[family])
    options = TINY[family]
    steps, rows, columns = tokens_per_frame(family, *clip[1:], clip[0], options, model.config)
    kept = inputs.pop("video_compression_mask", None)
    images = "pixel_values" in inputs
    with torch.no_grad():
        made = (model.get_image_features if images else model.get_video_features)(**inputs)
    features = made.pooler_output
    if isinstance(features, list | tuple):
        features = torch.cat(list(features))
    count = features.flatten(0, -2).shape[0]
    assert count == steps * rows * columns + (family == "llava_onevision")
    assert kept is None or kept.shape == (count,)
    assert steps == (-(-clip[0] // 2) if family.startswith("qwen") else clip[0])


def test_tokens_of_published_models() -> None:
    """Known counts: 196 a frame of LLaVA-OneVision, 256 of InternVL, 81 of SmolVLM2-2.2B."""
    from transformers import InternVLConfig, LlavaOnevisionConfig, SmolVLMConfig

    llava = LlavaOnevisionConfig(vision_config={"model_type": "siglip_vision_model"})
    llava.vision_config.image_size, llava.vision_config.patch_size = 384, 14
    assert tokens_per_frame("llava_onevision", 720, 1280, 32, {}, llava) == (32, 14, 14)
    options: dict[str, Any] = {"size": {"height": 448, "width": 448}}
    assert tokens_per_frame("internvl", 720, 1280, 8, options, InternVLConfig()) == (8, 16, 16)
    smol = SmolVLMConfig(vision_config={"image_size": 384, "patch_size": 14}, scale_factor=3)
    options = {"max_image_size": {"longest_edge": 384}}
    assert tokens_per_frame("smolvlm", 720, 1280, 64, options, smol) == (64, 9, 9)
    with pytest.raises(InputError, match="384 x 384 pixels, not 364"):
        tokens_per_frame("smolvlm", 720, 1280, 64, {}, smol)


def test_videollama3_keeps_what_moves() -> None:
    frames = torch.full((4, 56, 56, 3), 100, dtype=torch.uint8)
    frames[2:, 28:, 28:] = 180  # changes once, in the last token
    made = video_pixels("video_llama_3", frames, {"min_pixels": 1, "max_pixels": 4 * 56 * 56})
    left = made["video_compression_mask"].view(4, 4).int().tolist()
    assert left == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]


def test_lanczos_without_torch_is_a_grey_level_off() -> None:
    frames = Case((2, 90, 64)).frames().movedim(-1, 1).contiguous()
    pillow = pixels._pillow_lanczos(frames, (40, 77))
    if not pixels._has_lanczos():
        pytest.skip("this torch has no lanczos filter to compare Pillow's with")
    made = pixels._torch_lanczos(frames, (40, 77))
    assert (made.int() - pillow.int()).abs().max() <= 2
    assert (made == pillow).float().mean() > 0.97


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llava", {}, "a llava model is not served, for it takes no video: use one of Qwen2.5-VL"),
        ("qwen3_vl", {"size": {"height": 8, "width": 8}}, r"size of Qwen3-VL is {longest_edge, sh"),
        ("internvl", {"size": {"shortest_edge": 8}}, "size of InternVL is {height, width}"),
        ("internvl", {"size": {"height": 0, "width": 8}}, "size of InternVL is"),
        ("qwen2_5_vl", {"patch_size": 14.5}, "patch_size is a positive whole number, not 14.5"),
        ("smolvlm", {"max_image_size": 5}, "max_image_size is"),
        ("smolvlm", {"resample": 4}, "resample is one of"),
        ("smolvlm", {"image_std": [1, 1, 0]}, "must not be 0"),
        ("smolvlm", {"image_mean": 0.5}, "image_mean is three numbers"),
        ("smolvlm", {"do_rescale": None, "do_normalize": None}, "no raw bytes"),
        ("llava_onevision", {"do_center_crop": True}, "set do_center_crop to false"),
        ("video_llama_3", {"do_resize": False}, "multiple of 28 pixels, not 30 x 40"),
    ],
)
def test_bad_options_are_named(family: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        video_pixels(family, torch.zeros(2, 30, 40, 3, dtype=torch.uint8), options)


def test_bad_frames_are_named() -> None:
    with pytest.raises(InputError, match=r"not \(2, 3, 30, 40\) of uint8"):
        video_pixels("internvl", torch.zeros(2, 3, 30, 40, dtype=torch.uint8), {})
    with pytest.raises(InputError, match="of float32"):
        video_pixels("internvl", torch.zeros(2, 30, 40, 3), {})
    with pytest.raises(InputError, match="a video of 0 frames"):
        video_pixels("internvl", torch.zeros(0, 30, 40, 3, dtype=torch.uint8), {})
    with pytest.raises(InputError, match="at most 200 times the shorter one: crop the video"):
        video_pixels("qwen2_5_vl", torch.zeros(1, 2, 500, 3, dtype=torch.uint8), {})
    config = hf_model("qwen2_5_vl").config
    with pytest.raises(InputError, match="patch_size is 14 in the options and 4 in the model"):
        tokens_per_frame("qwen2_5_vl", 60, 90, 4, {}, config)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = str(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        pixel_options(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    with pytest.raises(InputError, match=r"no video_preprocessor_config\.json and no pre"):
        pixel_options(folder)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=r"preprocessor_config\.json of .* cannot be read"):
        pixel_options(folder)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="a gpt2 model is not served"):
        pixel_options(folder)
    with pytest.raises(InputError, match="no model 'nobody/nothing'"):
        pixel_options("nobody/nothing", local_files_only=True)
