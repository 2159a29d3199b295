"""Why a model type is not served, found in the registries of the transformers that is installed.

No list of names stands here: a model that comes with a later transformers is refused with its
reason as well.
"""

from __future__ import annotations

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING,
    CONFIG_MAPPING_NAMES,
)
from transformers.models.auto.video_processing_auto import (  # type: ignore[attr-defined]
    VIDEO_PROCESSOR_MAPPING_NAMES,
)

from .served import FAMILIES, PARTS

#: Kinds of decoder layers that tokens can be kept from, and those that mix no tokens.
_KNOWN = {"full_attention", "linear_attention", "sliding_attention", "mlp", "moe"}


def refusal(kind: str) -> str:
    """The line that refuses a model type."""
    served = ", ".join(name for name, _, _ in FAMILIES.values())
    return f"a {kind} model is not served, for {why_not(kind)}: use one of {served}"


def takes_video(kind: str) -> bool:
    """Whether a model type takes videos: it has a video processor, or a token for them."""
    if kind in VIDEO_PROCESSOR_MAPPING_NAMES:
        return True
    if kind not in CONFIG_MAPPING_NAMES:
        return False
    return any(hasattr(CONFIG_MAPPING[kind], f"video_token_{end}") for end in ("id", "index"))


def why_not(kind: str) -> str:
    """Why a model type is not served, as the end of a sentence; "" for one that is."""
    if kind in FAMILIES or kind in PARTS:
        return ""
    if kind not in CONFIG_MAPPING_NAMES:
        return f"transformers {transformers.__version__} has no such model type"
    if not takes_video(kind):
        return "it takes no video"
    name = _writer(kind)
    if not name:
        return "it takes video but writes no text about it"
    other = _layer_kinds(kind) - _KNOWN
    if other:
        return (
            f"it takes video, but its decoder has {' and '.join(sorted(other))} layers, and what "
            "leaving a token out means there is not worked out"
        )
    model = getattr(transformers, name)
    if not any(hasattr(model, f"get_{kind}_features") for kind in ("video", "image")):
        return "it takes video, but has no call of its own that makes a video's tokens"
    return (
        "it takes video, but no file of vidllm/models/families says where its prompts have a "
        "video's tokens and when they were"
    )


def _writer(kind: str) -> str:
    """The class that writes text about pictures, "" for none."""
    for task in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISION_2_SEQ"):
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        if kind in names:
            found = names[kind]
            return str(found if isinstance(found, str) else found[0])
    return ""


def _layer_kinds(kind: str) -> set[str]:
    """Kinds of layers of its decoder, by the defaults of its config."""
    try:
        text = CONFIG_MAPPING[kind]().get_text_config()
    except Exception:  # a config that cannot be made without its parts
        return set()
    return set(getattr(text, "layer_types", None) or ())
