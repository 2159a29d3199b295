"""Models of the hub: their names, who runs them, and one line for why files cannot be had."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from vidllm.errors import InputError, WorkError

#: Who runs a model of the hub: transformers in this process, or vLLM.
ENGINES = ("transformers", "vllm")
# As the hub itself allows it.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: Errors of the hub's client, by their classes' names -> what there is to do.
_REASONS = {
    "GatedRepoError": "'{}' is gated on the hub: ask for access on its page there, and give token= "
    "or set HF_TOKEN",
    "RevisionNotFoundError": "the hub has no such revision of '{}': look at its page for branches, "
    "tags and commits",
    "LocalEntryNotFoundError": "no model '{}': it is no folder, the local cache lacks it, and the "
    "hub {}",
    "OfflineModeIsEnabled": "no model '{}': it is no folder, the local cache lacks it, and the hub "
    "{}",
}
_ELSE = (
    "no model '{}': it is no folder, and the hub lacks it or is out of reach, or wants a token for "
    "it (token= or HF_TOKEN)"
)


def is_hub_name(name: str) -> bool:
    """Whether a text may be OWNER/NAME on the hub."""
    return _NAME.fullmatch(name) is not None


def push_failure(name: str, error: BaseException) -> WorkError:
    """What to say of a push that the hub's client did not do."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        why = "the hub refuses this account: log in (hf auth login), or give token= with the right "
        why += "to write there"
    elif status is not None:
        why = f"the hub answers {status}"
    elif any("Connect" in kind or "Timeout" in kind for kind in _classes(error)):
        why = "the hub is out of reach"
    else:
        line = next(iter(str(error).strip().splitlines()), "")
        why = f"{type(error).__name__}: {line}"
    return WorkError(f"'{name}' cannot be pushed: {why}")


def unreachable(name: str, error: BaseException, only_local: bool = False) -> InputError:
    """What to say of a model whose files the hub's client did not give.

    Args:
        error: of the client, or one that it caused. only_local: the hub was not to be asked.
    """
    found = next((k for k in _classes(error) if k in _REASONS), "")
    off = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    away = "is out of reach"
    if only_local:
        away = "is not asked (local_files_only)"
    elif off:
        away = "is not asked (HF_HUB_OFFLINE is set)"
    if not found and (only_local or off):
        found = "OfflineModeIsEnabled"
    return InputError(_REASONS.get(found, _ELSE).format(name, away))


def _classes(error: BaseException | None) -> Iterator[str]:
    """Names of the classes of an error and of those that caused it."""
    while error is not None:
        yield from (cls.__name__ for cls in type(error).__mro__)
        error = error.__cause__ or error.__context__
