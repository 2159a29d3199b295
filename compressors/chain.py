"""Several methods one after the other, with one exact budget for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vidllm.errors import InputError
from vidllm.errors.bounds import SPEC_ITEMS, short
from vidllm.tokens import Selection, VideoTokens, budget_of

from .base import LATE, STAGES, Compressor


@dataclass
class Chain:
    """Methods in order; the last one lands on the exact count.

    With neither `keep` nor `budget` every method does what its own options say. Otherwise the
    methods that have a share, a budget or a window of their own do exactly that, the others
    divide what is left to remove in equal proportions, and the last method, which must be one
    of the others, takes the exact remainder.

    Attributes:
        items: the methods, at least one.
        keep: share of the tokens that the whole chain keeps, in (0, 1].
        budget: exact number of tokens; wins over `keep`.

    Raises:
        InputError: an empty chain, a keep outside (0, 1], a budget below 1, or a last method
            that is not free to meet the chain's budget.
    """

    items: Sequence[Compressor]
    keep: float = 1.0
    budget: int | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError("a chain needs at least one compressor")
        if len(self.items) > SPEC_ITEMS:
            raise InputError(f"a chain has at most {SPEC_ITEMS} methods, not {len(self.items)}")
        stages = [STAGES.index(item.stage) for item in self.items]
        if stages != sorted(stages):
            raise InputError(
                f"{self.name}: a chain runs in the order {', '.join(STAGES)}, but its methods "
                f"work at {self.stage}: write them in that order"
            )
        if sum(not item.follows for item in self.late) > 1:
            raise InputError(f"{self.name}: one method inside the decoder at a time")
        budget_of(self.keep, 1)
        if self.budget is not None and self.budget < 1:
            raise InputError(f"budget must be at least 1, not {short(self.budget)}")
        if self.keep != 1.0 or self.budget is not None:
            self._check_last()

    @property
    def name(self) -> str:
        """The names of the methods, comma separated."""
        return ",".join(item.name for item in self.items)

    @property
    def stage(self) -> str:
        """The stages of the methods without repeats, comma separated."""
        return ",".join(dict.fromkeys(item.stage for item in self.items))

    @property
    def query_aware(self) -> bool:
        """True when one of the methods reads the question."""
        return any(item.query_aware for item in self.items)

    @property
    def uses_features(self) -> bool:
        """False when no method reads features, so that one plan serves a batch."""
        return any(item.uses_features for item in self.items)

    @property
    def has_parameters(self) -> bool:
        """True when one of the methods has parameters that must be trained."""
        return any(item.has_parameters for item in self.items)

    def notes(self) -> tuple[str, ...]:
        """Those of the methods, without repeats."""
        return tuple(dict.fromkeys(note for item in self.items for note in item.notes()))

    @property
    def needs(self) -> tuple[str, ...]:
        """What the methods need of a model, without repeats."""
        return tuple(dict.fromkeys(need for item in self.items for need in item.needs))

    @property
    def uses(self) -> tuple[str, ...]:
        """Signals that the methods take where a model gives them, without repeats."""
        return tuple(dict.fromkeys(use for item in self.items for use in item.uses))

    def goal(self, tokens: VideoTokens, budget: int | None = None) -> int | None:
        """How many of these tokens will remain; None when the methods' own options decide."""
        if budget is not None and budget < 1:
            raise InputError(f"budget must be at least 1, not {budget}")
        wanted = self.budget if budget is None else budget
        if wanted is None:
            if self.keep == 1.0:
                return None
            wanted = budget_of(self.keep, len(tokens))
        return min(wanted, len(tokens))

    def run(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[Selection]]:
        """Compress, and also return the selections of all methods in order (see Compressor.run).

        Raises:
            InputError: as the methods do, or a chain whose fixed methods leave fewer tokens
                than its budget.
        """
        if self.late:
            raise InputError(f"{self.late[0].name} works inside the decoder: use it with a model")
        tokens, rounds, _ = self._run(tokens, self.goal(tokens, budget), query)
        return tokens, rounds

    @property
    def late(self) -> Sequence[Compressor]:
        """The methods that work inside the decoder, at the end of the chain."""
        return [item for item in self.items if item.stage in LATE]

    def inside_decoder(self) -> bool:
        """Whether one of the methods works between decoder layers or in the cache."""
        return bool(self.late)

    def before_decoder(
        self, tokens: VideoTokens, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[tuple[Compressor, int]]]:
        """Do what is to be done before the decoder; the rest comes back with exact budgets."""
        goal = self.goal(tokens)
        tokens, _, goal = self._run(tokens, goal, query)
        late = [(item, item.goal(tokens, goal if item.is_free() else None)) for item in self.late]
        return tokens, late

    def _run(
        self, tokens: VideoTokens, goal: int | None, query: Tensor | None
    ) -> tuple[VideoTokens, list[Selection], int | None]:
        if goal is not None:
            self._check_last()
        rounds: list[Selection] = []
        if goal == len(tokens):
            return tokens, rounds, goal
        for place, item in enumerate(self.items):
            if item.stage in LATE:
                break
            aim = None if goal is None else self._aim(tokens, place, goal)
            tokens, more = item.run(tokens, aim, query)
            rounds += more
            if goal is not None and len(tokens) < goal:
                raise InputError(
                    f"{item.name} leaves {len(tokens)} tokens, fewer than the {goal} that the "
                    "chain should keep: raise its own share or lower the chain's"
                )
        return tokens, rounds, goal

    def __call__(
        self, tokens: VideoTokens, budget: int | None = None, query: Tensor | None = None
    ) -> VideoTokens:
        """Compress `tokens`; with nothing to remove they come back untouched (see `run`)."""
        return self.run(tokens, budget, query)[0]

    def _check_last(self) -> None:
        last = next((item for item in reversed(self.items) if not item.follows), self.items[-1])
        if not last.is_free():
            raise InputError(
                f"the last method of a chain with a budget takes the exact remainder: give "
                f"{last.name} no keep, budget or window of its own"
            )

    def _aim(self, tokens: VideoTokens, place: int, goal: int) -> int | None:
        """The budget of one method: None for a fixed one, a step on the way for the others."""
        item = self.items[place]
        later = [other for other in self.items[place + 1 :] if not other.follows]
        if not item.is_free():
            return None
        if not later:
            return goal
        count = len(tokens)
        # What the fixed methods still to come will take, as far as it can be told from here.
        fixed = 1.0
        for other in later:
            if not other.is_free():
                fixed *= other.goal(tokens) / count
        steps = 1 + sum(other.is_free() for other in later)
        share: float = min(1.0, goal / (count * fixed)) ** (1 / steps)
        return min(count, max(goal, round(count * share)))
