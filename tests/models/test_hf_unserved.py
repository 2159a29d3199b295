"""Models that are not served: by name, with the reason that the library's own registries give."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from vidllm import InputError, VideoLLM
from vidllm.models.families.family import adapter_for
from vidllm.models.families.served import FAMILIES, PARTS, SINCE, _minor
from vidllm.models.families.unserved import takes_video, why_not


class Of(torch.nn.Module):
    """A model of a type, as far as a refusal looks at it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=kind)


def test_every_other_model_that_takes_video_is_refused_by_name() -> None:
    """All that the installed transformers knows, whichever that is."""
    others = sorted(set(VIDEO_PROCESSOR_MAPPING_NAMES) - set(FAMILIES) - set(PARTS))
    assert others
    for kind in others:
        with pytest.raises(InputError) as caught:
            adapter_for(Of(kind))
        line = str(caught.value)
        assert (
            line.startswith(f"a {kind} model is not served, for it takes video")
            and "\n" not in line
        )
        assert line.endswith(f"use one of {', '.join(name for name, *_ in FAMILIES.values())}")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("qwen4_exp", "its decoder has indexed_attention layers"),
        ("vivit", "writes no text"),
        ("instructblipvideo", "no file of vidllm/models/families says"),
        ("llava", "it takes no video"),
        ("unheard_of", "has no such model type"),
    ],
)
def test_the_reason_is_the_models_own(kind: str, reason: str) -> None:
    assert reason in why_not(kind)


def test_what_is_served_has_no_reason_not_to_be() -> None:
    found: dict[str, Any] = {kind: why_not(kind) for kind in (*FAMILIES, *PARTS)}
    assert not any(found.values())
    assert takes_video("qwen3_5") and takes_video("glm4v_moe") and not takes_video("llava")


def test_a_transformers_before_that_of_a_family_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a model object, and of a folder before anything but its config is read."""
    assert set(SINCE) <= set(FAMILIES)
    for kind in FAMILIES:
        monkeypatch.setitem(SINCE, kind, "99.1")
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(InputError, match=f"a {kind} model needs transformers 99.1 or newer"):
            adapter_for(Of(kind))
        with pytest.raises(InputError, match=f"a {kind} model needs transformers 99.1 or newer"):
            VideoLLM.from_pretrained(str(tmp_path))
    assert _minor("5.21rc1") == _minor("5.21.0.dev0") == (5, 21)
