"""Behind the page: jobs that stop, turns at the model, visitors' sessions, what handlers tell."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_tiny import save_hub
from tiny import write_video

pytest.importorskip("gradio", reason="the page needs gradio")

from gradio import Blocks, skip
from gradio.utils import get_upload_folder

from vidllm import InputError, Stopped, VideoLLM
from vidllm.ask.calls import Call
from vidllm.compressors import STAGES
from vidllm.demo.events import ARRIVED, newest
from vidllm.demo.handlers import Handlers
from vidllm.demo.host import Host
from vidllm.demo.jobs import Job, Turns
from vidllm.demo.launch import launch
from vidllm.demo.page import build
from vidllm.demo.parts import compressors
from vidllm.demo.screen import Screen
from vidllm.demo.settings import Settings
from vidllm.models.native.footage import UNKNOWN
from vidllm.models.shipped import sample_videos
from vidllm.progress import StopSignal

MENUS = ("temporal-pool", 0.25, 64.0)
ANNE: Any = SimpleNamespace(session_hash="anne")
BEN: Any = SimpleNamespace(session_hash="ben")
SAMPLE = next(str(path) for path in sample_videos() if path.stem == "red-star")


class Names(SimpleNamespace):
    """Stands for the components: each is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


@pytest.fixture(scope="module")
def shipped() -> VideoLLM:
    return VideoLLM.from_pretrained()


@pytest.fixture
def host(shipped: VideoLLM) -> Iterator[Host]:
    made = Host(shipped, Settings(max_seconds=100.0, max_pixels=1280 * 720))
    yield made
    made.close()


@pytest.fixture
def do(host: Host) -> Handlers:
    return Handlers(host, Names())


@pytest.fixture
def uploaded() -> Iterator[Callable[[str], Path]]:
    """Makes files where the page keeps those of its visitors."""
    made: list[Path] = []

    def make(name: str) -> Path:
        folder = Path(get_upload_folder()) / f"test-{time.time_ns()}"
        folder.mkdir(parents=True)
        made.append(write_video(folder / name, [i / 8 for i in range(12)]))
        return made[-1]

    yield make
    for file in made:
        file.unlink(missing_ok=True)
        if file.parent.exists():
            file.parent.rmdir()


