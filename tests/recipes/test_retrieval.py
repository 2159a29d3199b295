"""The recipe tempme: batches, loss, a training that resumes, the retriever, its task and bench."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import run_page
from tiny import save_tiny

pytest.importorskip("peft", reason="training adapters needs peft: pip install 'vidllm[lora]'")

from vidllm import VideoClip, VideoLLM, load_retriever, load_video
from vidllm.cli.main import main
from vidllm.compressors import build
from vidllm.encoders.vision import HubTower
from vidllm.errors import InputError
from vidllm.eval.run.vectors import write_vector
from vidllm.eval.tasks import Response, get_task
from vidllm.eval.tasks.stage_retrieval import StageRetrieval
from vidllm.models.retrieval.dual_encoder import DualEncoder, heads_of, merged_pass
from vidllm.models.retrieval.retriever import Retriever
from vidllm.recipes import get_recipe
from vidllm.recipes.courses import CourseSettings, find_course
from vidllm.recipes.courses.retrieval_batches import CaptionedBatches, CaptionSettings
from vidllm.recipes.courses.retrieval_model import (
    LONGEST,
    RetrievalTrainee,
    build_caption_tokenizer,
    contrastive,
    fresh_encoder,
    joined_rows,
    with_adapters,
)
from vidllm.stage.gallery import write_gallery

RECIPE = get_recipe("tempme")
MERGING = build("tempme:inside=0.6", keep=0.1)
HOW = CourseSettings(
    out="", size="tiny", steps=3, batch=2, keep=0.1, workers=0, quiet=True, save_every=2,
    more={"start_steps": 3},
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tempme") / "out"
    find_course(RECIPE).train(RECIPE, replace(HOW, out=str(out)))
    return out


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("stage"), "test", 5, 3)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    made = fresh_encoder("tiny", build_caption_tokenizer(), rows=[12, 6, 3]).eval()
    with torch.no_grad():
        for table in made.join_embedding.parameters():
            table.normal_()
    return made


def test_a_batch_depends_on_its_number_alone_and_shows_pairs() -> None:
    tokenizer = build_caption_tokenizer()
    for moment in (False, True):
        settings = CaptionSettings(scenes=6, frames=2 if moment else 12, moment=moment)
        one = CaptionedBatches(settings, tokenizer, LONGEST)[3]
        again = CaptionedBatches(settings, tokenizer, LONGEST)
        _ = again[0]
        for key, value in again[3].items():
            assert torch.equal(one[key], value), key
        assert one["state"].shape[:2] == (12, settings.frames) and len(one["ids"]) == 12
        assert torch.equal(one["seconds"][::2], one["seconds"][1::2])
        ends = one["ids"].gather(1, one["mask"].sum(1, keepdim=True) - 1)
        assert (ends == tokenizer.eos_token_id).all()
        assert (one["ids"] != tokenizer.unk_token_id).all()
    whole = CaptionedBatches(CaptionSettings(scenes=40, frames=2), tokenizer, LONGEST)[0]["ids"]
    assert (whole[::2] != whole[1::2]).any(1).float().mean() > 0.9


def test_the_loss_is_the_cross_entropy_of_both_ways() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5)[:, None]
    found = contrastive(logits, ids)
    ways = [-torch.log_softmax(logits, d).diagonal().mean() for d in (0, 1)]
    assert found["total"] == pytest.approx(float(sum(ways)) / 2, abs=1e-6)
    ids[3] = ids[1]  # the same caption twice is neither right nor wrong for the other clip
    less = contrastive(logits, ids)
    changed = logits.clone()
    changed[1, 3] = changed[3, 1] = 50.0
    assert less["total"] == contrastive(changed, ids)["total"] < found["total"]


def test_clips_of_a_batch_are_encoded_as_they_are_alone(model: DualEncoder) -> None:
    tower = HubTower(model.vision_model)
    frames = torch.rand(24, 3, 64, 64)
    with torch.no_grad():
        hidden, run = merged_pass(
            tower, frames, MERGING, 19, clips=2, embedding=model.join_embedding
        )
        both = heads_of(tower, hidden, run)
        plain = heads_of(tower, *merged_pass(tower, frames[:12], MERGING, 19))
        for k in range(2):
            some = frames[12 * k :][:12]
            hidden, alone = merged_pass(tower, some, MERGING, 19, embedding=model.join_embedding)
            assert torch.allclose(both[12 * k :][:12], heads_of(tower, hidden, alone), atol=1e-5)
            assert len(alone.tokens) == 19 and len(run.tokens) == 38
    assert not torch.allclose(both[:12], plain, atol=1e-3)  # the rows are told apart


def test_only_adapters_and_row_embeddings_learn_and_gradients_pass_the_merges() -> None:
    tokenizer = build_caption_tokenizer()
    made = fresh_encoder("tiny", tokenizer, rows=[12, 6, 3])
    assert RECIPE.lora is not None
    adapted = with_adapters(made, RECIPE.lora, 8)
    trainee = RetrievalTrainee(made, adapted, MERGING)
    for name, value in trainee.named_parameters():
        value.requires_grad_("lora_" in name or "join_" in name)
    batch = CaptionedBatches(CaptionSettings(scenes=2, frames=12), tokenizer, LONGEST)[0]
    trainee(batch, "adapt")["total"].backward()
    learning = {n: p for n, p in trainee.named_parameters() if p.requires_grad}
    assert len(learning) == 3 + 2 * 3 * (4 + 2)
    silent = [n for n, p in learning.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all("lora_A" in n for n in silent)  # B is zero at first: A hears nothing yet
    rows = joined_rows(made.config, build("tempme:joins=3-2-2", keep=0.1), 12)
    assert rows == [12, 4, 2] and joined_rows(made.config, build("tome", keep=0.1), 12) == []
    with pytest.raises(InputError, match="does not merge inside"):
        joined_rows(made.config, build("uniform", keep=0.1), 12)


def test_a_training_that_is_stopped_at_every_step_ends_the_same(
    folder: Path, tmp_path: Path
) -> None:
    course, out = find_course(RECIPE), tmp_path / "out"
    for step in range(1, 7):  # both phases, and the change between them
        some = replace(HOW, out=str(out), minutes=1e-9, resume=step > 1)
        course.train(RECIPE, some)
        assert json.loads((out / "training.json").read_text())["step"] == step
    for name in ("model.safetensors", "checkpoint.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"] == "tempme" and config["keep"] == 0.1 and config["rows"] == [12, 6, 3]
    assert "6 of 6 steps" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="give the options of that training"):
        course.train(RECIPE, replace(HOW, out=str(out), resume=True, keep=0.2))
    with pytest.raises(InputError, match=r"is trained with lr 0.\d+, not 0.5"):
        course.train(RECIPE, replace(HOW, out=str(out), resume=True, lr=0.5))
    with pytest.raises(InputError, match="holds a trained model"):
        course.train(RECIPE, replace(HOW, out=str(out)))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"compressor": "uniform"}, "does not merge inside"),
        ({"lora": 0}, "--lora must be at least 1"),
        ({"temporal": "ssd"}, "--temporal is not for tempme"),
        ({"data": "films"}, "--data stage"),
        ({"clips": 8}, "--clips is for recipes that keep .* tempme sees none twice"),
        ({"more": {"stpes": 3}}, "has no option 'stpes'"),
        ({"init": "."}, "holds no dual encoder"),
        ({"size": "huge"}, "tiny, not 'huge'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    wrong: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        find_course(RECIPE).train(RECIPE, replace(HOW, out=str(tmp_path / "x"), **wrong))


def test_a_trained_encoder_is_the_start_of_other_adapters(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    how = replace(HOW, out=str(out), init=str(folder), compressor="none", steps=1)
    find_course(RECIPE).train(RECIPE, how)
    told = json.loads((out / "training.json").read_text())
    assert (told["step"], told["steps"], told["init"]) == (1, 1, folder.name)
    one, two = (Retriever.from_pretrained(str(path)) for path in (folder, out))
    assert (one.compressor.name, two.compressor.name) == ("tempme", "none")
    layer = "vision_model.encoder.layers.0"
    names = [f"{layer}.self_attn.q_proj.weight", f"{layer}.mlp.fc1.weight"]
    before, after = one.model.state_dict(), two.model.state_dict()
    assert not torch.equal(before[names[0]], after[names[0]])  # the adapters are folded in
    assert torch.equal(before[names[1]], after[names[1]])


def test_the_page_runs(folder: Path, gallery: Path, tmp_path: Path) -> None:
    one, two, *_ = sorted(gallery.glob("*.mp4"))
    llm = VideoLLM.from_pretrained(save_tiny(tmp_path / "tiny"))
    swaps = {'"DIR"': repr(str(folder)), '"one.mp4"': repr(str(one)), '"two.mp4"': repr(str(two))}
    swaps |= {'"long.mp4"': repr(str(one)), "VideoLLM.from_pretrained()": "llm"}
    names = run_page("docs/retrieval.md", {"llm": llm}, swaps)
    assert names["answer"].receipt.frames == len(names["clip"]) == 16


def test_clips_are_ranked_and_frames_chosen_by_a_text(folder: Path, gallery: Path) -> None:
    retriever = load_retriever(str(folder))
    files = sorted(gallery.glob("*.mp4"))
    ranked = retriever.rank(files, "the red star spins")
    assert {one.video for one in ranked} == set(files)
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    said = retriever.embed_text("the red star spins")
    clip = load_video(files[0], frames=12)
    whole = retriever.embed_video(clip)
    assert whole.receipt.tokens_full == 192 and whole.receipt.tokens_kept == 19
    score = next(one.score for one in ranked if one.video == files[0])
    assert score == pytest.approx(float(whole.vector @ said), abs=1e-6)
    chosen = retriever.choose_frames(files[0], "the red star spins", frames=5, look_at=70)
    assert len(chosen) == 5 and (np.diff(chosen.seconds) > 0).all()
    best = retriever.choose_frames(clip, "the red star spins", frames=3)
    cosines = retriever.embed_frames(clip) @ said
    assert isinstance(best, VideoClip) and set(best.seconds) == set(
        clip.seconds[np.argsort(-cosines, kind="stable")[:3]]
    )
    with pytest.raises(InputError, match="frames must be"):
        retriever.choose_frames(clip, "the red star spins", frames=0)
    with pytest.raises(InputError, match="no trained dual encoder ships"):
        load_retriever()


def test_pairs_that_differ_in_one_thing_are_told_apart(gallery: Path) -> None:
    task = StageRetrieval()
    items = task.items(gallery, "test")
    assert [item.kind for item in items] == ["text", "video"] * 3
    vectors = [write_vector(v) for v in np.eye(3) for _ in range(2)]
    answers = [Response(raw=v) for v in vectors]
    perfect = task.scores(items, answers)
    assert perfect["R@1"] == perfect["V2T R@1"] == 1.0
    kinds = [name for name in perfect if name.startswith("apart/")]
    assert len(kinds) == 2 and all(perfect[kind] == 1.0 for kind in kinds)
    same = task.scores(items, [Response(raw=write_vector(np.ones(3)))] * 6)
    assert all(same[kind] == 0.5 for kind in kinds)
    turned = task.scores(items, [answers[k] for k in (0, 3, 2, 1, 4, 5)])  # two clips exchanged
    assert sorted(turned[kind] for kind in kinds) == [0.0, 0.75] or turned["R@1"] == 1 / 3
    assert {cluster for cluster, _ in task.samples(items, answers)} == {items[0].vid}
    lost = task.scores(items, [Response(error="x"), *answers[1:]])
    assert all(lost[kind] == 0.0 for kind in kinds)
    with pytest.raises(InputError, match="makes it"):
        get_task("stage-retrieval").items(gallery / "none", "test")


def test_the_task_tells_what_merging_saves(
    folder: Path, tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "stage-retrieval", "--model", str(folder), "--limit", "3", "--jobs", "1"]
    words += ["--seed", "5", "--data", str(gallery.parent), "--out", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert list(found) == ["none@1", "tempme:inside=0.6@0.1"]
    full, less = (one["costs"] for one in found.values())
    assert (full["tokens_kept"], less["tokens_kept"]) == (192, 19)
    assert 0 < less["flops"]["vision"] < full["flops"]["vision"]
    assert found["tempme:inside=0.6@0.1"]["headline"]["low"] is not None
    assert main(words) == 0  # nothing is asked twice
    assert "tower GFLOPs" in capsys.readouterr().out


def test_the_counted_flops_are_those_of_the_shapes(model: DualEncoder) -> None:
    from vidllm.models.cost.flops import VisionTransformer, counted

    tower = HubTower(model.vision_model)
    frames = torch.rand(12, 3, 64, 64)
    stem = counted(lambda: tower.model.embeddings.patch_embedding(frames))  # type: ignore[operator,union-attr]
    found = counted(lambda: tower.run(frames)) - stem
    assert found == VisionTransformer(4, 32, 64, 4, 4, 0, special=1).flops(12)
    merged = counted(lambda: merged_pass(tower, frames, MERGING, 19)) - stem
    assert merged < 0.7 * found


def test_the_bench_measures_every_arm_and_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    words = ["bench", "retrieval", "--size", "tiny", "--init", str(folder), "--steps", "1"]
    words += ["--batch", "2", "--clips", "4", "--seeds", "1", "--keep", "0.1", "--workers", "0"]
    words += ["--device", "cpu", "--folder", str(tmp_path / "arms"), "--out", str(out)]
    assert main(words) == 0
    assert "R-Sum of both ways" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "start", "start merging", "lora", "lora frames", "lora intra-clip", "lora cross-clip",
        "lora both",
    ]  # fmt: skip
    for name, row in rows.items():
        plain = name in ("start", "lora")
        assert row["tokens"] == ("192" if plain else "19"), name
        assert (float(row["gflops_share"]) == 1.0) == plain
        assert float(row["low"]) <= float(row["R@1"]) <= float(row["high"])
    weights = {name: (tmp_path / "arms" / "seed-0" / name).stat().st_mtime_ns
               for name in ("lora/model.safetensors", "lora-both/model.safetensors")}  # fmt: skip
    assert main(words) == 0  # all arms are there
    for name, before in weights.items():
        assert (tmp_path / "arms" / "seed-0" / name).stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*words, "--steps", "2"]) == 2
    assert "another budget (steps 1, not 2): give another --folder" in capsys.readouterr().err
