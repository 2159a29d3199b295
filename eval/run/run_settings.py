"""What a run compares: settings, each a compressor at a share; the uncompressed one comes first.

A setting's label says how its compressor is built: "S@K" is ``build(S with "," for "+", keep=K)``,
so "aim+uniform@0.25" is the chain of both at a quarter of the tokens, and "none@1" no compression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidllm.errors import InputError
from vidllm.errors.bounds import read_shares

if TYPE_CHECKING:
    from vidllm.compressors import Compressor

FULL = "none@1"


@dataclass(frozen=True)
class Setting:
    """A compressor at a share.

    Args:
        compressor: as it was written, a chain as "a+b"; "none" for no compression.
        keep: the share that the whole compressor was asked to keep; 1 where its own options, or a
            number of tokens, decide.
        method: what is built of them; None where the asker has no use for one.
        tokens: the number of tokens that it keeps, None for a share.
    """

    compressor: str
    keep: float = 1.0
    method: Compressor | None = None
    tokens: int | None = None

    @property
    def label(self) -> str:
        """The name of the setting in every file and table."""
        if self.tokens is None:
            return f"{self.compressor}@{self.keep:g}"
        chain = f"({self.compressor})" if "+" in self.compressor else self.compressor
        return f"{chain}:budget={self.tokens}@1"

    @property
    def is_full(self) -> bool:
        """Whether nothing is compressed."""
        return self.compressor == "none"

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "label": self.label,
            "compressor": self.compressor,
            "keep": self.keep,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Args:
        pairs: a compressor as written and a share; None for the model's own.
        tokens: a number of tokens instead of shares.
        full: whether the uncompressed run is made in any case.
    """

    pairs: tuple[tuple[str | None, float | None], ...]
    tokens: int | None = None
    full: bool = True

    def settings(self, own: Callable[[float | None], Setting] | None = None) -> list[Setting]:
        """The settings in order.

        Args:
            own: the model's own compressor at a share, or at its own share for None; asked where
                no compressor is named. None before a model is loaded: named ones alone are made.

        Raises:
            InputError: a compressor or a share that is wrong or comes twice, or nothing to run.
        """
        made: list[Setting] = []
        for spec, keep in self.pairs:
            if spec is not None:
                made.append(_named(spec, keep, self.tokens))
            elif keep == 1:
                made.append(_full())
            elif own is not None:
                made.append(_budgeted(own(keep), self.tokens))
        rest = [setting for setting in made if not setting.is_full]
        labels = [setting.label for setting in rest]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise InputError(f"{twice} is asked for twice: name every compressor and share once")
        full = self.full or len(rest) < len(made)
        if not full and not rest and own is not None:
            raise InputError("--no-full leaves nothing to run: name a --compressor and a --keep")
        return [*([_full()] if full else []), *rest]


def wanted(
    compressor: str | None,
    keep: str | None,
    *,
    recipe: str | None = None,
    tokens: int | None = None,
    full: bool = True,
) -> Wanted:
    """Read the lists of the command line: ``--compressor aim,a+b --keep 0.5,0.25``.

    Args:
        compressor: compressors with commas between, a chain as "a+b".
        keep: shares in (0, 1] with commas between.
        recipe: a named system, whose compressor is one more, at its own share if none is given.
        tokens: how many tokens every compressor keeps, instead of shares.
        full: whether the uncompressed run is always made.

    Raises:
        InputError: something of it is wrong; nothing is loaded to find out.
    """
    specs = [] if compressor is None else parts_of(compressor)
    keeps = [] if keep is None else read_shares(keep)
    if tokens is not None and keeps:
        raise InputError("--tokens sets the share that is kept: leave out --keep")
    for name, values in (("--compressor", specs), ("--keep", keeps)):
        if len(set(values)) != len(values):
            raise InputError(f"{name} names something twice")
    shares: list[float | None] = [*keeps] or [None]
    pairs: list[tuple[str | None, float | None]] = [(s, k) for s in specs for k in shares]
    if recipe is not None:
        from vidllm.recipes import get_recipe

        system = get_recipe(recipe)
        own: list[float | None] = [*keeps] or [system.keep if tokens is None else None]
        pairs += [(system.compressors.replace(",", "+"), share) for share in own]
    if not pairs:
        pairs = [(None, share) for share in shares]
    found = Wanted(tuple(pairs), tokens, full)
    found.settings()  # what is wrong is said before anything is loaded
    return found


def own_setting(llm: Any) -> Callable[[float | None], Setting]:
    """The compressor that a model was loaded with, at a share."""

    def setting(keep: float | None) -> Setting:
        from vidllm.models.loading import choose_compressor
        from vidllm.models.native.config import NativeConfig

        config = llm.config if isinstance(llm.config, NativeConfig) else NativeConfig()
        method = llm.compressor if keep is None else choose_compressor(config, None, keep)
        share = method.keep if keep is None else keep
        return Setting(method.name.replace(",", "+"), float(share), method)

    return setting


def no_own(keep: float | None) -> Setting:
    """For models without a compressor of their own: raises InputError for a share."""
    if keep is not None:
        raise InputError("--keep goes with a --compressor here: name one")
    return _full()


def _full() -> Setting:
    from vidllm.compressors import build

    return Setting("none", 1.0, build("none"))


def _named(spec: str, keep: float | None, tokens: int | None) -> Setting:
    """A compressor at a share; at the share that its own options give for None."""
    from vidllm.models.loading import choose_compressor
    from vidllm.models.native.config import NativeConfig

    written = spec.replace("+", ",")
    if spec == "none" or (keep == 1 and tokens is None):
        if spec != "none":  # also a wrong name is refused where nothing is to be compressed
            choose_compressor(NativeConfig(), written, 1.0)
        return _full()
    if tokens is not None:
        from vidllm.compressors import build

        return Setting(spec, 1.0, build(written, budget=tokens), tokens)
    return Setting(spec, keep or 1.0, choose_compressor(NativeConfig(), written, keep))


def _budgeted(setting: Setting, tokens: int | None) -> Setting:
    from dataclasses import replace

    if tokens is None or setting.is_full or setting.method is None:
        return setting
    method = replace(setting.method, keep=1.0, budget=tokens)
    return Setting(setting.compressor, 1.0, method, tokens)


def parts_of(text: str, option: str = "--compressor") -> list[str]:
    """The parts between commas that stand in no brackets. Raises InputError for an empty one."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise InputError(f"{option} {text!r} has an empty name: write NAME[,NAME]")
    return parts


def find_setting(labels: Sequence[str], label: str, where: str) -> str:
    """The label among those of a run. Raises InputError with what there is."""
    if label not in labels:
        raise InputError(f"{where} has no setting {label!r}: it has {', '.join(labels)}")
    return label
