"""`with vidllm.compress(model, "aim", keep=0.25):` any Hugging Face video-LLM, as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidllm.compressors import Chain, Compressor, build
from vidllm.errors import InputError
from vidllm.errors.keywords import known_keywords
from vidllm.errors.paths import is_folder
from vidllm.models.cost.flops import Decoder, kv_bytes_per_token
from vidllm.models.engine import compressed_once
from vidllm.models.families.family import adapter_for
from vidllm.models.hooks.labels import left_labels
from vidllm.models.hooks.layers import moved_cuts
from vidllm.models.hooks.learned import LearnedParts, Temporal, find_temporal
from vidllm.models.hooks.prefill import Prefix
from vidllm.models.hooks.session import Session
from vidllm.models.hooks.state import Report
from vidllm.models.hooks.temporal import TemporalAdapter

__all__ = ["Compression", "CompressionReceipt", "Prefix", "compress"]


@dataclass(frozen=True)
class CompressionReceipt:
    """The one-line account of a compressed prompt, or of a batch of them together.

    Attributes:
        method: the name of the compressors.
        tokens_full, tokens_kept: video tokens of the prompts, and those that the last layer read.
        kv_full_mb, kv_kept_mb: KV cache of these, in MB (10⁶ bytes), behind the prefill.
        flops: the prefill's floating point operations as a share of those of the full prompt,
            text included, without the vision tower.
        select_ms: what choosing and merging took, in milliseconds of the host's clock.
    """

    tokens_full: int
    tokens_kept: int
    kv_full_mb: float
    kv_kept_mb: float
    flops: float
    select_ms: float
    method: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        share = 100 * self.tokens_kept / max(1, self.tokens_full)
        digits = 0 if self.kv_kept_mb >= 10 else 2
        return (
            f"video tokens {self.tokens_full} -> {self.tokens_kept} ({share:.1f} %) "
            f"by {self.method} · "
            f"KV {self.kv_full_mb:.{digits}f} -> {self.kv_kept_mb:.{digits}f} MB · "
            f"prefill {100 * self.flops:.0f} % of FLOPs · select {self.select_ms:.1f} ms"
        )


class Compression:
    """What `compress` yields: an account of the last prompt that went through the model."""

    def __init__(self, session: Session, learned: LearnedParts) -> None:
        self._session, self._learned = session, learned

    @property
    def method(self) -> Compressor:
        """The compressors at work."""
        return self._session.method

    @property
    def temporal(self) -> TemporalAdapter | None:
        """The temporal encoder before them."""
        return self._learned.encoder

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained beside the model: of the temporal encoder and of learned methods.

        In the block they are among the model's own, by names with "vidllm" in them.
        """
        return self._learned.parameters()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the temporal encoder and the learned methods as safetensors into a folder.

        `compress(..., temporal=folder)` and `VideoLLM.from_pretrained(..., temporal=folder)` take
        them from there.

        Raises:
            InputError: there is nothing that is learned. WorkError: it cannot be written.
        """
        if not len(self._learned):
            raise InputError(f"{self.method.name} has nothing that is learned: nothing to save")
        self._learned.save_pretrained(folder)

    def labels(self, labels: Tensor) -> Tensor:
        """Labels (B, L) of the last prompts as (B, W) for their logits, for a loss of one's own.

        A video's tokens have none (-100), and nor have padding and the first token of a row. The
        loss that the model computes with `labels=` is that of these.

        Raises:
            InputError: labels of other prompts, or no prompt yet.
        """
        report = self._report
        return left_labels(labels, report.rows[-1], report.valid, report.text)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of the method, one line each: that its weights are random."""
        moved = moved_cuts(self._session.late, self._session.layers)
        return (*self.method.notes(), *moved)

    @property
    def kept(self) -> list[Tensor]:
        """For every row of the batch (n,) long: the indices of the original prompt, padding not
        counted among them, that the LLM read to the end (its last layer; see `layers`)."""
        return self._report.rows[-1]

    @property
    def layers(self) -> list[list[Tensor]]:
        """The same for every decoder layer; they differ where a method prunes between layers."""
        return self._report.rows

    @property
    def cached(self) -> list[list[Tensor]]:
        """The same of what every layer's cache held behind the prefill; it differs from `layers`
        where a method of the stage "cache" is at work."""
        return self._report.held

    @property
    def receipt(self) -> CompressionReceipt:
        """The account of the last prompts.

        Raises:
            InputError: no prompt went through the model yet.
        """
        report, decoder = self._report, self._session.decoder
        weight = next(decoder.parameters())
        size = kv_bytes_per_token(decoder.config, weight.element_size()) / 1e6
        return CompressionReceipt(
            report.full,
            report.kept,
            report.full * size,
            report.mean_cached * size,
            _flops(decoder.config, report),
            1000 * report.seconds,
            self.method.name,
        )

    def reuse(self, prefix: Prefix | None = None) -> AbstractContextManager[Prefix]:
        """Read one video once for many questions: ``with c.reuse() as video:``.

        Prompts in the block begin alike, up to the end of the same video (the processor makes
        them so where the video stands before the question; a later turn of a conversation begins
        so as well). The first one is read as always, and its keys and values up to the video's
        end are kept; the others read only what stands behind, with the answers of a fresh run.
        Rows of a batch may ask different questions. `model(**inputs)` gives the logits of what
        was read.

        Args:
            prefix: one that an earlier block filled, also of an earlier `compress` with the same
                model and method; None for a new one.

        Yields:
            The prefix; hand it to a later block to go on with it.

        Raises:
            InputError: a method that reads the question or acts inside the decoder, at once;
                later a prompt that begins otherwise, another video, or no cache.
        """
        return self._session.sharing(Prefix() if prefix is None else prefix)

    def tell_seconds(self, *videos: tuple[Sequence[float], float]) -> None:
        """Tell compressors when the frames were, where the caller knows it better than the prompt.

        Args:
            videos: for every video of a prompt, in order, the seconds of its frames (of the slots
                of its token grid: Qwen makes one of two frames) and the second at which it ends;
                none to read prompts again.
        """
        self._session.adapter.tell_seconds(*videos)

    @property
    def _report(self) -> Report:
        self._session.net.check()
        if self._session.report is None:
            raise InputError("no prompt yet: call model.generate(**inputs) inside the with block")
        return self._session.report


