"""Course "retrieval": a dual encoder learns to see and read, then adapters for clips (TempMe).

First image–text learning (phase "start"): frames near one moment against what happens then, all
weights of a fresh CLIP. Then text–video (phase "adapt"), as TempMe trains (arXiv 2409.01156):
whole clips against captions, tokens merging in the tower, LoRA and the embeddings of joined rows
alone. With `--init` a trained dual encoder takes the place of the first phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vidllm.compressors import build
from vidllm.compressors.base import InTower
from vidllm.errors import InputError
from vidllm.progress.interruption import leave_to_parent
from vidllm.stage.training.average import Average
from vidllm.stage.training.run import TrainingRun, accelerator_for, decay_groups, on_gpu, run_in
from vidllm.stage.training.run_folder import TrainingFolder

from ..recipe import Lora, Recipe
from . import CourseSettings
from .retrieval_batches import CaptionedBatches, CaptionSettings
from .retrieval_model import (
    LONGEST,
    RetrievalTrainee,
    build_caption_tokenizer,
    folded,
    fresh_encoder,
    joined_rows,
    trained_encoder,
    with_adapters,
)

#: Steps of the first phase for one of the second, where nobody says.
_START_STEPS = 2
#: Scenes of a batch, where nobody says.
_BATCH = 8
#: Frames near a moment, and how many times as many scenes a batch then has.
_MOMENT, _MORE = 2, 4
_START_LR, _DECAY, _ADAPTER_DECAY = 1e-3, 0.05, 0.2
#: Options of this course alone, see `CourseSettings.more`.
OWN = ("start_steps",)


@dataclass(frozen=True)
class Plan:
    """What a training is, with nothing left open.

    Attributes:
        start_steps, steps: of the two phases. frames: of a clip in the second. batch: scenes in
            it, each with a variant.
        compressors, keep: what merges in the tower in the second. rank: of LoRA.
    """

    recipe: str
    size: str
    start_steps: int
    steps: int
    batch: int
    frames: int
    compressors: str
    keep: float
    rank: int
    lr: float
    seed: int

    @property
    def total(self) -> int:
        return self.start_steps + self.steps

    def phase(self, step: int) -> str:
        """ "start" or "adapt"."""
        return "start" if step < self.start_steps else "adapt"

    def rate(self, step: int) -> float:
        """Learning rate: up over a tenth of the phase, then half a cosine."""
        first = step < self.start_steps
        length = self.start_steps if first else self.steps
        along = (step if first else step - self.start_steps) / max(1, length)
        warm = min(1.0, (along * length + 1) / max(1.0, 0.1 * length))
        full = _START_LR if first else self.lr
        return full * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * along)))


@dataclass
class _RunSettings:
    """What `TrainingRun` is told."""

    minutes: float
    resume: bool
    save_every: int
    log_every: int
    clip: float = 1.0


def plan_of(recipe: Recipe, settings: CourseSettings) -> Plan:
    """What a recipe's training is under some settings.

    Raises:
        InputError: settings that do not go together.
    """
    if odd := sorted(set(settings.more) - set(OWN)):
        raise InputError(f"the course of {recipe.name} has no option {odd[0]!r}: it has {OWN[0]}")
    for name in ("vision", "temporal", "time_code", "mixture", "task"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is not for {recipe.name}: its dual encoder has a CLIP "
                "tower behind a convolutional stem and no LLM"
            )
    if settings.clips is not None:
        raise InputError(
            f"--clips is for recipes that keep what is seen in clips, and {recipe.name} sees none "
            "twice: leave it out"
        )
    if settings.data != "stage":
        raise InputError(
            f"{recipe.name} is trained on the captions of the made world: --data stage"
        )
    steps = recipe.steps if settings.steps is None else settings.steps
    given = settings.more.get("start_steps")
    start = _START_STEPS * steps if given is None else int(given)
    spec = settings.compressor or recipe.compressors
    keep = settings.keep if settings.keep is not None else recipe.keep
    rank = settings.lora if settings.lora is not None else (recipe.lora or Lora(0, 0)).rank
    if not rank:
        raise InputError(f"{recipe.name} trains adapters: --lora must be at least 1")
    return Plan(
        recipe=recipe.name,
        size=settings.size,
        start_steps=0 if settings.init else start,
        steps=steps,
        batch=_BATCH if settings.batch is None else settings.batch,
        frames=settings.frames or recipe.frames or 12,
        compressors=spec,
        keep=1.0 if spec == "none" or keep is None else keep,
        rank=rank,
        lr=settings.lr if settings.lr is not None else recipe.lr,
        seed=settings.seed,
    )


def train(recipe: Recipe, settings: CourseSettings) -> Path:
    """Train the system in `settings.out`: model, tokenizer, log, card, and a checkpoint.

    Raises:
        InputError: settings that cannot be, a folder that another training uses or that holds a
            model already, or a resume without a checkpoint.
        WorkError: files that cannot be written; the last whole checkpoint is kept.
        Interrupted: it was stopped from outside, between two steps.
    """
    folder = TrainingFolder(Path(settings.out))
    plan = plan_of(recipe, settings)
    return run_in(folder, lambda: _Run(recipe, settings, plan, folder), resume=settings.resume)


class _Run(TrainingRun):
    """One call of `train`."""

    headline = ("total", "t2v", "v2t")

    def __init__(
        self, recipe: Recipe, settings: CourseSettings, plan: Plan, folder: TrainingFolder
    ) -> None:
        self.recipe, self.settings, self.plan = recipe, settings, plan
        fixed = {k: v for k, v in asdict(plan).items() if k != "steps"}
        saved = folder.begun(fixed, plan.total, resume=settings.resume)
        accelerator = accelerator_for(settings.device, settings.threads, settings.seed)
        method = (
            build(plan.compressors) if plan.keep == 1 else build(plan.compressors, keep=plan.keep)
        )
        told: dict[str, Any] = {"frames": plan.frames, "recipe": recipe.name}
        told |= {"compressors": plan.compressors, "keep": plan.keep}
        if settings.init:
            bare, self.tokenizer = trained_encoder(settings.init, **told)
        else:
            self.tokenizer = build_caption_tokenizer()
            bare = fresh_encoder(settings.size, self.tokenizer, **told)
        rows = joined_rows(bare.config, method, plan.frames)
        model = type(bare)(type(bare.config).from_dict({**bare.config.to_dict(), "rows": rows}))
        model.load_state_dict(bare.state_dict(), strict=False)
        if not on_gpu(settings.device):  # the fused kernel's way back is slow on a CPU
            model.set_attn_implementation("eager")
        self.model = model
        self.adapted = with_adapters(model, recipe.lora or Lora(plan.rank, plan.rank), plan.rank)
        inside = method if isinstance(method, InTower) and plan.keep < 1 else None
        trainee = RetrievalTrainee(model, self.adapted, inside)
        self.adapters = [
            name for name, _ in trainee.named_parameters() if "lora_" in name or "join_" in name
        ]
        groups = [{**group, "lr": 1.0} for group in decay_groups(trainee, _DECAY)]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), fused=True)
        self.trainee, optimizer = accelerator.prepare(trainee, optimizer)
        super().__init__(
            _RunSettings(
                settings.minutes, settings.resume, settings.save_every, settings.log_every
            ),
            folder,
            settings.quiet,
            total=plan.total,
            fixed=fixed,
            accelerator=accelerator,
            plain=trainee,
            optimizer=optimizer,
            average=Average(trainee, 0.995),
        )
        if saved is not None:
            self.take_up(saved)
        self.enter(plan.phase(self.done))

    def enter(self, phase: str) -> None:
        """Thaw what a phase trains, and freeze the rest."""
        adapting = phase == "adapt"
        for name, value in self.plain.named_parameters():
            value.requires_grad_((name in self.adapters) == adapting)
        self.plain.train(not adapting)  # frozen batch norms stand still
        for group in self.optimizer.param_groups:
            if group["weight_decay"]:
                group["weight_decay"] = _ADAPTER_DECAY if adapting else _DECAY

    def loader(self, phase: str) -> DataLoader[dict[str, Tensor]]:
        """Batches of a phase, from where the run is."""
        s, plan = self.settings, self.plan
        moment = phase == "start"
        data = CaptionSettings(
            scenes=plan.batch * (_MORE if moment else 1),
            frames=_MOMENT if moment else plan.frames,
            moment=moment,
            clips=0,
            seed=plan.seed,
        )
        last = plan.start_steps if moment else plan.total
        return DataLoader(
            cast(Any, CaptionedBatches(data, self.tokenizer, LONGEST)),
            batch_size=None,
            sampler=range(self.done, last),
            num_workers=s.workers,
            prefetch_factor=4 if s.workers else None,
            worker_init_fn=leave_to_parent,
            generator=torch.Generator(),  # else a new loader would draw from the run's own
        )

    def ends_at(self) -> tuple[int, ...]:
        return (self.plan.start_steps, self.plan.total)

    def work(self) -> None:
        plan = self.plan
        with self.progress() as bar, self.folder.log(new=not self.settings.resume) as log:
            task = bar.add_task("train", total=plan.total, completed=self.done)
            for phase in ("start", "adapt"):
                if self.done >= (plan.start_steps if phase == "start" else plan.total):
                    continue
                self.enter(phase)
                for batch in self.loader(phase):
                    batch = {k: v.to(self.accelerator.device) for k, v in batch.items()}
                    losses = self.trainee(batch, phase)
                    self.advance(losses, plan.rate(self.done))
                    self.average.update(self.plain, self.done)
                    if self.done == plan.start_steps:  # clips are learnt on top of the average
                        self.average.swap(self.plain)
                        self.average.hold_all(self.plain)
                    self.note(losses)
                    bar.advance(task)
                    self.report(log, bar, task)
                    if self.stop():
                        return
        if not plan.total:
            self.save()

    def write_model(self) -> None:
        """The averaged weights in bfloat16, adapters folded in, with tokenizer and card."""
        self.average.swap(self.plain)
        model = folded(self.adapted)
        self.average.swap(self.plain)
        model.set_attn_implementation("sdpa")
        state = {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()}
        told = {**asdict(self.plan), "start_steps": self.plan.start_steps, "step": self.done}
        told |= {"steps": self.plan.total, "init": Path(self.settings.init).name}
        told["precision"] = self.precision
        self.folder.write_model(
            model,
            self.tokenizer,
            state,
            {},
            told,
            {"README.md": card(self.recipe, self.plan, told)},
        )


def card(recipe: Recipe, plan: Plan, told: Mapping[str, Any]) -> str:
    """The model card, of a training that may not have ended."""
    merging = "no merging in the tower"
    if plan.compressors != "none":
        merging = f"`{plan.compressors}` merging in the tower, {plan.keep:.3g} of the patches kept"
    began = f"from `{told['init']}`" if told["init"] else "from nothing"
    return f"""# {recipe.name}: a dual encoder for clips and captions of the made world

{recipe.paper}. {recipe.claim[:1].upper()}{recipe.claim[1:]}: the claim, not a result of this model.

- {merging}; {plan.frames} frames of a clip
- trained {began}, size {plan.size}, seed {plan.seed}: {told["step"]} of {plan.total} steps
- the first {plan.start_steps} on frames and what happens in them ({plan.batch * _MORE} in a batch)
- the rest on clips and captions ({plan.batch} in a batch, each with a variant that differs in one
  thing): LoRA of rank {plan.rank} and the embeddings of joined rows alone
- it knows the made world and its words, nothing else; adapters are folded into the weights

```python
from vidllm import load_retriever
retriever = load_retriever("DIR")
retriever.rank(["one.mp4", "two.mp4"], "the red star spins")
retriever.choose_frames("long.mp4", "the red star spins", frames=16)
```

`vidllm eval stage-retrieval --model DIR` scores it, `vidllm bench retrieval` tests the claim.
"""
