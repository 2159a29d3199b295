"""Bad videos, models that fail, Ctrl-C: what is recorded, what is asked again, what is said."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tiny import done, final, order, rows_of, tiny_options, write_charades
from tiny import save_tiny
from videos import write_video

from vidllm.ask.video_llm import VideoLLM
from vidllm.cli.main import main
from vidllm.cli.options import CommonOptions
from vidllm.errors import InputError, WorkError
from vidllm.eval.run.ask_model import ModelAsker, reason_of
from vidllm.eval.run.clips import clips_of, items_of, video_folders
from vidllm.eval.run.evaluate import evaluate
from vidllm.eval.run.journal import Journal, Prediction, read_journals
from vidllm.eval.run.run_config import Order
from vidllm.eval.run.run_settings import Setting, wanted
from vidllm.eval.run.runner import Runner
from vidllm.eval.tasks import Item, Response, get_task
from vidllm.progress import Stopped
from vidllm.progress.interruption import Halt, Interrupted
from vidllm.video import VideoClip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_charades(tmp_path_factory.mktemp("data"), 3)


class Truthful:
    """An asker that says the truth; `trips` may raise, given the items and the setting."""

    def __init__(self, trips: Callable[[Sequence[Item], Setting], None] | None = None) -> None:
        self.trips = trips or (lambda items, setting: None)
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def about(self) -> dict[str, Any]:
        return {}

    def settings(self) -> Sequence[Setting]:
        return [Setting("none"), Setting("random", 0.5)]

    def ask(self, clip: VideoClip, items: Sequence[Item], setting: Setting) -> list[Prediction]:
        self.asked.append((setting.label, tuple(item.id for item in items)))
        self.trips(items, setting)
        told = [f"from {item.truth[0]} to {item.truth[1]} seconds" for item in items]
        return [Prediction(Response(text, text, duration=clip.duration)) for text in told]


def runner(asker: Truthful, data: Path, out: Path, **more: Any) -> tuple[Runner, Journal]:
    task = get_task("charades")
    items = items_of(task, data, "test")
    numbers = {item.id: k for k, item in enumerate(items)}
    made = Runner(
        task,
        asker,
        clips_of(items),
        video_folders(data, None),
        CommonOptions(frames=2),
        numbers,
        read_journals(out),
        **more,
    )
    return made, Journal(out / "rows-0.jsonl")


def errors(out: Path) -> dict[tuple[str, str], str | None]:
    return {key: row["error"] for key, row in read_journals(out).items()}


def test_bad_videos_are_recorded_and_the_run_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_charades(data, 6)
    videos = data / "videos"
    (videos / "V0001.mp4").unlink()
    (videos / "V0002.mp4").write_bytes(b"no video at all" * 40)
    (videos / "V0003.mp4").write_bytes(b"")
    (videos / "V0004.mp4").write_bytes((videos / "V0000.mp4").read_bytes()[:300])
    write_video(videos / "V0005.mp4", 40, fps=4, size=(64, 48))  # longer than is allowed
    words = ["eval", "charades", "--model", str(model), "--data", str(data), "--frames", "4"]
    words += ["--max-seconds", "6", "--max-new-tokens", "3", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "10" in said.out  # failed answers in the table
    lines = said.err[said.err.index("failed: ") :].splitlines()
    assert lines[0] == "failed: 10 of 12 answers, which count as wrong"
    assert len(lines) == 6
    for name, why in (("V0001", "no video"), ("V0003", "empty"), ("V0005", "max_seconds")):
        assert any(line.startswith(f"  {name}: ") and why in line for line in lines), lines
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    one = results["results"]["none@1"]
    assert (one["answers"], one["failed"], one["parse_failures"]) == (12, 10, 0)
    assert sorted(v for some in one["failed_videos"].values() for v in some) == [
        f"V000{k}" for k in range(1, 6)
    ]
    rows = rows_of(out / "answers.jsonl")
    assert [row["value"] for row in rows if row["error"]] == [0.0] * 10
    # Where every single answer failed the command fails too.
    for name in ("V0000", "V0005"):
        (videos / f"{name}.mp4").unlink()
    assert main([*words[:-1], str(tmp_path / "none"), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["results"]["none@1"]["failed"] == 12
    assert "vidllm: all 12 answers failed, because: no video 'V0000'" in said.err


def test_a_question_that_cannot_be_answered_takes_no_other_one_with_it(
    data: Path, tmp_path: Path
) -> None:
    def trips(items: Sequence[Item], setting: Setting) -> None:
        if setting.is_full and any(item.id == "V0001-3" for item in items):
            raise MemoryError

    asker = Truthful(trips)
    runs, journal = runner(asker, data, tmp_path)
    assert runs.left() == 12
    runs.run(journal, Halt())
    journal.close()
    failed = {key: why for key, why in errors(tmp_path).items() if why}
    assert failed == {("none@1", "V0001-3"): "out of memory"}
    assert asker.asked[2:5] == [
        ("none@1", ("V0001-2", "V0001-3")), ("none@1", ("V0001-2",)), ("none@1", ("V0001-3",)),
    ]  # fmt: skip
    # It stays failed until that is to be tried again; then nothing else is written anew.
    runs, journal = runner(Truthful(), data, tmp_path)
    assert runs.left() == 0
    runs, journal = runner(again := Truthful(), data, tmp_path, retry_failed=True)
    assert runs.left() == 1
    runs.run(journal, Halt())
    assert again.asked == [("none@1", ("V0001-2", "V0001-3"))]  # in the same company
    assert not any(errors(tmp_path).values())
    assert len(rows_of(tmp_path / "rows-0.jsonl")) == 13
    assert rows_of(tmp_path / "rows-0.jsonl")[-1]["attempt"] == 1


def test_reasons_are_one_line() -> None:
    assert reason_of(InputError("a  b\nc")) == "a b c"
    assert reason_of(WorkError("x" * 400)).endswith("x…")
    assert len(reason_of(WorkError("x" * 400))) == 300
    assert reason_of(RuntimeError("CUDA out of\nmemory")) == "RuntimeError: CUDA out of memory"


def test_half_a_clip_is_asked_again_as_a_whole(data: Path, tmp_path: Path) -> None:
    runs, journal = runner(Truthful(), data, tmp_path)
    runs.run(journal, Halt())
    journal.close()
    file = tmp_path / "rows-0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # killed in the second clip
    runs, journal = runner(asker := Truthful(), data, tmp_path)
    assert runs.left() == 7
    runs.run(journal, Halt())
    assert asker.asked[0] == ("none@1", ("V0001-2", "V0001-3"))
    assert sorted(file.read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())


def test_ctrl_c_ends_behind_the_row_in_hand(data: Path, tmp_path: Path) -> None:
    halt = Halt()

    def trips(items: Sequence[Item], setting: Setting) -> None:
        if items[0].vid == "V0001" and setting.is_full:
            signal.raise_signal(signal.SIGINT)

    runs, journal = runner(Truthful(trips), data, tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with halt.heeded(), pytest.raises(Stopped):
        runs.run(journal, halt)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(read_journals(tmp_path)) == 6  # what was being asked is kept
    with halt.heeded(), pytest.raises(KeyboardInterrupt):  # a second one does not wait
        signal.raise_signal(signal.SIGINT)


def test_a_model_is_stopped_between_two_layers(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, whole = order("charades", data, tmp_path / "out"), ModelAsker.ask
    seen: list[str] = []

    def ask(self: ModelAsker, clip: VideoClip, items: Any, setting: Setting) -> list[Prediction]:
        seen.append(setting.label)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return whole(self, clip, items, setting)

    monkeypatch.setattr(ModelAsker, "ask", ask)
    with pytest.raises(Interrupted, match=r"stopped, 4 of 12 answers kept in .*out: run") as told:
        evaluate(asked, tiny_options(model))
    assert told.value.exit_code == 128 + signal.SIGTERM
    monkeypatch.undo()
    done(asked, tiny_options(model))
    done(order("charades", data, tmp_path / "other"), tiny_options(model))
    assert final(tmp_path / "out")["answers"] == final(tmp_path / "other")["answers"]
    with pytest.raises(InputError, match=r"\(max_new_tokens: 3, not 4\)"):
        done(order("charades", data, tmp_path / "out", max_new_tokens=4), tiny_options(model))


def test_control_tokens_in_a_question_fail_that_question_alone(model: Path, tmp_path: Path) -> None:
    data = write_charades(tmp_path / "data", 1)
    file = data / "charades_sta_test.txt"
    text = file.read_text(encoding="utf-8").replace("a dog runs", "a <|im_end|> runs")
    file.write_text(text, encoding="utf-8")
    results = done(order("charades", data, tmp_path / "out"), tiny_options(model)).results
    for one in results["results"].values():
        assert one["failed"] == 1
        (reason,) = one["failed_videos"]
        assert "control token" in reason


def test_a_clip_goes_through_the_tower_once_and_every_setting_pays_for_it(
    model: Path, data: Path, tmp_path: Path
) -> None:
    llm = VideoLLM.from_pretrained(model, keep=1.0, device="cpu")
    ran: list[int] = []
    llm.model.vision.register_forward_hook(lambda *_: ran.append(1))
    task = get_task("charades")
    settings = wanted("uniform,random", "0.5").settings()
    asker = ModelAsker(llm, task, settings, name="tiny", max_new_tokens=2)
    items = items_of(task, data, "test")[:2]
    from vidllm.video import load_video

    for number, path in enumerate(sorted((data / "videos").iterdir())[:2]):
        ran.clear()
        clip = load_video(path, frames=4)
        said = [asker.ask(clip, items, setting) for setting in settings]
        assert len(ran) == 1 + (not number)  # the first clip of a process once more, to warm up
        encode = {s.cost["seconds"]["encode"] for some in said for s in some}
        assert len(encode) == 1 and encode.pop() > 0
        assert {s.cost["shared_by"] for some in said for s in some} == {2}
        assert all(s.kept is not None and s.frames == 4 for some in said for s in some)


def test_without_a_folder_nothing_is_kept(model: Path, data: Path) -> None:
    asked = Order(get_task("charades"), wanted("uniform", "0.5"), data=data, max_new_tokens=2)
    assert done(asked, tiny_options(model)).results["finished"]
