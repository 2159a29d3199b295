"""Dual encoders for retrieval: a clip or a caption in, one unit vector out.

`Embedder` runs any CLIP or SigLIP of transformers; its vision tower may merge tokens between its
layers (tempme, tome, …: compressors of stage "vision"), as TempMe does (arXiv 2409.01156), here
without its trained LoRA. A video is the mean of its frames' unit vectors, as in CLIP4Clip's mean
pooling (arXiv 2104.08860) and TempMe. `RetrievalAsker` answers a retrieval task's items for a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.compressors import Compressor
from vidllm.compressors.shared.in_tower import InTower, tower_part
from vidllm.encoders.vision import HubTower
from vidllm.encoders.vision.merging import MergingRun, merging, tower_layers
from vidllm.errors import InputError, WorkError
from vidllm.models.answer import Receipt
from vidllm.progress import Stopwatch
from vidllm.tokens import TokenMap, VideoTokens
from vidllm.tokens.tower_plan import TowerShape

from ..tasks.base import Item, Response
from .answer_costs import costs_of
from .journal import Prediction
from .run_settings import Setting
from .vectors import write_vector

if TYPE_CHECKING:
    from vidllm.video import VideoClip

#: Model types whose two towers give vectors of one space.
TYPES: tuple[str, ...] = ("clip", "siglip")
#: Frames of a clip: CLIP4Clip's and TempMe's on MSR-VTT.
FRAMES = 12


class Embedding(NamedTuple):
    """A video as one vector.

    Attributes:
        vector: (D,) float32, of length 1.
        receipt: its cost; there is no LLM, so no KV cache.
        kept: which token of the tower carries each original one.
    """

    vector: np.ndarray
    receipt: Receipt
    kept: TokenMap


class Embedder:
    """A CLIP or SigLIP of transformers, whose vision tower may merge tokens.

    Args:
        model: a `CLIPModel` or `SiglipModel`. tokenizer: its own.

    Raises:
        InputError: another kind of model, or one without the head that pools a frame.
    """

    usual_frames = FRAMES

    def __init__(self, model: Any, tokenizer: Any) -> None:
        kind = str(model.config.model_type)
        if kind not in TYPES:
            raise InputError(
                f"retrieval needs a dual encoder ({' or '.join(TYPES)} of transformers), "
                f"not a {kind} model"
            )
        self.model, self.tokenizer, self.kind = model.eval(), tokenizer, kind
        if kind == "siglip" and getattr(model.vision_model, "head", None) is None:
            raise InputError("this SigLIP has no head that pools a frame: use a complete model")
        self.tower = HubTower(model.vision_model)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        attn: str | None = None,
    ) -> Embedder:
        """Load a model by its name on the hub or from a folder, e.g. openai/clip-vit-base-patch32.

        Raises:
            InputError: no such model, one of another kind, or no tokenizer beside it.
            WorkError: weights that cannot be read.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        from vidllm.models.loading import choose_device, choose_dtype

        place = choose_device(device)
        try:
            kind = str(AutoConfig.from_pretrained(name).model_type)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no model {name!r}: it is no folder, and the hub lacks it or is out of reach"
            ) from error
        if kind not in TYPES:
            raise InputError(f"{name!r} is a {kind} model: retrieval needs {' or '.join(TYPES)}")
        options = {} if attn is None else {"attn_implementation": attn}
        try:
            model = AutoModel.from_pretrained(name, dtype=choose_dtype(dtype, place), **options)
        except (OSError, ValueError, RuntimeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkError(f"the model {name} cannot be loaded: {line}") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # whatever the tokenizer's class trips over
            raise InputError(f"the tokenizer of {name!r} cannot be loaded") from error
        return cls(model.to(place), tokenizer)

    @torch.inference_mode()
    def embed_text(self, text: str) -> np.ndarray:
        """(D,) float32 unit vector of a caption; what exceeds the text tower is cut off.

        Raises:
            InputError: an empty caption.
        """
        if not text.strip():
            raise InputError("the caption is empty: say what to look for")
        most = int(self.model.config.text_config.max_position_embeddings)
        # SigLIP was trained on captions padded to one length, and without a mask.
        padding = "max_length" if self.kind == "siglip" else False
        ids = self.tokenizer(
            text, truncation=True, max_length=most, padding=padding, return_tensors="pt"
        )["input_ids"]
        found = self.model.get_text_features(input_ids=ids.to(self.model.device))
        return _unit(getattr(found, "pooler_output", found)[0])

    @torch.inference_mode()
    def embed_video(self, clip: VideoClip, compressor: Compressor | None = None) -> Embedding:
        """A clip as the mean of its frames, each of length 1.

        Args:
            compressor: one that merges inside the tower, or none.

        Raises:
            InputError: another compressor: no tokens leave a dual encoder's tower.
        """
        watch = Stopwatch()
        watch.add("decode", clip.read_seconds)
        with watch.stage("encode"):
            frames = self._pixels(torch.from_numpy(clip.frames.copy()))
            side, count = self.tower.side, len(clip)
            seconds = clip.seconds.tolist()
            whole = VideoTokens.blank((count, side, side), seconds, float(clip.duration))
            inside, _ = check_inside(compressor, whole)
            if inside is None:
                rows = self._projected(self.tower.run(frames).pooler_output)
            else:
                rows, whole = self._merged(frames, whole, *inside)
            mean = F.normalize(rows.float(), dim=-1).mean(0)
            if not bool(torch.isfinite(mean).all()):
                raise InputError("the vision tower gives NaN or infinite values for this video")
        total = count * side * side
        receipt = Receipt(count, total, len(whole), 0.0, 0.0, dict(watch.seconds))
        return Embedding(_unit(mean), receipt, TokenMap.of(whole, clip.seconds))

    def _pixels(self, frames: Tensor) -> Tensor:
        """(T, 3, S, S) in 0..1. CLIP sees the square in the middle, SigLIP all of a frame."""
        size = self.tower.image_size
        if self.kind == "clip":
            height, width = frames.shape[1:3]
            part = min(height, width)
            top, left = (height - part) // 2, (width - part) // 2
            frames = frames[:, top : top + part, left : left + part]
        pixels = frames.to(self.model.device).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-2:] == (size, size):
            return pixels
        return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp_(0, 1)

    def _projected(self, pooled: Tensor) -> Tensor:
        if self.kind == "siglip":
            return pooled
        projected: Tensor = self.model.visual_projection(pooled)
        return projected

    def _merged(
        self, frames: Tensor, whole: VideoTokens, method: InTower, budget: int | None
    ) -> tuple[Tensor, VideoTokens]:
        """(T, D) and what is left of the tokens, of a tower that merges."""
        count, side = len(frames), self.tower.side
        if budget is None:
            budget = method.tower_budget(whole)
        tower, special = self.tower.model, self.tower.special
        shape = TowerShape(len(tower_layers(tower)), special, count, side * side)
        steps = method.tower_steps(shape, budget)
        watched = self.tower.watched if method.needs else None
        how: dict[str, Any] = {"proportional": method.proportional, "watched": watched}
        with merging(tower, steps, shape, side, **how) as run:
            hidden = self.tower.run(frames).last_hidden_state
        pooled = self._heads(hidden, run) if self.kind == "clip" else self._pooled(hidden, run)
        return self._projected(pooled), run.tokens

    def _heads(self, hidden: Tensor, run: MergingRun) -> Tensor:
        """(T, C): the CLS token of every frame, wherever its row went."""
        heads = hidden.flatten(0, 1)[run.front[:, 0].to(hidden.device)]
        normed: Tensor = self.tower.model.post_layernorm(heads)  # type: ignore[operator]
        return normed

    def _pooled(self, hidden: Tensor, run: MergingRun) -> Tensor:
        """(T, C): SigLIP's head over every frame's places, each with the token that carries it.

        A token that stands for n places is looked at n times, which is attention with log n added.
        """
        features = run.read(hidden).features
        copies = features[run.tokens.source.to(features.device)]
        grid = copies.view(len(run.rows), -1, features.shape[-1])
        pooled: Tensor = self.tower.model.head(grid)  # type: ignore[operator]
        return pooled


