"""Tiny checkpoints that vLLM and transformers both load, their clips, and both engines' answers."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

import vidllm

_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
_LETTERS = list(string.printable[:95])
PATCH = 14
#: Fewer tokens than a longer video keeps: its prefill is cut inside it.
CHUNK = 32
#: How far logarithms of chances may be apart: in float32, and where bfloat16 rounds.
CLOSE, ROUNDED = 2e-4, 0.05
#: Of families whose layers of linear attention vLLM computes in bfloat16 alone on a CPU.
DTYPES = {"qwen3_5": torch.bfloat16}
#: Tokens of an answer.
NEW = 8
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('video', 'video_url') %}"
    + VIDEO
    + "{% elif c.type in ('image', 'image_url') %}"
    + IMAGE
    + "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, and the special ones."""
    words = {word: i for i, word in enumerate([*_LETTERS, *_SPECIAL])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL,
        chat_template=CHAT,
    )


def _ids() -> dict[str, int]:
    named = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    named |= {f"vision_{end}_token_id": f"<|vision_{end}|>" for end in ("start", "end")}
    words = tokenizer()
    return {name: words.convert_tokens_to_ids(token) for name, token in named.items()}


def _text(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 128,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 95,
        **more,
    }


def _config(family: str) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 128,
    }
    if family == "qwen2_5_vl":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}
        return transformers.Qwen2_5_VLConfig(
            text_config=_text(
                "qwen2_5_vl_text", rope_parameters={**rope, "mrope_section": [8, 12, 12]}
            ),
            vision_config=vision,
            **_ids(),
        )
    vision["num_position_embeddings"] = 64
    turned = {**rope, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    text: dict[str, Any] = {"head_dim": 64, "rope_parameters": turned}
    if family == "qwen3_5":
        text["rope_parameters"] |= {"mrope_section": [6, 5, 5], "partial_rotary_factor": 0.5}
        delta = {f"linear_{kind}_head_dim": 64 for kind in ("key", "value")}  # vLLM has none of 32
        heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        text |= {"full_attention_interval": 2, **delta, **heads}
        return transformers.Qwen3_5Config(
            text_config=_text("qwen3_5_text", **text), vision_config=vision, **_ids()
        )
    vision["deepstack_visual_indexes"] = [0, 1]
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
        text["norm_topk_prob"] = True  # as in what Qwen published; vLLM asks for it
        return transformers.Qwen3VLMoeConfig(
            text_config=_text("qwen3_vl_moe_text", **text), vision_config=vision, **_ids()
        )
    return transformers.Qwen3VLConfig(
        text_config=_text("qwen3_vl_text", **text), vision_config=vision, **_ids()
    )


#: Names of the model's class and of its processor, each without its end.
_CLASSES = {
    "qwen2_5_vl": ("Qwen2_5_VL", "Qwen2_5_VL"),
    "qwen3_vl": ("Qwen3VL", "Qwen3VL"),
    "qwen3_vl_moe": ("Qwen3VLMoe", "Qwen3VL"),
    "qwen3_5": ("Qwen3_5", "Qwen3VL"),
}


def processor(family: str) -> Any:
    """The family's own, for small pictures."""
    patches = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    name = _CLASSES[family][1]
    video = "Qwen3VLVideoProcessor" if name == "Qwen3VL" else "Qwen2VLVideoProcessor"
    least, most = (PATCH * 2) ** 2, (PATCH * 2) ** 2 * 64
    wide = 1000 if name == "Qwen3VL" else 1  # Qwen3-VL counts the pixels of all frames
    # vLLM norms videos as it norms pictures, so both are alike, as in what Qwen published.
    norm = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if name == "Qwen3VL" else {}
    return getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(
            **patches, **norm, size={"shortest_edge": least, "longest_edge": most}
        ),
        video_processor=getattr(transformers, video)(
            **patches, size={"shortest_edge": least, "longest_edge": most * wide}
        ),
        tokenizer=tokenizer(),
        chat_template=CHAT,
    )


def _as_published(file: Path) -> None:
    """Turn experts' weights round: (experts, in, out), as Qwen's files have them and vLLM reads."""
    weights = load_file(file)
    for name in [name for name in weights if ".experts." in name]:
        weights[name] = weights[name].mT.contiguous()
    save_file(weights, file, {"format": "pt"})


