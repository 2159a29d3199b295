"""What a hub model cannot be served with, said before any work."""

from __future__ import annotations

from typing import Any, cast

from vidllm.compressors import Chain, Compressor
from vidllm.errors import InputError

from .base import Adapter


def check(adapter: Adapter, method: Compressor | Chain, late: list[Compressor]) -> None:
    """Refuse what a model cannot serve.

    Raises:
        InputError: names the method, the model and the reason.
    """
    family, config = adapter.family, cast(Any, adapter.decoder).config
    missing = [need for need in method.needs if need not in adapter.provides]
    if missing:
        raise InputError(
            f"{method.name} needs {' and '.join(missing)}, which {family} does not give: choose a "
            "method without that need (vidllm list compressors)"
        )
    how = str(config._attn_implementation)
    if how not in ("sdpa", "eager"):
        raise InputError(
            f"{method.name} on {family}: attention '{how}' is not served: load the model with "
            "attn_implementation='sdpa'"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise InputError(
            f"{method.name} on {family}: this decoder has {', '.join(sorted(kinds))} layers, which "
            "count positions without gaps: use a model with full attention"
        )
    for item in late:
        where = getattr(item, "positions", "original")
        if item.stage == "cache" and where != "original":
            raise InputError(
                f"{item.name}: {family} keeps its positions: leave out positions={where}"
            )
    if late and late[0].follows:
        raise InputError(
            f"{method.name} keeps what a method between the decoder's layers kept: write for "
            f"example mustdrop-filter,{late[0].name}"
        )
