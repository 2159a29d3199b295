"""A query to many indexes of one hub model: which videos it fits, and where in them.

Every video is seen as a whole first and asked whether the query happens in it; the best are looked
at closely then. A hit's score is the probability that the model gives "yes" on the closest look.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vidllm.models.engine import one_at_a_time
from vidllm.models.families.engine import HubEngine
from vidllm.timecode import Span

from .fitting import statement
from .looking import LookReader
from .many import LEAST, TIMES


class ManyLooks:
    """Asks many indexes of one hub model.

    Args:
        readers: of the indexes. engine: the model of all.
    """

    def __init__(self, readers: Sequence[LookReader], engine: HubEngine) -> None:
        self.readers, self.engine = list(readers), engine

    @property
    def worked_on(self) -> nn.Module:
        """The model, which one thread asks at a time."""
        return self.engine.worked_on

    @one_at_a_time
    def ground(self, query: str, limit: int) -> list[tuple[int, Span]]:
        """The best `limit` spans for a query: (number of the reader, span), the best first.

        Raises:
            InputError: an empty query.
        """
        prompt, said = self.engine.words("ground", query), statement(query)
        most = max(LEAST, TIMES * limit)
        numbers = list(range(len(self.readers)))
        if len(numbers) > most:
            fits = [self._fits(number, said) for number in numbers]
            numbers = sorted(sorted(numbers, key=lambda n: -fits[n])[:most])
        found = []
        for number in numbers:
            reader = self.readers[number]
            look, spans = reader.located(prompt)
            score = reader.fits(look, said) if spans else 0.0
            found += [(number, span._replace(score=score)) for span in spans]
            reader.forget()
        return sorted(found, key=lambda pair: -pair[1].score)[:limit]

    def _fits(self, number: int, said: str) -> float:
        reader = self.readers[number]
        fit = reader.fits(reader.first(), said)
        reader.forget()
        return fit
