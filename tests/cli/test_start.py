"""What a command imports: a short one starts at once, and `ask` takes only what it uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vidllm.cli.catalogue import compressor_summaries
from vidllm.cli.pages import encoder_entries

_RUN = """
import contextlib, gc, io, json, sys
from vidllm.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    codes = [main(words) for words in json.loads(sys.argv[1])]
names = [name for name in sys.modules if sys.modules[name] is not None]
print(json.dumps([codes, names, gc.isenabled(), gc.get_freeze_count()]))
"""


def imported(*commands: list[str]) -> tuple[set[str], bool, int]:
    """Modules that a process has after these commands, and the state of its collector."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(commands)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes, names, collects, frozen = json.loads(done.stdout)
    assert codes == [0] * len(commands), done.stderr
    return set(names), collects, frozen


def test_help_and_lists_import_neither_torch_nor_what_reads_videos() -> None:
    lists = [["list", kind] for kind in ("compressors", "models", "recipes", "encoders", "tasks")]
    details = ["list", "compressors", "aim", "--json"]
    names, collects, _ = imported(["--help"], ["--version"], ["ask", "--help"], *lists, details)
    heavy = {"torch", "transformers", "av", "gradio", "pandas", "scipy", "matplotlib", "jinja2"}
    assert not heavy & names and collects


def test_help_imports_no_numbers_either() -> None:
    names, _, _ = imported(["--help"])
    rooms = {".".join(name.split(".")[:2]) for name in names if name.startswith("vidllm.")}
    assert "numpy" not in names and len(names) < 450
    light = {"vidllm.cli", "vidllm.errors", "vidllm.longvideo", "vidllm.models", "vidllm.progress"}
    assert rooms == light


@pytest.fixture(scope="module")
def asked(root: Path) -> tuple[set[str], bool, int]:
    sample = root / "weights" / "samples" / "red-star.mp4"
    return imported(["ask", str(sample), "when does the red star spin?"])


def test_ask_imports_only_what_it_uses(asked: tuple[set[str], bool, int]) -> None:
    names, _, _ = asked
    unused = {
        "gradio", "pandas", "matplotlib", "scipy", "sklearn", "torchvision", "datasets",
        "lmms_eval", "decord", "cv2", "starlette", "fastapi", "playwright",
    }  # fmt: skip
    assert not unused & names
    rooms = {".".join(name.split(".")[:2]) for name in names if name.startswith("vidllm.")}
    assert not rooms & {"vidllm.eval", "vidllm.demo", "vidllm.stage"}
    families = {n.split(".")[2] for n in names if n.startswith("transformers.models.")}
    # The tower and the decoder; the second is the first's.
    assert families == {"auto", "encoder_decoder", "clip", "qwen2"}


def test_ask_leaves_the_collector_on_and_its_imports_alone(
    asked: tuple[set[str], bool, int],
) -> None:
    _, collects, frozen = asked
    assert collects and frozen > 100_000


def test_what_is_read_from_source_is_what_the_classes_say() -> None:
    from vidllm.compressors import describe
    from vidllm.encoders import heads, temporal, vision

    own = [
        entry
        for entry in describe()
        if entry["name"] in {e["name"] for e in compressor_summaries()}
    ]
    assert json.dumps(compressor_summaries()) == json.dumps(own)
    assert len(own) > 30
    found = {(entry["kind"], entry["name"]): entry for entry in encoder_entries()}
    classes = [("vision", vision.find_vision(name)) for name in vision.vision_names()]
    classes += [("head", heads.find_head(name)) for name in heads.head_names()]
    for kind, cls in classes:
        entry = found.pop((kind, cls.name))
        assert (entry["summary"], entry["paper"]) == (cls.summary, cls.paper)
    for entry in temporal.describe():
        assert found.pop(("temporal", entry["name"])) == {**entry, "kind": "temporal"}
    assert set(found) == {("vision", name) for name in ("conv", *vision.HUB_TYPES)}
