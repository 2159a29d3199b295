"""The shape of the repository: floors, imports, packaging, and what the documents promise."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from pages import PAGES, blocks

from vidllm.cli.application import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it for Python 3.10

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

# The rooms, one a folder, from the ground up. A room imports itself and rooms of lower floors.
ROOMS = {
    "vidllm.errors": 0,
    "vidllm.progress": 1,
    "vidllm.video": 2,
    "vidllm.tokens": 2,
    "vidllm.timecode": 2,
    "vidllm.compressors": 3,
    "vidllm.encoders": 3,
    "vidllm.weights": 3,
    "vidllm.models": 4,
    "vidllm.stage": 5,
    "vidllm.longvideo": 6,
    "vidllm.recipes": 6,
    "vidllm.ask": 7,
    "vidllm.demo": 8,
    "vidllm.cli": 9,
    "vidllm.eval": 10,
}
#: Outside the rooms: the public names, which are lazy, and the launcher of the page.
FACE = ("vidllm", "app")


@functools.cache
def sources() -> list[tuple[str, Path]]:
    """Every module of the package as (dotted name, file), and the launcher."""
    found = []
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found.append((".".join((package, *(p for p in parts if p != "__init__"))), file))
    return [*found, ("app", ROOT / "app.py")] if (ROOT / "app.py").exists() else found


def room(module: str) -> str:
    """The folder that a module stands in; there is no other place for one."""
    return next(name for name in ROOMS if module == name or module.startswith(f"{name}."))


@functools.cache
def imports(name: str, file: Path) -> list[tuple[str, int]]:
    """Modules of the project that a file imports, at its top or anywhere inside, with lines."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    modules, seen = dict(sources()), []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            whole = [f"{base}.{alias.name}" for alias in node.names]
            found = [full if full in modules else base for full in whole]
        else:
            continue
        seen += [(module, node.lineno) for module in found if module.split(".")[0] == "vidllm"]
    return seen


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository, without what is built or installed."""
    skip = {".git", ".venv", "build", "dist", "runs", ".cache", ".mypy_cache", ".ruff_cache"}
    skip |= {".pytest_cache", "__pycache__"}
    for file in sorted(ROOT.rglob("*")):
        parts = file.relative_to(ROOT).parts
        if skip & set(parts) or any(part.endswith(".egg-info") for part in parts):
            continue
        if file.is_file() and file.stat().st_size < 2_000_000:
            try:
                yield file, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_the_hall_is_small_and_every_file_stands_in_a_room() -> None:
    assert len(ROOMS) <= 16
    assert len([p for p in (ROOT / "vidllm").iterdir() if p.name != "__pycache__"]) <= 14
    for name, file in sources():
        assert name in FACE or room(name), file


def test_a_file_imports_only_its_own_room_and_lower_floors() -> None:
    """Imports inside functions and under TYPE_CHECKING count as all others do."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for name, file in sources()
        if name not in FACE
        for module, line in imports(name, file)
        if module != "vidllm"
        and room(module) != room(name)
        and ROOMS[room(module)] >= ROOMS[room(name)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    above = {
        name: {module for module, _ in imports(name, file) if module not in FACE}
        for name, file in sources()
        if name not in FACE
    }
    while True:  # leave out what imports nothing that is left, and what nothing left imports
        used = set().union(*above.values())
        free = [n for n, needs in above.items() if not needs & above.keys() or n not in used]
        if not free:
            break
        for name in free:
            del above[name]
    assert not above, f"in circles, or between two: {', '.join(sorted(above))}"


@pytest.mark.parametrize(("name", "file"), [pytest.param(*s, id=s[0]) for s in sources()])
def test_a_file_is_short_and_says_what_it_is_for(name: str, file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500, f"{file} is too long"
    assert ast.get_docstring(ast.parse(text)), f"{file} has no docstring"


def test_nobody_asks_whether_a_method_is_a_chain() -> None:
    for _, file in sources():
        assert not re.search(r"isinstance\([^)]*\bChain\b", file.read_text(encoding="utf-8")), file


def test_importing_vidllm_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, vidllm, vidllm.cli; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "numpy", "av", "pandas", "matplotlib", "gradio"}
    assert not heavy & set(loaded.stdout.split())


def test_every_public_name_is_there() -> None:
    import vidllm

    assert vidllm.__all__ == sorted(vidllm.__all__)
    for name in vidllm.__all__:
        assert getattr(vidllm, name) is not None
        assert name in dir(vidllm)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vidllm.no_such_name


def test_pyproject_lists_exactly_the_packages_that_there_are() -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_entry_point_names_a_module_of_the_project() -> None:
    modules = {module for module, _ in sources()}
    groups = PROJECT["project"]["entry-points"].values()
    targets = [target for group in groups for target in group.values()]
    targets += PROJECT["project"]["scripts"].values()
    assert {target.split(":")[0] for target in targets} <= modules


def test_the_constraints_pin_every_dependency_inside_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins[pin.name] = str(pin.specifier).removeprefix("==")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["test"], *extras["demo"]]
    for line in wanted:
        need = Requirement(line)
        assert need.specifier.contains(pins[need.name]), line