def save(family: str, folder: Path) -> Path:
    """A checkpoint with random weights that are large enough for answers to differ."""
    torch.manual_seed(0)
    config = _config(family)
    model = getattr(transformers, f"{_CLASSES[family][0]}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.mul_(4.0 if "lm_head" in name else 2.5)
        model.lm_head.weight[95:] = 0.0  # answers hold no marks of pictures
    model.to(DTYPES.get(family, torch.float32)).save_pretrained(folder)
    if family == "qwen3_vl_moe":
        _as_published(folder / "model.safetensors")
    processor(family).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        text: with VIDEO and IMAGE where they stand. videos: (frames, height, width, fps) each.
        images: (height, width) each. seed: of their pixels.
    """

    text: str
    videos: Sequence[tuple[int, int, int, float]] = ()
    images: Sequence[tuple[int, int]] = ()
    seed: int = 0

    def clips(self) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Frames (T, H, W, 3) uint8 and their metadata, for every video."""
        random = np.random.default_rng(self.seed)
        made = []
        for frames, height, width, fps in self.videos:
            pixels = random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
            facts = {
                "fps": fps,
                "duration": frames / fps,
                "total_num_frames": frames,
                "frames_indices": list(range(frames)),
            }
            made.append((pixels, facts))
        return made

    def pictures(self) -> list[Any]:
        """Images of PIL."""
        from PIL import Image as Pictures

        random = np.random.default_rng(self.seed + 1)
        return [
            Pictures.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
            for size in self.images
        ]

    def prompt(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What vLLM is asked."""
        data: dict[str, Any] = {}
        if self.videos:
            data["video"] = [
                (pixels, {**facts, "do_sample_frames": False}) for pixels, facts in self.clips()
            ]
        if self.images:
            data["image"] = self.pictures()
        prompt: dict[str, Any] = {"prompt": self.text}
        if data:
            prompt["multi_modal_data"] = data
        if options is not None:
            prompt["mm_processor_kwargs"] = dict(options)
        return prompt


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        ids: greedy tokens. logprobs: theirs, natural. read: tokens of the prompt that the decoder
            read. cached: of these, those that a cache held already.
    """

    ids: list[int]
    logprobs: list[float]
    read: int
    cached: int = 0
    best: list[float] = field(default_factory=list)


class Reference:
    """The same checkpoint in transformers, under `vidllm.compress`."""

    def __init__(self, folder: Path, family: str) -> None:
        kind = getattr(transformers, f"{_CLASSES[family][0]}ForConditionalGeneration")
        self.model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = processor(family)
        # What vLLM reads words with: for Qwen3.5, transformers makes another of the saved one.
        self.processor.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        if family == "qwen2_5_vl":
            behind_the_last(self.model.model)

    def inputs(self, request: Request) -> Any:
        """One prompt, as the family's processor makes it."""
        clips = request.clips()
        more: dict[str, Any] = {}
        if clips:
            more["videos"] = [list(pixels) for pixels, _ in clips]
            more["video_metadata"] = [
                transformers.video_utils.VideoMetadata(**facts) for _, facts in clips
            ]
            more["do_sample_frames"] = False
        if request.images:
            more["images"] = request.pictures()
        return self.processor(text=[request.text], return_tensors="pt", **more)

    def answer(
        self,
        request: Request,
        spec: str,
        keep: float | None = None,
        said: Sequence[int] | None = None,
    ) -> Answer:
        """Greedy tokens under a method, or how likely it would say these."""
        inputs = self.inputs(request)
        length = inputs["input_ids"].shape[1]
        with vidllm.compress(self.model, spec, keep=keep, processor=self.processor) as work:
            out = self.model.generate(
                **inputs,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                logits_processor=[] if said is None else [_Told(said, length)],
                return_dict_in_generate=True,
            )
            read = len(work.kept[0])
        ids = out.sequences[0, length:].tolist()
        scores = [torch.log_softmax(row[0].float(), -1) for row in out.logits]
        likely = [float(s[i]) for s, i in zip(scores, ids, strict=True)]
        return Answer(ids, likely, read, best=[float(s.max()) for s in scores])


class _Told(transformers.LogitsProcessor):
    """Lets a model say what it is told; its own scores stay as they are."""

    def __init__(self, said: Sequence[int], begin: int) -> None:
        self.said, self.begin = said, begin

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        told = torch.full_like(scores, -torch.inf)
        told[:, self.said[input_ids.shape[1] - self.begin]] = 0.0
        return told


def behind_the_last(core: Any) -> None:
    """Let the text behind a video begin behind its last position, as in vLLM.

    transformers (5.19 to 5.23) begins it max(rows, columns) behind the video's begin instead, so
    that it falls among the times of a longer video.
    """
    plain = core.get_rope_index

    def get_rope_index(input_ids: Any, mm_token_type_ids: Any, *args: Any, **kwargs: Any) -> Any:
        positions, deltas = plain(input_ids, mm_token_type_ids, *args, **kwargs)
        kinds = mm_token_type_ids[0]
        assert len(input_ids) == 1
        ends = torch.nonzero((kinds[:-1] == 2) & (kinds[1:] != 2)).flatten() + 1
        for end in ends.tolist():
            shift = positions[:, 0, :end].max() + 1 - positions[:, 0, end].max()
            positions[:, 0, end:] += shift
        return positions, deltas * 0 + positions.max() + 1 - input_ids.shape[1]

    core.get_rope_index = get_rope_index


class Served:
    """The same checkpoint in vLLM, in this process."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from vllm import LLM, SamplingParams

        self.llm = LLM(
            model=str(folder),
            dtype=AutoConfig.from_pretrained(folder).dtype,
            enforce_eager=True,
            max_model_len=1024,
            block_size=32,
            limit_mm_per_prompt={"video": 3, "image": 2},
            **options,
        )
        self.sampling = SamplingParams(
            temperature=0, max_tokens=NEW, min_tokens=NEW, ignore_eos=True, logprobs=1
        )

    def answers(self, prompts: Sequence[dict[str, Any]]) -> list[Answer]:
        """Greedy tokens of prompts that are asked together."""
        found = []
        for out in self.llm.generate(list(prompts), self.sampling, use_tqdm=False):
            said = out.outputs[0]
            ids = list(said.token_ids)
            logs = [float(row[i].logprob) for row, i in zip(said.logprobs, ids, strict=True)]
            found.append(Answer(ids, logs, len(out.prompt_token_ids), out.num_cached_tokens or 0))
        return found


class Pair:
    """An engine and its reference."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = save(family, folder)
        self.rounded = family in DTYPES
        self.reference = Reference(folder, family)
        self.engine = Served(folder, max_num_seqs=8, max_num_batched_tokens=CHUNK)

    def ask(self, *asked: tuple[Request, str, float | None]) -> list[Answer]:
        """Requests together, each with its method."""
        return self.engine.answers(
            [request.prompt(chosen(spec, keep)) for request, spec, keep in asked]
        )

    def check(self, *asked: tuple[Request, str, float | None]) -> list[Answer]:
        """The same, held against the reference."""
        answers = self.ask(*asked)
        for answer, (request, spec, keep) in zip(answers, asked, strict=True):
            if self.rounded:
                near(answer, self.reference.answer(request, spec, keep, answer.ids))
            else:
                alike(answer, self.reference.answer(request, spec, keep))
        return answers


def chosen(spec: str, keep: float | None) -> dict[str, Any]:
    """Options of a request."""
    return {"compressor": spec} | ({} if keep is None else {"keep": keep})


def alike(answer: Answer, wanted: Answer) -> None:
    """The same tokens, as likely."""
    assert answer.read == wanted.read
    assert answer.ids == wanted.ids
    assert answer.logprobs == pytest.approx(wanted.logprobs, abs=CLOSE)


def near(answer: Answer, wanted: Answer) -> None:
    """As likely but for rounding, and the likeliest but for it; `wanted` was told the tokens."""
    assert answer.read == wanted.read
    assert answer.logprobs == pytest.approx(wanted.logprobs, abs=ROUNDED)
    assert answer.logprobs == pytest.approx(wanted.best, abs=ROUNDED)
