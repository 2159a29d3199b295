"""The card of a trained system: what it is, what it was trained on, and the command that did it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe import Recipe

CARD = "README.md"


def card(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        recipe: as it was trained.
        facts: `start`, `data`, `step`, `steps`, `batch`, `frames`, `lr`, `seed`, `trained` and
            `parameters` (how many of each part are trained), `command`, `last` (a row of the log).
    """
    keep = "as its methods say" if recipe.keep is None else f"{100 * recipe.keep:g} % of the tokens"
    temporal = " and ".join(recipe.temporal_names) or "none"
    rows = [
        ("paper", recipe.paper or "none"),
        ("start", str(facts["start"])),
        ("vision tower", recipe.vision or "that of the start"),
        ("temporal encoder", "that of the start" if recipe.temporal is None else temporal),
        ("reduction", f"`{recipe.compressors}`, {keep}"),
        ("time code", recipe.time_code or "that of the start"),
        ("trained", ", ".join(f"{k} ({v:,})" for k, v in facts["parameters"].items())),
        ("reductions in training", _mixture(recipe)),
        ("data", str(facts["data"])),
        ("steps", f"{facts['step']} of {facts['steps']}, {facts['batch']} clips each"),
        ("frames", str(facts["frames"])),
        ("learning rate", f"{facts['lr']:g}, warmed up, then half a cosine"),
        ("seed", str(facts["seed"])),
    ]
    if recipe.lora is not None and "lora" in recipe.trained:
        lora = recipe.lora
        rows.insert(7, ("adapters", f"rank {lora.rank}, alpha {lora.alpha}, in the {lora.where}"))
    last = facts.get("last")
    losses = []
    if last:
        losses = ["", "Last row of the log (training, not a score):", "", _row(last)]
    claim = []
    if recipe.claim:
        told = "Claim of the paper, as it can be tested here (not tested by this training)"
        claim = [f"{told}: {recipe.claim}.", ""]
    lines = [
        "---",
        "library_name: vidllm",
        f"tags: [video, {recipe.name}]",
        "---",
        "",
        f"# {recipe.name}",
        "",
        f"{recipe.summary[:1].upper()}{recipe.summary[1:]}.",
        "",
        "| part | what it is |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        *claim,
        "```",
        str(facts["command"]),
        "```",
        *losses,
        "",
    ]
    return "\n".join(lines)


def _mixture(recipe: Recipe) -> str:
    return ", ".join(f"`{spec}` {100 * weight:.0f} %" for spec, weight in recipe.mixture) or "none"


def _row(last: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in last.items())
