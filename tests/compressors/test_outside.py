"""Methods of other installed packages: found by name, refused in one line, never in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from vidllm.compressors import Scorer, build, describe, find, names
from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.vision import get_vision
from vidllm.errors import InputError, WorkError
from vidllm.errors.outside import _installed
from vidllm.recipes import get_recipe
from vidllm.tokens import Keep, Mix, VideoTokens

METHOD = """
from dataclasses import dataclass
from vidllm.compressors import Scorer

@dataclass
class Far(Scorer):
    summary = "tokens far from the mean stay"
    paper = "Somebody, 2030"

    def score(self, tokens, query=None):
        x = tokens.features.float()
        return (x - x.mean(dim=0)).norm(dim=1)
"""
ENCODER = """
from vidllm.encoders.temporal import TemporalEncoder

class Still(TemporalEncoder):
    summary = "changes nothing"
    paper = ""

    def __init__(self, dim):
        super().__init__()

    def forward(self, x, seconds, mask=None):
        return x
"""
RECIPE = """
from vidllm.recipes import Recipe

FAR = Recipe(name="far-system", summary="far tokens alone", compressors="far", keep=0.25)
"""


def install(site: Path, package: str, modules: dict[str, str], entries: str) -> None:
    """A package as pip leaves it in a folder on the path."""
    module = package.replace("-", "_")
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text("")
    for name, text in modules.items():
        (site / module / f"{name}.py").write_text(text)
    told = site / f"{module}-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(entries)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good package, a broken one, and one that takes a name of ours."""
    site = tmp_path_factory.mktemp("site")
    install(
        site,
        "far-methods",
        {"far": METHOD, "still": ENCODER, "system": RECIPE},
        "[vidllm.compressors]\nfar = far_methods.far:Far\n"
        "[vidllm.encoders]\nstill = far_methods.still:Still\n"
        "[vidllm.recipes]\nfar-system = far_methods.system:FAR\n",
    )
    install(
        site,
        "broken-methods",
        {"bad": "import no_such_thing\n"},
        "[vidllm.compressors]\nbad = broken_methods.bad:Bad\n",
    )
    install(
        site,
        "greedy-methods",
        {"aim": METHOD, "near": "def near(tokens): return tokens\n"},
        "[vidllm.compressors]\naim = greedy_methods.aim:Far\nnear = greedy_methods.near:near\n",
    )
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(site))
    _installed.cache_clear()
    yield site
    _installed.cache_clear()


TOKENS = VideoTokens.from_grid(torch.randn(4, 3, 3, 8), [0.0, 1.0, 2.0, 3.0], 4.0)


def test_the_command_line_lists_and_uses_them(
    cli: Callable[..., CompletedProcess[str]], site: Path, root: Path
) -> None:
    env = {"PYTHONPATH": str(site)}
    listed = cli("list", "compressors", env=env)
    assert listed.returncode == 0 and "tokens far from the mean stay" in listed.stdout
    assert "from far-methods 1.0" in listed.stdout and "dycoke" in listed.stdout
    told = sorted(listed.stderr.splitlines())
    assert len(told) == 3 and all(line.startswith("vidllm: ") for line in told), listed.stderr
    assert "'bad' of package broken-methods 1.0 cannot be loaded (ModuleNotFoundError" in told[0]
    assert "'near' of package greedy-methods 1.0 cannot be used" in told[1]
    assert "greedy-methods 1.0 registers compressor 'aim', which is a name of vidllm's" in told[2]
    video = next((root / "weights" / "samples").glob("*.mp4"))
    asked = cli("ask", video, "what moves?", "--compressor", "far", "--keep", "0.25", env=env)
    assert asked.returncode == 0, asked.stderr
    assert "(25 %) by far" in asked.stderr
    refused = cli("ask", video, "what moves?", "--compressor", "bad", "--keep", "0.25", env=env)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "broken-methods 1.0 cannot be loaded" in refused.stderr


