"""Course "video-llm": a trained model is tuned as one whole system.

From its start (the shipped model, `--init`, or a fresh tiny one) the parts that the recipe trains
go on, all others stay frozen: the projector, temporal encoders, a learned reduction, the LLM, or
adapters beside it. Every step meets one reduction of the mixture, planned clip by clip. What is
saved is the whole model with its adapters merged, an exponential moving average over the steps.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vidllm.compressors.mrt5 import Mrt5
from vidllm.encoders.vision import VisionEncoder
from vidllm.errors import InputError
from vidllm.errors.paths import input_folder
from vidllm.errors.registry import did_you_mean
from vidllm.models.deltas import delta_of
from vidllm.models.shipped import weights_dir
from vidllm.progress.interruption import leave_to_parent
from vidllm.stage.training import losses
from vidllm.stage.training.average import Average
from vidllm.stage.training.cells import CellCache, mark_of
from vidllm.stage.training.data import DataSettings, StageBatches
from vidllm.stage.training.query_blocks import QUERY_BLOCKS
from vidllm.stage.training.run import TrainingRun, accelerator_for, decay_groups, on_gpu, run_in
from vidllm.stage.training.run_folder import LOG, TrainingFolder
from vidllm.stage.training.settings import TrainSettings, plan_of
from vidllm.stage.training.tokenizer import USER

from ..recipe import Part, Recipe
from . import CourseSettings
from .adapters import add_adapters, merged_state
from .card import CARD, card
from .examples import read_examples
from .own_videos import FAILED, OwnVideos
from .reducing import Reductions
from .start_model import load_start
from .tuner import LOSSES, Tuner, needs_pixels
from .variant import as_trained

WARMUP, DECAY, EMA, CLIP = 50, 0.05, 0.995, 1.0
#: MrT5's gate deletes softly in the first part of a training, as in the paper, then hard.
SOFT = 0.6
#: Scenes of a tiny training, and steps where nobody says.
TINY_CLIPS, TINY_STEPS, STEPS = 16, 20, 1500
#: Clips of a batch, and scenes that are gone round in, where nobody says.
BATCH, CLIPS = 8, 4000
#: Options of this course alone, see `CourseSettings.more`: a file or folder of the frozen tower's
#: cells, the split of one's own data, "temporal" as what begins with fresh weights, and "captions"
#: as what is never asked.
OWN = ("cells", "split", "fresh", "without")
#: Those of them that make another training.
_OWN_FIXED = ("split", "fresh", "without")
#: Settings of a training that do not make another one of it.
_FREE = ("out", "minutes", "save_every", "log_every", "resume", "workers", "threads", "device",
         "quiet", "more")  # fmt: skip


def train(recipe: Recipe, settings: CourseSettings) -> Path:
    """Tune a system and save it in `settings.out`, which is returned.

    Raises:
        InputError: options that cannot be, a folder that another training uses or that holds a
            model already, or a resume without a checkpoint.
        WorkError: files that cannot be written; the last whole checkpoint is kept.
        Interrupted: it was stopped from outside, between two steps.
    """
    odd = sorted(set(settings.more) - set(OWN))
    if odd:
        raise InputError(f"no option {odd[0]!r} here: {did_you_mean(odd[0], OWN)}")
    if settings.more.get("fresh", "") not in ("", "temporal"):
        raise InputError(f"fresh can be temporal alone, not {settings.more['fresh']!r}")
    if settings.more.get("without", "") not in ("", "captions"):
        raise InputError(f"without can be captions alone, not {settings.more['without']!r}")
    made = as_trained(recipe, settings)
    settings = replace(settings, batch=settings.batch or BATCH, clips=settings.clips or CLIPS)
    if settings.data != "stage":
        input_folder(settings.data, "--data")
        if settings.task is None:
            raise InputError(
                "--data DIR needs --task: the benchmark in whose format its annotations are, "
                "such as charades (vidllm list tasks)"
            )
    elif settings.task is not None:
        raise InputError("--task goes with --data DIR: the stage world has no annotation files")
    folder = TrainingFolder(Path(settings.out))
    first = int(os.environ.get("RANK", "0")) == 0  # of several processes one holds the folder
    return run_in(
        folder, lambda: Tuning(made, settings, folder), resume=settings.resume, alone=first
    )


class _Trained:
    """The parameters that are trained, as `Average` asks a module for them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for p in self.module.parameters() if p.requires_grad)


