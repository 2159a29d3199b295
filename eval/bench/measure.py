"""What the bench commands share: extra memory while a block runs, and growth with length."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Sequence

import psutil


class Peak:
    """The most memory that the process held while a block ran, above what it held before."""

    def __enter__(self) -> Peak:
        self.process, self.running = psutil.Process(), True
        self.before = self.most = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        self.most = max(self.most, self.process.memory_info().rss)

    @property
    def megabytes(self) -> float:
        return (self.most - self.before) / 1e6


def growth(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The exponent p of value ~ length^p by least squares on logarithms; NaN for one length."""
    pairs = [(math.log(n), math.log(v)) for n, v in zip(lengths, values, strict=True) if v > 0]
    if len(pairs) < 2:
        return math.nan
    x, y = zip(*pairs, strict=True)
    return statistics.linear_regression(x, y).slope


def spread_cell(shares: Sequence[float]) -> str:
    """Shares for a table: their mean, the lowest and the highest in brackets."""
    return f"{statistics.mean(shares):.0%} ({min(shares):.0%}–{max(shares):.0%})"
