"""How a handler meets the page: checked inputs, and updates shown while it is the newest event."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable
from typing import Any

import gradio as gr

from vidllm.errors import InputError

from .arguments import checked

Handler = Callable[..., Any]
#: The key of a request's scope under which the gate says when it came: later ones have more.
ARRIVED = "vidllm.arrived"


def arrived(request: gr.Request) -> int:
    """When an event came, by the gate's count; 0 where it came through no gate.

    Events begin on threads of their own, so not always in the order in which they came.
    """
    came = getattr(request, "request", None)
    return 0 if came is None else int(came.scope.get(ARRIVED, 0))


def careful(handler: Handler) -> Handler:
    """A method of the handlers whose inputs are checked first; what is wrong becomes its line."""
    names = list(inspect.signature(handler).parameters)[1:-1]

    def look(self: Any, given: tuple[Any, ...]) -> tuple[list[Any], dict[Any, Any] | None]:
        *values, request = given
        try:
            return [*checked(names, values, self.host.settings), request], None
        except InputError as error:
            return [], {self.p.problem: self.problem(self.session(request), error)}

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def follow(self: Any, *given: Any) -> Generator[Any, None, None]:
            ready, wrong = look(self, given)
            if wrong is None:
                yield from handler(self, *ready)
            else:
                yield wrong

        return follow

    @functools.wraps(handler)
    def call(self: Any, *given: Any) -> Any:
        ready, wrong = look(self, given)
        return handler(self, *ready) if wrong is None else wrong

    return call


def newest(handler: Handler, do: Any, outputs: Iterable[Any], *, says: bool = False) -> Handler:
    """A handler for an event that takes these components over from older events.

    Args:
        handler: of `do`, a generator of updates or a function that gives one.
        says: of a run: it takes the components when it has more to show than that it was refused,
            and a line about what went wrong is shown even where a newer event has the place.
    """
    taken, problem = tuple(outputs), do.p.problem

    def run(request: gr.Request, *values: Any) -> Generator[Any, None, None]:
        screen = do.session(request).screen
        number = arrived(request)
        # Whose whole place belongs to newer events by now does nothing more.
        begins = says or screen.take(number, taken)
        made: Any = handler(*values, request) if begins else {}
        for update in made if inspect.isgenerator(made) else [made]:
            if says and set(update) != {problem}:
                screen.take(number, taken)
            with screen.showing(number, update) as shown:
                if says and update.get(problem):
                    shown[problem] = update[problem]
                if shown:
                    # Gradio comes back for more when this one was sent.
                    yield shown
        # When an event ends, Gradio sends its last update once more, by then perhaps over a newer
        # one; and it empties the components of an event that had none.
        yield {taken[0]: gr.skip()}

    # By which Gradio names the event; the endpoints for programs have the plain names.
    run.__name__ = f"page_{getattr(handler, '__name__', 'run')}"
    return run