def test_contributing_gives_a_reason_for_every_dependency() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for line in PROJECT["project"]["dependencies"]:
        assert re.search(rf"^\| `{Requirement(line).name}` \| \S", text, re.M), line


def test_the_repository_names_no_machine_and_leaves_nothing_undone() -> None:
    places = "|".join(("root", "work", "home", "Users", "mnt", "opt"))
    machine = re.compile(rf"(?<![\w.}}])/(?:{places})/\w")
    undone = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "raise NotImplemented" + "Error")))
    for file, text in texts():
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
            assert not machine.search(line), where
            assert not undone.search(line), where


def shell_lines(program: str) -> list[str]:
    """Calls of a program in the pages' shell blocks: comments and descriptions beside taken off."""
    found = [block for page in PAGES for block in blocks(page, "")]
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    lines = [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]
    # Several calls, or a call and what it does, stand in columns.
    calls = [call for line in lines for call in re.split(r"\s{2,}(?!-)", line)]
    return sorted({call for call in calls if call.split(" ")[0] == program and " " in call})


def test_every_vidllm_command_in_the_documents_exists() -> None:
    top: Any = typer.main.get_command(app)
    for line in shell_lines("vidllm"):
        words = shlex.split(line)[1:]
        context = top.make_context("vidllm", [], resilient_parsing=True)
        _, command, rest = top.resolve_command(context, words)
        while hasattr(command, "resolve_command") and not rest[0].isupper():
            _, command, rest = command.resolve_command(context, rest)
        if hasattr(command, "resolve_command"):
            continue  # a place for any command, such as TASK
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        used = {word.split("=")[0] for word in rest if re.match(r"--\w", word)}
        assert used <= known, f"{line}: no option {', '.join(used - known)}"


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for line in shell_lines("make"):
        named = [word for word in shlex.split(line)[1:] if "=" not in word]
        assert set(named) <= targets, line


@pytest.mark.parametrize("kind", ["compressors", "encoders", "models"])
def test_pages_are_what_the_registries_say(kind: str) -> None:
    from vidllm.cli.pages import page

    written = (ROOT / "docs" / f"{kind}.md").read_text(encoding="utf-8")
    assert written == page(kind), f"run `vidllm list {kind} --markdown > docs/{kind}.md`"


def test_the_page_on_new_compressors_adds_a_working_method() -> None:
    import re

    text = (ROOT / "docs" / "new-compressor.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None and len(code[1].splitlines()) < 40
    run = """
import torch
from vidllm.compressors import build
from vidllm.tokens import VideoTokens
tokens = VideoTokens.from_grid(torch.randn(4, 3, 3, 8), [0.0, 1, 2, 3], 4.0)
print(len(build("far:power=1", keep=0.25)(tokens)))
print(len(build("temporal-pool,far", keep=0.5)(tokens)))
"""
    done = subprocess.run(
        [sys.executable, "-c", f"{code[1]}\n{run}"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["9", "18"], done.stderr
