"""What the course "retrieval" trains: a fresh dual encoder, its adapters, and the loss."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vidllm.compressors import Compressor
from vidllm.compressors.base import InTower
from vidllm.encoders.vision import HubTower
from vidllm.errors import InputError
from vidllm.models.retrieval.dual_encoder import DualConfig, DualEncoder, heads_of, merged_pass
from vidllm.stage.training.tokenizer import END, build_tokenizer
from vidllm.stage.training.trainee import paint
from vidllm.timecode import get_timecode
from vidllm.tokens import VideoTokens
from vidllm.tokens.tower_plan import TowerShape

from ..recipe import Lora

#: Parts of a fresh model by size: tower, stem, text tower, width of the common space.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vision": {"image_size": 128, "patch_size": 16, "hidden_size": 192, "num_hidden_layers": 6,
                   "num_attention_heads": 3, "intermediate_size": 576},
        "stem": {"widths": [16, 32, 64], "blocks": [1, 1, 0]},
        "text": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
                 "intermediate_size": 384},
        "common": 128,
    },
    "tiny": {
        "vision": {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 4,
                   "num_attention_heads": 2, "intermediate_size": 64},
        "stem": {"widths": [8, 8, 16], "blocks": [1, 1, 0]},
        "text": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "intermediate_size": 64},
        "common": 32,
    },
}  # fmt: skip
#: Words and signs of a caption at most.
LONGEST = 64
#: The paper's bound of the scale of similarities.
_LARGEST_SCALE = 4.6052  # ln 100


def build_caption_tokenizer() -> PreTrainedTokenizerBase:
    """The words of the made world; every text ends with the token whose state stands for it."""
    tokenizer = build_tokenizer(get_timecode("relative"))
    end = int(str(tokenizer.convert_tokens_to_ids(END)))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    return tokenizer


def fresh_encoder(size: str, tokenizer: PreTrainedTokenizerBase, **told: Any) -> DualEncoder:
    """A dual encoder that knows nothing yet; `told` goes into its config.

    Raises:
        InputError: for a size that is not known.
    """
    if size not in SIZES:
        raise InputError(f"--size must be one of {', '.join(SIZES)}, not {size!r}")
    parts = SIZES[size]
    text = {
        **parts["text"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LONGEST,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = DualConfig(
        text_config=text,
        vision_config=parts["vision"],
        projection_dim=parts["common"],
        stem=parts["stem"],
        **told,
    )
    return DualEncoder(config)


def trained_encoder(folder: str, **told: Any) -> tuple[DualEncoder, PreTrainedTokenizerBase]:
    """The dual encoder of a folder with another config of what merges, and its tokenizer.

    Raises:
        InputError: no folder of a dual encoder of this project.
    """
    try:
        found = DualEncoder.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--init {folder} holds no dual encoder that can be loaded") from error
    if str(found.config.model_type) != DualConfig.model_type:
        raise InputError(
            f"--init {folder} is a {found.config.model_type}, no {DualConfig.model_type}"
        )
    config = DualConfig.from_dict({**found.config.to_dict(), **told})
    model = DualEncoder(config)
    weights = found.state_dict()
    model.load_state_dict(
        {k: v for k, v in weights.items() if not k.startswith("join_embedding.")}, strict=False
    )
    return model, tokenizer


def joined_rows(config: DualConfig, method: Compressor, frames: int) -> list[int]:
    """How many rows every join of a method puts together in the tower; [] where none does.

    Raises:
        InputError: a method that does not act inside a tower.
    """
    if method.name == "none":
        return []
    if not isinstance(method, InTower):
        raise InputError(
            f"{method.name} does not merge inside a vision tower: use tempme, tome or none"
        )
    vision: Any = config.vision_config
    cells = (int(vision.image_size) // int(vision.patch_size)) ** 2
    shape = TowerShape(int(vision.num_hidden_layers), 1, frames, cells)
    rows, found = frames, []
    for step in method.tower_steps(shape, budget_of(method, frames, cells)):
        if step.rows is not None:
            found.append(rows)
            rows = int(step.rows.max()) + 1
    return found


def budget_of(method: InTower, frames: int, cells: int) -> int | None:
    """Tokens of a clip that a method leaves."""
    side = round(cells**0.5)
    blank = VideoTokens.blank((frames, side, side), [float(t) for t in range(frames)], frames)
    return method.tower_budget(blank)


def with_adapters(model: DualEncoder, lora: Lora, rank: int) -> Any:
    """The model with LoRA beside its frozen layers, as a `peft.PeftModel` around it.

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("LoRA needs peft: pip install 'vidllm[lora]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=rank * lora.alpha // lora.rank,
        lora_dropout=lora.dropout,
        target_modules=list(lora.layers),
    )
    return get_peft_model(cast(Any, model), config)


def folded(adapted: Any) -> DualEncoder:
    """A copy with the adapters added to the weights that they stand beside."""
    return cast(DualEncoder, copy.deepcopy(adapted).merge_and_unload())


class RetrievalTrainee(nn.Module):
    """From sprite tracks and captions to the contrastive loss, on the training device.

    Args:
        adapted: of `with_adapters`, or the model itself where there are none.
        method: merges inside the tower while clips are learnt; None for nothing.
    """

    def __init__(self, model: DualEncoder, adapted: Any, method: InTower | None) -> None:
        super().__init__()
        self.adapted = adapted
        self._parts = (model, HubTower(model.vision_model), method)

    @property
    def model(self) -> DualEncoder:
        """The dual encoder, adapters in it."""
        return self._parts[0]

    def forward(self, batch: dict[str, Tensor], phase: str) -> dict[str, Tensor]:
        """The loss of a batch (see `CaptionedBatches`): "total", and R@1 in it both ways."""
        model, tower, method = self._parts
        clips, frames = batch["seconds"].shape
        pixels = paint(batch, tower.image_size, noisy=True)
        if phase == "start" or method is None:
            heads = tower.run(pixels).pooler_output
        else:
            budget = budget_of(method, frames, tower.side**2)
            hidden, run = merged_pass(
                tower, pixels, method, budget, clips=clips, embedding=model.join_embedding
            )
            heads = heads_of(tower, hidden, run)
        each = F.normalize(model.visual_projection(heads).float(), dim=-1)
        video = F.normalize(each.unflatten(0, (clips, frames)).mean(1), dim=-1)
        found: Any = model.get_text_features(input_ids=batch["ids"], attention_mask=batch["mask"])
        text = F.normalize(getattr(found, "pooler_output", found).float(), dim=-1)
        scale = model.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        return contrastive(text @ video.T * scale, batch["ids"])


def contrastive(logits: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The mean of the cross entropies of both directions (TempMe; CLIP, arXiv 2103.00020).

    Args:
        logits: (B, B), captions against clips. ids: (B, L); a clip whose caption is the same word
            for word counts neither as right nor as wrong.
    """
    same = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(
        len(ids), dtype=torch.bool, device=ids.device
    )
    logits = logits.masked_fill(same, -1e4)
    right = torch.arange(len(logits), device=logits.device)
    total = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    return {
        "total": total,
        "t2v": (logits.argmax(1) == right).float().mean(),
        "v2t": (logits.argmax(0) == right).float().mean(),
    }
