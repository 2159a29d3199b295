"""Course "hub": a hub model is fine-tuned on fewer tokens, by what stands beside it.

A LoRA in its decoder, a temporal encoder before it and learned reducers are trained; the model
itself stays as it is. The data are one's own videos, in the format of a benchmark. What is saved
are these adapters: the LoRA as peft has it, the rest as safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vidllm.compressors import Compressor, build
from vidllm.compressors.base import Scorer
from vidllm.errors import InputError
from vidllm.errors.bounds import check
from vidllm.errors.paths import input_folder, is_folder
from vidllm.errors.registry import did_you_mean
from vidllm.models.engine import compressed_once
from vidllm.models.families.adapters import load_lora, lora_rank, new_lora
from vidllm.models.families.engine import HubEngine
from vidllm.models.hooks.learned import (
    LearnedParts,
    find_temporal,
    learned_in,
    read_temporal,
    width_of,
)
from vidllm.models.hooks.session import Session
from vidllm.models.load_options import LoadOptions, LoadPlan
from vidllm.models.loading import model_kind
from vidllm.models.model_options import adapters_of
from vidllm.models.native.config import NativeConfig
from vidllm.models.shipped import find_model
from vidllm.models.tuned import TEMPORAL, Tuned, check_tuned, find_tuned
from vidllm.progress.interruption import leave_to_parent
from vidllm.stage.training.average import Average
from vidllm.stage.training.run import TrainingRun, new_accelerator, on_gpu, run_in
from vidllm.stage.training.run_folder import LOG, TrainingFolder

from ..recipe import Lora, Part, Recipe
from . import CourseSettings
from .card import CARD, card
from .examples import Example, read_examples
from .head_loop import rate
from .hub_lessons import HubLessons, Lesson, taught
from .video_llm import Pace, base_name, command, last_row

STEPS, BATCH, LR, RANK, WARMUP = 500, 4, 1e-4, 16, 50
#: Options of this course alone, see `CourseSettings.more`.
OWN = ("split", "checkpointing", "revision", "adapter", "device_map")


def train(settings: CourseSettings) -> Path:
    """Train adapters for the hub model `settings.init` in `settings.out`, which is returned.

    Raises:
        InputError: options that cannot be, a folder that another training uses or that holds a
            model already, or a resume without a checkpoint.
        WorkError: files that cannot be written; the last whole checkpoint is kept.
        Interrupted: it was stopped from outside, between two steps.
    """
    settings, method, examples = _checked(settings)
    folder = TrainingFolder(Path(settings.out))
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one holds the folder
    return run_in(
        folder,
        lambda: HubTuning(settings, method, examples, folder),
        resume=settings.resume,
        alone=first,
    )


def _checked(settings: CourseSettings) -> tuple[CourseSettings, Compressor, list[Example]]:
    """All that can be seen without the model: the settings filled in, the method, the examples."""
    odd = sorted(set(settings.more) - set(OWN))
    if odd:
        raise InputError(f"no option {odd[0]!r} here: {did_you_mean(odd[0], OWN)}")
    if settings.more.get("checkpointing", "false") not in ("true", "false"):
        raise InputError("--option checkpointing is true or false")
    start = adapters_of(settings.more.get("adapter"))
    if start is not None:
        settings = _from_adapters(settings, start)
    if not settings.init:
        raise InputError("which model? Give --model: a folder, or a name on the hub")
    if find_tuned(settings.init) is not None:
        raise InputError(
            f"{settings.init} holds adapters already: go on with --resume, or train them further "
            "in another folder with --adapter"
        )
    settings = replace(settings, init=find_model(settings.init))
    plan = _plan(settings)
    plan.check_folder(settings.init)
    if model_kind(settings.init, **plan.hub) == NativeConfig.model_type:
        raise InputError(
            f"{base_name(settings.init)} is this project's own model: "
            "vidllm train RECIPE --init DIR"
        )
    if settings.data == "stage" or settings.task is None:
        raise InputError(
            "vidllm train hub learns from videos of your own: give --data DIR and --task, the "
            "benchmark in whose format its annotations are, such as charades (vidllm list tasks)"
        )
    lora = RANK if settings.lora is None else settings.lora
    if settings.keep is not None:
        check("keep", settings.keep)
    spec = settings.compressor or "none"
    method = build(spec, keep=1.0 if settings.keep is None else settings.keep)
    if spec == "none" and settings.keep not in (None, 1.0):
        raise InputError(f"which tokens are the {settings.keep:g}? Give --compressor")
    if spec != "none" and method.lacks_share() and settings.keep is None:
        raise InputError(f"how much should {spec} keep? Give --keep, for example --keep 0.25")
    learned = list(learned_in(method))
    for item in learned:
        if isinstance(item, Scorer):
            raise InputError(
                f"{item.name} leaves tokens out, and no gradient goes through a choice: it is "
                f"learnt by vidllm train {item.name}"
            )
    for one in method.methods:
        if one.stage == "cache":
            raise InputError(
                f"{one.name} acts at decode steps, of which training has none: train without it, "
                "and ask with it"
            )
    if settings.temporal is not None:
        read_temporal(settings.temporal)
    brought = start is not None and (start.folder / TEMPORAL).is_file()
    if not (lora or settings.temporal or brought or learned):
        raise InputError("nothing to train: give --lora RANK, --temporal, or a learned compressor")
    input_folder(settings.data, "--data")
    examples = read_examples(settings.task, Path(settings.data), settings.more.get("split"))
    steps, batch = settings.steps or STEPS, settings.batch or BATCH
    rate_ = settings.lr or LR
    return replace(settings, lora=lora, steps=steps, batch=batch, lr=rate_), method, examples


def _from_adapters(settings: CourseSettings, start: Tuned) -> CourseSettings:
    """The settings with what adapters bring that are to be trained further.

    Raises:
        InputError: a setting that makes anew what they bring.
    """
    for name, there in (("lora", start.lora), ("temporal", (start.folder / TEMPORAL).is_file())):
        if there and getattr(settings, name) is not None:
            raise InputError(
                f"--{name} begins a new one, and the adapters in {start.folder} bring theirs: "
                "give one of the two"
            )
    named = settings.compressor is not None
    return replace(
        settings,
        init=settings.init or start.model,
        lora=lora_rank(start.folder) if start.lora else settings.lora or 0,
        frames=settings.frames or start.frames,
        compressor=settings.compressor if named else start.compressors,
        keep=start.keep if settings.keep is None and not named else settings.keep,
    )


def _plan(settings: CourseSettings, device: Any = "cpu") -> LoadPlan:
    """How the model is loaded; `device`, if it is not spread over several."""
    told = {name: settings.more.get(name) for name in ("revision", "device_map")}
    if told["device_map"] is None:
        told["device"] = device
    return LoadPlan.of(cast(LoadOptions, told))


class _Trainee(nn.Module):
    """A model with what is trained beside it; its forward is the loss, for accelerate."""

    def __init__(self, model: nn.Module, learned: LearnedParts) -> None:
        super().__init__()
        self.model, self.learned = model, learned

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = self.model(**inputs).loss
        return loss


class HubTuning(TrainingRun):
    """One call of `train`."""

    headline = ("total",)

    def __init__(
        self,
        settings: CourseSettings,
        method: Compressor,
        examples: list[Example],
        folder: TrainingFolder,
    ) -> None:
        s = self.settings = settings
        self.steps = cast(int, s.steps)
        free = ("out", "minutes", "save_every", "log_every", "resume", "workers", "threads",
                "device", "quiet")  # fmt: skip
        told = asdict(s) | {"init": base_name(s.init), "data": base_name(s.data)}
        told["more"] = {
            k: base_name(v) for k, v in s.more.items() if k not in ("checkpointing", "device_map")
        }
        fixed = {"recipe": "hub", **{k: v for k, v in told.items() if k not in free}}
        saved = folder.begun(fixed, self.steps, resume=s.resume)
        if s.threads:
            torch.set_num_threads(s.threads)
        cuda = on_gpu(s.device)
        several = DistributedDataParallelKwargs(find_unused_parameters=True)
        accelerator = new_accelerator("bf16" if cuda else "no", cuda, kwargs_handlers=[several])
        plan = _plan(s, accelerator.device if cuda else "cpu")
        if plan.device_map is not None and accelerator.num_processes > 1:
            raise InputError(
                "--device-map spreads a model over the devices of one process: leave it out where "
                "accelerate launches several"
            )
        set_seed(s.seed)
        engine = self.engine = HubEngine.load(s.init, plan, seed=s.seed, compressors=method)
        model, adapter = engine.model, engine.adapter
        self.frames = s.frames or engine.usual_frames
        model.requires_grad_(False)
        start, told_temporal = adapters_of(s.more.get("adapter")), s.temporal
        if start is not None:
            width, kind = width_of(adapter)
            check_tuned(start, kind, width, len(cast(Any, adapter.decoder).layers))
            engine.compressor = engine.compressor.trained_in(start.folder)
            if (start.folder / TEMPORAL).is_file():
                told_temporal = str(start.folder)
        temporal = None if told_temporal is None else find_temporal(adapter, told_temporal, "hub")
        self.learned = LearnedParts(adapter, engine.compressor, temporal)
        self.session = Session(adapter, engine.compressor, temporal)
        self.brought = start is not None and start.lora
        if start is not None and start.lora:
            self.lora = load_lora(model, start.folder, trained=True)
        else:
            self.lora = new_lora(adapter, s.lora) if s.lora else None
        trainee = _Trainee(model, self.learned).train()
        adapter.tower.eval()
        if s.more.get("checkpointing") == "true":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [p for p in trainee.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
        placed = [plan.device_map is None, True]  # a model that is spread stays where it is
        self.trainee, optimizer = accelerator.prepare(trainee, optimizer, device_placement=placed)
        self.lessons = HubLessons(
            examples,
            frames=self.frames,
            batch=cast(int, s.batch),
            length=self.steps * accelerator.num_processes,
            seed=s.seed,
        )
        super().__init__(
            Pace(s),
            folder,
            s.quiet,
            total=self.steps,
            fixed=fixed,
            accelerator=accelerator,
            plain=trainee,
            optimizer=optimizer,
            average=Average(nn.Module(), 0.0),  # what is saved is what was trained last
        )
        if saved is not None:
            self.take_up(saved)

    def state(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        every = self.plain.named_parameters()
        return {name: p.detach() for name, p in every if p.requires_grad}

    def loader(self) -> DataLoader[list[Lesson]]:
        """Batches from where the run is; every process has its own."""
        several, mine = self.accelerator.num_processes, self.accelerator.process_index
        order = range(mine, self.steps * several, several)
        return DataLoader(
            self.lessons,
            batch_size=None,
            sampler=order[self.done :],
            collate_fn=_as_it_is,
            num_workers=self.settings.workers,
            prefetch_factor=2 if self.settings.workers else None,
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # else a new loader would draw from the run's own
        )

    def work(self) -> None:
        bar, core = self.progress(), self.engine.adapter.core
        with bar, self.open_log() as log, compressed_once(core), self.session.attached(True):
            task = bar.add_task("train", total=self.steps, completed=self.done)
            for batch in self.loader():
                self.step(batch)
                bar.advance(task)
                self.report(log, bar, task)
                if self.stop():
                    return

    def step(self, batch: list[Lesson]) -> None:
        """One optimiser step; the examples go through one after the other, and count alike."""
        losses, kept, full = [], 0, 0
        for lesson in batch:
            inputs = taught(self.engine, self.session, lesson)
            loss = self.trainee(inputs)
            self.accelerator.backward(loss / len(batch))
            losses.append(loss.detach().float())
            report = self.session.report
            if report is not None:
                kept, full = kept + report.kept, full + report.full
        self.descend(cast(float, self.settings.lr) * rate(self.done, self.steps, WARMUP))
        self.note({"total": torch.stack(losses).mean(), "kept": torch.tensor(kept / max(1, full))})

    def write_model(self) -> None:
        """The adapters with the card and the stamp, each in one piece, the stamp last."""
        s, width_kind = self.settings, width_of(self.engine.adapter)

        def write(beside: Path) -> None:
            if self.lora is not None:  # the embeddings are not trained, so nothing to look up
                self.lora.save_pretrained(beside, save_embedding_layers=False)
            self.learned.save_pretrained(beside)

        temporal = self.learned.encoder
        told = {
            **asdict(s),
            "init": base_name(s.init),
            "data": base_name(s.data),
            "recipe": "hub",
            "adapters_of": str(Path(s.init).resolve()) if is_folder(s.init) else s.init,
            "width": width_kind[0],
            "model_type": width_kind[1],
            "layers": len(cast(Any, self.engine.adapter.decoder).layers),
            "compressors": s.compressor or "none",
            "frames": self.frames,
            "temporal": [] if temporal is None else temporal.specs,
            "steps": self.steps,
            "step": self.done,
        }
        self.folder.put(write, told, {CARD: card(self._recipe(), self._facts())})

    def _recipe(self) -> Recipe:
        """What is trained, as the card has it."""
        s, temporal = self.settings, self.learned.encoder
        reducers = any(name != "temporal" for name in self.learned)
        parts: tuple[tuple[Part, bool], ...] = (
            ("lora", self.lora is not None),
            ("temporal", temporal is not None),
            ("compressor", reducers),
        )
        return Recipe(
            "hub",
            f"{base_name(s.init)} fine-tuned on fewer video tokens, by adapters beside it",
            temporal=None if temporal is None else tuple(temporal.specs),
            compressors=s.compressor or "none",
            keep=s.keep,
            trained=tuple(name for name, there in parts if there),
            lora=Lora(s.lora, 2 * s.lora) if s.lora else None,
            steps=self.steps,
            lr=cast(float, s.lr),
        )

    def _facts(self) -> Mapping[str, Any]:
        s = self.settings
        counts = {
            "lora": [p for n, p in self.plain.named_parameters() if ".lora_" in n],
            **{name: list(module.parameters()) for name, module in self.learned.items()},
        }
        return {
            "start": base_name(s.init),
            "data": f"{base_name(s.data)}, annotations as of {s.task}",
            "step": self.done,
            "steps": self.steps,
            "batch": s.batch,
            "frames": self.frames,
            "lr": s.lr,
            "seed": s.seed,
            "parameters": {k: sum(p.numel() for p in v) for k, v in counts.items() if v},
            "command": command(
                self._recipe(), replace(s, lora=None) if self.brought else s, {"init": "model"}
            ),
            "last": last_row(self.folder.path / LOG),
        }


def _as_it_is(batch: list[Lesson]) -> list[Lesson]:
    return batch
