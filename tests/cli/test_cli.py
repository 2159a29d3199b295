"""The command line as people meet it: a process with an exit code and two streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import typer
from videos import bad_inputs, write_video

from vidllm.cli.main import main
from vidllm.cli.options import CommonOptions, common_options
from vidllm.errors import InputError, WorkError
from vidllm.models.shipped import broken_files, find_model, weight_files, write_manifest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Refused = Callable[..., str]

BAD = (
    ("text named mp4", "notes.mp4"),
    ("text", "notes.txt"),
    ("playlist", "list.m3u8"),
    ("audio only", "sound.m4a"),
    ("empty", "empty.mp4"),
    ("missing", "missing.mp4"),
    ("folder", "folder.mp4"),
    ("no header", "headless.mp4"),
)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_inputs(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("good") / "good.mp4", 20)


@pytest.mark.parametrize(("kind", "named"), BAD)
def test_a_file_that_is_no_video_is_refused_in_one_line(
    cli: Run, refused: Refused, bad: dict[str, Path], kind: str, named: str
) -> None:
    line = refused(cli("ask", bad[kind], "when does it start?", "--json"))
    assert named in line


def test_every_bad_input_has_its_row(bad: dict[str, Path]) -> None:
    assert set(bad) == {kind for kind, _ in BAD}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keep", "0"], "--keep must be above 0 and at most 1"),
        (["--keep", "1.5"], "--keep must be above 0 and at most 1"),
        (["--keep", "nan"], "--keep must be above 0 and at most 1"),
        (["--keep", "much"], "--keep"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--frames", "few"], "--frames"),
        (["--fps", "-1"], "--fps must be above 0"),
        (["--frames", "8", "--fps", "1"], "not both"),
        (["--reader", "vlc"], "pyav, decord"),
        (["--dtype", "int3"], "float32"),
        (["--attn", "none"], "sdpa"),
        (["--model", "no/such/folder"], "no such model folder"),
        (["--model", "./nowhere"], "no such model folder"),
        (["--model", "unheard-of"], "no model 'unheard-of'"),
        (["--start", "5"], "start"),
        (["--start", "0.5", "--end", "0.2"], "before"),
        (["--max-pixels", "100"], "max_pixels"),
        (["--max-seconds", "0.1"], "max_seconds"),
        (["--max-frames", "4", "--frames", "9"], "max_frames"),
        (["--max-frames", "0"], "max_frames"),
        (["--compressor", "temporal-pol"], "did you mean temporal-pool"),
        (["--compressor", "uniform,,random"], "empty"),
        (["--compressor", "random:sed=3"], "seed"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    cli: Run, refused: Refused, good: Path, arguments: list[str], says: str
) -> None:
    assert says in refused(cli("ask", good, "what spins?", *arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask"], "VIDEO"),
        (["ask", "a.mp4"], "QUESTION"),
        (["ground", "a.mp4", "  "], "QUERY is empty"),
        (["aks", "a.mp4"], "ask"),
        (["list"], "KIND"),
        (["list", "compresors"], "did you mean compressors"),
        (["list", "compressors", "*nothing*"], "temporal-pool"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(
    cli: Run, refused: Refused, arguments: list[str], says: str
) -> None:
    assert says in refused(cli(*arguments))


def test_a_hub_that_has_to_be_asked_again_is_one_line(
    cli: Run, refused: Refused, good: Path, tmp_path: Path
) -> None:
    class Hub(BaseHTTPRequestHandler):
        """Out of order at first; then it has no such model."""

        codes: ClassVar[list[int]] = []

        def do_HEAD(self) -> None:
            self.codes.append(404 if self.codes else 503)
            self.send_response(self.codes[-1])
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            away = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
            away |= {"HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
            line = refused(cli("ask", good, "when?", "--model", "some/model", env=away))
        finally:
            server.shutdown()
            thread.join()
    assert "no model 'some/model'" in line and Hub.codes[:2] == [503, 404]


def test_debug_shows_the_traceback_of_a_failure(cli: Run, bad: dict[str, Path]) -> None:
    for result in (
        cli("ask", bad["empty"], "what?", "--debug"),
        cli("--debug", "ask", bad["empty"], "what?"),
        cli("ask", bad["empty"], "what?", env={"VIDLLM_DEBUG": "1"}),
    ):
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("vidllm: ")


def test_help_and_version_go_to_standard_output(cli: Run) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        result = cli(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        for command in ("ask", "ground", "caption", "eval", "bench", "train", "list", "demo"):
            assert f" {command} " in result.stdout
    asked = cli("ask", "--help")
    assert asked.returncode == 0
    for option in ("--model", "--recipe", "--compressor", "--keep", "--frames", "--fps", "--json"):
        assert option in asked.stdout
    from vidllm import __version__

    assert cli("--version").stdout.strip() == f"vidllm {__version__}"


def test_help_loads_neither_torch_nor_the_plug_ins() -> None:
    code = (
        "import sys; from vidllm.cli.main import main; main(['--help']);"
        "print(*sorted(m for m in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stderr.split())
    assert not loaded & {"torch", "transformers", "numpy", "vidllm.eval", "vidllm.stage.training"}


def test_the_module_runs_like_the_command(refused: Refused) -> None:
    command = [sys.executable, "-m", "vidllm.cli", "ask", "nowhere.mp4", "when?"]
    assert "no such file" in refused(subprocess.run(command, capture_output=True, text=True))


def test_list_prints_lines_or_one_json_object(cli: Run) -> None:
    plain = cli("list", "compressors", "*pool*")
    assert plain.returncode == 0
    assert [line.split()[0] for line in plain.stdout.splitlines()] == [
        "spatial-pool",
        "temporal-pool",
    ]
    found = json.loads(cli("list", "compressors", "--json").stdout)
    assert {"none", "aim", "random", "uniform"} <= {entry["name"] for entry in found["compressors"]}
    for kind in ("models", "recipes", "encoders", "tasks"):
        entries = json.loads(cli("list", kind, "--json").stdout)[kind]
        assert all(entry["name"] and "summary" in entry for entry in entries)


def test_a_command_of_the_tests_is_what_a_user_starts(cli: Run, tmp_path: Path) -> None:
    """Tests start most commands from a process that has their imports behind it."""
    for words in (["--version"], ["list", "recipes", "--json"], ["ask", "none.mp4", "when?"]):
        warm, cold = (cli(*words, cwd=tmp_path, cold=cold) for cold in (False, True))
        assert (warm.returncode, warm.stdout, warm.stderr) == (
            cold.returncode, cold.stdout, cold.stderr,
        )  # fmt: skip


def test_a_terminal_without_unicode_is_no_obstacle(cli: Run) -> None:
    result = cli("--help", env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0


def make_weights(folder: Path) -> Path:
    """A weights folder whose manifest is right."""
    model = folder / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "samples").mkdir()
    write_video(folder / "samples" / "sample.mp4", 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDLLM_WEIGHTS", str(folder))
        write_manifest("tiny", "samples/sample.mp4")
    return folder


def test_doctor_finds_weights_that_are_not_as_shipped(cli: Run, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "weights")
    env = {"VIDLLM_WEIGHTS": str(weights)}

    def checks() -> tuple[int, dict[str, str]]:
        result = cli("doctor", "--json", env=env)
        report = json.loads(result.stdout)
        assert report["ok"] == (result.returncode == 0)
        assert len(result.stderr.splitlines()) == (0 if report["ok"] else 1)
        return result.returncode, {check["name"]: check["state"] for check in report["checks"]}

    _, states = checks()
    assert (states["weights"], states["sample"], states["torch"]) == ("ok", "ok", "ok")
    (weights / "tiny" / "config.json").write_text('{"model_type": "other"}')
    code, states = checks()
    assert (code, states["weights"]) == (1, "broken")
    (weights / "manifest.json").unlink()
    code, states = checks()
    assert (code, states["weights"]) == (1, "broken")


def test_the_manifest_names_what_is_missing_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_weights(tmp_path / "weights")
    monkeypatch.setenv("VIDLLM_WEIGHTS", str(weights))
    assert broken_files() == []
    assert find_model("tiny") == str(weights / "tiny")
    (weights / "samples" / "sample.mp4").unlink()
    (weights / "tiny" / "config.json").write_text("{}")
    assert [line.split(" ")[0] for line in broken_files()] == [
        "samples/sample.mp4",
        "tiny/config.json",
    ]
    with pytest.raises(InputError, match="samples"):
        write_manifest("tiny", "samples/sample.mp4")
    with pytest.raises(InputError, match="did you mean tiny"):
        find_model("tin")
    (weights / "manifest.json").write_text("[]")
    with pytest.raises(WorkError, match="manifest"):
        broken_files()


def test_model_names_are_shipped_names_folders_or_hub_names(tmp_path: Path) -> None:
    assert find_model("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == str(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        find_model(str(tmp_path / "bare"))
    with pytest.raises(InputError, match="is a file"):
        find_model(str(tmp_path / "config.json"))


def test_a_command_gets_the_common_options_filled(capsys: pytest.CaptureFixture[str]) -> None:
    from vidllm.cli.options import emit

    app = typer.Typer()

    @app.command()
    @common_options
    def show(word: str, options: CommonOptions, loud: bool = False) -> None:
        print("a library speaks")
        emit({"word": word, "loud": loud, "keep": options.keep, "bad": float("nan")})

    command = typer.main.get_command(app)
    command.main(["hi", "--loud", "--keep", "0.5", "--json"], standalone_mode=False)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"word": "hi", "loud": True, "keep": 0.5, "bad": None}
    assert err == "a library speaks\n"


needs_weights = pytest.mark.skipif(
    not (Path(__file__).parents[2] / "weights" / "manifest.json").exists(),
    reason="this checkout has no weights",
)


@needs_weights
def test_the_manifest_covers_the_shipped_files_and_they_are_right() -> None:
    from vidllm.models.shipped import default_model, manifest, weights_dir

    assert broken_files() == []
    assert sorted(manifest()["files"]) == weight_files()
    assert (weights_dir() / manifest()["sample"]).is_file()
    assert (default_model() / "README.md").is_file()


@needs_weights
def test_ask_answers_about_the_sample_with_spans_and_a_receipt(cli: Run) -> None:
    from vidllm.models.shipped import manifest, weights_dir

    sample = weights_dir() / manifest()["sample"]
    question = "when does the red star spin?"
    spoken = cli("ask", sample, question)
    assert spoken.returncode == 0, spoken.stderr
    assert "tokens" in spoken.stderr.splitlines()[-1]
    assert " s" in spoken.stdout
    result = cli(
        "ask", sample, question, "--json", "--compressor", "temporal-pool", "--keep", "0.5"
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {"text", "spans", "receipt", "notes"} <= set(answer)
    assert len(result.stderr.splitlines()) == 1 + len(answer["notes"])
    assert all(0 <= start <= end for start, end, *_ in answer["spans"])
    assert answer["receipt"]["tokens_kept"] * 2 == answer["receipt"]["tokens_full"]


@needs_weights
def test_ground_and_caption_print_one_json_object(cli: Run) -> None:
    from vidllm.models.shipped import manifest, weights_dir

    sample = weights_dir() / manifest()["sample"]
    for arguments in (("ground", sample, "the red star spins"), ("caption", sample)):
        result = cli(*arguments, "--json", cwd=Path(os.sep))
        assert result.returncode == 0, result.stderr
        assert {"text", "spans", "receipt"} <= set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("index a.mp4", "run the same command again to go on"),
        ("library add shelf a.mp4", "run the same command again to go on"),
        ("eval charades --out there", "run the same command again to go on"),
        ("eval charades", "nothing is kept without --out DIR"),
        ("train --out there", "--resume goes on from the last save, where there is one"),
        ("bench models", ""),
    ],
)
def test_ctrl_c_in_the_first_second_says_how_to_go_on(
    words: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The command is only being looked for: torch is not even imported.
    monkeypatch.setattr(
        "vidllm.cli.plugins.plug_ins", lambda: signal.raise_signal(signal.SIGINT) or {}
    )
    assert main(words.split()) == 130
    out, err = capsys.readouterr()
    told = rf"vidllm: stopped after \d+ s{': ' + line if line else ''}"
    assert out == "" and re.fullmatch(told, err.strip())
