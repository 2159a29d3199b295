"""Text-video retrieval: vectors in rows, ranks, and dual encoders that merge inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import eval_data
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from vidllm import load_video
from vidllm.compressors import build, get
from vidllm.errors import InputError
from vidllm.eval.run.retrievers import RetrievalAsker
from vidllm.eval.run.run_settings import Setting
from vidllm.eval.run.vectors import read_vector, write_vector
from vidllm.eval.tasks import Item, Response, get_task
from vidllm.models.retrieval.retriever import Retriever, check_inside

GOLDEN = Path(__file__).parents[1] / "goldens" / "tempme_metrics.npz"
WORDS = "a person dog runs man says hello you is connecting something".split()  # noqa: SIM905
MERGING = ("tome", "tempme", "pyra", "mustdrop")


def tokenizer() -> PreTrainedTokenizerFast:
    entries = {word: k for k, word in enumerate(["<pad>", "<unk>", "<bos>", *WORDS, "<eos>"])}
    core = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = [(name, entries[name]) for name in ("<bos>", "<eos>")]
    core.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=pair)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def model(kind: str) -> Any:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    ends = {"eos_token_id": len(WORDS) + 3, "bos_token_id": 2, "pad_token_id": 0}
    text = {**small, **ends, "num_hidden_layers": 2, "vocab_size": len(WORDS) + 4}
    text["max_position_embeddings"] = 8
    vision = {**small, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        made: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        text["projection_size"] = 32
        made = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "vision" in name and ("q_proj.weight" in name or "k_proj.weight" in name):
                weight.normal_(0, 0.4)
    return made.eval()


@pytest.fixture(scope="module", params=["clip", "siglip"])
def retriever(request: pytest.FixtureRequest) -> Retriever:
    return Retriever(model(request.param), tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("msrvtt")
    eval_data.make("msrvtt", path)
    return path


def test_vectors_go_through_text() -> None:
    given = np.random.default_rng(0).normal(size=33)
    text = write_vector(given)
    found = read_vector(text)
    assert found is not None and np.array_equal(found, given.astype(np.float16))
    assert write_vector(found) == text and text.isascii()
    for bad in ("", "f16:", "f16:!!!!", "f16:AAA=x", "abc", write_vector(np.array([np.nan, 1]))):
        assert read_vector(bad) is None


def pairs(similarity: np.ndarray) -> tuple[list[Item], list[Response]]:
    """Captions and videos whose cosines are these, up to a scale of each caption (ranks stay)."""
    count = len(similarity)
    items, responses = [], []
    for k in range(count):
        items.append(Item(f"{k}:text", f"v{k}", f"v{k}", "x", f"v{k}", kind="text"))
        responses.append(Response(raw=write_vector(similarity[k])))
        items.append(Item(f"{k}:video", f"v{k}", f"v{k}", "", f"v{k}", kind="video"))
        responses.append(Response(raw=write_vector(np.eye(count)[k])))
    return items, responses


def test_the_golden_ranks_through_the_task() -> None:
    data = np.load(GOLDEN)
    items, responses = pairs(data["sim"])
    scores = get_task("msrvtt").scores(items, responses, official=True)
    told = json.loads(str(data["t2v"]))
    assert [scores[f"R@{k}"] for k in (1, 5, 10)] == [told[f"R{k}"] / 100 for k in (1, 5, 10)]
    assert scores["MdR"] == told["MedianR"] and scores["MnR"] == pytest.approx(told["MeanR"])
    assert scores == pytest.approx(get_task("msrvtt").scores(items, responses))  # no ties there
    turned = pairs(data["sim"].T / np.linalg.norm(data["sim"].T, axis=1, keepdims=True))
    back = get_task("msrvtt").scores(*turned, official=True)
    told = json.loads(str(data["v2t"]))
    assert [back[f"R@{k}"] for k in (1, 5, 10)] == [told[f"R{k}"] / 100 for k in (1, 5, 10)]


def test_what_failed_ranks_last_and_ties_bring_no_luck() -> None:
    task = get_task("msrvtt")
    items, responses = pairs(np.eye(4))
    assert task.scores(items, responses)["R@1"] == task.scores(items, responses)["V2T R@1"] == 1.0
    lost = list(responses)
    lost[0] = Response(error="x")  # a caption
    lost[3] = Response(raw="no vector")  # a video
    scores = task.scores(items, lost)
    assert scores["R@1"] == scores["V2T R@1"] == 0.5 and scores["parse_failures"] == 0.25
    assert scores["MnR"] == scores["V2T MnR"] == (1 + 1 + 4 + 4) / 4
    same = [Response(raw=write_vector(np.ones(4)))] * len(items)
    assert task.scores(items, same)["R@1"] == 0.0
    assert task.scores(items, same)["MdR"] == 2.5  # the middle of four places
    official = task.scores(items, same, official=True)
    assert official["R@1"] == 0.25  # counted once at each of the four places
    half = task.scores(items[:3], responses[:3])  # a caption whose video is not there
    assert half["R@1"] == 1.0
    mixed = [Response(raw=write_vector(np.ones(3))), *responses[1:]]
    with pytest.raises(InputError, match="different widths"):
        task.scores(items, mixed)
    assert task.samples(items, lost)[0] == ("v0", 0.0)  # type: ignore[attr-defined]


def test_several_captions_of_one_video(folder: Path) -> None:
    task = get_task("msrvtt")
    items = task.items(folder, "full")
    assert [i.id for i in items[:3]] == ["video7010:text-0", "video7010:text-1", "video7010:video"]
    vectors = {"video7010": [1.0, 0.0], "video7011": [0.0, 1.0]}
    answers = [Response(raw=write_vector(np.asarray(vectors[i.vid]))) for i in items]
    answers[0] = Response(raw=write_vector(np.asarray([0.1, 1.0])))
    scores = task.scores(items, answers)
    assert scores["R@1"] == 0.75 and scores["V2T R@1"] == 1.0  # the best of a video's captions
    assert task.scores(items, answers, official=True) == scores  # not square: as the default


def test_a_plain_dual_encoder_is_the_librarys(retriever: Retriever, folder: Path) -> None:
    clip = load_video(folder / "videos" / "video7010.mp4", frames=6)
    found = retriever.embed_video(clip)
    frames = torch.from_numpy(clip.frames.copy())
    pixels = retriever.tower.normalise(retriever._pixels(frames))
    with torch.inference_mode():
        each = retriever.model.get_image_features(pixel_values=pixels).pooler_output
        mean = torch.nn.functional.normalize(each, dim=-1).mean(0)
    assert np.allclose(found.vector, (mean / mean.norm()).numpy(), atol=1e-6)
    assert found.receipt.tokens_full == found.receipt.tokens_kept == 6 * 16 == found.kept.total
    assert set(found.receipt.seconds) == {"decode", "encode"} and found.kept.heat().min() == 1.0
    padded = {"return_tensors": "pt", "padding": "max_length", "max_length": 8}
    ids = retriever.tokenizer("a dog runs", **padded)["input_ids"]
    if retriever.kind == "clip":
        ids = ids[:, :5]
    with torch.inference_mode():
        text = retriever.model.get_text_features(input_ids=ids).pooler_output[0]
    assert np.allclose(retriever.embed_text("a dog runs"), (text / text.norm()).numpy(), atol=1e-6)
    long = "a dog runs " * 20  # is cut off
    assert retriever.embed_text(long).shape == found.vector.shape
    with pytest.raises(InputError, match="empty"):
        retriever.embed_text(" ")


@pytest.mark.parametrize("name", MERGING)
def test_merging_inside_the_tower(retriever: Retriever, name: str, folder: Path) -> None:
    clip = load_video(folder / "videos" / "video7012.mp4", frames=6)
    plain = retriever.embed_video(clip)
    whole = retriever.embed_video(clip, get(name, keep=1.0))
    assert np.array_equal(whole.vector, plain.vector)
    less = retriever.embed_video(clip, get(name, keep=0.25))
    assert less.receipt.tokens_kept == len(less.kept) == 24 and less.receipt.tokens_full == 96
    assert less.kept.sizes().sum() == 96
    assert np.linalg.norm(less.vector) == pytest.approx(1.0, abs=1e-6)
    assert not np.allclose(less.vector, plain.vector, atol=1e-5)
    assert float(less.vector @ plain.vector) > 0.5  # still the same video
    again = retriever.embed_video(clip, get(name, keep=0.25))
    assert np.array_equal(again.vector, less.vector)
    hooks = [m for m in retriever.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_equal_patches_merge_without_a_trace(retriever: Retriever, folder: Path) -> None:
    """Proportional attention and the pooled head see merged equals as the tokens behind them."""
    clip = load_video(folder / "videos" / "video7010.mp4", frames=2)
    grey = type(clip)(
        np.full_like(clip.frames, 90), clip.seconds, clip.fps, clip.duration, clip.indices, "grey"
    )
    embeddings = retriever.tower.model.embeddings
    with torch.no_grad():
        places = embeddings.position_embedding.weight
        kept = places.clone()
        places[retriever.tower.special :] = places[-1]  # all patches alike
    try:
        plain = retriever.embed_video(grey)
        less = retriever.embed_video(grey, get("tome", keep=0.25))
    finally:
        with torch.no_grad():
            places.copy_(kept)
    assert less.receipt.tokens_kept == 8
    assert np.allclose(less.vector, plain.vector, atol=1e-5)


def test_what_cannot_be_served_is_refused(retriever: Retriever, folder: Path) -> None:
    clip = load_video(folder / "videos" / "video7010.mp4", frames=2)
    for spec in ("uniform", "tome,uniform", "tome:tower=false", "fastv"):
        with pytest.raises(InputError, match="behind the vision tower"):
            retriever.embed_video(clip, build(spec, keep=0.5))
    assert check_inside(None) == check_inside(get("none")) == (None, None)
    bert: Any = type("M", (), {"config": type("C", (), {"model_type": "bert"})})
    with pytest.raises(InputError, match="not a bert"):
        Retriever(bert, None)


def test_pixels_are_the_librarys(retriever: Retriever) -> None:
    waves = np.sin(np.arange(48)[:, None, None] / 5 + np.arange(64)[:, None] / 7 + np.arange(3))
    frame = (127 + 100 * waves).astype(np.uint8)[None]
    found = retriever._pixels(torch.from_numpy(frame))[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(frame[0])
    if retriever.kind == "clip":
        picture = picture.crop((8, 0, 56, 48))
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert np.abs(found - expected).max() < 1.5 / 255


def test_from_a_folder_to_scores(retriever: Retriever, folder: Path, tmp_path: Path) -> None:
    retriever.model.save_pretrained(tmp_path)
    retriever.tokenizer.save_pretrained(tmp_path)
    loaded = Retriever.from_pretrained(str(tmp_path), device="cpu")
    settings = [Setting("none"), Setting("tome", 0.5, get("tome", keep=0.5))]
    asker = RetrievalAsker(loaded, settings, name="tiny")
    assert asker.about()["model"] == "tiny" and list(asker.settings()) == settings
    task = get_task("msrvtt")
    items = task.items(folder, "1k-A")
    for setting in settings:
        responses = {}
        for vid in dict.fromkeys(item.vid for item in items):
            some = [item for item in items if item.vid == vid]
            clip = load_video(folder / "videos" / f"{vid}.mp4", frames=4)
            for item, said in zip(some, asker.ask(clip, some, setting), strict=True):
                responses[item.id] = said.response
                assert (said.kept is None) == (not said.cost) == (item.kind == "text")
        scores = task.scores(items, [responses[item.id] for item in items])
        assert scores["parse_failures"] == 0.0 and 0 <= scores["R@1"] <= 1  # type: ignore[operator]
    with pytest.raises(InputError, match="behind the vision tower"):
        RetrievalAsker(loaded, [Setting("uniform", 0.5, get("uniform", keep=0.5))], name="x")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(InputError, match="qwen2 model"):
        Retriever.from_pretrained(str(tmp_path))
    with pytest.raises(InputError, match="no model"):
        Retriever.from_pretrained(str(tmp_path / "none"))
