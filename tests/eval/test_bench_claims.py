"""`vidllm bench claim`: a file grows arm by arm, and holds nothing of other settings."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vidllm.cli.main import main
from vidllm.errors.writing import csv_text


def words(out: Path, *more: str, recipe: str = "dist", steps: int = 1) -> list[str]:
    clips = ["--clips", "2"] if recipe in ("nasva", "tem-adapter") else []
    return ["bench", "claim", recipe, "--size", "tiny", "--steps", str(steps), "--seeds", "1",
            "--tested", "2", *clips, "--batch", "2", "--out", str(out), *more]  # fmt: skip


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def row(arm: str, **other: object) -> dict[str, object]:
    """A row of the settings of `words`."""
    return {"recipe": "dist", "arm": arm, "seed": 0, "measure": "order", "value": 0.5, "low": 0.4,
            "high": 0.6, "n": 10, "size": "tiny", "steps": 1, "device": "cpu", **other}  # fmt: skip


def test_rows_of_other_arms_stay_and_an_arm_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "claim.csv"
    old = [row("frozen", value=0.1), row("tuned"), row("before", seed="", steps=0)]
    out.write_text(csv_text(old), encoding="utf-8")
    assert main(words(out, "--arms", "frozen")) == 0
    found = rows_of(out)
    assert [r["arm"] for r in found[:2]] == ["tuned", "before"]
    assert found[:2] == [{k: str(v) for k, v in one.items()} for one in old[1:]]
    assert {r["arm"] for r in found[2:]} == {"frozen"} and len(found) > 4
    (order,) = [r for r in found if (r["arm"], r["measure"]) == ("frozen", "order")]
    assert order["value"] == "0.5"
    first = [r for r in found if r["arm"] != "tuned"]
    assert main(words(out, "--arms", "tuned")) == 0
    again = rows_of(out)
    assert again[: len(first)] == first and {r["arm"] for r in again[len(first) :]} == {"tuned"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"steps": 7}, "steps 7, not 1"),
        ({"size": "small"}, "size small, not tiny"),
        ({"device": "cuda"}, "device cuda, not cpu"),
        ({"recipe": "squeezetime"}, "recipe squeezetime, not dist"),
    ],
)
def test_rows_of_other_settings_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, object], told: str
) -> None:
    out = tmp_path / "claim.csv"
    out.write_text(csv_text([row("tuned", **other)]), encoding="utf-8")
    before = out.read_bytes()
    assert main(words(out, "--arms", "frozen")) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # transformers may draw bars before it
    assert f"{out} has rows of tuned with {told}: measure with that too, or give another" in said
    assert out.read_bytes() == before
    out.write_text(csv_text([row("frozen", **other)]), encoding="utf-8")
    if "recipe" not in other:  # the arm's own rows are replaced, whatever they were
        assert main(words(out, "--arms", "frozen")) == 0
        assert {(r["arm"], r["size"], r["steps"]) for r in rows_of(out)} == {
            ("frozen", "tiny", "1")
        }


@pytest.mark.parametrize("recipe", ["nasva", "tem-adapter", "squeezetime"])
def test_every_claim_refuses_rows_of_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    out, arm = tmp_path / "claim.csv", {"nasva": "projection", "tem-adapter": "both"}
    out.write_text(csv_text([row("other", recipe=recipe, steps=7)]), encoding="utf-8")
    named = words(out, "--arms", arm.get(recipe, "squeezetime"), recipe=recipe)
    assert main(named) == 2
    assert "has rows of other with steps 7, not 1: measure with" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"a,b\n1,2\n", b"\xff\xfe", b"recipe,arm\nx,y,z\n"])
def test_a_file_that_is_no_claim_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    out = tmp_path / "claim.csv"
    out.write_bytes(text)
    assert main(words(out, "--arms", "frozen")) == 2
    assert "is no CSV of vidllm bench claim: give another --out" in capsys.readouterr().err
    assert out.read_bytes() == text


@pytest.mark.parametrize(
    ("recipe", "option", "says"),
    [
        ("dist", ["--clips", "4"], "dist sees none twice: leave it out"),
        ("squeezetime", ["--init", "vidllm-stage"], "is trained from nothing: leave out --init"),
    ],
)
def test_options_that_a_claim_does_not_use_are_refused(
    recipe: str, option: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(tmp_path / "claim.csv", recipe=recipe), *option]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert not (tmp_path / "claim.csv").exists()