def check_inside(
    compressor: Compressor | None, clip: VideoTokens | None = None
) -> tuple[tuple[InTower, int | None] | None, Compressor | None]:
    """What merges inside the tower of a dual encoder, as `tower_part`; None for nothing.

    Raises:
        InputError: a compressor, or a part of a chain, that acts behind the tower.
    """
    if compressor is None or compressor.name == "none":
        return None, None
    first, *more = compressor.methods
    if not isinstance(first, InTower) or not first.tower or more:
        raise InputError(
            f"{compressor.name} acts on tokens behind the vision tower, and a dual encoder has "
            "none: use one method that merges inside, such as tempme or tome"
        )
    clip = VideoTokens.blank((1, 1, 1), [0.0], 1.0) if clip is None else clip
    return tower_part(compressor, clip)


class RetrievalAsker:
    """Answers a retrieval task's items: captions and clips as vectors (see `asking.Asker`).

    Raises:
        InputError: a setting whose compressor does not merge inside a tower.
    """

    def __init__(self, embedder: Embedder, settings: Sequence[Setting], *, name: str) -> None:
        self.embedder, self.name = embedder, name
        self._settings = tuple(settings)
        for setting in settings:
            check_inside(setting.method)

    def settings(self) -> Sequence[Setting]:
        """What every item is asked under."""
        return self._settings

    def about(self) -> dict[str, Any]:
        """What the vectors depend on."""
        from .ask_model import device_name, weights_mark

        weight = next(self.embedder.model.parameters())
        return {
            "model": self.name,
            "weights": weights_mark(self.embedder.model),
            "max_new_tokens": 0,
            "times": False,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "device_name": device_name(weight.device),
        }

    def ask(self, clip: VideoClip, items: Sequence[Item], setting: Setting) -> list[Prediction]:
        """A vector each: of the caption (kind "text"), or of the clip."""
        found: list[Prediction] = []
        seen: Embedding | None = None
        videos = sum(item.kind != "text" for item in items)  # that one embedding serves
        for item in items:
            if item.kind == "text":
                said = self.embedder.embed_text(item.prompt)
                found.append(Prediction(Response(raw=write_vector(said), duration=clip.duration)))
                continue
            seen = self.embedder.embed_video(clip, setting.method) if seen is None else seen
            response = Response(raw=write_vector(seen.vector), duration=clip.duration)
            cost = costs_of([seen.receipt] * videos)[0]
            found.append(Prediction(response, seen.kept.as_dict(), cost, len(clip)))
        return found


def _unit(vector: Tensor) -> np.ndarray:
    return F.normalize(vector.float(), dim=-1).cpu().numpy().astype(np.float32)
