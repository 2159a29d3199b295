"""Methods with parameters say that these are random, and which method they are without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_tiny import hf_model
from run_tiny import write_charades
from safetensors.torch import save_file
from tiny import save_tiny, tiny_model, write_video

import vidllm
from vidllm import VideoLLM
from vidllm.cli.main import main
from vidllm.compressors import Pyra, build, describe, get
from vidllm.compressors.mrt5 import DeleteGate
from vidllm.compressors.pyra import Modulation
from vidllm.errors import InputError
from vidllm.recipes.courses.reducing import Reductions
from vidllm.tokens import VideoTokens

LEARNED = ("flextok", "mrt5", "timesuite", "vtg-llm")


def clip(grid: tuple[int, int, int], width: int = 16) -> VideoTokens:
    draw = torch.Generator().manual_seed(3)
    tokens = VideoTokens.from_grid(
        torch.randn(*grid, width, generator=draw), torch.arange(float(grid[0])), float(grid[0])
    )
    return tokens.with_signals(
        cls_attention=torch.rand(len(tokens), generator=draw),
        vision_keys=torch.randn(len(tokens), 8, generator=draw),
    )


def test_the_list_says_which_need_training(capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry["name"]: entry for entry in describe()}
    assert {name for name, entry in found.items() if entry["trained"]} == {*LEARNED, "pyra"}
    assert all(found[name]["trained"].startswith("no: ") for name in (*LEARNED, "pyra"))
    assert main(["list", "compressors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0] for line in lines if "needs training, no weights shipped" in line}
    assert told == {*LEARNED, "pyra"}
    assert main(["list", "compressors", "pyra", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["compressors"]
    assert "no trained ones are shipped" in entry["trained"] and "`tome`" in entry["same_as"]


@pytest.mark.parametrize("name", [*LEARNED, "pyra"])
@pytest.mark.parametrize("spec", ["{}", "per-scene:scenes=2({})", "temporal-pool:keep=0.5,{}"])
def test_it_is_noted_in_every_dress(name: str, spec: str) -> None:
    if name == "pyra" and spec.startswith("temporal"):
        spec = "{},temporal-pool"  # what works in the tower comes first
    method = build(spec.format(name), keep=0.25)
    (note,) = method.notes()
    assert note.startswith(name)
    method(clip((8, 4, 4)))
    assert method.notes() == (note,)


@pytest.mark.parametrize("name", LEARNED)
def test_training_and_weights_silence_it(name: str, tmp_path: Path) -> None:
    tokens, method = clip((8, 4, 4)), get(name, keep=0.25)
    module = method.ready(tokens)  # type: ignore[attr-defined]
    assert method.notes()
    step = torch.optim.SGD(module.parameters(), lr=0.1)
    sum(p.sum() for p in module.parameters()).backward()  # type: ignore[union-attr]
    step.step()
    assert method.notes() == ()
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "w")
    assert get(name, keep=0.25, weights=str(tmp_path / "w")).notes() == ()


def test_training_gives_one_module_to_a_method_in_every_dress() -> None:
    model, _ = tiny_model()
    specs = ["mrt5:keep=0.5", "per-scene:scenes=2:keep=0.5(mrt5)", "temporal-pool:keep=0.5,mrt5"]
    alone, scenes, chain = Reductions(model, specs, None).methods.values()
    assert alone.module is scenes.inner.module is chain.items[1].module is not None  # type: ignore[attr-defined]
    assert scenes.name == "per-scene(mrt5)" and chain.name == "temporal-pool,mrt5"


def test_weights_in_the_folder_of_a_model_are_taken(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    gate = DeleteGate(32)
    save_file(gate.state_dict(), folder / "mrt5.safetensors")
    llm = VideoLLM.from_pretrained(str(folder))
    film = write_video(tmp_path / "film.mp4", [i / 4 for i in range(8)])
    for spec in (
        "mrt5:keep=0.25",
        "temporal-pool:keep=0.5,mrt5:keep=0.5",
        "per-scene:keep=0.5:scenes=2(mrt5)",
    ):
        answer = llm.ask(film, "what happens ?", compressor=spec)
        assert not any("untrained" in note for note in answer.notes)
    given = build("mrt5:keep=0.25")
    llm.ask(film, "what happens ?", compressor=given)
    assert given.notes()  # the caller's own stays as it is
    llm.compressor = given
    assert llm.compressor.notes() == ()
    untouched = build("aim+uniform".replace("+", ","), keep=0.5)
    llm.compressor = untouched
    assert llm.compressor is untouched
    save_file({"weight": torch.zeros(3)}, folder / "mrt5.safetensors")
    with pytest.raises(InputError, match="another method"):
        llm.ask(film, "what happens ?", compressor="mrt5:keep=0.25")


def test_a_modulation_that_does_nothing_is_none() -> None:
    modulation = Modulation(16, 8)
    assert Pyra(keep=0.5).notes() == Pyra(keep=0.5, modulation=modulation).notes() != ()
    torch.nn.init.ones_(modulation.w_b)
    assert Pyra(keep=0.5, modulation=modulation).notes() == ()


def same(one: VideoTokens, two: VideoTokens, exact: bool) -> None:
    close = torch.equal if exact else lambda a, b: torch.allclose(a, b, atol=1e-6)
    assert close(one.features, two.features)
    assert torch.equal(one.source, two.source) and torch.equal(one.span, two.span)


@pytest.mark.parametrize("grid", [(64, 2, 2), (12, 6, 6)])
@pytest.mark.parametrize("keep", [0.5, 0.25, 0.125])
def test_methods_that_are_one(grid: tuple[int, int, int], keep: float) -> None:
    tokens = clip(grid)
    left = {name: build(name, keep=keep)(tokens) for name in ("pyra", "tome", "storm")}
    same(left["pyra"], left["tome"], exact=True)
    if keep >= 0.25:
        same(left["storm"], build("temporal-pool", keep=keep)(tokens), exact=True)
    if grid[1:] == (2, 2) and keep <= 0.25:
        pooled = build("spatial-pool", keep=keep)(tokens)
        for name in ("tome", "mustdrop", "visionzip", "pyra", "timesuite"):
            same(build(name, keep=keep)(tokens), pooled, exact=False)


def test_an_answer_and_the_terminal_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "model")
    video = write_video(tmp_path / "v.mp4", [0.0, 0.5, 1.0, 1.5])
    llm = VideoLLM.from_pretrained(folder)
    said: Any = llm.ask(video, "what happens?", compressor="mrt5:keep=0.5", max_new_tokens=2)
    assert any("untrained weights" in note for note in said.notes)
    plain: Any = llm.ask(video, "what happens?", compressor="aim:keep=0.5", max_new_tokens=2)
    assert not any("untrained" in note for note in plain.notes)
    words = ["ask", str(video), "what happens?", "--model", str(folder), "--compressor", "pyra"]
    assert main([*words, "--keep", "0.5", "--max-new-tokens", "2", "--json"]) == 0
    out = capsys.readouterr()
    assert any("tome, bit by bit" in note for note in json.loads(out.out)["notes"])
    assert "note: pyra has no trained modulation" in out.err


def test_a_compressed_hub_model_says_it() -> None:
    with vidllm.compress(hf_model("qwen2_5_vl"), "mrt5", keep=0.5) as c:
        assert any("untrained weights" in note for note in c.notes)


def test_a_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = write_charades(tmp_path / "data", videos=1), save_tiny(tmp_path / "model")
    words = ["eval", "charades", "--data", str(data), "--model", str(folder), "--frames", "4"]
    words += ["--compressor", "mrt5,aim", "--keep", "0.5", "--max-new-tokens", "2", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    (note,) = json.loads(said.out)["notes"]
    assert note.startswith("mrt5 runs on untrained weights")
    assert said.err.count("untrained") == 1
