"""Rank clips by a text, and choose the frames of a long video that fit it.

`Retriever` runs the project's `DualEncoder` and any CLIP or SigLIP of transformers; the vision
tower may merge tokens between its layers (tempme, tome, …: compressors of stage "vision"), as
TempMe does (arXiv 2409.01156). A video is the mean of its frames' unit vectors, as in CLIP4Clip's
mean pooling (arXiv 2104.08860) and TempMe.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidllm.compressors import Compressor, build
from vidllm.compressors.base import InTower
from vidllm.compressors.shared.in_tower import tower_part
from vidllm.encoders.vision import HubTower, to_pixels
from vidllm.encoders.vision.merging import MergingRun
from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import check
from vidllm.progress import Stopwatch
from vidllm.tokens import TokenMap, VideoTokens
from vidllm.video import VideoClip, load_video

from ..answer import Receipt
from ..load_options import choose_device, choose_dtype
from ..shipped import find_model, shipped_models
from .dual_encoder import DualConfig, DualEncoder, heads_of, merged_pass

#: Model types whose two towers give vectors of one space.
TYPES: tuple[str, ...] = (DualConfig.model_type, "clip", "siglip")
#: Frames of a clip where the model does not say: CLIP4Clip's and TempMe's on MSR-VTT.
FRAMES = 12
#: Frames of a video that are looked at by default, before some are chosen, and how many at once.
LOOKED_AT, _AT_ONCE = 256, 64

Video = str | os.PathLike[str] | VideoClip


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


class Ranked(NamedTuple):
    """A video and the cosine of its vector and the text's, -1 to 1."""

    video: Video
    score: float