class Tuning(TrainingRun):
    """One call of `train`."""

    headline = ("total", "words", "iou", "qa")

    def __init__(self, recipe: Recipe, settings: CourseSettings, folder: TrainingFolder) -> None:
        self.recipe, self.settings = recipe, settings
        tiny = settings.size == "tiny"
        steps = recipe.steps if settings.steps is not None or not tiny else TINY_STEPS
        self.steps = steps or STEPS
        fixed = _fixed(settings, recipe, self.steps)
        saved = folder.begun(fixed, self.steps, resume=settings.resume)
        several = DistributedDataParallelKwargs(find_unused_parameters=True)
        accelerator = accelerator_for(
            settings.device, settings.threads, settings.seed, kwargs_handlers=[several]
        )
        self.start = start = load_start(recipe, settings)
        self.model = start.model
        self.of_stage = settings.data == "stage"
        if self.of_stage and not start.of_stage:
            raise InputError(
                f"{start.name} does not speak the language of the made world: give --data DIR "
                "with videos of your own, or another --init"
            )
        if start.model.config.stamps:
            raise InputError(
                f"{start.name} writes the time of every frame before its tokens, which this "
                "training does not: make a model with stamps=False and time_embedding=True"
            )
        if not on_gpu(settings.device):  # the fused kernel's way back is slow
            self.model.language_model.set_attn_implementation(QUERY_BLOCKS)
        specs = [recipe.compressors, *(spec for spec, _ in recipe.mixture)]
        reductions = Reductions(self.model, specs, start.folder)
        self.parts = self._part(reductions)
        trainee = self._tuner(reductions)
        self.counts = {k: sum(p.numel() for p in v) for k, v in self.parts.items()}
        self.fixed_cells = not (
            needs_pixels(reductions.methods, self.model)
            or "tower" in self.parts
            or isinstance(self.model.vision, VisionEncoder)
            or (recipe.lora is not None and recipe.lora.where == "tower" and "lora" in self.parts)
        )
        optimizer = torch.optim.AdamW(
            [
                {**group, "params": [p for p in group["params"] if p.requires_grad]}
                for group in decay_groups(trainee, DECAY)
            ],
            lr=1.0,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.trainee, optimizer = accelerator.prepare(trainee, optimizer)
        self.averaged = _Trained(trainee)
        super().__init__(
            Pace(settings),
            folder,
            settings.quiet,
            total=self.steps,
            fixed=fixed,
            accelerator=accelerator,
            plain=trainee,
            optimizer=optimizer,
            average=Average(cast(nn.Module, self.averaged), EMA),
        )
        home = start.folder
        ships = home is not None and home.resolve().parent == weights_dir().resolve()
        whole = ships and not start.model.config.base  # changes to changes are written as a whole
        self.base = home if whole else None
        start.model.config.base = start.model.config.base_sha256 = ""
        if saved is not None:
            self.take_up(saved)

    def _part(self, reductions: Reductions) -> dict[Part, list[nn.Parameter]]:
        """Freeze the model but for what is trained; the parameters of each part."""
        recipe, model = self.recipe, self.model
        wanted: set[Part] = set(recipe.trained) | self.start.fresh
        model.requires_grad_(False)
        found: dict[Part, list[nn.Parameter]] = {}
        if "lora" in wanted:
            if recipe.lora is None:
                raise InputError(f"recipe {recipe.name!r} names no adapters: give --lora RANK")
            where: Any = model.language_model
            if recipe.lora.where == "tower":
                where = getattr(model.vision, "model", model.vision)
            found["lora"] = add_adapters(where, recipe.lora)
        own: dict[Part, list[nn.Module]] = {
            "tower": [model.vision],
            "projector": [
                model.projector,
                model.video_norm,
                *([] if model.time_embedding is None else [model.time_embedding]),
            ],
            "temporal": [model.temporal],
            "llm": [model.language_model],
            "embeddings": [model.language_model.get_input_embeddings()],
            "compressor": [reductions],
        }
        if "llm" in wanted:
            wanted.discard("embeddings")
        for name, modules in own.items():
            parameters = [p for module in modules for p in module.parameters()]
            if name in wanted and parameters:
                found[name] = parameters
        if "compressor" not in found:
            reductions.requires_grad_(False)
        for parameters in found.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        if not any(found.values()):
            raise InputError(f"recipe {recipe.name!r} trains nothing here: name parts to train")
        return found

    def _tuner(self, reductions: Reductions) -> Tuner:
        tokenizer: Any = self.start.tokenizer
        weights = {**LOSSES, **self.recipe.losses}
        if "temporal" not in self.parts:
            weights["meaning"] = 0.0
        heads: losses.Heads | None = None
        head = [int(tokenizer.convert_tokens_to_ids(USER))] if self.start.of_stage else []
        if self.of_stage:
            heads = losses.Heads(self.model, tokenizer)
            single = self.model.config.time_code == "relative"
            teaches = weights["meaning"] > 0
            heads.requires_grad_(teaches)
            for module in (heads.sight, heads.glance, heads.gate):
                module.requires_grad_(False)
            if not teaches and not single:
                heads = None
        else:
            self.videos = self._own_videos()
            head = self.videos.head()
        return Tuner(self.model, reductions, head, heads, weights)

    def _own_videos(self) -> OwnVideos:
        s = self.settings
        found = read_examples(str(s.task), Path(s.data), s.more.get("split"))
        return OwnVideos(
            found,
            self.start.tokenizer,
            self.start.code,
            self.model.config,
            size=self.model.vision.image_size,
            batch=s.batch or BATCH,
            length=self.steps,
            seed=s.seed,
        )

    @property
    def clips(self) -> int:
        """Scenes that are gone round in."""
        tiny = self.settings.size == "tiny" and not self.settings.init
        clips = self.settings.clips or CLIPS
        return min(clips, TINY_CLIPS) if tiny else clips

    def state(self) -> dict[str, Tensor]:
        """Of the trainee what is trained, and what counts along."""
        kept: dict[str, Tensor] = {
            k: v for k, v in self.plain.named_parameters() if v.requires_grad
        }
        kept |= {k: v for k, v in self.plain.named_buffers() if k.startswith("control.")}
        if "tower" in self.parts:
            kept |= {k: v for k, v in self.plain.named_buffers() if k.startswith("model.vision.")}
        return {k: v.detach() for k, v in kept.items()}

    def write_model(self) -> None:
        """The averaged weights in bfloat16, adapters merged, with all that makes them a system."""
        trainee = cast(Tuner, self.plain)
        self.average.swap(cast(nn.Module, self.averaged))
        state = merged_state(self.model)
        state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in state.items()}
        learned = trainee.reductions.states()
        self.average.swap(cast(nn.Module, self.averaged))
        told = {
            **asdict(self.settings),
            **{name: base_name(getattr(self.settings, name)) for name in ("init", "data")},
            "more": {name: base_name(str(value)) for name, value in self.settings.more.items()},
            "recipe": self.recipe.name,
            "course": self.recipe.course,
            "mixture": [list(part) for part in self.recipe.mixture],
            "steps": self.steps,
            "step": self.done,
            "trained": self.counts,
            "start": self.start.name,
            "precision": self.precision,
        }
        texts = {CARD: card(self.recipe, self._facts())}
        if self.base is not None:
            state, named = delta_of(state, self.base)
            vars(self.model.config).update(named)
        self.folder.write_model(self.model, self.start.tokenizer, state, learned, told, texts)

    def _facts(self) -> dict[str, Any]:
        s = self.settings
        own = "" if s.data == "stage" else f", annotations as of {s.task}"
        return {
            "start": self.start.name,
            "data": f"the made world, {self.clips} scenes of the split train" if self.of_stage
            else f"{Path(s.data).name}{own}",
            "step": self.done,
            "steps": self.steps,
            "batch": s.batch,
            "frames": self.model.config.frames,
            "lr": self.recipe.lr,
            "seed": s.seed,
            "parameters": self.counts,
            "command": command(self.recipe, s),
            "last": last_row(self.folder.path / LOG),
        }  # fmt: skip

    def loader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches from where the run is; every process has its own."""
        s, several = self.settings, self.accelerator.num_processes
        mine = range(self.accelerator.process_index, self.steps * several, several)
        data: Dataset[dict[str, Tensor]] = (
            self._stage(clips=self.clips) if self.of_stage else self.videos
        )
        return DataLoader(
            data,
            batch_size=None,
            sampler=mine[self.done :],
            num_workers=s.workers,
            prefetch_factor=2 if s.workers else None,
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # else a new loader would draw from the run's own
        )

    def _stage(self, *, clips: int, batch: int | None = None) -> StageBatches:
        s, tokenizer = self.settings, cast(Any, self.start.tokenizer)
        data = DataSettings(
            "train",
            batch or s.batch or BATCH,
            self.model.config.frames,
            clips=clips,
            seed=s.seed,
            versions=plan_of(self.model.config.vision).versions,
            captions=s.more.get("without") != "captions",
        )
        made = StageBatches(data, tokenizer, self.start.code, self.steps)
        if self.start.code.name != "relative":
            made.time_ids = set()  # a time is no one token that could be told where to look
        return made

    def work(self) -> None:
        bar = self.progress()
        with bar, self.open_log() as log:
            task = bar.add_task("train", total=self.steps, completed=self.done)
            cache = self._cells(bar) if self.of_stage and self.fixed_cells else None
            for batch in self.loader():
                self.step(batch, cache)
                bar.advance(task)
                self.report(log, bar, task)
                if self.stop():
                    return

    def _cells(self, bar: Any) -> CellCache:
        """What the frozen tower sees in all scenes."""
        told = TrainSettings(
            out=self.settings.out,
            frames=self.model.config.frames,
            clips=self.clips,
            cell_workers=self.settings.workers,
        )
        self.model.vision.eval()
        path = Path(self.settings.more.get("cells") or self.folder.path / "cells.bin")
        if path.is_dir():  # one for all trainings, which see the same scenes by the same tower
            path /= f"cells-{mark_of(self.model)[:12]}-{told.frames}.bin"
        with self.accelerator.main_process_first():
            cache = CellCache(path, told, self.model)
            if self.accelerator.is_main_process:
                cache.fill(self._stage(clips=self.clips, batch=1), bar, self.halt)
        return cache

    def step(self, batch: dict[str, Tensor], cache: CellCache | None) -> None:
        """One optimiser step."""
        if FAILED in batch:
            raise InputError(bytes(batch[FAILED].tolist()).decode())
        if cache is not None:
            batch["cells"] = cache[batch["scene"]]
        device = self.accelerator.device
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        trainee = cast(Tuner, self.plain)
        trainee.train()
        if "tower" not in self.parts:
            self.model.vision.eval()
        choice = np.random.default_rng([17, self.settings.seed, self.done])
        names, shares = zip(*self.recipe.mixture, strict=True)
        spec = str(choice.choice(names, p=np.asarray(shares) / sum(shares)))
        method = trainee.reductions.methods[spec]
        soft = isinstance(method, Mrt5) and self.done < SOFT * self.steps
        result = self.trainee(batch, spec=spec, soft=soft)
        self.advance(result, self.rate())
        self.average.update(cast(nn.Module, self.averaged), self.done)
        self.note(result)

    def rate(self) -> float:
        """Learning rate: warm-up, then half a cosine."""
        warm = min(1.0, (self.done + 1) / min(WARMUP, max(1, self.steps // 10)))
        along = self.done / self.steps
        return self.recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * along))))


class Pace:
    """What `TrainingRun` asks of its settings."""

    def __init__(self, settings: CourseSettings) -> None:
        self.minutes, self.resume = settings.minutes, settings.resume
        self.save_every, self.log_every = settings.save_every, settings.log_every
        self.clip = CLIP


def _fixed(settings: CourseSettings, recipe: Recipe, steps: int) -> dict[str, Any]:
    """The settings that `--resume` must not change."""
    told = {k: v for k, v in asdict(settings).items() if k not in _FREE}
    own = {name: settings.more.get(name) or None for name in _OWN_FIXED}
    return {"recipe": recipe.name, **told, "steps": steps, **own}


def command(
    recipe: Recipe, settings: CourseSettings, called: Mapping[str, str] | None = None
) -> str:
    """The command line that makes this training again; `called` has options of other names."""
    words = ["vidllm", "train", recipe.name, "--out", Path(settings.out).name]
    plain = asdict(CourseSettings(out="", batch=BATCH, clips=CLIPS))
    for name, value in asdict(settings).items():
        left_out = name in ("out", "resume", "quiet", "more", "minutes")
        if left_out or value is None or value == plain[name]:
            continue
        told = base_name(value) if name in ("init", "data") else value
        words += [f"--{(called or {}).get(name, name).replace('_', '-')}", str(told)]
    more = settings.more
    for name in ("split", "revision", "adapter"):
        words += [f"--{name}", base_name(str(more[name]))] if more.get(name) else []
    for name in ("fresh", "without"):
        words += ["--option", f"{name}={more[name]}"] if more.get(name) else []
    return shlex.join(words)


def base_name(path: str) -> str:
    """A path by its last part: what is written is read elsewhere."""
    return Path(path).name if "/" in path else path


def last_row(log: Path) -> Mapping[str, Any] | None:
    """The last row of a log."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    row: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return row
