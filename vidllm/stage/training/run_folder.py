"""The folder of a training: its lock, its log, and the model that it holds.

| file | what |
|---|---|
| `checkpoint.safetensors` | what `--resume` goes on from (`checkpoint`) |
| `config.json`, `model.safetensors`, … | the model of that checkpoint, as every model folder |
| `training.json` | the settings and the step of the model |
| `log.jsonl` | losses, a row every few steps |
| `cells.bin`, `cells.bin.json` | what the frozen tower sees in the clips (`cells`) |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vidllm.errors import InputError, VidllmError
from vidllm.errors.disk import unwritten
from vidllm.errors.writing import remove_parts, sync, whole_file
from vidllm.models.tuned import LORA_WEIGHTS, TEMPORAL

from .checkpoint import CHECKPOINT, OLD, Checkpoint, read_checkpoint
from .settings import TrainSettings

LOG, WEIGHTS, STAMP = "log.jsonl", "model.safetensors", "training.json"
#: Settings that make another course of a training: `--resume` must have the same.
COURSE = (
    "size", "temporal", "reduce", "steps_see", "steps_mix", "see_batch", "batch", "frames", "seed",
)  # fmt: skip

#: Settings that checkpoints of earlier versions may lack, so that those can still be gone on from.
LATER = ("lr", "warmup", "weight_decay", "clip", "ema")


def course(settings: TrainSettings) -> dict[str, Any]:
    """The settings that must not change on the way."""
    return {name: getattr(settings, name) for name in COURSE}


class TrainingFolder:
    """Where a training stands, or will.

    Args:
        path: made by `claimed`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder against other trainings.

        Raises:
            InputError: it cannot be made, or another training is at work there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another training is at work in {self.path}: wait for it, or give another --out"
            ) from None
        except OSError as error:
            raise unwritten(f"--out {self.path}", error) from error
        try:
            remove_parts(self.path)
            yield
        finally:
            lock.release()

    def check_empty(self) -> None:
        """See that a new training would overwrite nothing.

        Raises:
            InputError: there is a checkpoint or a model.
        """
        for name in (CHECKPOINT, OLD, WEIGHTS, LORA_WEIGHTS, TEMPORAL):
            if (self.path / name).exists():
                go_on = "add --resume to go on, or " if name == CHECKPOINT else ""
                raise InputError(
                    f"{self.path} holds a trained model already ({name}): {go_on}give another --out"
                )

    def checkpoint(self, fixed: Mapping[str, Any], total: int) -> Checkpoint:
        """The checkpoint to go on from.

        Args:
            fixed: settings that must be as they were. total: steps of the whole training.

        Raises:
            InputError: none, a damaged one, or one of other settings.
        """
        found = read_checkpoint(self.path)
        for name, value in fixed.items():
            if name in LATER and name not in found.settings:
                continue
            if found.settings.get(name) != value:
                raise InputError(
                    f"{self.path} is trained with {name.replace('_', '-')} "
                    f"{found.settings.get(name)}, not {value}: give the options of that training"
                )
        if found.step > total:
            raise InputError(
                f"{self.path} has made {found.step} steps already, more than the {total} "
                "asked for: give the options of that training"
            )
        return found

    def begun(self, fixed: Mapping[str, Any], total: int, *, resume: bool) -> Checkpoint | None:
        """`checkpoint` where a training goes on, or else None behind `check_empty`."""
        if resume:
            return self.checkpoint(fixed, total)
        self.check_empty()
        return None

    def kept(self) -> str:
        """What the folder holds to go on from, for people."""
        try:
            step = read_checkpoint(self.path).step
        except VidllmError:
            return f"nothing is saved in {self.path} yet"
        return f"step {step} is saved in {self.path}, go on from there with --resume"

    def log(self, *, new: bool) -> TextIO:
        """The open log."""
        return (self.path / LOG).open("w" if new else "a", encoding="utf-8")

    def cut_log(self, step: int) -> None:
        """Keep the rows of the log up to a step, which a killed run may have gone beyond."""
        path = self.path / LOG
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        kept = [line for line in text.splitlines(keepends=True) if _step_of(line) <= step]
        if "".join(kept) != text:
            with whole_file(path) as part:
                part.write_text("".join(kept), encoding="utf-8")

    def write_model(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        state: dict[str, Tensor],
        learned: dict[str, dict[str, Tensor]],
        told: dict[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Put a model in place of the one of before, file by file, weights and stamp last.

        All files but these and those of `learned` compressors, by name, are the same at every step
        of a training.

        Args:
            state: the weights. told: the stamp, "out" and "step" of the training among it.
            texts: further files by name, such as the card.

        Raises:
            WorkError: it cannot be written; the model of before stays.
        """

        def write(beside: Path) -> None:
            model.save_pretrained(beside, state_dict=state)
            tokenizer.save_pretrained(beside)
            for name, values in learned.items():
                save_file(values, beside / f"{name}.safetensors")

        self.put(write, told, texts)

    def put(
        self,
        write: Callable[[Path], None],
        told: dict[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """As `write_model`, for files that `write` puts into a folder.

        Raises:
            WorkError: they cannot be written; those of before stay.
        """
        beside = self.path / ".model.part"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            write(beside)
            for name, text in (texts or {}).items():
                (beside / name).write_text(text, encoding="utf-8")
            told = {**told, "out": self.path.name}
            (beside / STAMP).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            late = {WEIGHTS: 1, STAMP: 2}
            files = sorted(beside.iterdir(), key=lambda file: (late.get(file.name, 0), file.name))
            for file in files:
                sync(file)
            for file in files:
                file.replace(self.path / file.name)
            sync(self.path)
        except (OSError, SafetensorError) as error:
            raise unwritten(self.path, error) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def steps_of(folder: Path) -> tuple[int, int]:
    """The step of the model that a folder holds, and how many its training has."""
    told = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    parts = ("steps", "steps_see", "steps_mix", "steps_answer")
    return told["step"], sum(told.get(name) or 0 for name in parts)


def _step_of(line: str) -> float:
    """The step of a whole row of the log; infinity for what is none."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
