"""What the page opens with: a sample and its answer, what the model is, questions for each clip."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vidllm.ask.calls import Call
from vidllm.models.answer import Answer
from vidllm.models.heads.head_config import ANSWERS, HeadConfig
from vidllm.models.model_options import ModelOptions
from vidllm.models.shipped import default_model, shipped_models, weights_dir
from vidllm.stage.words import ACTIONS, COLOUR_NAMES, NOUN_NAMES

if TYPE_CHECKING:
    from vidllm.ask.video_llm import VideoLLM
    from vidllm.video import VideoClip

#: By the sample's name; the page opens with the first one, and with its first question.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "red-star": (
        "when does the red star spin?",
        "what happens first?",
        "when does the red plane blink?",
    ),
    "pink-hand": (
        "when does the pink hand grow?",
        "what happens first?",
        "when does the red star meet the pink hand?",
    ),
    "two-flowers": (
        "when does the yellow flower spin?",
        "what happens last?",
        "when does the cyan smiley cross?",
    ),
}
#: Of a clip that is not known.
OTHERS = ("what happens first?", "what happens last?", "what happens in this video?")
#: Of a system without an LLM, by its course, where the sample has none or there is no sample: each
#: answers these alone.
HEADS: dict[str, tuple[str, ...]] = {
    "alignment": ("when does the red star spin?",),
    "choice": ("what does the red star do? A. spins B. grows C. blinks",),
    "recognition": ("what happens?",),
}
#: Questions with options, by the sample's name.
CHOICES: dict[str, tuple[str, ...]] = {
    "red-star": (
        "what does the red star do? A. spins B. grows C. blinks",
        "what does the red plane do? A. spins B. grows C. blinks",
    ),
    "pink-hand": ("what does the pink hand do? A. spins B. grows C. blinks",),
    "two-flowers": ("what does the yellow flower do? A. spins B. grows C. blinks",),
}
EXAMPLES = frozenset(OTHERS).union(*(q for by in (QUESTIONS, HEADS, CHOICES) for q in by.values()))
#: Tokens of an answer, if nobody says how many.
ANSWER_LIMIT = 128

#: Families of docs/models.md: one each.
_HUB = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
)


@dataclass(frozen=True)
class Opening:
    """A sample's clip, and the answer that was made once for all visitors."""

    clip: VideoClip
    call: Call
    answer: Answer


def is_shipped(model: str | None) -> bool:
    """Whether a model is the default one of those that ship with vidllm; None names it."""
    return model is None or Path(model).resolve() == default_model().resolve()


def shipped_name(model: str | None) -> str:
    """The name of a model that ships with vidllm, "" for another; None names the default."""
    if is_shipped(model):
        return default_model().name
    path = Path(str(model)).resolve()
    ships = path.parent == weights_dir().resolve() and path.name in shipped_models()
    return path.name if ships else ""


def course_of(llm: VideoLLM) -> str:
    """What a system without an LLM was taught; "" for a video LLM."""
    return llm.config.course if isinstance(llm.config, HeadConfig) else ""


def questions(sample: str | None, shipped: bool, course: str = "") -> tuple[str, ...]:
    """Questions for a clip.

    Args:
        sample: its name among the samples; None for a visitor's own. shipped: a shipped model
            answers, which knows no summary of a clip in a sentence. course: of a system without
            an LLM, which refuses what is not of its kind.
    """
    name = sample or ""
    if course == "alignment" and name in QUESTIONS:
        return tuple(one for one in QUESTIONS[name] if one.startswith("when"))
    if course:
        return CHOICES[name] if course == "choice" and name in CHOICES else HEADS[course]
    return QUESTIONS.get(name, OTHERS[:2] if shipped else OTHERS)


def model_card(llm: VideoLLM, options: ModelOptions) -> str:
    """Which model is loaded, what it knows, and how to load another; HTML."""
    size = sum(p.numel() for p in llm.model.parameters())
    weight = f"{size / 1e9:.1f} B" if size >= 1e9 else f"{size / 1e6:.1f} M"
    model, course = options.named(), course_of(llm)
    if name := shipped_name(model):
        knows = (
            f"It ships with vidllm and knows <b>a made world only</b>: {len(NOUN_NAMES)} signs "
            f"({', '.join(NOUN_NAMES[:3])}, …) in {len(COLOUR_NAMES)} colours that do "
            f"{len(ACTIONS)} things ({', '.join(a.plain for a in ACTIONS[3:6])}, …). Of other "
            "footage it understands nothing; the page says so when it is asked about some."
        )
    else:
        name = str(model)
        knows = "What it knows is said by those who trained it."
        if not Path(name).exists():
            knows += f" {_link(name, 'Its model card')}"
    if course:
        knows = f"It has no LLM: it {ANSWERS[course]}, and refuses other questions. {knows}"
    if options.adapter is not None:
        name += f" with the adapters {Path(options.adapter).name}"
    others = "".join(f"<li>{_link(one, one)}</li>" for one in _HUB)
    return (
        f'<p class="vl-model">Model: <b>{escape(name)}</b>, {weight} parameters. {knows}</p>'
        '<details class="vl-model"><summary>Load another model, for your own videos</summary>'
        "<p>Start the page with a model of the Hugging Face hub or a folder:</p>"
        f"<pre>vidllm demo --model {_HUB[0]}</pre>"
        f"<p>For example:</p><ul>{others}</ul>"
        "<p><code>vidllm list models</code> prints every family that was tested, "
        "<code>vidllm cost</code> what one would compute and cache.</p></details>"
    )


def _link(name: str, words: str) -> str:
    place = f"https://huggingface.co/{escape(name, quote=True)}"
    return f'<a href="{place}" target="_blank" rel="noopener noreferrer">{escape(words)}</a>'
