"""`vidllm bench compressors` as a process: rows, shares and the CSV."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas
from processes import vidllm

from vidllm.eval.bench.compressor_cost import Decoder

bench = partial(vidllm, "bench", "compressors")


def test_rows_tell_the_measured_share_and_the_cost(tmp_path: Path) -> None:
    out = tmp_path / "results" / "cost.csv"
    done = bench(
        *("--methods", "aim,uniform,none", "--frames", "4", "--side", "4", "--width", "16"),
        *("--runs", "1", "--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(r["compressor"], r["keep"]) for r in rows[:2]] == [("aim", 0.5), ("aim", 0.25)]
    assert [r["kept"] for r in rows[:4]] == [0.5, 0.25, 0.0938, 0.0469]
    assert all(r["ms"] > 0 and r["peak_mb"] >= 0 for r in rows if r["compressor"] != "none")
    assert all("keeps all" in r["error"] for r in rows if r["compressor"] == "none")
    assert len(pandas.read_csv(out)) == 12


def test_wrong_options_are_one_line() -> None:
    for options in (["--frames", "four"], ["--methods", "aimm"], ["--frames", "0"]):
        done = bench(*options)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_prefill_flops_of_the_decoder() -> None:
    # 7.6 B parameters without the embeddings' 1.1 B: 2 FLOPs a parameter and token.
    assert 1.30e10 < Decoder(text=0).prefill_flops(1) < 1.31e10
    assert Decoder().prefill_flops(6272) / Decoder().prefill_flops(1568) > 4