@known_keywords(compressors="compressor")
@contextmanager
def compress(
    model: nn.Module,
    compressor: str | Compressor | Sequence[str | Compressor],
    *,
    keep: float | None = None,
    budget: int | None = None,
    processor: Any = None,
    exclusive: bool = False,
    temporal: Temporal | None = None,
) -> Iterator[Compression]:
    """Compress the videos of every prompt that a Hugging Face video-LLM reads in this block.

    `model.generate(**inputs)` returns the full prompt and the new tokens, as without us;
    `model(**inputs)` gives the logits of the kept tokens, whose places are `kept`, and with
    `labels=` the model's own loss over the text that stays (docs/finetune.md). Images and
    text are never touched. Rows of a batch that keep different numbers of tokens are padded on
    the side where the inputs are padded. With keep=1.0 everything is bit-equal to the plain model.
    A later turn of a conversation is a new prompt: it is compressed from its beginning, the same
    way for methods that do not read the question (see `Compression.reuse` for not reading it
    again).

    Args:
        model: a model of `models.families.FAMILIES`, from `from_pretrained`, in any dtype and
            on any device, with any attention that the library has a mask function for: sdpa,
            eager, flash_attention_2 and its like, flex_attention where the family takes it.
        compressor: a spec such as "aim", "dycoke,uniform" or "per-scene(evs)", an instance, a
            chain, or a sequence of names and instances.
        keep: share of the tokens of every video that is kept, in (0, 1]; it goes with names.
        budget: exact number of tokens of every video instead.
        processor: the model's processor or tokenizer. InternVL and SmolVLM2, which write a video
            as numbered images, need it to tell frames from images, and look for it beside the
            model's weights where it is not given. Families that write times into the prompt
            (Qwen3-VL, Qwen3.5, VideoLLaMA3, SmolVLM2) tell compressors the true seconds with it,
            and otherwise count frames.
        exclusive: other threads that call the model wait until the block is left, and are not
            compressed then; without it their prompts are compressed too, one after the other.
        temporal: an encoder that the tokens of every video pass between projector and decoder,
            before the compressors see them: a name such as "ssd", {"name": …, options} (or
            several), the folder of one that was saved, or the encoder. A new one changes nothing
            until it is trained.

    Yields:
        What became of the last prompt: `kept`, `layers` and `receipt`.

    Raises:
        InputError: a method, option, model or attention that does not go together, before any
            work; later inputs that cannot be served (a cache that is not empty, inputs_embeds);
            when the block is left, a forward pass in it that went past it.
    """
    method = _method(compressor, keep, budget)
    adapter = adapter_for(model, processor)
    if isinstance(temporal, str | os.PathLike) and is_folder(temporal):
        method = method.trained_in(Path(temporal))
    mixing = None if temporal is None else find_temporal(adapter, temporal)
    learned = LearnedParts(adapter, method, mixing)
    session = Session(adapter, method, mixing)
    with compressed_once(adapter.core), learned.attached(adapter.core), session.attached(exclusive):
        yield Compression(session, learned)


def _method(
    compressor: str | Compressor | Sequence[str | Compressor],
    keep: float | None,
    budget: int | None,
) -> Compressor:
    if isinstance(compressor, Compressor):
        if keep is not None or budget is not None:
            raise InputError("keep goes with a compressor's name; an instance has its own")
        return compressor
    share = 1.0 if keep is None else keep
    if isinstance(compressor, str):
        made = build(compressor, keep=share, budget=budget)
    else:
        items: list[Compressor] = []
        for item in compressor:
            one = build(item) if isinstance(item, str) else item
            items += one.methods
        made = Chain(items, keep=share, budget=budget)
    if keep is None and budget is None and made.lacks_share():
        raise InputError(f"how much should '{made.name}' keep? Give keep, for example keep=0.25")
    return made


def _flops(config: Any, report: Report) -> float:
    """FLOPs of the layers on what they read, as a share of those on the full prompts."""
    decoder = Decoder.of(config)
    spent = sum(
        decoder.prefill([len(layer[row]) for layer in report.rows], causal=True, logits=0)
        for row in range(len(report.prompt))
    )
    if report.reused:
        spent -= len(report.prompt) * decoder.prefill(report.reused, causal=True, logits=0)
    return spent / sum(decoder.prefill(count, causal=True, logits=0) for count in report.prompt)
