"""From a model's config to what its parts cost: the native model and the six hub families.

Nothing is loaded but a config; parts without a formula (the conv tower, most temporal encoders)
are run as torch's fake tensors, with shapes and no numbers, and counted so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vidllm.errors import InputError, VidllmError
from vidllm.errors.paths import is_folder
from vidllm.errors.registry import did_you_mean
from vidllm.models.folder import check_folder, read_config
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.shipped import default_model, find_model, shipped_models

from .family_shapes import ANY_SIZE, PARTS, transformer
from .flops import Decoder, Linear, counted, linears, ssd
from .presets import PRESETS, Preset

#: Encoders that keep tables between calls, which must not be filled without numbers.
_KEEP_TABLES = ("lmu",)
_SSD_OPTIONS = ("layers", "state", "head_dim", "expand", "chunk", "bidirectional", "groups")


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a video-LLM.

    Attributes:
        name: of the model. kind: its transformers model type. decoder: the LLM.
        tower: FLOPs of the vision tower for a number of slots.
        rows, columns: tokens of a slot. per_slot: frames that one slot of tokens stands for.
        projector: its products, a slot.
        temporal: FLOPs of the temporal encoders for a number of slots; None without.
        told: FLOPs a video token that enters the decoder, for telling it its time.
        frames: of the model's usual setting. own: the compressors and keep of its training.
        notes: what was assumed.
    """

    name: str
    kind: str
    decoder: Decoder
    tower: Callable[[int], float]
    rows: int
    columns: int
    projector: tuple[Linear, ...]
    per_slot: int = 1
    temporal: Callable[[int], float] | None = None
    told: float = 0.0
    frames: int = 32
    own: tuple[str, float] = ("none", 1.0)
    notes: tuple[str, ...] = ()

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Slots, rows and columns of the video tokens of so many frames."""
        return -(-frames // self.per_slot), self.rows, self.columns

    def vision(self, frames: int) -> float:
        """FLOPs of tower and projector."""
        slots = self.grid(frames)[0]
        return self.tower(slots) + slots * linears(self.projector)

    def mixing(self, frames: int) -> float:
        """FLOPs of the temporal encoders."""
        return 0.0 if self.temporal is None else self.temporal(self.grid(frames)[0])


def config_of(preset: Preset) -> Any:
    """A preset as a config of transformers."""
    from transformers import AutoConfig

    options = {k: v for k, v in preset.config.items() if k != "model_type"}
    return AutoConfig.for_model(preset.config["model_type"], **options)


def shape_of(model: str | None, size: int | None = None) -> Shape:
    """The shape of a preset, a shipped model, a folder or a model on the hub.

    Args:
        model: its name; None for the shipped default.
        size: pixels of a side of a frame, for models that take any.

    Raises:
        InputError: no such model, a config that cannot be had, or a size that does not fit.
    """
    from transformers import AutoConfig

    import vidllm.models.native.config  # noqa: F401  (makes the native model type known)

    by_hub = {preset.hub: name for name, preset in PRESETS.items() if preset.hub}
    name = by_hub.get(model or "", model)
    if name in PRESETS:
        preset = PRESETS[name]
        return from_config(config_of(preset), name, preset, size)
    folder = str(default_model()) if name is None else _find(name)
    if is_folder(folder):
        check_folder(folder)
        kind = read_config(folder).get("model_type")
        if kind == HEAD_TYPE:
            raise InputError(
                f"{name or folder} is a system without an LLM, which has no prefill and no KV "
                "cache to predict: give the model of a video LLM (vidllm bench claim measures the "
                "FLOPs of dist and squeezetime)"
            )
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # whatever a config's fields trip over
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the config of {folder} cannot be read ({reason}): give a folder, or one of "
            f"{', '.join(PRESETS)}"
        ) from error
    return from_config(config, name or default_model().name, None, size)


def _find(name: str) -> str:
    try:
        return find_model(name)
    except VidllmError:
        if "/" in name:
            raise
        known = [*PRESETS, *shipped_models()]
        raise InputError(f"no model {name!r}: {did_you_mean(name, known)}") from None


def from_config(
    config: Any, name: str, preset: Preset | None = None, size: int | None = None
) -> Shape:
    """The shape of a model's transformers config; arguments and errors as for `shape_of`."""
    kind = str(config.model_type)
    makers = {"vidllm-native": _native, **PARTS}
    if kind not in makers:
        raise InputError(f"the cost of a {kind} model is not known: it is for {', '.join(makers)}")
    free = kind in ANY_SIZE
    if size is not None and not free:
        raise InputError(f"--size: {name} resizes every frame to its own size; leave it out")
    side = size or (preset.size if preset else 0) or 448
    parts = makers[kind](config, side)
    if "decoder" not in parts:
        parts["decoder"] = Decoder.of(config.get_text_config())
    notes = list(parts.pop("notes", ()))
    if preset is not None:
        notes.insert(0, f"shape of {name}: {preset.source}")
    if free:
        notes.append(f"frames of {side} × {side} pixels (--size); the model takes any")
    return Shape(name=name, kind=kind, notes=tuple(notes), **parts)


