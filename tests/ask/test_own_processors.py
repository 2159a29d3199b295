"""The high door on families whose own processor makes their pixels and prompts.

The library's video processors need torchvision, which is at hand in the environment or by itself in
build/torchvision; the program `own_processors` runs beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import Video, hf_inputs, hf_model
from hub_tiny import letters
from own_processors import INDEXED, OTHERS, PROCESSORS, whole_omni

from vidllm import InputError, VideoLLM, compress
from vidllm.models.families.pixels import video_pixels
from vidllm.models.families.scripts import SCRIPTS
from vidllm.models.families.served import FAMILIES, OWN_PIXELS
from vidllm.models.loading import usual_frames

TESTS = Path(__file__).parents[1]
APART = TESTS.parent / "build" / "torchvision"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints."""
    paths = [] if importlib.util.find_spec("torchvision") else [str(APART)]
    if paths and not (APART / "torchvision").is_dir():
        pytest.skip(
            "no torchvision for the library's processors: pip install --no-deps --target "
            "build/torchvision torchvision==(the one of this torch)"
        )
    program = TESTS / "kit" / "own_processors.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, sys.path)])}
    folder = tmp_path_factory.mktemp("own")
    script = [sys.executable, str(program), str(folder)]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("family", PROCESSORS)
def test_prompts_pixels_and_answers_are_the_processors(found: dict[str, Any], family: str) -> None:
    """The same ids and pixels, and compressed the answer that the low door gives on them."""
    own = found[family]
    assert own["ids"] and own["pixels"]
    assert len(set(own["answers"])) == 1
    assert own["kept"][0] == own["kept"][1] < own["full"][0]
    assert len(set(own["full"])) == 1  # counted before anything ran, in the prompt, and after
    assert own["flops"] and own["family"] == FAMILIES[family][0]


@pytest.mark.parametrize("family", PROCESSORS)
def test_the_clips_own_seconds_are_told_in_the_familys_way(
    found: dict[str, Any], family: str
) -> None:
    prompt = found[family]["prompt"]
    stamps = [f"<{time} seconds>" for time in ("0.2", "1.3", "2.6")]
    told = SCRIPTS[family].clock
    assert all((stamp in prompt) == (told == "stamps") for stamp in stamps)
    assert (told == "positions") == ("omni" in family)  # their pace: see the ids' answers above


#: What a prompt says of the second or third frame, at 0.4 and 1.1 s of the clip.
TOLD = {
    "glm4v": "<|end_of_image|>1<|begin_of_image|>",
    "glm46v": "<|end_of_image|>1.1 seconds<|begin_of_image|>",
    "gemma4": " 00:01 <img>",
    "molmo2": " 1.1 <frame_start>",
}


@pytest.mark.parametrize("family", OTHERS)
def test_families_of_other_houses(found: dict[str, Any], family: str) -> None:
    """Prompts, pixels and answers are the processors' too; so are the clip's own seconds."""
    own = found[family]
    assert own["ids"] and own["pixels"]
    assert len(set(own["answers"])) == 1
    assert own["kept"][0] == own["kept"][1] < own["full"][0]
    assert len(set(own["full"])) == 1
    assert (SCRIPTS[family].clock == "stamps") == (family in TOLD)
    assert TOLD.get(family, "") in own["prompt"]


@pytest.mark.parametrize("family", INDEXED)
def test_an_index_answers_as_the_clip_that_it_is(found: dict[str, Any], family: str) -> None:
    said, direct = found[family]["indexed"]
    assert said == direct


def test_without_its_processor_a_family_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3_5"
    hf_model("qwen3_5").save_pretrained(folder)
    letters().save_pretrained(folder)
    with pytest.raises(
        InputError, match=r"own processor, .* pip install 'vidllm\[hub\]'"
    ) as caught:
        VideoLLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert usual_frames(str(folder)) == 32


def test_every_family_has_a_script_and_pixels_of_one_kind() -> None:
    assert set(SCRIPTS) == set(FAMILIES) and set(OWN_PIXELS) < set(FAMILIES)
    with pytest.raises(InputError, match=r"pixels of Qwen3\.5 are made by its own processor"):
        video_pixels("qwen3_5", torch.zeros(2, 30, 40, 3, dtype=torch.uint8), {})


def test_the_thinker_of_a_whole_model_is_served() -> None:
    """By the low door here; by the high one in the program, which saves it whole."""
    whole = whole_omni(hf_model("qwen2_5_omni_thinker"))
    inputs = hf_inputs("qwen2_5_omni_thinker", [[3, Video(4), 6]])
    options = {"max_new_tokens": 4, "do_sample": False}
    with compress(whole, "aim", keep=0.5, processor=None) as c:
        got = whole.thinker.generate(**inputs, **options)
        assert c.receipt.tokens_kept == 8
        for more, words in (
            ({"use_audio_in_video": True}, "for videos without their sound"),
            ({"output_hidden_states": True, "return_dict_in_generate": True}, "the talker of"),
        ):
            with pytest.raises(InputError, match=words):
                whole.thinker.generate(**inputs, **options, **more)
    thinker = hf_model("qwen2_5_omni_thinker")
    with compress(thinker, "aim", keep=0.5):
        assert torch.equal(got, thinker.generate(**inputs, **options))
