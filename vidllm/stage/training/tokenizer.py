"""The tokenizer of models that are trained from scratch on the stage world: one token a word."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast

from vidllm.timecode import TimeCode

from .. import questions, words

PAD, UNKNOWN, VIDEO, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|unknown|>",
    "<|video|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
#: One user turn; the video placeholder is replaced by the video's tokens.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}" + USER + "{{ m['content'] }}"
    "{% else %}{{ m['content'] }}" + END + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
# What questions.py says besides its templates, the nouns, the colours and the verbs.
_OTHER = """
the what which object objects does do it after before first last colour is that change to how many
times time time happens where top bottom left right yes no because
from to for and why when describe , . ? : 0 1 2 3 4 5 6 7 8 9
"""


def vocabulary() -> list[str]:
    """Every word of the stage language, in a fixed order."""
    templates = [
        *questions.GROUND_TEMPLATES,
        *questions.HIGHLIGHT_TEMPLATES,
        *questions.CAPTION_TEMPLATES,
        *questions.WHY_TEMPLATES,
    ]
    text = " ".join(
        [
            *words.NOUN_NAMES,
            *words.COLOUR_NAMES,
            *(f"{a.third} {a.plain}" for a in words.ACTIONS),
            *words.ORDINALS,
            *(re.sub(r"\{\w*\}", " ", t) for t in templates),
            _OTHER,
        ]
    )
    return list(dict.fromkeys(text.split()))


def build_tokenizer(code: TimeCode) -> PreTrainedTokenizerFast:
    """A word tokenizer with the time tokens of `code` as its last ids.

    Upper case, American spelling and missing blanks before punctuation do not matter. For times
    as text a number is its first digit and then pieces, "12.3" being 1 ##2 ##. ##3, so that it is
    written without blanks.
    """
    special = [PAD, UNKNOWN, VIDEO, USER, ASSISTANT, END]
    entries = [*special, *vocabulary()]
    numbers = code.name == "text"
    if numbers:
        entries += [f"##{sign}" for sign in "0123456789."]
    table = {w: i for i, w in enumerate(entries)}
    if numbers:
        core = Tokenizer(models.WordPiece(table, unk_token=UNKNOWN))
        core.decoder = decoders.WordPiece(cleanup=False)
        apart: Any = pre_tokenizers.Split(Regex(r"\d+(\.\d+)?|\p{P}"), "isolated")
    else:
        core = Tokenizer(models.WordLevel(table, unk_token=UNKNOWN))
        apart = pre_tokenizers.Punctuation()
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\bcolor"), "colour")]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), apart])
    core.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    core.add_tokens([AddedToken(t, normalized=False) for t in code.special_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
