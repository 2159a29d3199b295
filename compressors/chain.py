"""Several methods one after the other, with one exact budget for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vidllm.errors import InputError, WorkError
from vidllm.errors.bounds import SPEC_ITEMS
from vidllm.tokens import Selection, VideoTokens, budget_of

from .base import LATE, STAGES, Compressor


@dataclass
class _Items:
    # A base of its own, so that the methods are the first field and need no default.
    items: Sequence[Compressor]


@dataclass
class Chain(Compressor, _Items):
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

    def trained_in(self, folder: Path) -> Compressor:
        """Every method with its weights."""
        return self.mapped(lambda method: method.trained_in(folder))

    def mapped(self, change: Callable[[Compressor], Compressor]) -> Compressor:
        """With each of the methods changed."""
        items = tuple(item.mapped(change) for item in self.items)
        same = all(new is old for new, old in zip(items, self.items, strict=True))
        return self if same else replace(self, items=items)

    def __post_init__(self) -> None:
        if not self.items:
            raise InputError("a chain needs at least one compressor")
        if len(self.items) > SPEC_ITEMS:
            raise InputError(f"a chain has at most {SPEC_ITEMS} methods, not {len(self.items)}")
        # What a method says of itself depends on those in the chain: per instance, not per class.
        vars(self).update(
            name=",".join(item.name for item in self.items),
            stage=",".join(dict.fromkeys(item.stage for item in self.items)),
            query_aware=any(item.query_aware for item in self.items),
            uses_features=any(item.uses_features for item in self.items),
            makes_tokens=any(item.makes_tokens for item in self.items),
            has_parameters=any(item.has_parameters for item in self.items),
            needs=tuple(dict.fromkeys(need for item in self.items for need in item.needs)),
            uses=tuple(dict.fromkeys(use for item in self.items for use in item.uses)),
        )
        super().__post_init__()
        stages = [STAGES.index(item.stage) for item in self.items]
        if stages != sorted(stages):
            raise InputError(
                f"{self.name}: a chain runs in the order {', '.join(STAGES)}, but its methods "
                f"work at {self.stage}: write them in that order"
            )
        if sum(not item.follows for item in self.late) > 1:
            raise InputError(f"{self.name}: one method inside the decoder at a time")
        if not self.is_free():
            self.check_last()

    @property
    def methods(self) -> tuple[Compressor, ...]:
        """The methods in order."""
        return tuple(self.items)

    def lacks_share(self) -> bool:
        """True when the last method would decide the count, and has nothing to decide it by."""
        return self.is_free() and self.items[-1].lacks_share()

    def inside_decoder(self) -> bool:
        """Whether one of the methods works between decoder layers or in the cache."""
        return bool(self.late)

    def plan(self, tokens: VideoTokens, budget: int, query: Tensor | None = None) -> Selection:
        """Always a WorkError: a chain has no round of its own, its methods plan theirs."""
        raise WorkError(f"{self.name} is a chain: call run, its methods plan their own rounds")

    def notes(self) -> tuple[str, ...]:
        """Those of the methods, without repeats."""
        return tuple(dict.fromkeys(note for item in self.items for note in item.notes()))

    def goal(self, tokens: VideoTokens, budget: int | None = None) -> int:
        """How many of these tokens will remain.

        Raises:
            InputError: the methods' own options decide, which depends on the video.
        """
        whole = self.whole_goal(tokens, budget)
        if whole is None:
            raise InputError(f"{self.name}: what its methods leave depends on the video: give keep")
        return whole

    def whole_goal(self, tokens: VideoTokens, budget: int | None = None) -> int | None:
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
        tokens, rounds, _ = self._run(tokens, self.whole_goal(tokens, budget), query)
        return tokens, rounds

    def before_decoder(
        self, tokens: VideoTokens, query: Tensor | None = None
    ) -> tuple[VideoTokens, list[tuple[Compressor, int]]]:
        """Do what is to be done before the decoder; the rest comes back with exact budgets."""
        goal = self.whole_goal(tokens)
        tokens, _, goal = self._run(tokens, goal, query)
        late = [(item, item.goal(tokens, goal if item.is_free() else None)) for item in self.late]
        return tokens, late

    def _run(
        self, tokens: VideoTokens, goal: int | None, query: Tensor | None
    ) -> tuple[VideoTokens, list[Selection], int | None]:
        if goal is not None:
            self.check_last()
        rounds: list[Selection] = []
        if goal == len(tokens):
            return tokens, rounds, goal
        for place, item in enumerate(self.items):
            if item.stage in LATE:
                break
            aim = None if goal is None else self.aim(tokens, place, goal)
            tokens, more = item.run(tokens, aim, query)
            rounds += more
            if goal is not None and len(tokens) < goal:
                raise InputError(
                    f"{item.name} leaves {len(tokens)} tokens, fewer than the {goal} that the "
                    "chain should keep: raise its own share or lower the chain's"
                )
        return tokens, rounds, goal

    def check_last(self) -> None:
        """Refuse a last method that is not free to take the exact remainder."""
        last = next((item for item in reversed(self.items) if not item.follows), self.items[-1])
        if not last.is_free():
            raise InputError(
                f"the last method of a chain with a budget takes the exact remainder: give "
                f"{last.name} no keep, budget or window of its own"
            )

    def aim(self, tokens: VideoTokens, place: int, goal: int) -> int | None:
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
