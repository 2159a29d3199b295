"""An answer piece by piece, as it is written: asked on a thread, read by a loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from vidllm.models.answer import Answer
from vidllm.progress import Listener, StopSignal


class AnswerStream(Iterator[str]):
    """Pieces of an answer's text; joined they are the text, and `answer` is the whole.

    The work begins with the first piece that is asked for. It ends early at `close`, at the end of
    a ``with`` block, or when the stream is let go.

    Args:
        ask: the question, to be answered for a listener. listener: who hears of it as well.
    """

    def __init__(self, ask: Callable[[Listener], Answer], listener: Listener | None = None) -> None:
        self._ask = ask
        self._queue: SimpleQueue[str | Answer | BaseException] = SimpleQueue()
        self._heard = _Pieces(self._queue, listener or Listener())
        self._thread: threading.Thread | None = None
        self._told = ""
        self._ended: Answer | BaseException | None = None

    def __next__(self) -> str:
        if self._thread is None and self._ended is None:
            work = self._ask, self._heard, self._queue
            self._thread = threading.Thread(target=_run, args=work, daemon=True)
            self._thread.start()
        while self._ended is None:
            came = self._queue.get()
            if isinstance(came, BaseException):
                self._ended = came
                raise came
            if isinstance(came, Answer):
                self._ended = came
            text = came.text if isinstance(came, Answer) else came
            # What is written may still change (a time that becomes whole): only what stays counts.
            if text.startswith(self._told) and (piece := text[len(self._told) :]):
                self._told = text
                return piece
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The whole answer, with spans and receipt; what is still to come is waited for.

        Raises:
            InputError, WorkError: as `VideoLLM.ask`.
        """
        for _ in self:
            pass
        if isinstance(self._ended, Answer):
            return self._ended
        assert self._ended is not None  # the loop came to its end
        raise self._ended

    def close(self) -> None:
        """End the work, if it has not ended."""
        self._heard.stop()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Pieces(StopSignal):
    """Hands the growing answer on, and all else to another listener."""

    def __init__(self, queue: SimpleQueue[str | Answer | BaseException], other: Listener) -> None:
        super().__init__()
        self.queue, self.other = queue, other

    def stage(self, name: str) -> None:
        self.other.stage(name)

    def seconds(self, name: str, value: float) -> None:
        self.other.seconds(name, value)

    def text(self, so_far: str) -> None:
        self.other.text(so_far)
        self.queue.put(so_far)

    def stopped(self) -> bool:
        return super().stopped() or self.other.stopped()


def _run(
    ask: Callable[[Listener], Answer],
    heard: _Pieces,
    queue: SimpleQueue[str | Answer | BaseException],
) -> None:
    """On the thread; it knows nothing of the stream, which may be let go."""
    try:
        queue.put(ask(heard))
    except BaseException as error:
        queue.put(error)
