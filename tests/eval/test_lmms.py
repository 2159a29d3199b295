"""The lmms-eval plug-in: what it asks the model, what it refuses, and lmms-eval's own run of it.

What lmms-eval's base class gives is stood in for by `Base` where lmms-eval is not installed; the
tests at the end need the real one and are skipped without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from vidllm import VideoLLM
from vidllm.errors import InputError
from vidllm.eval.lmms import lmms_model as lmms
from vidllm.eval.lmms.lmms_requests import Wanted, clip_of, one_video, wanted
from vidllm.models.shipped import sample_videos
from vidllm.video import load_video

ENTRY = EntryPoint("vidllm", "vidllm.eval.lmms.lmms_model:manifest", "lmms_eval.models")
GREEDY = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "top_p": None, "until": None}
VIDEOS = [str(path) for path in sample_videos()]


class Base:
    """What `lmms_eval.api.model.lmms` sets and does."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cached: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.cached.append(given))

    def clean(self) -> None:
        self.cleaned = True


class Model(lmms.Answers, Base):
    pass


def make(**arguments: Any) -> Model:
    return Model(**{"frames": 8, "keep": 1, "device": "cpu", "batch_size": "1", **arguments})


def ask(model: Model, *asked: tuple[Any, str], **options: Any) -> list[str]:
    """Answers of the model to (visuals, question) as documents of one task."""
    docs = [visuals for visuals, _ in asked]
    model.task_dict = {"mini": {"test": docs}}
    requests = [
        SimpleNamespace(args=(q, {**GREEDY, **options}, lambda doc: doc, i, "mini", "test"))
        for i, (_, q) in enumerate(asked)
    ]
    return model.generate_until(requests)


@pytest.fixture(scope="module")
def model() -> Model:
    return make()


def images(path: str, count: int = 4) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in load_video(path, frames=count).frames]


def test_answers_are_those_of_the_model_in_order(model: Model) -> None:
    asked = [
        (VIDEOS[0], "what happens first ?"),
        ([VIDEOS[0]], "does the red star spin ?"),
        ([[VIDEOS[1]]], "what happens last ?"),
        (Path(VIDEOS[0]), "what happens last ?"),
    ]
    plain = VideoLLM.from_pretrained(frames=8, keep=1, device="cpu")
    expected = [
        plain.ask(path, q, max_new_tokens=16).text
        for path, (_, q) in zip([VIDEOS[0], VIDEOS[0], VIDEOS[1], VIDEOS[0]], asked, strict=True)
    ]
    model.cached.clear()
    assert ask(model, *asked) == expected
    assert [text for *_, text in model.cached] == expected
    assert model.cached[0][:2] == ("generate_until", (asked[0][1], GREEDY))


def test_a_clip_is_encoded_once_for_requests_in_a_row(model: Model) -> None:
    runs: list[int] = []
    tower = next(m for name, m in model.llm.model.named_modules() if name.endswith("vision"))
    hook = tower.register_forward_hook(lambda *_: runs.append(1))
    try:
        ask(model, *[(VIDEOS[2], f"what does the {who} do ?") for who in ("hand", "star", "note")])
        once = len(runs)
        ask(model, (VIDEOS[2], "what happens last ?"), max_new_tokens=4)  # another call, same clip
        assert once > 0 and len(runs) == once
        ask(model, (VIDEOS[0], "what happens last ?"), (VIDEOS[1], "what happens last ?"))
        assert len(runs) == 3 * once
    finally:
        hook.remove()


def test_length_and_ends_are_honoured(model: Model) -> None:
    (whole,) = ask(model, (VIDEOS[0], "describe the video."), max_new_tokens=64)
    (short,) = ask(model, (VIDEOS[0], "describe the video."), max_new_tokens=4)
    assert whole.startswith(short.rstrip(". ")[:6]) and len(short) < len(whole)
    word = whole.split()[3]
    (cut,) = ask(model, (VIDEOS[0], "describe the video."), max_new_tokens=64, until=["§", word])
    assert cut == whole[: whole.index(word)].strip()


