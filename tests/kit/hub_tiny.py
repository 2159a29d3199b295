"""Checkpoint folders of the hub's families: tiny random weights, and a tokenizer of letters."""

from __future__ import annotations

import json
import string
from functools import cache
from pathlib import Path
from typing import Any

from hf_tiny import hf_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vidllm.models.tuned import STAMP

#: One id a letter, 0 to 95; then the special tokens, with the ids of `hf_tiny`.
LETTERS = [*map(chr, range(32, 127)), "\n"]
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<pad>"),
    *("<image>", "<video>", "<img>", "</img>", "<end_of_utterance>"),
    *(f"<u{i}>" for i in range(106, 110)),
]
#: A chat template that takes videos, one that takes text, and none.
TAKES_VIDEOS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<img><video></img>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
TAKES_TEXT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
_PATCHES = {
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 64, "longest_edge": 512},
}
PIXELS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": _PATCHES,
    "qwen3_vl": {**_PATCHES, "size": {"shortest_edge": 64, "longest_edge": 32 * 512}},
    "llava_onevision": {"size": {"height": 32, "width": 32}},
    "internvl": {"size": {"height": 32, "width": 32}},
    "smolvlm": {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}},
    "video_llama_3": {
        **_PATCHES,
        "temporal_patch_size": 1,
        "size": {"shortest_edge": 64, "longest_edge": 32 * 512},
    },
}


@cache
def letters() -> PreTrainedTokenizerFast:
    """A tokenizer that can write every prompt."""
    words = {word: i for i, word in enumerate([*LETTERS, *SPECIAL])}
    assert len(words) == 110 and set(string.printable[:95]) <= set(words)
    plain = Tokenizer(models.WordLevel(words, unk_token="<u109>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=[word for word in SPECIAL if not word.startswith("<u")],
    )


def save_hub(folder: Path, family: str, template: str | None = None) -> Path:
    """A folder that `VideoLLM.from_pretrained` loads."""
    hf_model(family).save_pretrained(folder)
    letters().save_pretrained(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PIXELS[family]))
    return folder


def save_home(folder: Path) -> Path:
    """A tiny model in ``model``, and in ``tuned`` adapters of it that say how it is asked."""
    save_hub(folder / "model", "qwen2_5_vl", TAKES_VIDEOS)
    text: Any = hf_model("qwen2_5_vl").config.get_text_config()
    stamp = {
        "adapters_of": str(folder / "model"), "model_type": "qwen2_5_vl", "frames": 4,
        "width": text.hidden_size, "layers": text.num_hidden_layers,
        "compressors": "uniform", "keep": 0.5,
    }  # fmt: skip
    (folder / "tuned").mkdir()
    (folder / "tuned" / STAMP).write_text(json.dumps(stamp))
    return folder
