"""`LoadedModel`: how a model is loaded, what it consists of, and how it is saved."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self, Unpack

from vidllm.compressors import Compressor
from vidllm.errors.bounds import check as check_number
from vidllm.errors.keywords import known_keywords
from vidllm.models.cost.spending import Spending
from vidllm.models.engine import Engine
from vidllm.models.hooks.learned import Temporal
from vidllm.models.hooks.temporal import TemporalAdapter
from vidllm.models.load_options import LoadOptions
from vidllm.models.native.engine import NativeEngine
from vidllm.models.native.footage import KnownFootage
from vidllm.models.native.model import NativeVideoLLM
from vidllm.timecode import TimeCode
from vidllm.video import VideoClip

from .engines import load_engine, save_engine
from .options import Frames
from .publishing import push_engine

_LOG = logging.getLogger("vidllm")


class LoadedModel:
    """A model with its tokenizer and compressors; what `VideoLLM` asks.

    Attributes:
        engine: the model with its tokenizer, compressors and prompts. spending: what answers cost.
        frames, fps, tokens, reader, seed: as for `from_pretrained`.
    """

    @known_keywords(compressors="compressor")
    def __init__(
        self,
        model: NativeVideoLLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        compressor: str | Compressor | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
        footage: KnownFootage | None = None,
    ) -> None:
        engine = NativeEngine(
            model, tokenizer, compressors=compressor, keep=keep, tokens=tokens, footage=footage
        )
        self._begin(engine, frames, fps, tokens, reader, seed)

    @classmethod
    def of(cls, engine: Engine, **sampling: Any) -> Self:
        """Around an engine; `sampling` (frames, fps, …) as for `from_pretrained`."""
        made = cls.__new__(cls)
        made._begin(engine, **sampling)
        return made

    def _begin(
        self,
        engine: Engine,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
    ) -> None:
        self.engine = engine
        self.frames, self.fps, self.tokens = frames, fps, tokens
        self.reader, self.seed = reader, seed
        self.spending = Spending(engine.config, engine.decoder_config)

    @classmethod
    @known_keywords(LoadOptions, compressors="compressor")
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] | nn.Module | None = None,
        *,
        recipe: str | None = None,
        compressor: str | Compressor | None = None,
        keep: float | None = None,
        frames: Frames = None,
        fps: float | None = None,
        tokens: int | None = None,
        reader: str = "pyav",
        seed: int = 0,
        temporal: Temporal | None = None,
        adapter: str | os.PathLike[str] | None = None,
        **loading: Unpack[LoadOptions],
    ) -> Self:
        """Load a model, or take one that is loaded.

        Args:
            name: a shipped model, a folder or a name on the hub; None for the shipped default.
                Its family is one of `models.families.FAMILIES`, or the project's own. Or a model
                object of such a family: as it is, quantized, dispatched or with PEFT's LoRA. It is
                put into evaluation mode and otherwise left as it is.
            recipe: a named system; `compressor` and `keep` override its own. One that reduces
                behind a temporal encoder is refused for a model without.
            compressor: a spec such as "temporal-pool" or "aim,uniform", or an instance; None
                for what the model was trained with.
            keep: share of the video tokens kept, in (0, 1]; `keep=1` alone is no compression.
                Without a compressor it is "vidcom2" that keeps it where the model was trained with
                none; the receipt names the method.
            frames, fps, tokens: how many frames of a video are sampled and how many video tokens
                the LLM sees at most, if a call does not say (see `ask`).
            reader: "pyav" or "decord".
            seed: of everything random.
            temporal: of a hub model, an encoder between projector and decoder: a name ("ssd"),
                {"name": …, options}, the folder of a saved one, or itself. New, it changes nothing.
            adapter: a folder of `vidllm train hub` for this model; as `name` it brings its model.
            loading: `device` ("cpu", "cuda", …; None for a GPU where there is one); `dtype`
                ("float32", "bfloat16", "float16", torch's own, or "auto": float32 on a CPU,
                bfloat16 on a GPU); `attn_implementation` (or `attn`). For models of transformers
                also, with its meaning: `device_map`, `max_memory`, `offload_folder`,
                `quantization_config`, `revision`, `token`, `local_files_only`; and `processor`, or
                where its files are: a model object needs it. `engine="vllm"` lets vLLM run the
                model, with `engine_options` for its `LLM` (docs/serving.md).

        Raises:
            InputError: a name, option or combination that is wrong.
            WorkError: weights that cannot be loaded.
        """
        for option, value in (("fps", fps), ("tokens", tokens), ("seed", seed), ("frames", frames)):
            if value is not None and not isinstance(value, str):
                check_number(option, value)
        engine = load_engine(
            name,
            recipe=recipe,
            compressors=compressor,
            keep=keep,
            tokens=tokens,
            seed=seed,
            temporal=temporal,
            adapter=adapter,
            loading=loading,
        )
        _LOG.info("loaded %s (%s) on %s", engine.name, engine.family, engine.model.device)
        return cls.of(engine, frames=frames, fps=fps, tokens=tokens, reader=reader, seed=seed)

    @property
    def model(self) -> Any:
        """The model itself: a `NativeVideoLLM`, or one of transformers."""
        return self.engine.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.engine.tokenizer

    @property
    def config(self) -> Any:
        """Its config."""
        return self.engine.config

    @property
    def code(self) -> TimeCode:
        """How it tells time."""
        return self.engine.code

    @property
    def temporal(self) -> TemporalAdapter | None:
        """The temporal encoder put into a hub model: train it, `save_pretrained` it."""
        return getattr(self.engine, "temporal", None)

    @property
    def compressor(self) -> Compressor:
        """What it is asked with, unless a call says otherwise."""
        return self.engine.compressor

    @compressor.setter
    def compressor(self, method: Compressor) -> None:
        self.engine.compressor = self.engine.with_trained(method)

    @property
    def footage(self) -> KnownFootage | None:
        """What footage the model knows; None for a model that makes no claim."""
        return self.engine.footage

    @property
    def worked_on(self) -> nn.Module:
        """The module whose layers are worked on, by one thread at a time."""
        return self.engine.worked_on

    @property
    def usual_frames(self) -> int:
        """Frames of a clip if nobody says how many."""
        return self.engine.usual_frames

    def count(self, height: int, width: int, frames: int) -> int:
        """Video tokens without compression of so many frames of so many pixels, at most."""
        return self.engine.count(height, width, frames)

    def words(self, task: str, query: str = "") -> str:
        """What the model is asked for a task: "ground", "highlights" or "caption"."""
        return self.engine.words(task, query)

    def timed(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a question for a time, from those of a call."""
        return self.engine.timed(options)

    def knows(self, clip: VideoClip) -> bool:
        """Whether a clip is of the world that the model was trained on, as far as it can tell.

        True for a model that carries no statistics of its footage (see docs/footage.md).
        """
        return self.engine.knows(clip)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model with all that it takes to ask it; `from_pretrained` loads the folder.

        Of a model of transformers that is its tokenizer, template and pixel settings too; with
        PEFT's adapter it is the adapter alone, as PEFT saves it, and with adapters of `vidllm train
        hub` these alone, as they were loaded.

        Raises:
            InputError: a system without an LLM, or a path that is no folder.
            WorkError: the model or the disk refuses.
        """
        save_engine(self.engine, folder)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Push a model of vidllm",
    ) -> str:
        """Push to the hub what `save_pretrained` writes.

        Args:
            repo: OWNER/NAME; made where there is none. private: whether a new one is.
            token: of the hub; None for the one that is logged in. revision: a branch.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            InputError: as `save_pretrained`, or a name that cannot be.
            WorkError: the hub is out of reach, or refuses.
        """
        return push_engine(self.engine, repo, private, token, revision, message)
