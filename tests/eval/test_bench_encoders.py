"""`vidllm bench encoders` and `bench learning` as processes, and the task that the latter asks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas
import pytest
import torch
from processes import vidllm
from torch.utils.flop_counter import FlopCounterMode

from vidllm.eval.bench import encoder_cost
from vidllm.eval.bench.encoder_floor import products
from vidllm.eval.bench.encoder_learning import ASKED, NOTHING, Reader, draw_clips
from vidllm.eval.bench.measure import Peak, growth

bench = partial(vidllm, "bench")


def test_encoders_stand_beside_their_rivals(tmp_path: Path) -> None:
    out = tmp_path / "new" / "cost.csv"
    names = "ssd,sdpa,transformers MambaMixer,mamba-ssm Mamba2"
    done = bench(
        *("encoders", "--encoders", names, "--lengths", "64,2048,4096", "--dims", "64"),
        *("--runs", "1", "--device", "cpu", "--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 24 == len(pandas.read_csv(out))
    measured = [row for row in rows if not row["error"]]
    assert {row["encoder"] for row in measured} >= {"ssd", "sdpa", "transformers MambaMixer"}
    assert all(row["ms"] > 0 and row["exponent"] and row["speed_up"] for row in measured)
    assert all(
        row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"], rel=0.1) for row in measured
    )
    assert all("GPU" in r["error"] or "installed" in r["error"] for r in rows if r["error"])


@torch.inference_mode()
@pytest.mark.parametrize("ways", [1, 2])
def test_the_floor_of_a_layer_is_its_matrix_products(ways: int) -> None:
    layer, x = encoder_cost._layer("ssd", 64, ways), torch.randn(1, 128, 64)
    with FlopCounterMode(display=False) as whole:
        layer(x)
    least = products(layer, x)
    with FlopCounterMode(display=False) as floor:
        least()
    assert floor.get_total_flops() == whole.get_total_flops() > 0


def test_learning_keeps_a_row_a_length_and_seed(tmp_path: Path) -> None:
    out = tmp_path / "learning.csv"
    done = bench(
        "learning", "--encoders", "identity", "--steps", "2", "--seeds", "2", "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    rows = pandas.read_csv(out)
    assert len(rows) == 8 and set(rows["frames"]) == {64, 128, 256, 512}
    assert rows[list(ASKED)].to_numpy().min() >= 0


@pytest.mark.parametrize(
    "options",
    [
        ["encoders", "--encoders", "sdd"],
        ["encoders", "--lengths", "many"],
        ["encoders", "--ways", "3"],
        ["encoders", "--dtype", "float64"],
        ["learning", "--encoders", "sdd"],
    ],
)
def test_wrong_options_are_one_line(options: list[str]) -> None:
    done = bench(*options)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_the_answer_is_out_of_reach_of_a_short_filter() -> None:
    clips = draw_clips(8, 256, torch.Generator().manual_seed(0))
    asked = clips["memory"] != NOTHING
    assert bool(asked.any(1).all())
    assert torch.equal(asked, clips["duration"] != NOTHING)
    assert 0.3 < clips["duration"][asked].float().mean() < 0.7
    # The frames just before a cue hold noise alone: nothing that a kernel of nine could read.
    power = clips["x"].square().mean(-1)
    rows, frames = torch.nonzero(asked, as_tuple=True)
    for back in range(1, 9):
        assert power[rows, frames - back].max() < 0.4
    said = Reader("identity")(clips)
    assert [said[key].shape[-1] for key in ASKED] == [6, 6, 2]


def test_growth_is_the_exponent() -> None:
    assert growth([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert growth([8], [1.0]) != growth([8], [1.0])  # one length says nothing: NaN
    with Peak() as peak:
        kept = torch.ones(40_000_000)  # too large for memory that was freed before
    assert peak.megabytes >= 100 and kept.sum() == 40_000_000
