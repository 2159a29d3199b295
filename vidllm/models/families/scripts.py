"""Each family's way to write a video and its seconds into a prompt, as data, and the writing.

`<1.5 seconds>` before a pair of frames (Qwen3-VL), `Frame from 00:01:` (SmolVLM2), `Time 1.0s:`
(VideoLLaMA3), `Frame1:` (InternVL), nothing (LLaVA-OneVision), and for Qwen2.5-VL positions that
are seconds apart. The texts are those of the families' processors in transformers; the seconds are
the clip's own. Of families whose pixels come from their own processor, that writes the video too
(`own_processor`).

A prompt is rendered by the checkpoint's chat template where it has one, else by the family's
documented one (`Script.template`). The mark of the video in it is then replaced by what the
family's processor writes there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidllm.errors import InputError, WorkError

from ..dialogue import ALONE, Dialogue
from .family import Adapter, grids_of

_CHATML = "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
#: The words that tell times to families whose prompts do not: those of LLaVA-Video
#: (arXiv 2410.02713).
TIMES = (
    "The video lasts for {duration:.2f} seconds, and {count} frames are uniformly sampled from it. "
    "These frames are located at {times}.Please answer the following questions related to this "
    "video.\n"
)
#: How people ask such models for times.
TASKS = {
    "ground": (
        "When does this happen in the video: {query}? Answer with the start and the end in "
        "seconds, as 'from START to END seconds'."
    ),
    "highlights": (
        "Find every moment of the video that fits: {query}. Give each one's start and end in "
        "seconds, as 'from START to END seconds', one a line."
    ),
    "caption": (
        "Describe what happens in the video, one event a line. Begin each line with the event's "
        "time in seconds, as 'from START to END seconds:'."
    ),
    "question": "{query} Give times in seconds, as 'from START to END seconds'.",
}


@dataclass(frozen=True)
class Placed:
    """A clip as its prompt needs it.

    Attributes:
        seconds: (T,) of every frame that the model is shown. duration: of the video.
        grid: (T', rows, columns) of its tokens. counts: of tokens for each of the T' slots.
        marks: texts of the family's own tokens: "pad" (one video token), "start", "end", …
        written: what the family's own processor writes in the video's place, where it is asked.
        pace: seconds from slot to slot, where they are not those between the frames.
    """

    seconds: Sequence[float]
    duration: float
    grid: tuple[int, int, int]
    counts: Sequence[int]
    marks: Mapping[str, str]
    written: str = ""
    pace: float | None = None

    @property
    def slots(self) -> list[float]:
        """The middle of the frames that each of the T' slots stands for, in seconds."""
        size = -(-len(self.seconds) // self.grid[0])
        padded = [*self.seconds, *[self.seconds[-1]] * (size * self.grid[0] - len(self.seconds))]
        return [(padded[i] + padded[i + size - 1]) / 2 for i in range(0, len(padded), size)]


def _plain(clip: Placed) -> str:
    return clip.marks["pad"] * sum(clip.counts)


def _written(clip: Placed) -> str:
    return clip.written


def _newline(clip: Placed) -> str:
    return clip.marks["pad"] * (sum(clip.counts) + 1)


def _qwen3(clip: Placed) -> str:
    start, pad, end = (clip.marks[name] for name in ("start", "pad", "end"))
    told = zip(clip.slots, clip.counts, strict=True)
    return "".join(f"<{time:.1f} seconds>{start}{pad * count}{end}" for time, count in told)


def _internvl(clip: Placed) -> str:
    start, pad, end = (clip.marks[name] for name in ("start", "pad", "end"))
    frames = enumerate(clip.counts, 1)
    return "\n".join(f"Frame{number}: {start}{pad * count}{end}" for number, count in frames)


def _smolvlm(clip: Placed) -> str:
    around, whole, pad = (clip.marks[name] for name in ("around", "whole", "pad"))
    length = int(clip.duration)
    clock = f"{length // 3600}:{length // 60 % 60:02d}:{length % 60:02d}"
    text = (
        f"You are provided the following series of {in_words(len(clip.seconds))} frames from a "
        f"{clock} [H:MM:SS] video.\n"
    )
    for time, count in zip(clip.seconds, clip.counts, strict=True):
        minutes, rest = divmod(int(time), 60)
        text += f"\nFrame from {minutes:02d}:{rest:02d}:{around}{whole}{pad * count}{around}"
    return text + "\n\n"


def _videollama3(clip: Placed) -> str:
    told = zip(clip.seconds, clip.counts, strict=True)
    return ",".join(f"Time {time:.1f}s:" + clip.marks["pad"] * count for time, count in told)


@dataclass(frozen=True)
class Script:
    """One family's way to write a prompt.

    Attributes:
        clock: how seconds are told: "stamps" (as text), "positions" (how far apart frames are) or
            "none".
        frames: how many are sampled when a call does not say.
        expand: what stands where the chat template marks the video.
        mark: the video in a rendered template; content: a user's turn; template: the documented
            chat around it. Braces are filled with `marks`, `question` and `content`.
        fixed: True to use `template` also where the checkpoint has one, as the library does.
        marks: the family's tokens: an id of the config (a name that ends in "_id"), an attribute
            of the tokenizer, or else the text itself.
        opens: True where the family's processor puts the token of a beginning before the chat.
    """

    clock: str
    frames: int
    expand: Callable[[Placed], str]
    content: str
    mark: str = "{video}"
    template: str = _CHATML
    fixed: bool = False
    opens: bool = False
    marks: Mapping[str, tuple[str, str]] = field(default_factory=dict)


_VIDEO = {"pad": ("video_token_id", ""), "video": ("video_token_id", "")}
_EDGES = {"start": ("vision_start_token_id", ""), "end": ("vision_end_token_id", "")}
SCRIPTS: dict[str, Script] = {
    "qwen2_5_vl": Script(
        "positions",
        32,
        _plain,
        "{start}{video}{end}{question}",
        template=_SYSTEM + _CHATML,
        marks={**_VIDEO, **_EDGES},
    ),
    "qwen3_vl": Script(
        "stamps",
        32,
        _qwen3,
        "{start}{video}{end}{question}",
        # Every pair of frames brings its own edges; Qwen's processor puts them in place of these.
        mark="{start}{video}{end}",
        marks={**_VIDEO, **_EDGES},
    ),
    "llava_onevision": Script("none", 32, _newline, "{video}\n{question}", marks=_VIDEO),
    "internvl": Script(
        "none",
        32,
        _internvl,
        "{video}\n{question}",
        marks={
            "pad": ("image_token_id", ""),
            "video": ("video_token", "<video>"),
            "start": ("start_image_token", "<img>"),
            "end": ("end_image_token", "</img>"),
        },
    ),
    "smolvlm": Script(
        "stamps",
        64,
        _smolvlm,
        "{video}{question}",
        template="<|im_start|>User: {content}<end_of_utterance>\nAssistant:",
        fixed=True,
        marks={
            "pad": ("image_token_id", ""),
            "video": ("video_token", "<video>"),
            "around": ("fake_image_token", "<fake_token_around_image>"),
            "whole": ("global_image_token", "<global-img>"),
        },
    ),
    "video_llama_3": Script(
        "stamps",
        64,
        _videollama3,
        "{video}\n{question}",
        template=_SYSTEM + _CHATML,
        marks=_VIDEO,
    ),
}
# Families whose own processor writes the video; a template is there for checkpoints without one.
_QWEN: dict[str, Any] = {"content": "{start}{video}{end}{question}", "marks": {**_VIDEO, **_EDGES}}
_BOTH = {
    "start": ("vision_bos_token", "<|vision_bos|>"),
    "end": ("vision_eos_token", "<|vision_eos|>"),
}
_OMNI: dict[str, Any] = {**_QWEN, "template": _SYSTEM + _CHATML, "marks": {**_VIDEO, **_BOTH}}
SCRIPTS |= {
    "qwen2_vl": Script("none", 32, _written, **_QWEN, template=_SYSTEM + _CHATML),
    "qwen3_vl_moe": Script("stamps", 32, _written, **_QWEN),
    "qwen3_5": Script("stamps", 32, _written, **_QWEN),
    "qwen3_5_moe": Script("stamps", 32, _written, **_QWEN),
    "qwen2_5_omni_thinker": Script("positions", 32, _written, **_OMNI),
    "qwen3_omni_moe_thinker": Script("positions", 32, _written, **_OMNI),
    "cosmos3_omni": Script("stamps", 32, _written, **_QWEN),
    "cosmos3_edge": Script("stamps", 32, _written, **_QWEN),
}
_GLM: dict[str, Any] = {
    "content": "<|begin_of_video|>{video}<|end_of_video|>{question}",
    "template": "[gMASK]<sop><|user|>\n{content}<|assistant|>\n",
    "marks": {"pad": ("image_token_id", ""), "video": ("video_token", "<|video|>")},
}
_LLAVA: dict[str, Any] = {
    "content": "{video}\n{question}",
    "template": "USER: {content} ASSISTANT:",
    "marks": _VIDEO,
}
SCRIPTS |= {
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), Script("stamps", 32, _written, **_GLM)),
    "gemma4": Script(
        "stamps",
        32,
        _written,
        "{video}{question}",
        template="<bos><|turn>user\n{content}<turn|>\n<|turn>model\n",
        marks=_VIDEO,
    ),
    "minicpmv4_6": Script("none", 64, _written, "{video}\n{question}", marks=_VIDEO),
    "minicpmv4_7": Script("none", 64, _written, "{video}\n{question}", marks=_VIDEO),
    "molmo2": Script(
        "stamps",
        64,
        _written,
        "{video}{question}",
        marks={"pad": ("image_token_id", ""), "video": ("video_token", "<|video|>")},
        opens=True,
    ),
    "llava_next_video": Script("none", 32, _written, **_LLAVA),
    "video_llava": Script("none", 8, _written, **_LLAVA),
    "perception_lm": Script(
        "none",
        32,
        _written,
        "{video}{question}",
        template="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        marks=_VIDEO,
    ),
    "ernie4_5_vl_moe": Script(
        "none",
        32,
        _written,
        "<|VIDEO_START|>{video}<|VIDEO_END|>{question}",
        template="<|begin_of_sentence|>User: {content}\nAssistant: ",
        marks=_VIDEO,
    ),
    "exaone4_5": Script(
        "none",
        32,
        _written,
        "<vision>{video}</vision>{question}",
        template="<|user|>\n{content}<|endofturn|>\n<|assistant|>\n",
        marks=_VIDEO,
    ),
}


