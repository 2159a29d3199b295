"""docs/models.md: made of what the tests found, and what is refused on every family."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_results import Results
from hf_tiny import FAMILIES, Video, hf_inputs, hf_model, hooks_of, tokenizer

from vidllm import InputError
from vidllm.ask.compression import compress
from vidllm.cli import listing, pages
from vidllm.compressors import Compressor, build, names
from vidllm.models.families.served import FAMILIES as SERVED

Record = Callable[[str, object], None]
FILTER = "mustdrop-filter,mustdrop-cache"


class Hears(Compressor):
    """Needs what no model gives."""

    name = "hears"
    needs = ("audio-attention",)

    def plan(self, tokens: Any, budget: int, query: Any = None) -> Any:
        raise AssertionError("refused before any work")


def _attention(name: str) -> Callable[[Any, dict[str, Any]], None]:
    def ask(model: Any, _inputs: dict[str, Any]) -> None:
        _decoder(model).config._attn_implementation = name
        _open(model, "aim")

    return ask


def _chunked(model: Any, _inputs: dict[str, Any]) -> None:
    decoder = _decoder(model)
    decoder.config.layer_types = ["chunked_attention"] * len(decoder.layers)
    _open(model, "aim")


def _call(**more: Any) -> Callable[[Any, dict[str, Any]], None]:
    def ask(model: Any, inputs: dict[str, Any]) -> None:
        told = {**inputs, **{k: v(model, inputs) for k, v in more.items()}}
        with compress(model, "random", keep=0.5, processor=tokenizer()):
            model(**{k: v for k, v in told.items() if v is not None})

    return ask


def _generate(spec: str, **more: Any) -> Callable[[Any, dict[str, Any]], None]:
    def ask(model: Any, inputs: dict[str, Any]) -> None:
        with compress(model, spec, keep=0.5, processor=tokenizer()):
            model.generate(**inputs, max_new_tokens=4, **more)

    return ask


def _decoder(model: Any) -> Any:
    return getattr(model.model, "language_model", None) or model.model.text_model


def _open(model: Any, spec: Any, **options: Any) -> None:
    keep = {} if isinstance(spec, Compressor) else {"keep": 0.5}
    compress(model, spec, **{"processor": tokenizer(), **keep, **options}).__enter__()


MERGING = "merging inside the vision tower"
#: What is asked for -> how; what a family does serve is left out in `test_what_is_refused`.
CASES: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "attention without a mask function": _attention("paged|sdpa"),
    "assisted decoding where layers differ": _generate("fastv", prompt_lookup_num_tokens=2),
    MERGING: lambda m, _: _open(m, "tome"),
    "several prompts packed in a row": _call(
        attention_mask=lambda _m, _i: None,
        position_ids=lambda _m, i: torch.arange(i["input_ids"].shape[1])[None] % 30,
    ),
    "a decoder with chunked attention": _chunked,
    "a method whose signal the model does not give": lambda m, _: _open(m, Hears(keep=0.5)),
    "mustdrop-cache alone": lambda m, _: _open(m, "mustdrop-cache"),
    "a cache stage that closes gaps": lambda m, _: _open(m, FILTER + ":positions=contiguous"),
    "no processor": lambda m, _: _open(m, "aim", processor=None),
    "two compress blocks at once": lambda m, _: _twice(m),
    "labels that are shifted already": _call(shift_labels=lambda _m, i: i["input_ids"]),
    "inputs_embeds instead of input_ids": _call(
        input_ids=lambda _m, _i: None,
        inputs_embeds=lambda m, i: m.get_input_embeddings()(i["input_ids"]),
    ),
    "a prompt without some of its video tokens": _call(
        input_ids=lambda _m, i: i["input_ids"][:, :-16],
        attention_mask=lambda _m, i: i["attention_mask"][:, :-16],
        mm_token_type_ids=lambda _m, i: (
            i["mm_token_type_ids"][:, :-16] if "mm_token_type_ids" in i else None
        ),
    ),
    "a static cache where layers differ": _generate("fastv", cache_implementation="static"),
}


def _twice(model: Any) -> None:
    with compress(model, "aim", keep=0.5, processor=tokenizer()):
        _open(model, "evs")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", sorted(set(CASES) - {MERGING}))
def test_what_is_refused(family: str, case: str, record_property: Record) -> None:
    if case == "no processor" and family not in ("internvl", "smolvlm"):
        _open(copy.deepcopy(hf_model(family)), "aim", processor=None)  # needs none
        return
    refused(family, case, record_property)


@pytest.mark.parametrize("case", [MERGING])
@pytest.mark.parametrize(
    "kind", ["llava_next_video", "video_llava", "gemma4", "minicpmv4_6", "molmo2", "perception_lm"]
)
def test_which_towers_cannot_merge(kind: str, case: str, record_property: Record) -> None:
    refused(kind, case, record_property)


def refused(family: str, case: str, record_property: Record) -> None:
    """Ask for it, and note the line."""
    model = copy.deepcopy(hf_model(family))
    inputs = hf_inputs(family, [[3, Video(4), 12]])
    model(**inputs)  # transformers hangs on hooks of its own when it runs first
    hooks = hooks_of(model)
    with pytest.raises(InputError) as caught:
        CASES[case](model, inputs)
    line = str(caught.value)
    assert line and "\n" not in line
    assert hooks_of(model) == hooks
    record_property("refused", line)


def test_the_matrix_covers_every_family_and_compressor() -> None:
    """Nothing that is registered is missing, and nothing failed when the file was made."""
    found = pages.models_matrix()
    assert set(found["matrix"]) == set(SERVED), _MAKE
    for family, ways in found["matrix"].items():
        wanted = set(names()) - {"none"} if family in FAMILIES else set()
        assert set(ways) == {"sdpa", "eager"}
        # Families that share their code with these: one method at least in every stage but "cache".
        acting = {item.stage for spec in ways["sdpa"] for item in build(spec, keep=0.5).methods}
        assert acting >= {"vision", "tokens", "prefill"}, family
        for way, specs in ways.items():
            there = {word.partition(":")[0] for spec in specs for word in spec.split(",")}
            assert wanted <= there, f"{family}, {way}: {wanted - there} are missing; {_MAKE}"
            for spec, cells in specs.items():
                passed = dict.fromkeys(("one", "two", "whole"), "passed")
                assert cells == passed, f"{family}, {way}, {spec}: {cells}"
    assert set(found["refused"]) == set(CASES), _MAKE


_MAKE = "run `make models`"


def test_the_page_is_what_the_results_say(root: Path) -> None:
    written = (root / "docs" / "models.md").read_text(encoding="utf-8")
    assert written == pages.page("models"), _MAKE


def test_a_failed_cell_shows_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(json.dumps(pages.models_matrix()))
    found["matrix"]["smolvlm"]["eager"]["aim"]["two"] = "failed"
    del found["matrix"]["internvl"]["sdpa"]["evs"]["one"]
    monkeypatch.setattr(pages, "models_matrix", lambda: found)
    lines = pages.page("models").splitlines()
    aim = next(line for line in lines if line.startswith("| `aim` |"))
    evs = next(line for line in lines if line.startswith("| `evs` |"))
    columns = next(line for line in lines if line.startswith("| compressors |")).split("|")
    assert aim.split("|")[columns.index(" SmolVLM2 ")] == " 5 of 6 "
    assert evs.split("|")[columns.index(" InternVL ")] == " 5 of 5 "  # untried is not failed
    assert aim.count("6 of 6") == evs.count("6 of 6") == 5


def test_results_without_the_file_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "files", lambda _package: tmp_path)
    with pytest.raises(InputError, match="run this in the repository"):
        pages.page("models")


def test_shipped_weights_and_families_are_listed() -> None:
    found = {entry["name"]: entry for entry in listing.entries("models")}
    assert {family for family, _, _ in SERVED.values()} <= set(found)
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in found["Qwen2.5-VL"]["summary"]
    assert found["Qwen2.5-VL"]["kind"] == "qwen2_5_vl"


def test_results_keep_the_worst_outcome_of_a_test(tmp_path: Path) -> None:
    class Item:
        originalname = "test_half_precision"

        class callspec:
            params = {"family": "smolvlm", "spec": "aim"}  # noqa: RUF012

    class Report:
        when, user_properties = "call", ()

        def __init__(self, outcome: str) -> None:
            self.outcome = outcome

    results = Results()
    for outcome in ("passed", "failed", "passed"):
        results.add(Item(), Report(outcome))  # type: ignore[arg-type]
    results.write(tmp_path / "new" / "found.json")
    written = json.loads((tmp_path / "new" / "found.json").read_text())
    assert written["tests"] == {"test_half_precision": {"smolvlm": "failed"}}
    assert written["versions"]["torch"] == torch.__version__.partition("+")[0]