def test_help_loads_none_of_them(cli: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    loud = {"loud": "raise SystemExit('loaded')\n"}
    install(tmp_path, "loud-methods", loud, "[vidllm.compressors]\nloud = loud_methods.loud:Loud\n")
    told = cli("--help", env={"PYTHONPATH": str(tmp_path)})
    assert told.returncode == 0 and told.stderr == ""


def test_encoders_and_recipes_come_in_the_same_way(
    cli: Callable[..., CompletedProcess[str]], site: Path
) -> None:
    env = {"PYTHONPATH": str(site)}
    for kind, name in (("encoders", "still"), ("recipes", "far-system")):
        listed = cli("list", kind, name, env=env)
        assert listed.returncode == 0, listed.stderr
        assert name in listed.stdout and "from far-methods 1.0" in listed.stdout


def test_they_are_methods_like_all_others(installed: Path) -> None:
    assert len(build("far", keep=0.25)(TOKENS)) == 9
    assert len(build("temporal-pool,far", keep=0.5)(TOKENS)) == 18
    assert {"far", "aim"} <= set(names()) and not {"bad", "near"} & set(names())
    assert {e["name"]: e["package"] for e in describe()}["far"] == "far-methods 1.0"
    assert find("aim").__module__ == "vidllm.compressors.aim"  # a taken name stays ours
    assert get_recipe("far-system").compressors == "far"
    assert get_temporal("still", 8).name == "still"
    with pytest.raises(InputError, match=r"far-methods 1\.0 is no vision encoder"):
        get_vision("still")
    with pytest.raises(InputError, match=r"greedy_methods\.near:near is a function"):
        build("near", keep=0.5)


def test_a_name_that_two_packages_register_is_refused(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("one-more", "two-more"):
        module = package.replace("-", "_")
        install(tmp_path, package, {"m": METHOD}, f"[vidllm.compressors]\nmore = {module}.m:Far\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _installed.cache_clear()
    with pytest.raises(InputError, match=r"registered twice, by one-more 1\.0 and two-more 1\.0"):
        build("more", keep=0.5)
    assert "more" not in names()


def scorer(score: Any) -> Scorer:
    made = type("Mine", (Scorer,), {"score": score, "name": "mine"})
    method: Scorer = made(keep=0.25)
    return method


SCORES: dict[str, tuple[Any, str]] = {
    "None": (lambda self, tokens, query=None: None, "it gave None"),
    "numpy": (lambda self, tokens, query=None: np.zeros(36), r"a numpy.ndarray of shape \(36,\)"),
    "shape": (
        lambda self, tokens, query=None: torch.zeros(4, 9),
        r"a torch.Tensor of shape \(4, 9\)",
    ),
    "NaN": (lambda self, tokens, query=None: torch.full((36,), torch.nan), "gave 36 NaN among"),
    "no query": (
        lambda self, tokens: torch.zeros(36),
        r"must take \(tokens, query\), and it takes \(tokens\)",
    ),
    "list": (lambda self, tokens, query=None: [0.0] * 36, "it gave a list"),
    "error": (lambda self, tokens, query=None: tokens.nothing, "failed with AttributeError: "),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_are_none_are_told_with_name_and_what_came(case: str) -> None:
    score, told = SCORES[case]
    with pytest.raises(WorkError, match=rf"^mine: score\(\).*{told}"):
        scorer(score)(TOKENS)


PLANS: dict[str, tuple[Any, str]] = {
    "None": (lambda self, tokens, budget, query=None: None, "must give Keep, Merge or Mix"),
    "tensor": (
        lambda self, tokens, budget, query=None: torch.arange(budget),
        r"gave a torch.Tensor of shape \(9,\)",
    ),
    "numpy": (
        lambda self, tokens, budget, query=None: Keep(np.arange(budget)),  # type: ignore[arg-type]
        "Keep.index must be a tensor of flat integers, not ndarray",
    ),
    "NaN": (
        lambda self, tokens, budget, query=None: Mix(
            torch.full((budget, 8), torch.nan),
            torch.zeros(36, dtype=torch.long),
            torch.arange(budget),
        ),
        "a Mix with NaN",
    ),
    "too many": (
        lambda self, tokens, budget, query=None: Keep(torch.arange(90, 90 + budget)),
        r"a selection names a token outside 0\.\.35",
    ),
    "no query": (
        lambda self, tokens, budget: None,
        r"must take \(tokens, budget, query\), and it takes \(tokens, budget\)",
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans_that_are_none_are_told_with_name_and_what_came(case: str) -> None:
    from vidllm.compressors import Compressor

    plan, told = PLANS[case]
    method: Any = type("Mine", (Compressor,), {"plan": plan, "name": "mine"})(keep=0.25)
    with pytest.raises(WorkError, match=f"^mine.*{told}"):
        method(TOKENS)
