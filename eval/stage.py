"""The task `stage`: ask a model everything that the benchmark asks, and score the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidllm.stage.annotations import tidy
from vidllm.stage.files import VERSION, Sample
from vidllm.stage.questions import QA_KINDS

from .baselines import baselines, cached_fit
from .metrics import Reply, summarise
from .records import AnswerFile, Cost

if TYPE_CHECKING:
    from vidllm.answer import Answer
    from vidllm.options import CommonOptions
    from vidllm.pipeline import VideoLLM
    from vidllm.timecode import TimeCode

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Run:
    """A model with the options that it answers under, and what it is asked.

    Args:
        llm: the model.
        options: the common options of the command; their seed is the benchmark's.
        split: of the benchmark.
        samples: clips with questions.
        data: folder of all benchmarks (the baselines are kept there too).
    """

    llm: VideoLLM
    options: CommonOptions
    split: str
    samples: Sequence[Sample]
    data: Path

    def settings(self) -> dict[str, Any]:
        """What the answers depend on, for people and for `AnswerFile`."""
        compressor = self.llm.compressor
        keep = self.options.keep
        return {
            "task": "stage",
            "version": VERSION,
            "split": self.split,
            "seed": self.options.seed,
            "model": model_label(self.options),
            "weights": weights_mark(self.llm),
            "compressor": self.options.compressor or compressor.name,
            "keep": compressor.keep if keep is None else keep,
            "frames": None if self.options.fps else self.options.frames or self.llm.usual_frames,
            "fps": self.options.fps,
            "reader": self.options.reader,
        }


def evaluate(
    run: Run,
    *,
    out: Path | None = None,
    with_baselines: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask, score, and return the result that `vidllm eval stage --json` prints.

    Args:
        run: the model and what it is asked.
        out: file of all answers, taken up if it is there.
        with_baselines: also score answers that never look at the video.
        progress: called with (clips done, clips).

    Raises:
        InputError: an `out` file of another run.
        WorkError: files that cannot be read or written.
    """
    settings = run.settings()
    answers = AnswerFile(out, settings)
    for done, sample in enumerate(run.samples, 1):
        left = [
            k for k in range(len(sample.questions)) if f"{sample.vid}-{k}" not in answers.replies
        ]
        if left:
            asked = [sample.questions[k] for k in left]
            clip = run.options.open(str(sample.path))
            said = run.llm.ask(clip, [tidy(q.text) for q in asked])
            replies = [reply(run.llm.code, sample, k, a) for k, a in zip(left, said, strict=True)]
            answers.add(replies, said[0].receipt.as_dict())
        if progress is not None:
            progress(done, len(run.samples))
    ids = [f"{s.vid}-{k}" for s in run.samples for k in range(len(s.questions))]
    scores = summarise([answers.replies[i] for i in ids], QA_KINDS, run.options.seed)
    costs = [answers.costs[f"{sample.vid}-0"] for sample in run.samples]
    named = ("split", "seed", "model", "compressor", "keep")
    result = {**{key: settings[key] for key in named}, **scores, **mean_costs(costs)}
    if with_baselines:
        result["baselines"] = baselines(run.samples, cached_fit(run.data), run.options.seed)
    return result


def reply(code: TimeCode, sample: Sample, number: int, answer: Answer) -> Reply:
    """Put what the model said to question `number` of a sample beside what is true."""
    question = sample.questions[number]
    spans = tuple((s.start, s.end) for s in answer.spans)
    found = code.find(answer.raw, sample.duration)
    ends = [*(f.begin for f in found[1:]), len(answer.raw)]
    said = tuple(answer.raw[f.end : end].strip() for f, end in zip(found, ends, strict=False))
    if question.kind == "caption" and (events := code.captions(answer.raw, sample.duration)):
        spans = tuple((span.start, span.end) for span, _ in events)
        said = tuple(sentence for _, sentence in events)
    return Reply(
        id=f"{sample.vid}-{number}",
        vid=sample.vid,
        kind=question.kind,
        question=tidy(question.text),
        duration=sample.duration,
        truth=question.answer,
        truth_spans=question.spans,
        text=answer.text,
        spans=spans,
        said=said,
    )


def mean_costs(costs: Sequence[Cost]) -> dict[str, Any]:
    """Means over clips: frames, tokens before and after compression, seconds by stage."""
    stages = list(dict.fromkeys(stage for cost in costs for stage in cost["seconds"]))
    seconds = {
        stage: float(np.mean([cost["seconds"].get(stage, 0.0) for cost in costs]))
        for stage in stages
    }
    counts = ("frames", "tokens_full", "tokens_kept")
    means = {key: round(float(np.mean([cost[key] for cost in costs])), 2) for key in counts}
    whole = {key: int(v) if v == int(v) else v for key, v in means.items()}
    return {**whole, "seconds": {stage: round(value, 4) for stage, value in seconds.items()}}


def model_label(options: CommonOptions) -> str:
    """The name of the model for a table: as it was given, or that of the shipped default."""
    from vidllm.shipped import default_model

    return options.model or default_model().name


def weights_mark(llm: VideoLLM) -> str:
    """A short hash that tells two trainings of the same model apart (samples every tensor)."""
    digest = hashlib.sha256()
    for name, value in llm.model.named_parameters():
        digest.update(name.encode())
        flat = value.detach().flatten()
        few = flat[:: max(1, flat.numel() // 16)][:16]
        digest.update(few.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
