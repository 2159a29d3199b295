"""vLLM under the plug-in answers as transformers under `vidllm.compress`, on the same weights."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_engine import CHUNK, IMAGE, NEW, ROUNDED, VIDEO, Answer, Pair, Request, alike, chosen

from vidllm.compressors import names
from vidllm.errors import InputError
from vidllm.models.serving.choice import served

LONG = Request("when? " + VIDEO + " tell me", [(16, 112, 112, 2.0)], seed=1)
SHORT = Request(VIDEO + "ab", [(4, 56, 84, 1.0)], seed=2)
MIXED = Request(
    "x" + IMAGE + "y" + VIDEO + "z" + VIDEO + "which of the two?",
    [(4, 112, 112, 2.0), (6, 56, 112, 1.0)],
    [(56, 84)],
    seed=3,
)
TEXT = Request("only words")


def methods() -> list[str]:
    """Every registered method that an engine serves, and some of several."""
    found = []
    for name in names():
        for spec in (name, f"{name}:tower=false"):
            try:
                served(spec, 0.3)
            except InputError:
                continue
            found.append(spec)
            break
    return [*found, "dycoke,uniform", "per-scene(aim)", "frame-budget:by=uniform(evs)"]


def test_every_served_method_answers_as_the_reference(pair: Pair) -> None:
    found = methods()
    assert len(found) > 15
    for spec in found:
        pair.check((MIXED, spec, 0.3))


def test_the_comparison_tells_methods_apart(pair: Pair) -> None:
    """Also where bfloat16 rounds: as many tokens, but other ones, are no answer of this method."""
    for request, spec, other in ((LONG, "evs", "uniform"), (MIXED, "divprune", "evs")):
        [answer] = pair.check((request, spec, 0.3))
        wrong = pair.reference.answer(request, other, 0.3, answer.ids)
        assert wrong.read == answer.read
        assert wrong.logprobs != pytest.approx(answer.logprobs, abs=2 * ROUNDED)


def test_a_batch_of_unequal_requests_with_different_choices(pair: Pair) -> None:
    pair.check(
        (LONG, "aim", 0.5),
        (TEXT, "none", None),
        (MIXED, "vidcom2", 0.25),
        (SHORT, "evs", 0.1),
        (LONG, "temporal-pool:k=2", None),
        (replace(LONG, seed=9), "dycoke", 0.75),
    )


def test_a_chunk_smaller_than_the_video(pair: Pair) -> None:
    [answer] = pair.check((replace(LONG, seed=21), "aim", 0.9))
    assert answer.read > 3 * CHUNK and answer.cached == 0


def test_prefix_cache_hits_change_nothing(pair: Pair) -> None:
    first = replace(LONG, seed=31)
    other = replace(first, text=first.text.replace("tell me", "what else is there to see?"))
    [cold] = pair.check((first, "aim", 0.5))
    assert cold.cached == 0
    warm = pair.check((first, "aim", 0.5), (other, "aim", 0.5))
    assert all(answer.cached > CHUNK for answer in warm)


def test_caches_are_keyed_by_method_and_share(pair: Pair) -> None:
    clip = replace(LONG, seed=41)
    for spec, keep in (("aim", 0.5), ("evs", 0.5), ("aim", 0.45), ("none", None)):
        [answer] = pair.check((clip, spec, keep))
        assert answer.cached == 0


def test_with_everything_kept_it_is_plain_vllm(pair: Pair) -> None:
    requests = [replace(LONG, seed=51), replace(MIXED, seed=52), SHORT, TEXT]
    plain = {k: v for k, v in os.environ.items() if k != "VIDLLM_COMPRESSOR"}
    # Where bfloat16 rounds, other chunks or neighbours round otherwise.
    chunk = [str(CHUNK)] if pair.rounded else []
    script = str(Path(__file__).with_name("plain_answers.py"))
    done = subprocess.run(
        [sys.executable, script, str(pair.folder), *chunk],
        input=json.dumps([asdict(request) for request in requests]),
        capture_output=True,
        text=True,
        env=plain,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = [Answer(**facts) for facts in json.loads(done.stdout.splitlines()[-1])]
    for spec, keep in (("none", None), ("aim", 1.0)):
        for request, plain_answer in zip(requests, wanted, strict=True):
            [answer] = pair.ask((request, spec, keep))
            alike(answer, plain_answer)


@pytest.mark.parametrize(
    ("request_", "options", "reason"),
    [
        (LONG, {"compressor": "fastv", "keep": 0.5}, "inside the decoder"),
        (LONG, {"compressor": "semvid", "keep": 0.5}, "reads the question"),
        (LONG, {"compressor": "aim", "keep": 2}, "keep"),
        (LONG, {"compressor": "aim"}, "how much"),
        (replace(LONG, text="see " + VIDEO.split(">", 1)[1].split("<|vision_end")[0]), {}, "ends"),
    ],
)
def test_a_request_that_cannot_be_served_fails_alone(
    pair: Pair, request_: Request, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        pair.engine.answers([request_.prompt(options)])
    pair.check((SHORT, "evs", 0.5))


def test_two_hundred_requests_of_random_sizes_and_some_that_go_away(pair: Pair) -> None:
    rng = random.Random(0)
    specs = ["aim", "evs", "uniform", "temporal-pool", "vidcom2"]
    engine = pair.engine.llm.llm_engine
    prompts = [
        Request(
            VIDEO + "?" * rng.randint(1, 40),
            [(2 * rng.randint(1, 5), 28 * rng.randint(1, 4), 28 * rng.randint(1, 4), 2.0)],
            seed=100 + n,
        ).prompt(chosen(rng.choice(specs), rng.choice([0.1, 0.25, 0.5, 1.0])))
        for n in range(200)
    ]
    for n, prompt in enumerate(prompts):
        engine.add_request(f"many-{n}", prompt, pair.engine.sampling)
    gone = {f"many-{n}" for n in range(0, 200, 20)}
    done: dict[str, int] = {}
    steps = 0
    while engine.has_unfinished_requests():
        for out in engine.step():
            if out.finished:
                done[out.request_id.split("_")[0]] = len(out.outputs[0].token_ids)
        steps += 1
        if steps == 3:  # some are under way by now, others wait
            engine.abort_request(list(gone), internal=False)
    assert {f"many-{n}" for n in range(200)} - gone <= set(done)
    assert {done[name] for name in done if name not in gone} == {NEW}
    pair.check((MIXED, "aim", 0.25))
