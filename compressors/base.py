"""What a compressor is: a budget, and a plan that says which tokens to keep or merge.

A method is a dataclass with one method, `plan` (or `score` for a `Scorer`). Counting, repeating
until the budget is met exactly, and carrying the plan out are done here and in `vidllm.tokens`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.tokens import Keep, Selection, VideoTokens, budget_of
from vidllm.tokens.tower_plan import TowerShape, TowerStep
from vidllm.tokens.video_tokens import finite

from .returned import plan_of, scores_of

#: Where a method may act, in the order in which a video passes them.
STAGES: tuple[str, ...] = ("vision", "tokens", "prefill", "cache")
#: Stages inside the decoder: the model runs these methods, not the caller.
LATE: tuple[str, ...] = ("prefill", "cache")


@dataclass
class Compressor(ABC):
    """Base of every method; call it on `VideoTokens` to get fewer of them.

    How many remain, first that applies: the `budget` of the call, the field `budget`, what a
    fixed option implies (a window, a stride), the share `keep`.

    Attributes:
        keep: share of the tokens that it is given that it keeps, in (0, 1].
        budget: exact number of tokens; wins over `keep`.
    """

    keep: float = field(default=1.0, metadata={"help": "share kept, in (0, 1]"})
    budget: int | None = field(default=None, metadata={"help": "exact number of tokens kept"})

    name: ClassVar[str] = ""
    stage: ClassVar[str] = "tokens"
    query_aware: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    """Signals that it takes where a model gives them, and does without elsewhere."""
    follows: ClassVar[bool] = False
    """Stage "cache": True to keep what the method before it kept, with no share of its own."""
    own_layer: ClassVar[bool] = False
    """Stage "prefill": True to read the layer that it prunes before, not the one before that."""
    has_parameters: ClassVar[bool] = False
    """True: it has parameters that must be trained, and no trained ones are shipped."""
    same_as: ClassVar[str] = ""
    """Which other method leaves the very same tokens, and where."""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    uses_features: ClassVar[bool] = True
    """False: the plan reads places and counts only, so one plan serves a whole batch."""
    makes_tokens: ClassVar[bool] = False
    """True: its tokens are new (`Mix`) and no means of those that they stand for."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Options that decide the count themselves; they go with neither `keep` nor `budget`."""

    def __post_init__(self) -> None:
        budget_of(self.keep, 1)  # refuses a share outside (0, 1]
        if self.budget is not None and self.budget < 1:
            raise InputError(f"{self.name}: budget must be at least 1, not {self.budget}")
        for option in self.fixed:
            value = getattr(self, option)
            if value is None:
                continue
            if value < 1:
                raise InputError(f"{self.name}: {option} must be at least 1, not {value}")
            if self.keep != 1.0 or self.budget is not None:
                raise InputError(
                    f"{self.name}: {option}={value} already decides how many tokens are kept; "
                    f"give either {option} or keep/budget"
                )

    @abstractmethod
    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Decide one round on `tokens`, more than `budget` of them.

        The result must leave fewer tokens than there are and not fewer than `budget`; rounds
        go on until the count is exact.
        """

    def fixed_budget(self, tokens: VideoTokens) -> int | None:
        """The count that a fixed option implies for these tokens; None when none is set."""
        return None

    def trained_in(self, folder: Path) -> Compressor:
        """The same with the weights that a model's folder has for it: `<name>.safetensors`.

        Itself for a method without weights, with weights of its own, or with none there.

        Raises:
            InputError: weights that are not its own.
        """
        return self

    @property
    def methods(self) -> tuple[Compressor, ...]:
        """The methods at work, in order: itself, or those of a chain."""
        return (self,)

    @property
    def in_tower(self) -> InTower | None:
        """The method that merges inside a vision tower: of a chain only the first does."""
        first = self.methods[0]
        return first if isinstance(first, InTower) and first.tower else None

    def mapped(self, change: Callable[[Compressor], Compressor]) -> Compressor:
        """The same with every method changed: itself, or those that a chain or wrapper holds."""
        return change(self)

    @property
    def late(self) -> tuple[Compressor, ...]:
        """The methods that work inside the decoder, in order."""
        return tuple(method for method in self.methods if method.stage in LATE)

    def lacks_share(self) -> bool:
        """True when nothing says how much is kept: neither keep, budget nor an option does."""
        return self.is_free()

    def is_free(self) -> bool:
        """True when no field of its own decides the count, so that a chain may."""
        unset = all(getattr(self, option) is None for option in self.fixed)
        return self.keep == 1.0 and self.budget is None and unset

    def goal(self, tokens: VideoTokens, budget: int | None = None) -> int:
        """How many of these tokens will remain.

        Raises:
            InputError: a budget below 1, or a budget beside a fixed option.
        """
        if budget is not None:
            if budget < 1:
                raise InputError(f"{self.name}: budget must be at least 1, not {budget}")
            if any(getattr(self, option) is not None for option in self.fixed):
                raise InputError(
                    f"{self.name}: {' or '.join(self.fixed)} already decides how many tokens are "
                    "kept; leave it out to give a budget"
                )
            wanted = budget
        elif self.budget is not None:
            wanted = self.budget
        else:
            implied = self.fixed_budget(tokens)
            wanted = budget_of(self.keep, len(tokens)) if implied is None else implied
        return min(wanted, len(tokens))

    def whole_goal(self, tokens: VideoTokens, budget: int | None = None) -> int | None:
        """As `goal`; None for a chain whose methods decide by their own options."""
        return self.goal(tokens, budget)

    def aim(self, tokens: VideoTokens, place: int, goal: int) -> int | None:
        """The budget of the method at a place of `methods` on the way to `goal`."""
        return goal

    def signal(self, tokens: VideoTokens, name: str) -> Tensor:
        """A plane (L, ...) that the model gives beside the features, in float32.

        Raises:
            InputError: the model does not give it.
        """
        if name not in tokens.signals:
            raise InputError(
                f"{self.name} needs {name}, which this model does not give: choose a method "
                "without that need (vidllm list compressors)"
            )
        return tokens.signals[name].float()

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """Compress, and also return the selections, one a round.

        For a method with `uses_features` False the selections hold for every clip of the same
        grid: plan on `VideoTokens.blank`, then `apply_all(features (B, L, D), selections)`.

        Raises:
            InputError: wrong options, NaN features, or a query that is missing.
            WorkError: the plan made no progress or went below the budget.
        """
        goal = self.goal(tokens, budget)
        rounds: list[Selection] = []
        if len(tokens) > goal:
            self.check(tokens, query)
        while len(tokens) > goal:
            selection = plan_of(self, tokens, goal, query)
            if not goal <= len(selection) < len(tokens):
                raise WorkError(
                    f"{self.name} planned {len(selection)} of {len(tokens)} tokens for a budget "
                    f"of {goal}: a round must shrink the clip and stay above the budget"
                )
            try:
                tokens = tokens.apply(selection)
            except WorkError as error:
                raise WorkError(f"{self.name}: {error}") from error
            rounds.append(selection)
        return tokens, rounds

    def check(self, tokens: VideoTokens, query: Tensor | None = None) -> None:
        """Refuse what cannot be planned on.

        Raises:
            InputError: NaN features, or a query that is missing.
        """
        if self.query_aware and query is None:
            raise InputError(f"{self.name} chooses tokens by the question: give it a query")
        if self.uses_features and not finite(tokens.features):
            raise InputError(f"{self.name}: the video features hold NaN or infinite values")

    def notes(self) -> tuple[str, ...]:
        """What to know of its results, one line each: that its weights are random."""
        return ()

    def inside_decoder(self) -> bool:
        """Whether some of its work is done between decoder layers or in the cache."""
        return self.stage in LATE

    def before_decoder(
        self, tokens: VideoTokens, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[tuple[Compressor, int]]]:
        """Do what is to be done before the decoder; what works inside it comes back with its
        exact budget."""
        if self.stage in LATE:
            return tokens, [(self, self.goal(tokens))]
        return self(tokens, query=query), []

    def __call__(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> VideoTokens:
        """Compress `tokens`; with nothing to remove they come back untouched (see `run`)."""
        return self.run(tokens, budget, query)[0]


@dataclass
class Scorer(Compressor):
    """A method that gives every token a score; the best stay, in time order."""

    @abstractmethod
    def score(self, tokens: VideoTokens, query: Tensor | None = None) -> Tensor:
        """(L,) scores, higher is better."""

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Keep the `budget` best tokens; of equal scores the earlier token stays."""
        scores = scores_of(self, tokens, query)
        best = torch.argsort(scores, descending=True, stable=True)[:budget]
        return Keep(best.sort().values)


@dataclass
class InTower(Compressor):
    """Base of the methods that can merge between the layers of a vision transformer.

    On a tower without layers to merge in (the small `conv` one) they act on its output, as they do
    when they are called on `VideoTokens`.

    Attributes:
        tower: merge inside the tower where it has layers; false: on its output.
    """

    tower: bool = field(
        default=True,
        kw_only=True,
        metadata={"help": "merge inside the vision tower, not on its output"},
    )

    stage = "vision"
    proportional: ClassVar[bool] = True
    """Whether a tower's attention counts a merged token as the tokens behind it."""

    def tower_budget(self, clip: VideoTokens) -> int | None:
        """How many tokens of a clip its options leave (see `tower_plan.TowerMethod`)."""
        return self.goal(clip)

    @abstractmethod
    def tower_steps(self, shape: TowerShape, budget: int | None) -> Sequence[TowerStep]:
        """Where it merges, and how (see `tower_plan.TowerMethod`)."""