def told(updates: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """What a page shows in the end."""
    shown: dict[str, Any] = {}
    for update in updates:
        shown.update(update)
    return shown


def said(html: str) -> str:
    """The text of a piece of HTML."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_a_job_tells_how_it_goes_on_and_what_came_of_it() -> None:
    def work(job: Job) -> str:
        job.stage("decode")
        job.text("so far")
        job.seconds("decode", 0.5)
        job.progress(1, 4)
        return "done"

    job = Job(work)
    heard = list(job.follow(every=0.01))
    assert job.result() == "done" and not job.running
    assert job.heard.done == {"decode": 0.5} and job.heard.share == 0.25
    assert heard and job.heard.took > 0
    broken = Job(lambda _: 1 / 0)
    list(broken.follow())
    with pytest.raises(ZeroDivisionError):
        broken.result()


@pytest.mark.parametrize("how", ["stop", "leave", "end"])
def test_a_job_that_is_stopped_ends(how: str) -> None:
    ended = threading.Event()

    def work(job: Job) -> None:
        try:
            while True:
                job.progress(0, 1)
                time.sleep(0.01)
        finally:
            ended.set()

    job = Job(work)
    following = job.follow(every=0.01)
    next(following)
    if how == "leave":
        following.close()
    elif how == "stop":
        job.stop()
        list(following)
    else:
        assert job.end(10)
    assert ended.wait(10)
    with pytest.raises(Stopped):
        job.result()


def test_turns_are_taken_one_after_the_other() -> None:
    turns, signal, inside = Turns(), StopSignal(), []

    def other() -> None:
        with turns.turn(StopSignal()):
            inside.append("other")

    waiting = threading.Thread(target=other)
    with turns.turn(signal):
        waiting.start()
        time.sleep(0.05)
        assert not inside
        while not inside:  # a long work lets those who wait go first
            turns.between(signal)
        held = Job(lambda job: turns.turn(job).__enter__())
        list(zip(range(2), held.follow(), strict=False))
        held.end(10)
        with pytest.raises(Stopped):
            held.result()
        assert held.heard.now == "waiting"
    waiting.join()
    signal.stop()
    with pytest.raises(Stopped), turns.turn(signal):
        inside.append("never")
    with turns.turn(StopSignal()):  # nothing holds it any more
        assert inside == ["other"]


def test_a_visitor_asks_and_the_answer_grows(do: Handlers, host: Host) -> None:
    shown = told(do.video(SAMPLE, "what happens?", *MENUS, ANNE))
    assert "256 of 1,024 tokens" in shown["strip"] and shown["problem"] == "" and shown["sprite"]
    updates = list(do.ask("describe the video", *MENUS, 64.0, ANNE))
    words = [said(u["answer"]) for u in updates if u.get("answer")]
    assert len(words) >= 2 and words[0].endswith("…")
    stages = [u["status"] for u in updates if "status" in u]
    # A stage that goes on ("vl-now") may end before it is looked at; it is listed then.
    assert all("vl-now" in s or "vl-done" in s for s in stages[:-1]) and "in all" in stages[-1]
    shown = told(iter(updates))
    made = json.loads(shown["json"])
    assert made["answer"]["text"] in words[-1] and made["call"]["max_new_tokens"] == 64
    assert "temporal-pool, keep 0.25 · 256 of 1,024 video tokens" in words[-1]
    again = Call.from_dict(made["call"]).run()
    assert again.text == made["answer"]["text"] and again.kept is not None
    assert again.kept.as_dict() == made["kept"]
    assert "vl.ask(clip, 'describe the video', max_new_tokens=64)" in shown["python"]
    assert shown["timeline"].count("vl-span-0") == len(again.spans)
    # The other visitor has seen nothing of it.
    assert "there is no video yet" in told(do.ask("what?", *MENUS, 8.0, BEN))["problem"]
    assert do.session(BEN).path == ""


def test_the_strip_never_shows_an_earlier_answer(do: Handlers, host: Host) -> None:
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    shown = told(do.ask("what happens first?", *MENUS, 8.0, ANNE))
    assert "The last answer saw 256" in shown["strip"]
    later = (
        do.ask("what happens last?", *MENUS, 8.0, ANNE),
        do.find("the red star spins", *MENUS, 8.0, ANNE),
        do.both("what happens last?", *MENUS, 8.0, ANNE),
        do.long_ask("what happens last?", 1.0, ANNE),
    )
    for start in later:
        first = next(update for update in start if "strip" in update)
        assert "this run keeps" in first["strip"] and "<img" not in first["strip"]
        assert "vl-span" not in first["timeline"] and "vl-bar" not in first["timeline"]
        start.close()  # and what a stopped run had begun with stays
    shown = told(do.long_ask("what happens last?", 1.0, ANNE))
    assert "no sampled frames" in shown["strip"] and "<img" not in shown["strip"]


def test_the_opening_is_answered_once_and_asked_questions_are_kept(
    do: Handlers, host: Host
) -> None:
    menus = (*host.first(), float(host.frames()))
    shown = [told(do.video(SAMPLE, "", *menus, who)) for who in (ANNE, BEN)]
    made = json.loads(shown[0]["json"])
    assert shown[0]["json"] == shown[1]["json"]  # seconds and all
    assert Call.from_dict(made["call"]).run().text == made["answer"]["text"]
    assert (
        "made once" in shown[0]["answer"] and "when does the red star spin?" in shown[0]["answer"]
    )
    assert shown[0]["question"] == "when does the red star spin?"
    told(do.ask("what happens first?", *menus, 8.0, ANNE))
    assert [turn.question for turn in do.session(ANNE).turns][1:] == ["what happens first?"]
    assert len(do.session(BEN).turns) == 1
    assert do.clear(ANNE)["answer"].startswith("<p") and do.session(ANNE).turns == []
    # A question of one's own goes along to another clip, an example does not.
    other = str(next(path for path in sample_videos() if path.stem == "two-flowers"))
    assert told(do.video(other, "who wins?", *MENUS, ANNE))["question"] == skip()
    shown[0] = told(do.video(other, "what happens first?", *MENUS, ANNE))
    assert "yellow flower" in shown[0]["question"] and "yellow flower" in shown[0]["examples"]
    assert "nothing to compare" in do.look("a", "none", 1.0, 64.0, ANNE)["method"]


def test_the_menu_of_compressors_is_by_stage(host: Host) -> None:
    menu = compressors(host)
    assert menu[0] == ("none: every token stays", "none")
    stages = [STAGES.index(label.split(" · ")[0]) for label, _ in menu[1:]]
    assert stages == sorted(stages) and set(stages) == {0, 1, 2, 3}
    assert all(f"{name}: " in label for label, name in menu)
    assert {name for _, name in menu} == {o.name for o in host.served if o.kind == "compressor"}


def test_every_task_gives_a_call_that_gives_it_again(do: Handlers) -> None:
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    tasks: dict[str, Any] = {
        "ground": do.find("the red star spins", *MENUS, 64.0, ANNE),
        "caption": do.describe(*MENUS, 128.0, ANNE),
        "highlights": do.show("the red plane blinks", *MENUS, 64.0, ANNE),
        "index": do.long_ask("when does the red star spin?", 1.0, ANNE),
    }
    shown = {name: told(updates) for name, updates in tasks.items()}
    for name, last in shown.items():
        made = json.loads(last["json"])
        assert made["call"]["task"] == name and made["answer"]["spans"]
        if name != "index":  # which would be written beside the sample
            assert Call.from_dict(made["call"]).run().text == made["answer"]["text"]
    assert said(shown["ground"]["found"]).startswith("0:15.8 – ")
    assert shown["caption"]["captions"].count("<li>") >= 4
    assert "vl-curve" in shown["highlights"]["curve"] and shown["highlights"]["peaks"]
    assert said(shown["index"]["long_answer"]).startswith("from ")
    session = do.session(ANNE)
    assert session.folder is not None and list(session.folder.glob("*.vidx"))
    folder = session.folder
    do.leave(ANNE)
    assert not folder.exists() and session.clip is None and session.index is None
    assert do.host.sessions.get("anne") is None


def test_a_stop_ends_reading_and_asking(shipped: VideoLLM, tmp_path: Path) -> None:
    host = Host(shipped, Settings(max_frames=800))
    do, menus = Handlers(host, Names()), ("none", 1.0, 800.0)
    video = write_video(tmp_path / "long.mp4", [i / 2 for i in range(800)])
    told(do.video(str(video), "", *MENUS, ANNE))
    session = do.session(ANNE)
    for start in (do.read(2.0, ANNE), do.ask("what?", *menus, 64.0, ANNE)):
        lines: list[str] = []
        for update in start:
            if not lines and any(job.running for job in session.going):
                lines.append(do.stop(ANNE))
            last = update
        assert "stopped after" in lines[0] and "stopped after" in last["status"]
        assert session.index is None and session.kept is not None
    assert do.stop(BEN) == "" and do.stop(ANNE) == ""
    shown = told(do.ask("what happens first?", *MENUS, 8.0, ANNE))
    assert shown["answer"] and "in all" in shown["status"]
    host.close()


def test_a_stop_also_ends_what_waits_for_the_model(do: Handlers, host: Host) -> None:
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    session = do.session(ANNE)
    with host.turns.turn(StopSignal()):  # of another visitor
        asked = do.ask("what happens first?", *MENUS, 8.0, ANNE)
        described = do.describe(*MENUS, 8.0, ANNE)
        for start in (asked, described):
            seen = ""
            while "waiting for the model" not in seen:
                seen = next(start).get("status", "")
        assert len(session.going) == 2
        assert "stopped after" in do.stop(ANNE)
        for start in (asked, described):
            assert "stopped after" in list(start)[-1]["status"]
    assert session.going == []
    shown = told(do.ask("what happens first?", *MENUS, 8.0, ANNE))
    assert shown["answer"] and "in all" in shown["status"]


def test_footage_of_no_known_world_is_answered_under_a_banner(
    do: Handlers, uploaded: Callable[[str], Path]
) -> None:
    told(do.video(str(uploaded("street.mp4")), "", *MENUS, ANNE))
    for shown in (
        told(do.ask("what happens first?", *MENUS, 4.0, ANNE)),
        told(do.both("what happens first?", *MENUS, 4.0, ANNE)),
    ):
        assert UNKNOWN in shown["problem"] and "anyway=True" in shown["python"]
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    shown = told(do.ask("what happens first?", *MENUS, 4.0, ANNE))
    assert UNKNOWN not in shown["problem"] and "anyway" not in shown["python"]


def test_a_late_answer_does_not_write_over_a_newer_one() -> None:
    screen, old, new = Screen(), 1, 2
    assert screen.take(new, ["strip", "problem"])
    assert screen.take(old, ["strip", "answer"])  # it came first and shows something last
    assert not screen.take(old, ["strip", "problem"])
    with screen.showing(old, {"strip": "old", "answer": "yes"}) as shown:
        assert shown == {"answer": "yes"}
    with screen.showing(new, {"strip": "new", "problem": ""}) as shown:
        assert shown == {"strip": "new", "problem": ""}


def test_only_a_visitor_who_is_gone_is_not_waited_for() -> None:
    screen = Screen()
    entered = threading.Event()

    def behind() -> None:
        with screen.showing(2, {}):
            entered.set()

    def waits() -> threading.Thread:
        entered.clear()
        thread = threading.Thread(target=behind)
        thread.start()
        return thread

    with screen.showing(1, {}):
        waiting = waits()
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()
    with screen.showing(1, {}):  # and the browser never asks for more
        waiting = waits()
        screen.close()
        waiting.join()
        assert entered.is_set()


def test_events_count_in_the_order_in_which_they_came(do: Handlers, host: Host) -> None:
    def came(number: int) -> Any:
        scope = {ARRIVED: number}
        return SimpleNamespace(session_hash="anne", request=SimpleNamespace(scope=scope))

    choose = newest(do.video, do, ["video", "problem", "strip"])
    told(choose(came(2), SAMPLE, "", *MENUS))
    # The event before it begins behind it: it would take the video away.
    assert told(choose(came(1), None, "", *MENUS)) == {"video": skip()}
    session = do.session(ANNE)
    assert session.path == SAMPLE and session.clip is not None
    # A Stop also ends what came before it and begins behind it, and nothing that comes later.
    do.end_work(came(4))
    stopped = told(do.ask("what happens first?", *MENUS, 8.0, came(3)))
    assert "stopped after" in stopped["status"] and not session.turns
    shown = told(do.ask("what happens first?", *MENUS, 8.0, came(5)))
    assert shown["answer"] and "in all" in shown["status"]


def test_a_video_of_ones_own_is_not_replaced_by_the_sample_of_the_opening(
    do: Handlers, host: Host, tmp_path: Path
) -> None:
    own = str(write_video(tmp_path / "own.mp4", [i / 4 for i in range(8)]))
    choose = newest(do.video, do, ["video", "problem", "strip"])

    def came(number: int, visit: str) -> Any:
        scope = {ARRIVED: number}
        return SimpleNamespace(session_hash=visit, request=SimpleNamespace(scope=scope))

    # The sample is not sent any more where a video has come since the page asked for it.
    told(choose(came(2, "bea"), own, "", *MENUS))
    assert do.first(came(1, "bea")) == skip()
    # Where it is on its way by then, the browser shows it; it is given the visitor's video back.
    assert do.first(came(1, "carl")) == SAMPLE
    told(choose(came(2, "carl"), own, "", *MENUS))
    assert next(choose(came(3, "carl"), SAMPLE, "", *MENUS)) == {"video": own}
    session = do.session(came(0, "carl"))
    assert session.path == own and Path(own).exists()
    told(choose(came(4, "carl"), own, "", *MENUS))
    assert session.path == own and session.clip is not None
    # Chosen behind that, the sample is a video as any other.
    told(choose(came(5, "carl"), SAMPLE, "", *MENUS))
    assert session.path == SAMPLE
    # Who waits has the sample.
    assert do.first(came(1, "dora")) == SAMPLE
    told(choose(came(2, "dora"), SAMPLE, "", *MENUS))
    assert do.session(came(0, "dora")).path == SAMPLE


def test_too_long_questions_and_wrong_numbers_are_refused_by_handlers(do: Handlers) -> None:
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    long = "why " * 1000
    for events in (do.ask(long, *MENUS, 8.0, ANNE), do.find(long, *MENUS, 8.0, ANNE),
                   do.show(long, *MENUS, 8.0, ANNE), do.both(long, *MENUS, 8.0, ANNE),
                   do.long_ask(long, 1.0, ANNE)):  # fmt: skip
        assert "4,000 characters, more than the 2,000" in told(events)["problem"]
    for wrong in (float("nan"), 1e308, "64", True, 0):
        assert (
            "number of frames must be"
            in told(do.ask("what?", "uniform", 0.5, wrong, 8.0, ANNE))["problem"]
        )
    assert (
        "the compressor has 3,000 characters"
        in do.look("a", "x" * 3000, 0.5, 64.0, ANNE)["problem"]
    )


def test_who_came_first_has_the_model_first() -> None:
    turns, order, came = Turns(), list[int](), list[threading.Thread]()

    def visit(number: int) -> None:
        with turns.turn(StopSignal()):
            order.append(number)

    with turns.turn(StopSignal()):
        for number in range(6):
            came.append(threading.Thread(target=visit, args=(number,)))
            came[-1].start()
            while len(turns._line) < number + 2:
                time.sleep(0.001)
    for thread in came:
        thread.join()
    assert order == list(range(6))


def test_bad_input_is_told_and_nothing_breaks(do: Handlers, uploaded: Any, tmp_path: Path) -> None:
    file = uploaded("garbage.mp4")
    file.write_bytes(b"no video")
    shown = told(do.video(str(file), "", *MENUS, ANNE))
    assert "garbage.mp4 is not a video" in shown["problem"] and str(file) not in shown["problem"]
    assert shown["video"] is None  # the page takes it out, which comes back as "no video"
    again = told(do.video(None, "", *MENUS, ANNE))
    assert again["problem"] != "" and not file.exists()
    assert told(do.video(None, "", *MENUS, ANNE))["problem"] == ""
    long = write_video(tmp_path / "long.mp4", [0.0, 90.0, 180.0])
    assert "above the limit of 100" in told(do.video(str(long), "", *MENUS, ANNE))["problem"]
    wide = write_video(tmp_path / "wide.mp4", [0.0, 1.0], size=(1600, 900))
    assert "max_pixels" in told(do.video(str(wide), "", *MENUS, ANNE))["problem"]
    told(do.video(SAMPLE, "", *MENUS, ANNE))
    for menus, words in {
        ("nonsense", 0.5, 64.0): "no compressor",
        ("mustdrop-cache", 0.5, 64.0): "mustdrop-filter,mustdrop-cache",
        ("fastv,aim", 0.5, 64.0): "a chain runs in the order",
    }.items():
        assert words in told(do.ask("what?", *menus, 8.0, ANNE))["problem"]
        assert words in do.look("what?", *menus, ANNE)["problem"]
    assert "question is empty" in told(do.ask("  ", *MENUS, 8.0, ANNE))["problem"]
    assert "query is empty" in told(do.find("", *MENUS, 8.0, ANNE))["problem"]
    assert "control tokens" in told(do.both("<|x|>", *MENUS, 8.0, ANNE))["problem"]
    assert "reads the question" in do.look(" ", "nasva", 0.5, 64.0, ANNE)["strip"]
    assert "keeps 512 of 1,024" in do.look("a star", "nasva", 0.5, 64.0, ANNE)["strip"]
    assert said(told(do.ask("what happens first?", *MENUS, 32.0, ANNE))["answer"])


def test_files_go_with_the_last_session_that_has_them(host: Host, uploaded: Any) -> None:
    one, two = uploaded("one.mp4"), uploaded("two.mp4")
    anne, ben = host.sessions.of("anne"), host.sessions.of("ben")
    host.sessions.owns(anne, str(one))
    host.sessions.owns(ben, str(one))
    host.sessions.owns(anne, str(two))
    assert one.exists()
    host.sessions.end("ben")
    assert not one.exists() and not one.parent.exists() and two.exists()
    host.sessions.owns(anne, SAMPLE)
    assert not two.exists()
    host.sessions.owns(anne, __file__)  # whatever a visitor names
    host.sessions.end("anne")
    assert Path(SAMPLE).exists() and Path(__file__).exists() and len(host.sessions) == 0


def test_memory_is_bounded(shipped: VideoLLM) -> None:
    host = Host(shipped, Settings(max_memory_mb=5.0))
    sessions = [host.sessions.of(str(i)) for i in range(4)]
    for session in sessions:
        session.path = SAMPLE
        host.clip(session, 64)  # 3.1 MB
    assert [s.clip is None for s in sessions] == [True, True, True, False]
    assert len(host.clip(sessions[0], 64)) == 64 and sessions[3].clip is None
    host.sessions.most = 3
    host.sessions.of("one more")
    assert host.sessions.get("0") is None and len(host.sessions) == 4
    sessions[3].clip = None
    with pytest.raises(InputError, match="max_bytes"):
        Host(shipped, Settings(max_memory_mb=1.0)).clip(sessions[3], 64)
    host.close()


def test_a_hub_model_has_the_same_page(tmp_path: Path) -> None:
    folder = save_hub(tmp_path / "hub", "qwen2_5_vl")
    host = Host(Settings(model=str(folder)).load(), Settings(model=str(folder), frames=6))
    video = write_video(tmp_path / "clip.mp4", [i / 4 for i in range(8)])
    do, menus = Handlers(host, Names()), (*host.first(), 6.0)
    assert menus[:2] == ("aim", 0.25) and host.no_index == ""
    assert isinstance(build(host), Blocks)
    shown = told(do.video(str(video), "", *menus, ANNE))
    assert "aim keeps 5 of 18 tokens" in shown["strip"]
    shown = told(do.ask("what happens?", *menus, 8.0, ANNE))
    assert "5" in shown["account"] and shown["answer"]
    assert Call.from_dict(json.loads(shown["json"])["call"]).keep == 0.25
    shown = told(do.both("what happens?", *menus, 4.0, ANNE))
    assert "peak memory" in shown["verdict"] and shown["full"] and shown["less"]
    assert "clips of 2 frames" in str(told(do.read(1.0, ANNE)))
    host.close()


def test_settings_and_recipes(do: Handlers) -> None:
    for wrong in ({"max_upload_mb": 0.0}, {"waiting": -1}, {"max_seconds": float("inf")}):
        with pytest.raises(InputError, match=r"must be (above 0|at least 1|a finite)"):
            Settings(**wrong)
    with pytest.raises(InputError, match="from 1 to --max-frames"):
        Settings(frames=300)
    assert do.recipe("storm-sampling")["keep"] == 0.125


def test_both_commands_refuse_bad_options_in_a_line(
    cli: Any, refused: Callable[..., str], root: Path
) -> None:
    line = refused(cli("demo", "--frames", "0"))
    assert "--frames must be at least 1" in line
    command = [sys.executable, "app.py", "--frames", "0"]
    same = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert refused(same) == line
    without = "import sys; sys.modules['gradio'] = None; from vidllm.cli.main import main; "
    command = [sys.executable, "-c", without + "sys.exit(main(['demo']))"]
    none = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "pip install 'vidllm[demo]'" in refused(none)
    shared = inspect.signature(launch).parameters["share"].default
    assert shared is False and len((root / "app.py").read_text().splitlines()) < 12