_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A whole number below a million in English, as num2words writes it."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[rest]}" if rest else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, size)
    joint = " and " if rest < 100 else ", "
    return f"{in_words(count)} {name}" + (joint + in_words(rest) if rest else "")


_QUESTION, _SYSTEM_PLACE = "{question}", "{system}"


def marks_of(script: Script, config: Any, tokenizer: Any) -> dict[str, str]:
    """The texts of a family's own tokens in a checkpoint.

    Raises:
        InputError: a tokenizer that lacks the token of the config's video id.
    """
    found = {}
    for name, (source, text) in script.marks.items():
        if not source.endswith("_id"):
            found[name] = str(getattr(tokenizer, source, None) or text)
            continue
        token = tokenizer.convert_ids_to_tokens(int(getattr(config, source)))
        if token is None:
            raise InputError(
                f"the tokenizer has no token {getattr(config, source)}, the config's {source}: "
                "get the tokenizer's files of this very model"
            )
        found[name] = str(token)
    return found


def place(
    adapter: Adapter,
    marks: Mapping[str, str],
    pixels: Mapping[str, Tensor],
    seconds: Sequence[float],
    duration: float,
    written: str = "",
) -> Placed:
    """A clip's places in the prompt, from the pixels that were made of it.

    Raises:
        InputError: a text of the family's own processor that does not hold one video.
    """
    told = [float(s) for s in seconds]
    if written:  # as the family finds a video in any prompt
        ids = adapter.tokenizer(written, add_special_tokens=False, return_tensors="pt")["input_ids"]
        clips = adapter.clips(ids, pixels, None)
        if len(clips) != 1:
            raise InputError(f"{adapter.family}: its processor writes the clip as {len(clips)}")
        steps, rows, columns = clips[0].tokens.grid
        counts = [rows * columns] * steps
        return Placed(told, duration, (steps, rows, columns), counts, marks, written)
    config, grid = adapter.config, pixels.get("video_grid_thw")
    side = int(getattr(adapter, "cells", 0) or -(-int(getattr(adapter, "side", 0)) // 2))
    shape = (len(seconds), side, side)
    if grid is not None:
        sides: Any = getattr(config.vision_config, "spatial_merge_size", None)
        merges = pixels.get("video_merge_sizes")
        shape = grids_of(grid, int(sides) if merges is None else merges.tolist())[0]
    counts = [shape[1] * shape[2]] * shape[0]
    mask = pixels.get("video_compression_mask")
    if mask is not None:
        counts = [int(part.sum()) for part in mask.view(shape[0], -1)]
    return Placed(told, duration, shape, counts, marks)


def chat(
    script: Script,
    tokenizer: Any,
    template: str | None,
    marks: Mapping[str, str],
    system: bool = False,
    turns: int = 0,
) -> str:
    """The chat around a question, with the mark of the video and "{question}" in it.

    Args:
        template: the checkpoint's own, or None.
        system: with "{system}". turns: with so many "{asked 0}" and "{said 0}" before, the video
            in the first one.

    Raises:
        WorkError: a template that has no place for a video.
        InputError: one that has none for a system prompt or turns.
    """
    asked = [*(f"{{asked {n}}}" for n in range(turns)), _QUESTION]
    said = [f"{{said {n}}}" for n in range(turns)]
    inside = script.content.format(**marks, question=asked[0])
    lacking = (
        "the model's chat template has no place for a system prompt or earlier turns: ask "
        "without system and history"
    )
    if template is None or script.fixed:
        if system or turns:
            raise InputError(lacking)
        return script.template.replace("{content}", inside)
    for parts in (True, False):  # templates of text models take the content as a text
        first: Any = [{"type": "video"}, {"type": "text", "text": asked[0]}] if parts else inside
        later = [[{"type": "text", "text": t}] if parts else t for t in (*asked[1:], *said)]
        users, others = [first, *later[:turns]], later[turns:]
        messages = [{"role": "user", "content": users[0]}]
        for user, other in zip(users[1:], others, strict=True):
            messages += [{"role": "assistant", "content": other}, {"role": "user", "content": user}]
        if system:
            told: Any = [{"type": "text", "text": _SYSTEM_PLACE}] if parts else _SYSTEM_PLACE
            messages.insert(0, {"role": "system", "content": told})
        try:
            text = str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception:  # jinja's errors, or whatever the template raises itself
            continue
        wanted = [marks["video"], *asked, *said, *([_SYSTEM_PLACE] if system else [])]
        if all(text.count(place) == 1 for place in wanted):
            start = str(tokenizer.bos_token or tokenizer.eos_token) if script.opens else ""
            return text if text.startswith(start) else start + text
    if system or turns:
        raise InputError(lacking)
    raise WorkError("the model's chat template has no place for a video and a question")


def write(
    script: Script,
    frame: str,
    clip: Placed,
    question: str,
    *,
    times: bool = False,
    dialogue: Dialogue = ALONE,
) -> str:
    """The whole prompt, every video token written out.

    Args:
        frame: what `chat` gave for such a dialogue.
        times: put the seconds of the frames before what is asked beside the video, in words.
    """
    mark = script.mark.format(**clip.marks)
    mark = mark if mark in frame else clip.marks["video"]
    asked = [*(turn[0] for turn in dialogue.turns), question]
    if times:
        told = ",".join(f"{time:.2f}s" for time in clip.seconds)
        count = len(clip.seconds)
        asked[0] = TIMES.format(duration=clip.duration, count=count, times=told) + asked[0]
    texts = {_QUESTION: asked[-1], _SYSTEM_PLACE: dialogue.system}
    for number, (text, turn) in enumerate(zip(asked, dialogue.turns, strict=False)):
        texts |= {f"{{asked {number}}}": text, f"{{said {number}}}": turn[1]}
    places = re.compile("|".join(map(re.escape, texts)))
    before, after = (  # at once: what is said may hold the name of a place
        places.sub(lambda place: texts[place[0]], part) for part in frame.split(mark)
    )
    return before + script.expand(clip) + after


def shorten(text: str, pad: str) -> str:
    """The prompt for people: runs of video tokens as "<video 196>"."""
    one = re.escape(pad)
    return re.sub(f"(?:{one})+", lambda run: f"<video {len(run[0]) // len(pad)}>", text)


def pace(seconds: Sequence[float], slots: int, length: float) -> float:
    """Seconds from one slot of frames to the next, in the mean.

    Args:
        seconds: (T,) of the frames. slots: of the grid. length: of the range, for a lone frame.
    """
    each = -(-len(seconds) // slots)
    if len(seconds) < 2:
        return max(length, 1e-3)
    return max(each * (seconds[-1] - seconds[0]) / (len(seconds) - 1), 1e-3)


def beside(adapter: Adapter, clip: Placed, ids: Tensor, length: float) -> dict[str, Any]:
    """What a family's processor gives beside a prompt (1, L) and pixels: kinds of tokens, pace.

    Args:
        length: of the range that was looked at, in seconds.
    """
    made: dict[str, Any] = {}
    if adapter.token_types:
        config = adapter.config
        made["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (
            ids == config.video_token_id
        ).int()
    if adapter.pace:
        step = pace(clip.seconds, clip.grid[0], length) if clip.pace is None else clip.pace
        made[adapter.pace] = torch.tensor([step])
    return made
