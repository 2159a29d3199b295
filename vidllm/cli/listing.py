"""What there is to choose from, by kind: the contents of ``vidllm list``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from importlib.metadata import entry_points
from typing import Any

from vidllm.errors import InputError
from vidllm.errors.registry import did_you_mean
from vidllm.models.cost.presets import PRESETS
from vidllm.models.families.served import EXAMPLES, FAMILIES
from vidllm.models.folder import read_config
from vidllm.models.heads.head_config import ANSWERS
from vidllm.models.heads.head_config import MODEL_TYPE as HEAD_TYPE
from vidllm.models.shipped import shipped_models, weights_dir
from vidllm.recipes import Recipe, list_recipes, package_of_recipe

from .catalogue import compressor_summaries, encoder_summaries
from .pages import encoder_entries


def entries(kind: str, pattern: str = "*", *, measured: bool = False) -> list[dict[str, Any]]:
    """Everything of a kind whose name matches a wildcard pattern; each has name and summary.

    Args:
        measured: of encoders also their sizes and states, for which they are built.

    Raises:
        InputError: an unknown kind, or a pattern that nothing matches.
    """
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS, n=1, cutoff=0.6)
        raise InputError(f"nothing to list called {kind!r}: {hint}")
    everything = encoder_entries() if measured and kind == "encoders" else KINDS[kind]()
    found = [entry for entry in everything if fnmatch(str(entry["name"]), pattern)]
    if not found and everything:
        names = ", ".join(str(entry["name"]) for entry in everything)
        raise InputError(f"none of the {kind} match {pattern!r}: there are {names}")
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The entries as lines of name, tags and summary."""
    if not found:
        return "none"
    width = max(len(str(entry["name"])) for entry in found)
    return "\n".join(f"{entry['name']:<{width}}  {_line(entry)}".rstrip() for entry in found)


def _line(entry: dict[str, Any]) -> str:
    tags = [str(entry[key]) for key in ("kind", "stage") if entry.get(key)]
    if entry.get("compressors"):
        share = "" if entry.get("keep") is None else f", keep {entry['keep']:g}"
        tags.append(f"{entry['compressors']}{share}")
    tags += [str(entry["training"])] if entry.get("training") else []
    tags += [f"for {', '.join(entry['tasks'])}"] if entry.get("tasks") else []
    tags += ["reads the question"] if entry.get("query_aware") else []
    untrained = entry.get("trained") and not entry.get("training")
    tags += ["needs training, no weights shipped"] if untrained else []
    package = entry.get("package", "vidllm")
    tags += [f"from {package}"] if package != "vidllm" else []
    paper = f" [{entry['paper']}]" if entry.get("paper") else ""
    same = f"; the same as {entry['same_as'].replace('`', '')}" if entry.get("same_as") else ""
    return f"{'(' + ', '.join(tags) + ') ' if tags else ''}{entry.get('summary', '')}{same}{paper}"


def _models() -> list[dict[str, Any]]:
    """What is shipped, and the families of hub models that are served."""
    found = []
    for name in shipped_models():
        config = read_config(weights_dir() / name)
        files = (weights_dir() / name).glob("*.safetensors")
        size = sum(file.stat().st_size for file in files) / 1e6
        kind = str(config.get("model_type", ""))
        summary = f"{size:.1f} MB of weights, in {weights_dir().name}/{name}"
        recipe, needs, what = _of_another(config)
        found.append({"name": name, "kind": kind, "summary": f"{what}{summary}",
                      "recipe": recipe, "needs": needs})  # fmt: skip
    for kind, (family, _, _) in FAMILIES.items():
        hubs = [p.hub for p in PRESETS.values() if p.hub and p.config["model_type"] == kind]
        hubs += [EXAMPLES[kind]] if kind in EXAMPLES else []
        summary = f"family of hub models, for example {', '.join(hubs)}"
        found.append({"name": family, "kind": kind, "summary": summary})
    return found


def _of_another(config: dict[str, Any]) -> tuple[str, str, str]:
    """The recipe of a shipped model, the model that it needs, and what it is in a few words."""
    recipe = str(config.get("recipe") or "")
    if base := str(config.get("base") or ""):
        return recipe, base, f"{f'recipe {recipe}: ' * bool(recipe)}changes to {base}; "
    if config.get("model_type") != HEAD_TYPE:
        return recipe, "", ""
    under = str(config.get("start") or config.get("guard") or "")
    needs = f", needs {under}" if under else ""
    does = ANSWERS.get(str(config.get("course")), "")
    return recipe, under, f"recipe {recipe}: {does}{needs}; "


def _recipes() -> list[dict[str, Any]]:
    from vidllm.recipes.models import ships

    return [
        {
            **asdict(recipe),
            "training": _training(recipe, ships(recipe)),
            "ships": ships(recipe),
            "package": package_of_recipe(recipe.name),
        }
        for recipe in list_recipes()
    ]


def _training(recipe: Recipe, shipped: bool) -> str:
    """What of a recipe is trained, and whether the result ships."""
    if recipe.course == "none":
        return "nothing trained"
    weights = f"weights: {recipe.weights}" if shipped else "no weights shipped"
    return f"trains {' and '.join(recipe.trained)}, {weights}"


def _tasks() -> list[dict[str, Any]]:
    # Floor 5 rooms do not import each other: the benchmarks are found by their entry points.
    found: list[dict[str, Any]] = []
    for entry in entry_points(group="vidllm.tasks"):
        found += entry.load()()
    return found


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "compressors": compressor_summaries,
    "models": _models,
    "recipes": _recipes,
    "encoders": encoder_summaries,
    "tasks": _tasks,
}