class Retriever:
    """A dual encoder: a clip or a text in, one unit vector out.

    Args:
        model: a `DualEncoder`, a `CLIPModel` or a `SiglipModel`. tokenizer: its own.

    Attributes:
        usual_frames: of a clip. compressor: what merges inside the tower by default; of CLIP and
            SigLIP "none".

    Raises:
        InputError: another kind of model, or one without the head that pools a frame.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        kind = str(model.config.model_type)
        if kind not in TYPES:
            raise InputError(
                f"retrieval needs a dual encoder ({' or '.join(TYPES)}), not a {kind} model"
            )
        self.model, self.tokenizer, self.kind = model.eval(), tokenizer, kind
        if kind == "siglip" and getattr(model.vision_model, "head", None) is None:
            raise InputError("this SigLIP has no head that pools a frame: use a complete model")
        self.tower = HubTower(model.vision_model)
        own = model.config if isinstance(model, DualEncoder) else None
        self.usual_frames = FRAMES if own is None else own.frames
        self.compressor = self.own_compressor(None)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        attn: str | None = None,
    ) -> Retriever:
        """Load a model by its name on the hub or from a folder, e.g. openai/clip-vit-base-patch32.

        Raises:
            InputError: no such model, one of another kind, or no tokenizer beside it.
            WorkError: weights that cannot be read.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

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

    def own_compressor(self, keep: float | None) -> Compressor:
        """What merges inside the tower where nobody says, at its own share for None."""
        own = self.model.config if isinstance(self.model, DualEncoder) else None
        if own is None or own.compressors == "none" or keep == 1:
            return build("none")
        return build(own.compressors, keep=own.keep if keep is None else keep)

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

    def embed_video(self, clip: VideoClip, compressor: Compressor | None = None) -> Embedding:
        """A clip as the mean of its frames, each of length 1.

        Args:
            compressor: one that merges inside the tower; None for the model's own.

        Raises:
            InputError: another compressor: no tokens leave a dual encoder's tower.
        """
        watch = Stopwatch()
        watch.add("decode", clip.read_seconds)
        with watch.stage("encode"):
            method = self.compressor if compressor is None else compressor
            rows, whole = self._encoded(clip, method)
            mean = _finite(rows).mean(0)
        total = whole.total
        name = method.name if method is not None else "none"
        seconds = dict(watch.seconds)
        receipt = Receipt(len(clip), total, len(whole), 0.0, 0.0, seconds, method=name)
        return Embedding(_unit(mean), receipt, TokenMap.of(whole, clip.seconds))

    def embed_frames(self, clip: VideoClip) -> np.ndarray:
        """(T, D) float32 unit vectors of single frames, none of which knows of another."""
        rows, _ = self._encoded(clip, None)
        return _finite(rows).cpu().numpy().astype(np.float32)

    def rank(
        self, videos: Sequence[Video], text: str, *, frames: int | None = None
    ) -> list[Ranked]:
        """Videos by how well they fit a text, the best first; equal ones in the order given.

        Args:
            videos: files or clips. frames: read of every file; the model's usual number if absent.

        Raises:
            InputError: an empty text, or a file that is no readable video.
        """
        said = self.embed_text(text)
        found = []
        for video in videos:
            clip = video
            if not isinstance(clip, VideoClip):
                clip = load_video(clip, frames=frames or self.usual_frames)
            found.append(Ranked(video, float(self.embed_video(clip).vector @ said)))
        return sorted(found, key=lambda one: -one.score)

    def choose_frames(
        self, video: Video, text: str, *, frames: int, look_at: int = LOOKED_AT
    ) -> VideoClip:
        """The frames of a video that fit a text best, in time order, as a clip to be asked about.

        Args:
            video: a file, of which frames in equal steps are looked at, a few at a time; or a clip.
            frames: how many are chosen. look_at: of how many of a file's.

        Raises:
            InputError: an empty text, fewer than one frame, or a file that is no readable video.
        """
        for name, value in (("frames", frames), ("look_at", look_at)):
            check("frames", value, name)
        said = self.embed_text(text)
        if isinstance(video, VideoClip):
            best = _best(self.embed_frames(video) @ said, frames)
            return replace(
                video,
                frames=video.frames[best],
                seconds=video.seconds[best],
                indices=video.indices[best],
            )
        seconds, scores = self._looked_at(video, said, max(look_at, frames))
        return load_video(video, times=seconds[_best(scores, frames)])

    def _looked_at(
        self, path: str | os.PathLike[str], said: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds (N,) of frames in equal steps, and how well each fits, with few in memory."""
        duration = load_video(path, frames=1).duration
        pieces = -(-count // _AT_ONCE)
        seconds: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for k in range(pieces):
            some = count * (k + 1) // pieces - count * k // pieces
            start, end = (duration * edge / pieces for edge in (k, k + 1))
            clip = load_video(path, frames=some, start=start, end=end)
            seconds.append(clip.seconds)
            scores.append(self.embed_frames(clip) @ said)
        times, first = np.unique(np.concatenate(seconds), return_index=True)
        return times, np.concatenate(scores)[first]

    @torch.inference_mode()
    def _encoded(
        self, clip: VideoClip, compressor: Compressor | None
    ) -> tuple[Tensor, VideoTokens]:
        """(T, D) projected frames, and what is left of the tokens of the tower."""
        frames = self._pixels(torch.from_numpy(clip.frames.copy()))
        side, seconds = self.tower.side, clip.seconds.tolist()
        whole = VideoTokens.blank((len(clip), side, side), seconds, float(clip.duration))
        inside, _ = check_inside(compressor, whole)
        if inside is None:
            return self._projected(self.tower.run(frames).pooler_output), whole
        method, budget = inside
        if budget is None:
            budget = method.tower_budget(whole)
        own = self.model.join_embedding if isinstance(self.model, DualEncoder) else None
        hidden, run = merged_pass(self.tower, frames, method, budget, embedding=own)
        pooled = self._pooled(hidden, run) if self.kind == "siglip" else None
        heads = heads_of(self.tower, hidden, run) if pooled is None else pooled
        return self._projected(heads), run.tokens

    def _pixels(self, frames: Tensor) -> Tensor:
        """(T, 3, S, S) in 0..1. CLIP sees the square in the middle, the others all of a frame."""
        size = self.tower.image_size
        frames = frames.to(self.model.device)
        if self.kind == DualConfig.model_type:
            return to_pixels(frames, size)
        if self.kind == "clip":
            height, width = frames.shape[1:3]
            part = min(height, width)
            top, left = (height - part) // 2, (width - part) // 2
            frames = frames[:, top : top + part, left : left + part]
        pixels = frames.permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-2:] == (size, size):
            return pixels
        return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp_(0, 1)

    def _projected(self, pooled: Tensor) -> Tensor:
        if self.kind == "siglip":
            return pooled
        projected: Tensor = self.model.visual_projection(pooled)
        return projected

    def _pooled(self, hidden: Tensor, run: MergingRun) -> Tensor:
        """(T, C): SigLIP's head over every frame's places, each with the token that carries it.

        A token that stands for n places is looked at n times, which is attention with log n added.
        """
        features = run.read(hidden).features
        copies = features[run.tokens.source.to(features.device)]
        grid = copies.view(len(run.rows), -1, features.shape[-1])
        pooled: Tensor = self.tower.model.head(grid)  # type: ignore[operator]
        return pooled


def load_retriever(
    name: str = "tempme",
    *,
    device: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
) -> Retriever:
    """A dual encoder by name: a shipped one, a folder of `vidllm train tempme`, or one of the hub.

    Raises:
        InputError: no such model, or one that is no dual encoder.
        WorkError: weights that cannot be read.
    """
    if name == "tempme" and name not in shipped_models():
        raise InputError(
            "no trained dual encoder ships with this version: train one "
            "(vidllm train tempme --out DIR) and give its folder"
        )
    return Retriever.from_pretrained(find_model(name), device=device, dtype=dtype, attn=attn)


def check_inside(
    compressor: Compressor | None, clip: VideoTokens | None = None
) -> tuple[tuple[InTower, int | None] | None, Compressor | None]:
    """What merges inside the tower of a dual encoder, as `tower_part`; None for nothing.

    Raises:
        InputError: a compressor, or a part of a chain, that acts behind the tower.
    """
    if compressor is None or compressor.name == "none":
        return None, None
    if compressor.in_tower is None or len(compressor.methods) > 1:
        raise InputError(
            f"{compressor.name} acts on tokens behind the vision tower, and a dual encoder has "
            "none: use one method that merges inside, such as tempme or tome"
        )
    clip = VideoTokens.blank((1, 1, 1), [0.0], 1.0) if clip is None else clip
    return tower_part(compressor, clip)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Ascending places of the highest scores, the earlier of equal ones."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _finite(rows: Tensor) -> Tensor:
    """Rows of length 1, float32. Raises InputError for NaN."""
    unit = F.normalize(rows.float(), dim=-1)
    if not bool(torch.isfinite(unit).all()):
        raise InputError("the vision tower gives NaN or infinite values for this video")
    return unit


def _unit(vector: Tensor) -> np.ndarray:
    return F.normalize(vector.float(), dim=-1).cpu().numpy().astype(np.float32)