def _native(config: Any, _side: int) -> dict[str, Any]:
    from transformers import AutoConfig

    options = {k: v for k, v in config.text.items() if k != "model_type"}
    decoder = Decoder.of(AutoConfig.for_model(config.text["model_type"], **options))
    vision, fold = dict(config.vision), int(config.downsample)
    kind = str(vision.pop("type", "conv"))
    notes: list[str] = []
    if kind == "conv" or "stem" in vision:
        from vidllm.encoders.vision import build_vision

        tower, width, side = _counted_tower(build_vision, config.vision)
        notes.append("the vision tower is run without numbers and counted")
    else:
        from vidllm.encoders.vision import HUB_TYPES

        if kind not in HUB_TYPES:
            raise InputError(f"the cost of a {kind} tower is not known: it is for conv and ViTs")
        vision.pop("frozen", None)
        layer = vision.pop("layer", None)
        settings = AutoConfig.for_model(kind, **vision)
        depth = int(settings.num_hidden_layers)
        left = None if layer is None else layer if layer >= 0 else depth + 1 + layer
        shape = transformer(settings, layers=left)
        tower, width, side = shape.flops, shape.width, shape.rows
    if side % fold:
        raise InputError(f"downsample {fold} does not divide the {side} cells of a side")
    cells = (side // fold) ** 2
    told = 0.0
    if config.time_embedding:
        wide = 2 * decoder.width if config.time_code == "relative" else 128
        told = linears([(1, wide, decoder.width)])
    specs = list(config.temporal)
    if specs:
        notes.append(
            f"temporal encoders: {', '.join(str(spec['name']) for spec in specs)}; elementwise "
            "scans and short convolutions are no matrix products and count nothing"
        )
    return {
        "decoder": decoder,
        "tower": tower,
        "rows": side // fold,
        "columns": side // fold,
        "projector": ((cells, width * fold * fold, decoder.width),),
        "temporal": (
            (lambda slots: sum(temporal_flops(spec, decoder.width, slots, cells) for spec in specs))
            if specs
            else None
        ),
        "told": told,
        "frames": int(config.frames),
        "own": (str(config.compressors), float(config.keep)),
        "notes": tuple(notes),
    }


def _counted_tower(build: Callable[[dict[str, Any]], Any], config: Any) -> tuple[Any, int, int]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tower = build(config).eval()
        frame = torch.zeros(1, 3, tower.image_size, tower.image_size)
        once = counted(lambda: tower(frame))
    return (lambda slots: slots * once), int(tower.hidden_size), int(tower.side)


def temporal_flops(spec: dict[str, Any], dim: int, slots: int, cells: int) -> float:
    """FLOPs of one temporal encoder {"name": …, options} on a clip of slots × cells tokens.

    By formula for ssd, and for storm over ssd; others are run without numbers and counted.

    Raises:
        InputError: an encoder or option that is not there, or one that cannot run so.
    """
    from vidllm.encoders.temporal import get_temporal

    options = {k: v for k, v in spec.items() if k not in ("name", "dim")}
    name, dim = str(spec["name"]), int(spec.get("dim", dim))
    kernel = str(options.get("ssm", "ssd")) if name == "storm" else name
    if kernel in _KEEP_TABLES:
        raise InputError(
            f"the cost of the temporal encoder {name!r} cannot be told before it runs: "
            "vidllm bench encoders measures it"
        )
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Shapes without numbers; the meta device would do, had autocast a place for it.
    with FakeTensorMode():
        encoder = get_temporal(name, dim, **options).eval()  # refuses what is wrong
        if kernel != "ssd":
            x, seconds = torch.zeros(1, slots, cells, dim), torch.zeros(1, slots)
            return counted(lambda: encoder(x, seconds))
    options |= options.pop("sizes", None) or {}
    by_slot = name == "ssd" and options.get("scan", "raster") == "slot"
    told = linears([(slots, 2 * (dim // 2), dim)]) if options.get("time") == "embedding" else 0.0
    length, many = (slots, cells) if by_slot else (slots * cells, 1)
    known = {k: v for k, v in options.items() if k in _SSD_OPTIONS}
    return told + ssd(length, dim=dim, sequences=many, **known)
