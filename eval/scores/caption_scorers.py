"""How alike two sentences are: METEOR and CIDEr by pycocoevalcap, and word-F1 without it.

`pip install "vidllm[captions]"` brings pycocoevalcap; METEOR 1.5 and the Penn Treebank tokeniser
in it are Java programs. NLTK's METEOR is not METEOR 1.5 and is not offered.
"""

from __future__ import annotations

import importlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vidllm.errors import InputError

from .metrics import normal

_CHUNK = 1000


class PairScorer(Protocol):
    """Scores pairs of a reference and a candidate; needs `name` and whether pairs interact."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    @property
    def uses_corpus(self) -> bool:
        """Whether a score depends on the other references of the call (idf)."""
        ...

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """(N,) scores of N pairs; the references of the call are the corpus, each a document."""
        ...

    def total(self, references: Sequence[str], candidates: Sequence[str]) -> float:
        """The one score that official scripts report for these pairs; 0 of none."""
        ...


class WordF1:
    """2·common words / all words, with repeats, up to case and punctuation; no dependencies.

    Not a published metric: for runs without Java, and always named where it stands in for METEOR.
    """

    name = "word-F1"
    uses_corpus = False

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """(N,) in [0, 1]."""
        pairs = zip(references, candidates, strict=True)
        return np.asarray([_overlap(*pair) for pair in pairs], dtype=np.float64)

    def total(self, references: Sequence[str], candidates: Sequence[str]) -> float:
        """The mean."""
        return float(self.scores(references, candidates).mean()) if len(references) else 0.0


class _Coco:
    """What METEOR and CIDEr share: the package, the tokeniser, and captions without words."""

    def __init__(self, module: str, name: str, tokeniser: str) -> None:
        if tokeniser not in ("ptb", "plain"):
            raise InputError(f"the tokeniser must be ptb or plain, not {tokeniser!r}")
        self._java = tokeniser == "ptb"
        self._scorer: Any = _find(f"pycocoevalcap.{module}", name, self._java)()
        self._known: dict[str, str] = {}

    def _tokens(self, texts: Iterable[str]) -> list[str]:
        """Tokens with a blank between; new sentences are tokenised in one call."""
        clean = [" ".join(text.split()) for text in texts]
        new = sorted({text for text in clean if text} - self._known.keys())
        if new and self._java:
            tokenise = _find("pycocoevalcap.tokenizer.ptbtokenizer", "PTBTokenizer", True)()
            found = tokenise.tokenize({k: [{"caption": text}] for k, text in enumerate(new)})
            self._known.update({text: found[k][0] for k, text in enumerate(new)})
        elif new:
            self._known.update({text: normal(text) for text in new})
        return [self._known.get(text, "") for text in clean]

    def _ask(self, references: Sequence[str], candidates: Sequence[str]) -> tuple[float, Any]:
        true = {k: [text] for k, text in enumerate(references)}
        said = {k: [text] for k, text in enumerate(candidates)}
        total, values = self._scorer.compute_score(true, said)
        return float(total), values


class Meteor(_Coco):
    """METEOR 1.5 (Denkowski and Lavie, 2014), English; needs Java.

    Raises:
        InputError: pycocoevalcap or Java is missing.
    """

    name = "METEOR"
    uses_corpus = False

    def __init__(self) -> None:
        super().__init__("meteor.meteor", "Meteor", "ptb")

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """(N,) in [0, 1]; 0 where either sentence has no word."""
        true, said = self._tokens(references), self._tokens(candidates)
        values = np.zeros(len(true))
        some = [k for k, pair in enumerate(zip(true, said, strict=True)) if all(pair)]
        for first in range(0, len(some), _CHUNK):
            part = some[first : first + _CHUNK]
            values[part] = self._ask([true[k] for k in part], [said[k] for k in part])[1]
        return values

    def total(self, references: Sequence[str], candidates: Sequence[str]) -> float:
        """METEOR of the pairs as one text, from their summed statistics; not the mean of scores."""
        true, said = self._tokens(references), self._tokens(candidates)
        some = [pair for pair in zip(true, said, strict=True) if all(pair)]
        return self._ask([t for t, _ in some], [s for _, s in some])[0] if some else 0.0


class Cider(_Coco):
    """CIDEr-D (Vedantam et al., CVPR 2015) as pycocoevalcap computes it, from 0 to 10.

    Args:
        tokeniser: "ptb" as in published numbers (Java), or "plain": lower case, no punctuation.

    Raises:
        InputError: pycocoevalcap, or Java for "ptb", is missing.
    """

    uses_corpus = True

    def __init__(self, tokeniser: str = "ptb") -> None:
        super().__init__("cider.cider", "Cider", tokeniser)
        self.name = "CIDEr" if tokeniser == "ptb" else "CIDEr (plain tokens)"

    def scores(self, references: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """(N,); a corpus of one reference gives 0, since the idf of every word is log 1."""
        if not len(references):
            return np.zeros(0)
        values = self._ask(self._tokens(references), self._tokens(candidates))[1]
        return np.asarray(values, dtype=np.float64)

    def total(self, references: Sequence[str], candidates: Sequence[str]) -> float:
        """The mean."""
        return float(self.scores(references, candidates).mean()) if len(references) else 0.0


def _overlap(one: str, two: str) -> float:
    a, b = Counter(normal(one).split()), Counter(normal(two).split())
    words = a.total() + b.total()
    return 2 * (a & b).total() / words if words else 0.0


def _find(module: str, name: str, java: bool) -> Any:
    """A class of pycocoevalcap."""
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(
            f'{name} needs pycocoevalcap: pip install "vidllm[captions]" (METEOR also needs Java)'
        ) from error
    if java and shutil.which("java") is None:
        raise InputError(f"{name} of pycocoevalcap needs Java on the PATH: install a Java runtime")
    return found