def test_generation_options() -> None:
    assert wanted({}) == wanted(None) == Wanted(128, ())
    assert wanted({"until": "\n\n", "max_gen_toks": 5}) == Wanted(5, ("\n\n",))
    assert wanted({"until": ["", "a"], "temperature": 0.0, "do_sample": True}).until == ("a",)
    assert wanted({"do_sample": False, "temperature": 0.7}).max_new_tokens == 128
    assert Wanted(1, ("b", "a")).cut(" xab") == "x" and Wanted(1, ()).cut(" xab ") == "xab"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"temperature": 0.7}, "greedily, and the task wants sampling"),
        ({"do_sample": True}, "temperature=0,do_sample=False"),
        ({"num_beams": 5}, "num_beams=5"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "at least 1, got 1.5"),
        ({"temperature": "hot"}, "must be numbers"),
    ],
)
def test_what_is_not_greedy_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        wanted(options)


def test_options_that_are_not_used_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        wanted({"image_aspect_ratio": "pad", "top_k": 3})
    assert [record.getMessage() for record in caplog.records].count(
        "the task's generation option image_aspect_ratio is not used by vidllm"
    ) == 1 and "top_k" not in caplog.text


@pytest.mark.parametrize(
    ("visuals", "line"),
    [
        ([], "no video to look at"),
        (None, "no video to look at"),
        (["a.mp4", "b.mp4"], r"2 inputs \(str\)"),
        ("https://host/a.mp4", "download it first"),
        ([{"type": "audio"}], r"1 inputs \(dict\)"),
        ([[1, 2], [3]], r"2 inputs \(list\)"),
    ],
)
def test_what_is_not_one_video_is_refused(visuals: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        one_video(visuals)


def test_images_need_their_times(model: Model) -> None:
    frames = images(VIDEOS[0])
    question = "what happens first ?"
    with pytest.raises(InputError, match=r"mini, test 0: the task gives 4 images.*image_fps"):
        ask(model, (frames, question))
    clip = clip_of(frames, 0.5)
    assert clip.seconds.tolist() == [0, 2, 4, 6] and clip.duration == 8 and clip.notes
    model.image_fps = 0.5
    try:
        assert ask(model, (frames, question)) == [model.llm.ask(clip, question).text]
    finally:
        model.image_fps = None
    with pytest.raises(InputError, match="one size"):
        clip_of([frames[0], frames[1].resize((8, 8))], 1.0)


def test_broken_videos_end_the_run_or_are_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    asked = [(str(bad), "what happens last ?"), (VIDEOS[0], "what happens last ?")]
    with pytest.raises(InputError, match=r"^mini, test 0: .*bad\.mp4"):
        ask(make(), *asked)
    said = ask(make(broken="empty"), *asked)
    assert said[0] == "" and said[1] and "mini, test 0: no answer" in caplog.text


def test_receipts_are_kept(tmp_path: Path) -> None:
    model = make(receipts=str(tmp_path / "r.jsonl"), compressor="spatial-pool+uniform", keep=0.5)
    ask(model, (VIDEOS[0], "what happens last ?"), (VIDEOS[0], "what happens first ?"))
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["request"] for row in rows] == ["mini, test 0", "mini, test 1"]
    assert all(row["tokens_kept"] < row["tokens_full"] and row["shared_by"] == 2 for row in rows)
    model._world_size, model._rank = 2, 1
    ask(model, (VIDEOS[0], "what happens last ?"))
    assert (tmp_path / "r-1.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"compresor": "aim"}, "no 'compresor' for vidllm: use compressor"),
        ({"broken": "skip"}, "raise or empty"),
        ({"image_fps": 0}, "image_fps"),
        ({"keep": 2}, "keep"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        make(**arguments)


def test_what_is_not_served_says_why(model: Model) -> None:
    with pytest.raises(NotImplementedError, match="_mcppl"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="multi-round"):
        model.generate_until_multi_round([])


def test_clean_lets_go_of_the_model() -> None:
    model = make()
    assert model.device == torch.device("cpu")
    model.clean()
    assert model.cleaned and model.device == torch.device("cpu")
    with pytest.raises(InputError, match="let go"):
        model.llm  # noqa: B018


def test_without_lmms_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    lmms._plugin.cache_clear()
    with pytest.raises(InputError, match=r"vidllm\[lmms-eval\]"):
        lmms.VidLLM  # noqa: B018
    with pytest.raises(AttributeError):
        lmms.Other  # noqa: B018


def test_the_module_is_light() -> None:
    code = "import sys, vidllm.eval.lmms; print({'torch', 'lmms_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_entry_point_is_declared(root: Path) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points."{ENTRY.group}"]' in text
    assert f'{ENTRY.name} = "{ENTRY.value}"' in text


@pytest.fixture
def real() -> Any:
    """lmms-eval's registry, with our entry point as if it were installed."""
    reason = "lmms-eval is not installed: pip install 'vidllm[lmms-eval]'"
    registry = pytest.importorskip("lmms_eval.models.registry_v2", reason=reason)
    lmms._plugin.cache_clear()
    found = registry.ModelRegistryV2()
    found._select_entry_points = lambda group: [ENTRY] if group == ENTRY.group else []
    found.load_entrypoint_manifests()
    return found


def test_lmms_eval_finds_and_makes_the_model(real: Any) -> None:
    from lmms_eval.api.model import lmms as base

    assert real.list_model_names() == ["vidllm"]
    cls = real.get_model_class("vidllm")
    assert cls is lmms.VidLLM and issubclass(cls, base) and cls.is_simple
    given = {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    made = cls.create_from_arg_string("compressor=aim+uniform,keep=0.5,frames=8", given)
    assert made.llm.compressor.name == "aim,uniform" and made.rank == 0 and made.world_size == 1


def test_lmms_eval_runs_a_task(real: Any, tmp_path: Path) -> None:
    evaluator = pytest.importorskip(
        "lmms_eval.evaluator", reason="lmms-eval's evaluator lacks its own dependencies"
    )
    from lmms_eval.tasks import TaskManager

    docs = [(VIDEOS[0], "what happens first ?"), (VIDEOS[0], "what happens last ?")]
    docs += [(VIDEOS[1], "what happens last ?")]
    plain = VideoLLM.from_pretrained(frames=8, keep=1, device="cpu")
    rows = [
        {"video": v, "question": q, "answer": plain.ask(v, q, max_new_tokens=16).text}
        for v, q in docs
    ]
    rows[-1]["answer"] = "something else"
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "utils.py").write_text(
        "def visual(doc):\n    return [doc['video']]\n\n\n"
        "def right(doc, results):\n    return {'right': float(results[0] == doc['answer'])}\n"
    )
    (tmp_path / "vidllm_mini.yaml").write_text(
        f"task: vidllm_mini\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'docs.jsonl'}\n  cache_dir: {tmp_path / 'cache'}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_visual: !function utils.visual\n"
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        "process_results: !function utils.right\ngeneration_kwargs:\n  max_new_tokens: 16\n"
        "  temperature: 0\n  do_sample: false\nmetric_list:\n  - metric: right\n"
        "    aggregation: mean\n    higher_is_better: true\n"
    )
    model = real.get_model_class("vidllm")(frames=8, keep=1, device="cpu")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = evaluator.simple_evaluate(
        model=model, tasks=["vidllm_mini"], task_manager=manager, log_samples=True, batch_size=1
    )
    assert found["results"]["vidllm_mini"]["right,none"] == pytest.approx(2 / 3)
