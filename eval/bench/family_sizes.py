"""The check behind ``vidllm bench families``: every served family at its real size, without memory.

Every family is built on torch's "meta" device, where tensors have shapes and no numbers: from its
published config where `vidllm.models.cost.presets` has one, else from transformers' own defaults of
that type. Then our adapter has to find its parts, every method is put on it or refused with its
reason, and torch counts the FLOPs of its decoder for prompts of every share, beside those that
``vidllm cost`` predicts. Nothing is timed and nothing is chosen: for that, see ``bench models``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vidllm.ask.compression import compress
from vidllm.cli.tables import table
from vidllm.errors import InputError
from vidllm.models.cost.flops import Decoder
from vidllm.models.cost.presets import PRESETS
from vidllm.models.cost.shapes import config_of
from vidllm.models.families.family import adapter_for
from vidllm.models.families.served import FAMILIES
from vidllm.models.shipped import default_model

from .model_cost import KEEPS, training_free

if TYPE_CHECKING:
    from rich.table import Table

#: Tokens of the prompt beside the video.
TEXT = 100
_GLM_ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [8, 12, 12],
    "partial_rotary_factor": 0.5,
}
#: What transformers' defaults lack to make a model that runs.
_LACKING: dict[str, dict[str, Any]] = {
    "glm4v": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glm46v": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glm4v_moe": {"text_config": {"head_dim": 128, "rope_parameters": _GLM_ROPE}},
    "gemma4": {"vision_config": {}},
    "qwen3_omni_moe_thinker": {"text_config": {"head_dim": 128}},
}


def families_of(kinds: Sequence[str]) -> list[str]:
    """Model types to check; all that are served where none is given.

    Raises:
        InputError: one that is not served.
    """
    for kind in kinds:
        if kind not in FAMILIES:
            raise InputError(f"no family {kind!r} is served: use {', '.join(FAMILIES)}")
    return list(dict.fromkeys(kinds)) or list(FAMILIES)


def bench_families(
    kinds: Sequence[str] = (),
    *,
    frames: Sequence[int] = (32, 128),
    keeps: Sequence[float] = KEEPS,
    cells: int = 196,
    save: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Build every family at its real size on "meta", and count.

    Args:
        kinds: model types of transformers; none for all that are served.
        frames: frames of the token grid. keeps: shares of the video tokens. cells: video tokens a
            frame, the same for every family, so that rows can be compared.
        save: gets the rows so far after every family.

    Returns:
        A row a family, length and share: model_type, family, config (whose it is), parameters_b
        (billions), layers, width, frames, keep, prompt (tokens), tflops (of the decoder's prefill
        by torch's count: all pairs of attention, without grouped products of experts, which it
        does not count), predicted (the same by ``vidllm cost``, or None), share (of the FLOPs of
        the whole prompt), served and refused (numbers of methods), reasons (of those refused).
        What could not be built has its reason under error.

    Raises:
        InputError: an unknown family, or shares out of range.
    """
    if not all(0 < keep <= 1 for keep in keeps):
        raise InputError("bench: shares kept are above 0 and at most 1")
    rows: list[dict[str, Any]] = []
    labels = AutoTokenizer.from_pretrained(default_model())  # for families that read labels
    for kind in families_of(kinds):
        source, config = published(kind)
        head = {"model_type": kind, "family": FAMILIES[kind][0], "config": source}
        try:
            model = on_meta(kind, config)
            head |= _facts(model, labels)
        except Exception as error:  # whatever stands between a config and a model
            rows.append({**head, "error": _line(error)})
        else:
            for count in frames:
                rows += [head | row for row in _prefills(model, labels, count, cells, keeps)]
        if save is not None:
            save(rows)
    return rows


def published(kind: str) -> tuple[str, Any]:
    """The config of a family, and whose it is."""
    for name, preset in PRESETS.items():
        if preset.config["model_type"] == kind:
            return f"as published: {name}", config_of(preset)
    return "transformers' defaults", AutoConfig.for_model(kind, **_LACKING.get(kind, {}))


def on_meta(kind: str, config: Any) -> Any:
    """The model of a config, with shapes and without numbers."""
    cls = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])
    with torch.device("meta"):
        return cls._from_config(config, dtype=torch.bfloat16).eval()


def _facts(model: Any, labels: Any) -> dict[str, Any]:
    """What the adapter finds, and which methods can be put on the model."""
    text = model.config.get_text_config()
    served, reasons = 0, dict[str, None]()
    for method in training_free():
        try:
            with compress(model, method, keep=0.25, processor=labels):
                served += 1
        except InputError as error:
            reasons[f"{method}: {error}"] = None
    return {
        "parameters_b": sum(part.numel() for part in model.parameters()) / 1e9,
        "layers": int(text.num_hidden_layers),
        "width": int(text.hidden_size),
        "served": served,
        "refused": len(reasons),
        "reasons": "; ".join(reasons),
    }


def _prefills(
    model: Any, labels: Any, frames: int, cells: int, keeps: Sequence[float]
) -> list[dict[str, Any]]:
    """A row a share."""
    decoder, text = adapter_for(model, labels).decoder, model.config.get_text_config()
    try:
        shape = Decoder.of(text)
    except InputError:
        shape = None
    found: list[dict[str, Any]] = []
    whole = 0.0
    for keep in dict.fromkeys((1.0, *keeps)):
        prompt = TEXT + max(1, round(keep * frames * cells))
        row: dict[str, Any] = {"frames": frames, "keep": keep, "prompt": prompt}
        try:
            row["tflops"] = counted(decoder, prompt, int(text.hidden_size)) / 1e12
        except Exception as error:  # what needs numbers, such as the routing of experts
            found.append(row | {"error": f"not counted without numbers: {_line(error)}"})
            continue
        whole = whole or row["tflops"]
        row["share"] = row["tflops"] / whole
        row["predicted"] = None if shape is None else shape.prefill(prompt, logits=0) / 1e12
        found.append(row)
    return [row for row in found if row["keep"] in keeps]


@torch.no_grad()
def counted(decoder: Any, prompt: int, width: int) -> float:
    """FLOPs of a prompt of so many embeddings, by torch's own count."""
    states = torch.empty(1, prompt, width, device="meta", dtype=torch.bfloat16)
    # A mask of pairs is taken as it is; to make one is to look at numbers.
    mask = torch.empty(1, 1, prompt, prompt, device="meta", dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        decoder(inputs_embeds=states, attention_mask=mask, use_cache=False)
    return float(counter.get_total_flops())


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def families_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table."""

    def cells(row: dict[str, Any]) -> list[object]:
        known = "parameters_b" in row
        start = [row["model_type"], row["config"], f"{row['parameters_b']:.1f} B" if known else "–"]
        start.append(f"{row['served']} of {row['served'] + row['refused']}" if known else "–")
        if "error" in row:
            place = [row.get("frames", "–"), f"{row['keep']:.0%}" if "keep" in row else "–"]
            return [*start, *place, "–", "–", row["error"]]
        ours = "–" if row["predicted"] is None else f"{row['predicted']:.2f}"
        share = f"{row['share']:.3f}"
        return [*start, row["frames"], f"{row['keep']:.0%}", f"{row['tflops']:.2f}", ours, share]

    return table(
        map(cells, rows),
        left=("family", "config"),
        right=("size", "methods", "frames", "keep", "TFLOPs", "predicted", "share"),
        title="Families at their real sizes, without numbers: what the decoder would do for a "
        "prompt of that share",
    )
