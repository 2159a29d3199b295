"""Text-video retrieval: R@k, median and mean rank (MSR-VTT).

Source: the protocol of MSR-VTT 1k-A (Yu et al., ECCV 2018), as in TempMe (arXiv 2409.01156).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidllm.errors import InputError

from .common import Scores, average


def ranks(similarity: np.ndarray, truth: Sequence[int | Sequence[int]] | None = None) -> np.ndarray:
    """(Q,) rank of the best right item of each query, from 1.

    Equal scores bring no luck: a right item that ties with m wrong ones has the mean of their
    ranks, 1 + better + m / 2 (with t right ones in the tie 1 + better + m / (t + 1), the expected
    rank of the first of them).

    Args:
        similarity: (Q, N), rows are queries: pass the transpose for video-to-text.
        truth: the right column, or columns, of each query; by default the diagonal.

    Raises:
        InputError: similarities that are not finite, not (Q, N), or not square without `truth`,
            and a query without a right item among the columns.
    """
    table = np.asarray(similarity, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise InputError("similarities must be (queries, items), not empty, and finite")
    if truth is None and table.shape[0] != table.shape[1]:
        raise InputError(f"similarities {table.shape} are not square: say which items are right")
    right = range(len(table)) if truth is None else truth
    if len(right) != len(table):
        raise InputError(f"{len(table)} queries need as many right items, not {len(right)}")
    found = np.empty(len(table))
    for k, (row, own) in enumerate(zip(table, right, strict=True)):
        mask = np.zeros(len(row), dtype=bool)
        columns = np.atleast_1d(np.asarray(own, dtype=np.int64))
        if not len(columns) or columns.min() < 0 or columns.max() >= len(row):
            raise InputError(f"query {k} needs right items from 0 to {len(row) - 1}, not {own}")
        mask[columns] = True
        best = row[mask].max()
        level = row == best
        tied = (level & ~mask).sum() / ((level & mask).sum() + 1)
        found[k] = 1 + (row[~mask] > best).sum() + tied
    return found


def retrieval_scores(
    similarity: np.ndarray,
    truth: Sequence[int | Sequence[int]] | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    official: bool = False,
) -> Scores:
    """R@k, the median rank MdR and the mean rank MnR of `ranks`.

    Args:
        similarity, truth: see `ranks`.
        official: as TempMe's script, square matrices alone: a query counts
            once at every place among equal scores, so the denominator grows with ties.

    Raises:
        InputError: see `ranks`; `official` with `truth` or with k other than 1, 5, 10 and 50.
    """
    if official and (truth is not None or not {1, 5, 10, 50}.issuperset(ks)):
        raise InputError(
            "the official retrieval scores have one right item a query, k 1, 5, 10, 50"
        )
    places = ranks(similarity, truth)
    if official:
        table = np.asarray(similarity, dtype=np.float64)
        order = -np.sort(-table, axis=1)
        places = 1 + np.nonzero(order == table.diagonal()[:, None])[1]
    scores: Scores = {f"R@{k}": average(places <= k) for k in ks}
    return {**scores, "MdR": float(np.median(places)), "MnR": average(places)}
