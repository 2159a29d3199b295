"""`vidllm bench methods` and `vidllm advise`: one sweep, its table, the page, and the advice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_tiny import TAKES_VIDEOS, save_hub
from processes import Run
from run_tiny import final, rows_of, write_charades
from tiny import hub_model, save_tiny

from vidllm import InputError, VideoLLM, load_video
from vidllm.cli.main import main
from vidllm.compressors import describe
from vidllm.eval.bench.methods.advice import advise, all_advice, find_table
from vidllm.eval.bench.methods.candidates import (
    CHAINS,
    asked_for,
    candidates,
    kind_of,
    met_in_training,
    native_config,
    own_compressor,
)
from vidllm.eval.bench.methods.method_table import (
    CONTROL,
    FREE,
    MET,
    NUMBERS,
    RANDOM_WEIGHTS,
    REFERENCES,
    UNCOMPRESSED,
    MethodTable,
    columns_of,
    read_table,
)
from vidllm.eval.bench.methods.methods_command import task_of_version
from vidllm.eval.bench.methods.methods_page import methods_page
from vidllm.eval.run.ask_model import ModelAsker
from vidllm.eval.run.run_settings import own_setting, wanted
from vidllm.eval.tasks import get_task
from vidllm.eval.tasks.base import Item
from vidllm.stage.training.settings import PLANS, plan_of
from vidllm.stage.training.tokenizer import build_tokenizer
from vidllm.timecode import get_timecode

SEED = 137  # the first clips of this benchmark seed are short
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_the_whole_command_and_a_run_that_was_killed(cli: Run, tiny: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "docs" / "which-method.md"
    words = [
        "bench", "methods", "--model", tiny, "--seed", SEED, "--limit", 2, "--data",
        tmp_path / "data", "--device", "cpu", "--frames", 4, "--max-new-tokens", 3, "--methods",
        "uniform,temporal-pool,spatial-*,visionzip", "--keep", "0.5,0.25", "--out", out,
        "--jobs", 1, "--page", page,
    ]  # fmt: skip
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert "grounding, keep 50 % (mIoU; 8 of 16 tokens" in done.stdout
    assert "not run: visionzip: visionzip needs cls-attention" in done.stderr
    table = read_table(out / "methods.csv")
    labels = [(row["compressor"], row["keep"]) for row in table.rows]
    methods = ["random", "uniform", "temporal-pool", "spatial-pool"]
    assert labels == [("none", 1.0), *((name, keep) for name in methods for keep in (0.5, 0.25))]
    # Only what the scores are made of is asked.
    rows = rows_of(out / "answers.jsonl")
    assert {row["kind"] for row in rows} <= {"ground", *table.setting["kinds"]}
    assert "caption" not in {row["kind"] for row in rows} and "ground" in {r["kind"] for r in rows}
    # Scores are those of the run, and tokens the exact budgets.
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]
    for row in table.rows:
        scores = results[f"{row['compressor']}@{row['keep']:g}"]["scores"]
        for name in ("mIoU", "R1@0.5", "qa_accuracy"):
            assert row[name] == pytest.approx(scores[name], rel=1e-5, abs=1e-9)
        assert row["tokens_kept"] == 16 * row["keep"]
        assert row["kv_mb"] > 0 and row["flops"] > 0 and row["failed"] == 0
        seconds = [row[name] for name in ("read_s", "vision_s", "prefill_s", "decode_s")]
        assert all(value > 0 for value in seconds) and row["total_s"] >= max(seconds)
        assert row["call_prefill_s"] > row["prefill_s"]  # which is shared among the questions
    # Kinds: the control, what training met, and what it did not.
    kinds = {row["compressor"]: row["kind"] for row in table.rows}
    assert kinds == {
        "none": UNCOMPRESSED, "random": CONTROL, "uniform": FREE, "temporal-pool": MET,
        "spatial-pool": MET,
    }  # fmt: skip
    for key in ("weights", "versions", "split", "seed", "limit", "options", "frames"):
        assert key in table.setting
    text = page.read_text(encoding="utf-8")
    assert text == methods_page(table, "../out/methods.csv")
    assert "| `visionzip` | visionzip needs cls-attention" in text and "## Advice" in text
    # As if it had been killed: half of the journal, and half a line behind it.
    before, journal = final(out), out / "rows-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    half = b"".join(lines[: len(lines) // 2])
    journal.write_bytes(half + lines[-1][:20])
    for name in ("answers.jsonl", "costs.jsonl", "results.json", "results.csv", "methods.csv"):
        (out / name).unlink()
    assert main(list(map(str, words))) == 0
    assert journal.read_bytes().startswith(half)
    assert final(out) == before
    again = read_table(out / "methods.csv")
    for one, two in zip(table.rows, again.rows, strict=True):
        same = {name: value for name, value in one.items() if not name.endswith("_s")}
        assert same == {name: value for name, value in two.items() if not name.endswith("_s")}
    # The page alone, from the table alone.
    page.unlink()
    short = ["bench", "methods", "--csv", str(out / "methods.csv"), "--page", str(page)]
    assert main([*short, "--page-only"]) == 0
    assert page.read_text(encoding="utf-8") == methods_page(again, "../out/methods.csv")


def test_a_model_of_the_hub_on_a_folder_of_a_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_hub(tmp_path / "hub", "qwen2_5_vl", TAKES_VIDEOS)
    data = write_charades(tmp_path / "data", videos=2)
    words = [
        "bench", "methods", "--model", model, "--task", "charades", "--data", data, "--device",
        "cpu", "--frames", 4, "--max-new-tokens", 2, "--methods",
        "aim,fastv,tome,visionzip,temporal-pool:keep=0.25+uniform", "--keep", "0.5", "--out",
        tmp_path / "out", "--json",
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["compressor"]: row for row in told["rows"]}
    assert set(rows) == {"none", "random", "aim", "fastv", "tome", "visionzip"}
    refused = told["setting"]["refused"]
    (failed,) = refused.items()  # it was served, and could answer nothing
    assert failed[0] == "temporal-pool:keep=0.25+uniform@0.5" and "fewer than the" in failed[1]
    assert {row["kind"] for row in rows.values()} == {UNCOMPRESSED, CONTROL, FREE}  # all are new
    assert told["setting"]["scores"] == {"grounding": ["mIoU", "R1@0.5"]}
    assert not told["setting"]["made"] and "synthetic" not in json.dumps(told["advice"])
    assert [one["keep"] for one in told["advice"]] == [0.5]
    assert rows["none"]["answers"] == 4 and rows["none"]["videos"] == 2
    assert main(["advise", "--table", told["csv"]]) == 0
    assert "with another model or other videos the order" in capsys.readouterr().out


def test_a_clip_is_encoded_once_for_all_that_do_not_act_in_the_tower() -> None:
    tokenizer = build_tokenizer(get_timecode("relative"))
    llm = VideoLLM(hub_model("clip", "qwen3", downsample=2), tokenizer, keep=1.0)
    names = "aim,evs,visionzip,fastvid,mustdrop-filter+mustdrop-cache,semvid,tome,mustdrop"
    settings = wanted(names, "0.5,0.25").settings(own_setting(llm))
    asker = ModelAsker(llm, get_task("stage"), settings, name="tiny", max_new_tokens=2)
    clip = load_video(ROOT / "weights" / "samples" / "red-star.mp4", frames=4)
    item = Item("q", "v", "v", "what happens first?", {"answer": "", "spans": []}, kind="first")
    calls: Counter[str] = Counter()
    llm.model.temporal[0].register_forward_hook(lambda *_: calls.update(encoded=1))
    found = {}
    for setting in settings:
        calls.clear()
        asker.ask(clip, [item], setting)
        found[setting.label] = calls["encoded"]
    assert found.pop("none@1") == 2  # the first call is made twice, once for nothing
    inside = {label: found.pop(label) for label in list(found) if label.startswith(("tome", "must"))
              and "filter" not in label}  # fmt: skip
    assert set(inside.values()) == {1} and len(inside) == 4
    # Of the others the first that reads signals of the tower has them made, for all.
    assert sum(found.values()) == 1, found


def test_what_is_compared_by_default() -> None:
    free = {e["name"] for e in describe() if not e["trained"]} - {"none", "mustdrop-cache"}
    found = candidates("", {"mrt5": [0.125], "aim": [0.5]})
    assert set(found) == free | {"mustdrop-filter+mustdrop-cache", "mrt5", *CHAINS}
    assert found[0] == "random" and len(found) == len(set(found))
    assert candidates("ai*,uniform", {}) == [
        "random",
        "aim",
        "aim-prune",
        "aim+aim-prune",
        "uniform",
    ]
    assert candidates("per-scene(aim),aim:faithful=true", {})[1:] == [
        "per-scene(aim)", "aim:faithful=true",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no compressor 'aimm': did you mean aim"):
        candidates("aimm", {})
    with pytest.raises(InputError, match="no method is like 'x\\*'"):
        candidates("x*", {})
    with pytest.raises(InputError, match="always made"):
        candidates("none", {})


def test_a_models_own_method_runs_with_the_parameters_that_it_brings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixture = (("none", 0.4), ("mrt5:keep=0.125", 0.4), ("temporal-pool:keep=0.25", 0.2))
    monkeypatch.setitem(PLANS, "vit", replace(PLANS["vit"], mixture=mixture))
    met = met_in_training({"compressors": "mrt5", "vision": {"stem": {}}})
    assert met == {"mrt5": [0.125], "temporal-pool": [0.25]}
    other = {"compressors": "none", "vision": {"stem": {}}}
    assert met_in_training(other) == {"temporal-pool": [0.25]}
    asked = asked_for("uniform,mrt5,temporal-pool", "0.5,0.25", met, "mrt5")
    assert asked.pairs[-2:] == ((None, 0.5), (None, 0.25))  # as the model was loaded
    assert "mrt5" not in {name for name, _ in asked.pairs}
    asked = asked_for("uniform,temporal-pool", "0.5", met, "temporal-pool")
    assert asked.pairs == (("random", 0.5), ("uniform", 0.5), ("temporal-pool", 0.5))


def test_what_training_met_is_told_by_its_mixture(tmp_path: Path, tiny: Path) -> None:
    config = native_config(None)
    assert config is not None
    met = met_in_training(config)
    assert {f"{name}:keep={keep:g}" for name, keeps in met.items() for keep in keeps} == {
        spec for spec, _ in plan_of(config["vision"]).mixture if spec != "none"
    }
    assert kind_of("temporal-pool", met) == MET
    assert kind_of("temporal-pool+fastv", met) == MET  # it has a part that was met
    assert kind_of("storm", met) == MET  # it leaves the same tokens as temporal-pool
    assert kind_of("aim", met) == FREE and kind_of("flextok", met) == RANDOM_WEIGHTS
    assert own_compressor(config) == config["compressors"].split(":")[0].replace(",", "+")
    assert own_compressor(native_config(str(tiny))) is None
    for other in ("Qwen/Qwen2.5-VL-3B-Instruct", str(save_hub(tmp_path / "hub", "qwen2_5_vl"))):
        assert native_config(other) is None
    assert met_in_training(None) == {} and own_compressor(None) is None


def test_a_trained_recipe_met_its_own_mixture() -> None:
    shipped = native_config(None)
    assert shipped is not None
    lita = {**shipped, "recipe": "lita", "compressors": "lita", "keep": 0.125}
    assert met_in_training(lita) == {"lita": [0.25, 0.125, 0.05]}
    storm = {**shipped, "recipe": "storm", "compressors": "temporal-pool", "keep": 0.25}
    met = met_in_training(storm)
    assert met == {"temporal-pool": [0.5, 0.25, 0.125, 0.0625], "spatial-pool": [0.25]}
    assert kind_of("frame-sample", met) == FREE  # which the shipped model met
    assert met_in_training({**shipped, "recipe": "plain", "compressors": "none", "keep": 1.0}) == {}
    for changed in ({"recipe": "of-nobody"}, {"compressors": "uniform"}, {"keep": 0.5}):
        assert met_in_training({**lita, **changed}) == {}
    assert met_in_training({**shipped, "recipe": ""}) == met_in_training(shipped) != {}


Change = Mapping[str, tuple[float, float]]


def handmade(rows: Sequence[tuple[str, str, str, float, Change]], **setting: Any) -> MethodTable:
    """A table of one score: (compressor, stage, kind, value, {reference: (difference, p)})."""
    made = []
    for place, (name, stage, kind, value, changes) in enumerate(rows):
        full = kind == UNCOMPRESSED
        row: dict[str, Any] = dict.fromkeys((*NUMBERS, *columns_of("mIoU")))
        row |= {"compressor": name, "stage": stage, "kind": kind, "met": "", "answers": 40.0}
        row |= {"keep": 1.0 if full else 0.125, "tokens_full": 256.0, "videos": 20.0}
        row |= {"tokens_kept": 256.0 if full else 32.0, "total_s": 1.0 - 0.1 * place}
        row |= {"call_vision_s": 0.2 if stage == "vision" else 0.5}
        row |= {"mIoU": value, "mIoU_low": value - 0.05, "mIoU_high": value + 0.05}
        row["mIoU_share"] = value / rows[0][3]
        for reference in REFERENCES:
            if reference in changes:
                change, p = changes[reference]
                place_of = f"mIoU_vs_{reference}"
                row |= {place_of: change, f"{place_of}_low": change - 0.02}
                row |= {
                    f"{place_of}_high": change + 0.02,
                    f"{place_of}_p": p,
                    f"{place_of}_holm": p,
                }
        made.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    about = {"task": "stage", "model": "somewhere/small", "split": "test", "made": True}
    return MethodTable({**about, "scores": {"grounding": ["mIoU"]}, "refused": {}, **setting}, made)


TABLE = handmade(
    [
        ("none", "", UNCOMPRESSED, 0.8, {}),
        ("aim", "tokens", FREE, 0.7, {"full": (-0.1, 0.01), "random": (0.2, 0.001)}),
        ("evs", "tokens", FREE, 0.69, {"best": (-0.01, 0.6), "random": (0.19, 0.001)}),
        ("tome", "vision", FREE, 0.6, {"best": (-0.1, 0.001), "random": (0.1, 0.02)}),
        ("temporal-pool", "tokens", MET, 0.75, {"random": (0.25, 0.001)}),
        ("random", "tokens", CONTROL, 0.5, {"full": (-0.3, 0.001)}),
    ]
)


def test_advice_says_what_is_best_and_what_is_as_good() -> None:
    told = advise(TABLE, "Grounding", 0.125)
    assert told.lines() == [
        "grounding, keep 12.5 % (mIoU; 32 of 256 tokens; uncompressed 0.800 (0.750–0.850))",
        "take aim: 0.700 (0.650–0.750), 88 % of the uncompressed, clearly below it",
        "not clearly worse than aim: evs",
        "the quickest of these: evs, 0.8 s an answer (uncompressed 1 s)",
        "clearly better than random, 0.500 (0.450–0.550), by +0.200 (+0.180 to +0.220)",
        "tower-bound: tome, 0.600 (0.550–0.650); the tower takes 0.2 s a clip, uncompressed 0.5 s",
        "met in training, ranked apart: temporal-pool, 0.750 (0.700–0.800)",
    ]
    found = told.as_dict()
    assert found["take"]["compressor"] == "aim" and found["quickest"] == "evs"
    assert [one["compressor"] for one in found["not_clearly_worse"]] == ["evs"]
    assert found["no_method_clearly_better_than"] is None


def test_advice_says_where_no_method_is_clearly_better() -> None:
    rows = [
        ("none", "", UNCOMPRESSED, 0.8, {}),
        ("aim", "tokens", FREE, 0.52, {"full": (-0.28, 0.001), "random": (0.02, 0.4)}),
        ("uniform", "tokens", FREE, 0.51, {"best": (-0.01, 0.9), "random": (0.01, 0.7)}),
        ("random", "tokens", CONTROL, 0.5, {"full": (-0.3, 0.001)}),
    ]
    assert (
        "no method is clearly better than random"
        in advise(handmade(rows), "grounding", 0.125).lines()
    )
    rows[1] = ("aim", "tokens", FREE, 0.7, {"full": (-0.1, 0.001), "random": (0.2, 0.001)})
    lines = advise(handmade(rows), "grounding", 0.125).lines()
    assert "no method is clearly better than uniform" in lines
    assert "tower-bound: no method here spares the vision tower work" in lines
    rows[2] = ("uniform", "tokens", FREE, 0.51, {"best": (-0.2, 0.001), "random": (0.01, 0.7)})
    lines = advise(handmade(rows), "grounding", 0.125).lines()
    assert "every other method without training is clearly worse than aim" in lines


def test_advise_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: Run, refused: Callable[..., str]
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(TABLE.text(), encoding="utf-8")
    assert read_table(file) == TABLE  # as it was written
    assert main(["advise", "--table", str(file), "--task", "grounding", "--keep", "0.125"]) == 0
    said = capsys.readouterr().out
    assert "take aim: 0.700" in said
    assert "note: measured with small on stage, split test: 20 clips" in said
    assert "note: synthetic videos and a small model" in said
    assert main(["advise", "--table", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["take"]["compressor"] for one in told["advice"]] == ["aim"]
    assert main(["advise", "--table", str(file), "--keep", "12%", "--json"]) == 0  # near 12.5 %
    near = json.loads(capsys.readouterr().out)["advice"][0]
    assert (near["keep"], near["asked"], near["take"]["compressor"]) == (0.125, 0.12, "aim")
    assert near["lines"][1] == "keep 12 % was not measured: this is for the nearest share"
    assert told["setting"]["model"] == "somewhere/small" and len(told["caveats"]) == 3
    for words, line in (
        (["--task", "groundign"], "--task 'groundign' was not measured: did you mean grounding?"),
        (["--keep", "0.1"], "--keep 0.1 was not measured: 0.125 were; the nearest is 0.125"),
        (["--keep", "0"], "--keep must be above 0"),
        (["--model", "other"], "is of small, not of 'other'"),
    ):
        assert main(["advise", "--table", str(file), *words]) == 2
        told = capsys.readouterr()
        assert line in told.err and told.err.count("\n") == 1 and not told.out
    assert "no such file" in refused(cli("advise", "--table", tmp_path / "none.csv"))


def test_tables_ship_by_the_name_of_their_model(tmp_path: Path) -> None:
    assert Path(str(files("vidllm.eval.measured"))).resolve() == ROOT / "docs" / "results"
    with pytest.raises(InputError, match="no table ships with this install: make one with"):
        find_table(None, None, tmp_path)
    other = handmade([("none", "", UNCOMPRESSED, 0.8, {})], model="Qwen/Qwen2.5-VL-3B-Instruct")
    (tmp_path / "methods-a.csv").write_text(other.text(), encoding="utf-8")
    (tmp_path / "methods.csv").write_text(TABLE.text(), encoding="utf-8")
    assert find_table(None, None, tmp_path) == TABLE == find_table("small", None, tmp_path)
    assert find_table("Qwen/Qwen2.5-VL-3B-Instruct", None, tmp_path) == other
    with pytest.raises(InputError, match="no table of 'smal' ships: did you mean small"):
        find_table("smal", None, tmp_path)
    with pytest.raises(InputError, match=r"0\.125 was not measured: none was"):
        advise(other, "grounding", 0.125)
    trained = handmade([("none", "", UNCOMPRESSED, 0.8, {}), ("aim", "tokens", MET, 0.7, {})])
    with pytest.raises(InputError, match=r"without training at keep 0\.125"):
        advise(trained, "grounding", 0.125)
    assert all_advice(trained) == all_advice(other) == []
    assert "`aim`" in methods_page(trained, "methods.csv")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda text: text.partition("\n")[2], "its first line is not '# {…}' with the setting"),
        (lambda text: text.replace('"task"', '"tusk"'), "task"),
        (lambda text: text.replace("mIoU_low", "mIoU_lo"), "the column mIoU_low is missing"),
        (lambda text: text.replace("0.75,", "many,", 1), "mIoU_low is 'many', no number"),
        (lambda text: text.replace("uncompressed", "whole"), "kind is 'whole'"),
        (lambda text: text + "aim,0.5\n", "it has not as many cells as the head"),
        (lambda text: "\n".join(text.splitlines()[:2]), "it has not one uncompressed row"),
    ],
)
def test_a_damaged_table_is_one_line(
    change: Callable[[str], str], line: str, tmp_path: Path
) -> None:
    file = tmp_path / "table.csv"
    file.write_text(change(TABLE.text()), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        find_table(None, file)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "charadse"], "charades"),
        (["--task", "msrvtt"], "asks no model with video tokens"),
        (["--task", "charades", "--version", "2"], "--version: charades has one version"),
        (["--split", "tset"], "--split must be one of test"),
        (["--keep", "1,0.5"], "--keep 1 is the uncompressed run"),
        (["--keep", "2"], "--keep must be above 0"),
        (["--methods", "aimm"], "did you mean aim"),
        (["--recipe", "storm"], "--recipe does not go with bench methods"),
        (["--page-only"], "--page-only makes a page: give --page FILE"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "methods", "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_version_is_an_option_of_the_task() -> None:
    assert task_of_version("stage", None).name == "stage"
    assert task_of_version("needle", None) == get_task("needle")


def test_the_page_is_what_the_table_says() -> None:
    for file in (ROOT / "docs" / "results").glob("methods.csv"):
        page = (ROOT / "docs" / "which-method.md").read_text(encoding="utf-8")
        assert page == methods_page(read_table(file), "results/methods.csv")
