"""vLLM as the `Engine` behind `VideoLLM`: questions about a clip go to its scheduler together.

Prompts are written, and answers read, as for a model that transformers runs; the weights are
vLLM's alone, and methods act through our plug-in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.processing_utils import ProcessorMixin

from vidllm.compressors import Compressor
from vidllm.compressors.spec import spec_of
from vidllm.errors import InputError, WorkError
from vidllm.errors.paths import is_folder
from vidllm.progress import Listener, Stopwatch, check
from vidllm.tokens import VideoTokens
from vidllm.video import VideoClip

from ..dialogue import ALONE, Dialogue
from ..engine import Counts, Generation, TowerCounter, uncounted
from ..families.clips import HubClip
from ..families.engine import HubEngine
from ..families.processing import Processing
from ..families.scripts import write
from ..load_options import LoadPlan
from ..loading import model_kind
from ..question import letter_ids
from .choice import Choice, served
from .plugin import check_model, chosen_by_requests

#: vLLM tells a frame's second as its number by a rate. With a power of two no digit of it changes,
#: so that half a tenth is rounded in words as it is by us.
_RATE = 2.0**20
#: Each is two tokens at most, alone or behind a blank; vLLM looks at no more than 128.
_LETTERS = ascii_letters + digits
_OF_TRANSFORMERS = ("attn", "device_map", "max_memory", "offload_folder", "quantization_config")


class VllmEngine(HubEngine):
    """A model that vLLM runs in this process or in processes of its own.

    Args:
        model: of transformers on the "meta" device: its config without weights.
        beside: its tokenizer and the like. llm: vLLM's `LLM` with the plug-in. weights: a hash of
            them. options: as for `HubEngine`.
    """

    runs_in = "vllm"

    def __init__(
        self, model: Any, beside: Processing, llm: Any, weights: str = "", **options: Any
    ) -> None:
        self.llm, self._asked, self.weights = llm, 0, weights
        super().__init__(model, beside, **options)

    @classmethod
    def load(cls, folder: str, plan: LoadPlan, *, seed: int = 0, **options: Any) -> VllmEngine:
        """From a folder or a name on the hub; `options` as for the class.

        Raises:
            InputError: no vLLM, a family or an option that it does not serve. WorkError: it does
                not start.
        """
        if find_spec("vllm") is None:
            raise InputError(
                "engine 'vllm' needs vllm: pip install 'vidllm[vllm]' (docs/serving.md)"
            )
        if extra := plan.given(*_OF_TRANSFORMERS, "processor"):
            raise InputError(f"{extra} is for models that transformers runs: leave it out for vLLM")
        check_model(folder)
        kind = model_kind(folder, **plan.hub)
        beside = Processing.beside(folder, kind, plan.hub)
        config = AutoConfig.from_pretrained(folder, **plan.hub)
        with torch.device("meta"):
            model = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind])(config)
        with suppress(OSError):  # none beside the weights: that of the config stays
            model.generation_config = GenerationConfig.from_pretrained(folder, **plan.hub)
        version = weights_of(folder) or str(getattr(config, "_commit_hash", None) or "hub")
        llm = _started(folder, plan, seed)
        return cls(model.to(plan.dtype), beside, llm, version, **options)

    @property
    def device(self) -> torch.device:
        return torch.device(self.llm.llm_engine.vllm_config.device_config.device_type)

    def check_serves(self, method: Compressor) -> None:
        _choice(method)

    @contextmanager
    def at_work(self, method: Compressor, listener: Listener | None = None) -> Iterator[Any]:
        choice = _choice(method)
        check(listener)
        yield choice

    def check_room(
        self,
        clip: VideoClip,
        questions: Sequence[str],
        answer: int | None,
        times: bool,
        dialogue: Dialogue = ALONE,
    ) -> int:
        return sum(self.memory.open(clip).placed.counts)

    def encode(self, clip: VideoClip, work: Any, count_tower: TowerCounter = uncounted) -> HubClip:
        """The clip's grid and places; vLLM encodes it with the first question, and remembers it."""
        video = self.memory.open(clip)
        video.drop_pixels()
        return video

    def generate(
        self,
        clip: VideoClip,
        video: HubClip,
        questions: Sequence[str],
        work: Any,
        watch: Stopwatch,
        answer: int,
        times: bool = False,
        dialogue: Dialogue = ALONE,
    ) -> list[Generation]:
        """The answers to all questions as one batch; what each took is the batch's, shared."""
        kept, script = work.count(video.grid), self.script
        script = replace(script, expand=lambda placed: self._mark.format(**placed.marks))
        frame = self._chat(dialogue)
        texts = [
            write(script, frame, video.placed, one, times=times, dialogue=dialogue)
            for one in questions
        ]
        prompts = [_prompt(clip, text, work) for text in texts]
        with watch.stage("generate"):
            said = self._batch(prompts, answer, watch.listener, dialogue)
        layers = [float(kept)] * int(self.decoder_config.num_hidden_layers)
        counts = Counts(video.total, kept, layers, layers)
        shared = dict.fromkeys(watch.seconds, len(questions))
        return [self._generation(out, kept, counts, dict(watch.seconds), shared) for out in said]

    def _generation(
        self,
        out: Any,
        kept: int,
        counts: Counts,
        seconds: dict[str, float],
        shared: Mapping[str, int],
    ) -> Generation:
        [one] = out.outputs
        ids = list(one.token_ids)
        scores = [float(row[i].logprob) for row, i in zip(one.logprobs, ids, strict=True)]
        first = torch.full((self._vocabulary,), torch.nan)  # of most, vLLM says nothing
        for token, found in one.logprobs[0].items():
            first[token] = float(found.logprob)
        text, read = len(out.prompt_token_ids) - kept, float(kept)
        return Generation(
            ids, scores, first, None, kept, read, counts, text, 0, len(ids), seconds, shared
        )

    def _batch(
        self,
        prompts: Sequence[Mapping[str, Any]],
        answer: int,
        listener: Listener | None,
        dialogue: Dialogue,
    ) -> list[Any]:
        """vLLM's outputs for prompts that are under way together.

        Raises:
            InputError: a prompt that it refuses. Stopped: the listener wanted the work to end.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        told = self.model.generation_config
        sampling = SamplingParams(
            temperature=dialogue.temperature,
            top_p=dialogue.top_p,
            seed=dialogue.seed if dialogue.temperature else None,
            max_tokens=answer,
            stop_token_ids=self.stop_ids(),
            repetition_penalty=float(told.repetition_penalty or 1.0),
            detokenize=listener is not None,
            **({"logprob_token_ids": self._letters} if self._letters else {"logprobs": 1}),
        )
        engine = self.llm.llm_engine
        names: list[str] = []
        done: dict[str, Any] = {}
        try:
            for prompt in prompts:
                self._asked += 1
                name = f"vidllm{self._asked}"
                engine.add_request(name, prompt, sampling)
                names.append(name)
            while len(done) < len(names):
                check(listener)
                for out in engine.step():
                    name = out.request_id.partition("-")[0]
                    if listener is not None and name == names[0]:
                        listener.text(out.outputs[0].text.rstrip("\ufffd").strip())
                    if out.finished:
                        done[name] = out
        except InputError:
            raise
        except (ValueError, VLLMValidationError) as error:  # of a prompt that it does not take
            raise InputError(f"vLLM refuses this question: {_line(error)}") from error
        finally:
            if left := [name for name in names if name not in done]:
                engine.abort_request(left, internal=False)
        return [done[name] for name in names]

    @property
    def _mark(self) -> str:
        """What vLLM puts a video's frames in place of.

        With transformers from 5.10 on that is the video's own token, and edges around it stay. A
        script whose mark has them means them to go: its frames bring their own.
        """
        return "{video}" if hasattr(ProcessorMixin, "replace_video_token") else self.script.mark

    @cached_property
    def _letters(self) -> list[int]:
        """Tokens whose chances as the first of an answer are looked at: letters of options."""
        return sorted({i for sign in _LETTERS for i in letter_ids(self.tokenizer, sign)})

    @property
    def _vocabulary(self) -> int:
        return int(self.decoder_config.vocab_size)

    def preview(
        self, clip: VideoClip, video: HubClip, question: str, work: Any, times: bool = False
    ) -> VideoTokens:
        raise InputError("vLLM shows nothing before it answers: load the model without engine")

    def save(self, folder: Path) -> None:
        raise InputError("vLLM changes no weights: copy the model's folder")


def _choice(method: Compressor) -> Choice:
    """How a method is named to vLLM.

    Raises:
        InputError: what it does not serve, by name and reason.
    """
    spec, share = spec_of(method)
    said = share == 1.0 and not method.lacks_share()
    return served(spec, None if said or spec == "none" else share)


def _prompt(clip: VideoClip, text: str, choice: Choice) -> dict[str, Any]:
    """A prompt with its clip; frames have the seconds of the file."""
    numbers = [float(second) * _RATE for second in clip.seconds]
    # What is said of the whole gives the pace of frames where a family asks for one alone.
    count = len(numbers)
    step = (numbers[-1] - numbers[0]) / (count - 1) if count > 1 else clip.duration * _RATE
    total = max(1, round(step * count))
    facts = {
        "fps": _RATE,
        "duration": total / _RATE,
        "total_num_frames": total,
        "frames_indices": numbers,
        "do_sample_frames": False,
    }
    options: dict[str, Any] = {"compressor": choice.spec}
    options |= {} if choice.keep is None else {"keep": choice.keep}
    return {
        "prompt": text,
        "multi_modal_data": {"video": [(clip.frames.copy(), facts)]},  # a clip's are read-only
        "mm_processor_kwargs": options,
    }


def _started(folder: str, plan: LoadPlan, seed: int) -> Any:
    """vLLM with the model and the plug-in.

    Raises:
        InputError: an option that it does not have. WorkError: it does not start.
    """
    with chosen_by_requests():
        from vllm import LLM

        options: dict[str, Any] = {
            "dtype": str(plan.dtype).removeprefix("torch."),
            "seed": seed,
            "max_model_len": -1,
            "limit_mm_per_prompt": {"video": 1, "image": 0},
            "revision": plan.revision,
            **(plan.engine_options or {}),
        }
        try:
            return LLM(model=folder, **options)
        except InputError:
            raise
        except TypeError as error:
            raise InputError(f"engine_options: {_line(error)}") from error
        except Exception as error:  # whatever weights, memory and options trip over together
            raise WorkError(f"vLLM does not start with {folder}: {_line(error)}") from error


def weights_of(folder: str) -> str:
    """A short hash that tells two trainings apart (samples every tensor); "" for no folder."""
    if not is_folder(folder):
        return ""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in sorted(tensors.keys()):
                digest.update(name.encode())
                few = tensors.get_tensor(name).flatten()
                few = few[:: max(1, len(few) // 16)][:16]
                digest.update(few.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
