"""What a recipe is: a named whole system, written down; quick to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vidllm.errors import InputError

if TYPE_CHECKING:
    from vidllm.models.parts import ModelParts

#: Which trainer makes a system, by the name of its file in `courses`; "none" trains nothing.
Course = Literal["none", "video-llm", "retrieval", "alignment", "choice", "recognition"]
#: What a course trains. "compressor" is a learned reduction, "embeddings" the LLM's table of words,
#: "lora" adapters beside frozen weights.
Part = Literal["tower", "projector", "temporal", "compressor", "llm", "embeddings", "head", "lora"]


@dataclass(frozen=True)
class Lora:
    """Adapters beside frozen linear layers.

    Attributes:
        rank: of an adapter. alpha: its product is scaled by alpha / rank. dropout: before it.
        layers: names of the layers that have one, as they end; "all-linear" for all of the LLM.
        where: "llm" or "tower".
    """

    rank: int
    alpha: int
    layers: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0
    where: Literal["llm", "tower"] = "llm"


@dataclass(frozen=True)
class Recipe:
    """A named whole system: what it is made of, what of it is trained and how, and its weights.

    None stands for what the model has of its own, wherever a part may be None.

    Attributes:
        summary: one line for `vidllm list recipes`. paper: where the system comes from.
        claim: what the paper claims, as it can be tested on the made world.
        frames: of a clip, by default.
        vision: type of the tower. temporal: encoders in order, each {"name": …, options}.
        compressors, keep: the token reduction, a spec over the stages, and the share that it
            keeps; None where its methods decide.
        time_code: "relative", "absolute" or "text". head: of `vidllm.encoders.heads`.
        course: which trainer makes it.
        start: "stage", the shipped model, or "nothing".
        trained: parts that are trained; all others stay frozen.
        lora: adapters, where the paper trains some.
        losses: weights of the losses that differ from the course's own.
        mixture: reductions that training meets, as (compressor spec, weight).
        steps: of its training. lr: the highest learning rate.
        tasks: of `vidllm eval` that it serves.
        weights: folder of its trained weights among those that ship, "" for none.
    """

    name: str
    summary: str
    paper: str = ""
    claim: str = ""
    frames: int | None = None
    vision: str | None = None
    temporal: tuple[Mapping[str, Any], ...] | None = None
    compressors: str = "none"
    keep: float | None = 1.0
    time_code: Literal["relative", "absolute", "text"] | None = None
    head: str | None = None
    course: Course = "none"
    start: Literal["stage", "nothing"] = "stage"
    trained: tuple[Part, ...] = ()
    lora: Lora | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    mixture: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    lr: float = 3e-4
    tasks: tuple[str, ...] = ()
    weights: str = ""

    @property
    def answers(self) -> bool:
        """Whether it is a video LLM, which is asked; other systems serve only their tasks."""
        return self.course in ("none", "video-llm")

    @property
    def learned(self) -> tuple[str, ...]:
        """Methods of its reduction whose weights are part of it."""
        if "compressor" not in self.trained:
            return ()
        return tuple(item.split(":")[0].strip() for item in self.compressors.split(","))

    @property
    def temporal_names(self) -> tuple[str, ...]:
        """Its temporal encoders, in order."""
        return tuple(str(spec["name"]) for spec in self.temporal or ())

    def parts(self, **other: Any) -> ModelParts:
        """What a model is made of that carries it, but for `other` fields."""
        from vidllm.models.parts import ModelParts

        own: dict[str, Any] = {
            "vision": self.vision or "",
            "temporal": self.temporal_names,
            "time_code": self.time_code or "",
            "learned": self.learned,
        }
        return ModelParts(**{**own, **other})

    def refusal(self, model: str, parts: ModelParts, *, ships: bool = False) -> str:
        """Why a model cannot carry this system, in one line; "" where it can.

        Args:
            model: its name, for the line. parts: what it is made of.
            ships: trained weights of this system do, see `models.ships`.
        """
        own = parts.recipe == self.name  # trained by it, perhaps with parts of a user's choice
        if own and not self.answers:
            return ""
        train = f"train it (vidllm train {self.name} --out DIR) and give --model DIR"
        if ships:
            train = f"leave out --model: its weights ship as {self.weights}"
        if not self.answers:
            served = " and ".join(self.tasks)
            return (
                f"recipe {self.name!r} is a system of its own, which serves {served}, and {model} "
                f"is none of it: {train}"
            )
        if self.temporal:
            wanted = set(self.temporal_names)
            if not parts.mixing:
                alone = f"--compressor {self.compressors}"
                alone += "" if self.keep is None else f" --keep {self.keep:g}"
                return (
                    f"recipe {self.name!r} reduces behind a temporal encoder, and {model} has "
                    f"none: what is left of it is {alone}; ask for that by its name, or use a "
                    "model with one"
                )
            if not own and not wanted & set(parts.mixing):
                return (
                    f"recipe {self.name!r} has the temporal encoder {' or '.join(sorted(wanted))}, "
                    f"and {model} has {' and '.join(parts.mixing)}: {train}"
                )
        if not own and self.vision is not None and parts.vision != self.vision:
            have = parts.vision or "a tower of another kind"
            return (
                f"recipe {self.name!r} has the tower {self.vision}, and {model} has {have}: {train}"
            )
        if not own and self.time_code is not None and parts.time_code != self.time_code:
            have = parts.time_code or "another"
            return (
                f"recipe {self.name!r} tells time by the {self.time_code} code, and {model} by "
                f"{have}: {train}"
            )
        lacking = [name for name in self.learned if name not in parts.learned]
        if lacking:
            return (
                f"recipe {self.name!r} needs trained weights of {' and '.join(lacking)}, and "
                f"{model} has none: {train}"
            )
        return ""

    def check_model(self, model: str, parts: ModelParts, *, ships: bool = False) -> None:
        """See that a model can carry this system; all as for `refusal`.

        Raises:
            InputError: it lacks a part; the message says which.
        """
        reason = self.refusal(model, parts, ships=ships)
        if reason:
            raise InputError(reason)
