"""What the stage training asks of a model besides the next word.

Eight losses: words (cross entropy; a time token's target is a bell over its neighbours, as NVILA
does for LITA's tokens), sight (what is in each cell of a single frame), glance (what the CLS token
says is anywhere in the frame, so that its attention lies on the actors), meaning (what is in each
cell once frames have talked, read off with the LLM's own word embeddings), gating (MrT5's delete
gate: whether anybody acts in a cell), pointing (the attention of a time field lies on the frames
of its span), naming (that of a noun in a question, one layer earlier, on everything that its actor
does) and telling (after that layer the noun's own state says what its actor does, so that an
answer can copy it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vidllm.compressors.mrt5 import DeleteGate
from vidllm.models.native.model import NativeVideoLLM

from ..tracks import MAX_DISTRACTORS, RGB
from ..words import ACTIONS, COLOUR_NAMES, NOUN_NAMES

LOOKS = len(NOUN_NAMES) + len(COLOUR_NAMES)
#: What a cell says of the actor that stands in it: place in the cell, size, turn, fade.
POSE = 6
WORDS = LOOKS + len(ACTIONS)


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts, and the width of the bell over time tokens (in tokens)."""

    words: float = 1.0
    sight: float = 0.3
    glance: float = 0.3
    gating: float = 0.5
    meaning: float = 1.0
    pointing: float = 0.5
    naming: float = 0.5
    telling: float = 0.3
    sigma: float = 1.0


class Heads(nn.Module):
    """The small parts that only training needs."""

    def __init__(self, model: NativeVideoLLM, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.sight = nn.Linear(model.vision.hidden_size, LOOKS + POSE)
        self.glance = nn.Linear(model.vision.hidden_size, LOOKS)
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.bias = nn.Parameter(torch.full((WORDS,), -4.0))
        names = [*NOUN_NAMES, *COLOUR_NAMES, *(a.third.split()[0] for a in ACTIONS)]
        ids = torch.tensor(tokenizer.convert_tokens_to_ids(names))
        self.register_buffer("word_ids", ids, persistent=False)
        self.gate = DeleteGate(int(model.config.text["hidden_size"]))
        nn.init.constant_(self.sight.bias, -3.0)
        nn.init.constant_(self.glance.bias, -2.0)


def _cover(batch: dict[str, Tensor], side: int, reach: float) -> Tensor:
    """(B, T, A, N): 1 where the middle `reach` of an actor touches a cell of a side² grid."""
    x, y, half = (batch["state"][:, :, MAX_DISTRACTORS:, i, None] for i in (0, 1, 2))
    edge = torch.arange(side, device=x.device) / side
    margin = reach * half

    def inside(v: Tensor) -> Tensor:
        return ((v + margin > edge) & (v - margin < edge + 1 / side)).float()

    return (inside(y)[..., :, None] * inside(x)[..., None, :]).flatten(-2)


def _looks(batch: dict[str, Tensor]) -> Tensor:
    """(B, A, looks): noun and colour of every actor, zeros in empty places."""
    noun, colour = batch["look"].unbind(-1)
    nouns = F.one_hot(noun.clamp(min=0), len(NOUN_NAMES))
    colours = F.one_hot(colour.clamp(min=0), len(COLOUR_NAMES))
    return torch.cat([nouns, colours], dim=-1).float() * (noun >= 0)[..., None]


def sight_loss(heads: Heads, cells: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What single frames show: (B, T, N, D) cells of the tower against looks and poses.

    A frame shows the colour that is seen and nothing that is hidden. The pose keeps what motion
    is made of in the features: place, size, turn and fade of the actor in front.
    """
    side = round(cells.shape[2] ** 0.5)
    state = batch["state"][:, :, MAX_DISTRACTORS:]
    alpha = state[..., 4]
    present = (batch["look"][:, None, :, 0] >= 0) & (alpha > 0.2)
    seen = _cover(batch, side, 0.5) * present[..., None]
    looks = _looks(batch)[:, None].expand(-1, state.shape[1], -1, -1).clone()
    rgb = torch.from_numpy(RGB).to(state.device)
    shown = (state[..., None, 5:8] - rgb).square().sum(-1).argmin(-1)
    looks[..., len(NOUN_NAMES) :] = F.one_hot(shown, len(COLOUR_NAMES)).float()
    target = torch.einsum("btan,btal->btnl", seen, looks).clamp(max=1)
    guess = heads.sight(cells).float()
    loss = F.binary_cross_entropy_with_logits(guess[..., :LOOKS], target) * LOOKS

    x, y, half, angle = state[..., :4].unbind(-1)
    pose = torch.stack(
        [x * side % 1, y * side % 1, half * 5, angle.cos(), angle.sin(), alpha], dim=-1
    )
    here = _cover(batch, side, 0.0) * present[..., None]  # the one cell of the actor's centre
    front = here.flip(2).argmax(2)
    pose = pose.flip(2).gather(2, front[..., None].expand(-1, -1, -1, POSE))
    miss = (guess[..., LOOKS:] - pose).abs().mean(-1)[here.any(2)]
    return loss + miss.mean()


def glance_loss(heads: Heads, glance: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What single frames show anywhere: (B, T, D) CLS tokens against the looks that are seen."""
    state = batch["state"][:, :, MAX_DISTRACTORS:]
    x, y = state[..., 0], state[..., 1]
    inside = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    seen = (batch["look"][:, None, :, 0] >= 0) & (state[..., 4] > 0.2) & inside
    target = torch.einsum("bta,bal->btl", seen.float(), _looks(batch)).clamp(max=1)
    return F.binary_cross_entropy_with_logits(heads.glance(glance).float(), target) * LOOKS


def gating_loss(heads: Heads, tokens: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of the gate on (B, T, N, D), and its logits (B, T, N).

    Args:
        target: of `meanings`; a cell counts where somebody acts in it.
    """
    logits = heads.gate(tokens)
    acts = target[..., LOOKS:].amax(-1)
    return F.binary_cross_entropy_with_logits(logits, acts) * 4, logits


def meanings(batch: dict[str, Tensor], side: int) -> Tensor:
    """What happens in every cell: (B, T, N, words), the action and who does it.

    Only who acts is told, with noun, own colour (also while it looks different) and action: were
    the idle named too, nothing would say which of the nouns in a cell belongs to the verb.
    """
    action = batch["action"]
    acts = (action >= 0)[..., None] & (batch["look"][:, None, :, :1] >= 0)
    known = _cover(batch, side, 0.3) * acts
    doing = F.one_hot(action.clamp(min=0), len(ACTIONS)).float()
    parts = [
        torch.einsum("btan,bal->btnl", known, _looks(batch)),
        torch.einsum("btan,btal->btnl", known, doing),
    ]
    return torch.cat(parts, dim=-1).clamp(max=1)


def meaning_loss(
    heads: Heads, model: NativeVideoLLM, tokens: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy against the LLM's word embeddings, and the action recall (no grad)."""
    table = model.embed_tokens(cast(Tensor, heads.word_ids))
    flat = F.layer_norm(tokens.float(), tokens.shape[-1:])
    logits = (flat @ table.float().T) * heads.scale * tokens.shape[-1] ** -0.5 + heads.bias
    with torch.no_grad():
        doing = target[..., LOOKS:] > 0
        hit = logits[..., LOOKS:].argmax(-1)
        right = doing.gather(-1, hit[..., None])[..., 0][doing.any(-1)].float().mean()
    return F.binary_cross_entropy_with_logits(logits, target) * WORDS, right


def answer_weights(labels: Tensor, slot: Tensor, ignore: int) -> Tensor:
    """Weight of every labelled token, (B, L): 1/√n in an answer of n, so that long answers do not
    drown the short ones."""
    told = labels != ignore
    count = torch.zeros(len(slot), int(slot.max()) + 1, device=slot.device)
    count = count.scatter_add(1, slot.clamp(min=0), told.float())
    return told * count.gather(1, slot.clamp(min=0)).clamp(min=1).rsqrt()


def word_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    first_time: int,
    time_count: int,
    sigma: float,
) -> Tensor:
    """Cross entropy (R, V) against (R,) weighted by (R,); time tokens become bells of `sigma`."""
    share = F.log_softmax(logits.float(), dim=-1)
    plain = -share.gather(-1, labels[:, None])[:, 0]
    place = labels - first_time
    is_time = (place >= 0) & (place < time_count)
    steps = torch.arange(time_count, device=labels.device)
    bell = torch.softmax(-((steps - place[:, None]) ** 2) / (2 * max(sigma, 1e-3) ** 2), dim=-1)
    soft = -(bell * share[:, first_time : first_time + time_count]).sum(-1)
    return (torch.where(is_time, soft, plain) * weights).sum() / weights.sum()


def pointing_targets(batch: dict[str, Tensor], side: int, frame_span: Tensor) -> Tensor:
    """Where told words should look: (2, B, P, T·N) float 0 or 1, before any reduction.

    First the cells of the actors while the evidence lasts; then, for a time field, only the frames
    at the edge that it tells, one frame to either side (for other words the same as the first).

    Args:
        batch: of `StageBatches`.
        side: of the token grid; frame_span: (B, T, 2) seconds.
    """
    cover = _cover(batch, side, 0.5).transpose(1, 2)  # (B, A, T, N)
    events = batch["point_events"]
    points, many = events.shape[1:3]
    who = events[..., 2].long().clamp(min=0).flatten(1)
    there = cover.gather(1, who[..., None, None].expand(-1, -1, *cover.shape[2:]))
    there = there.unflatten(1, (points, many)) * (events[..., 2] >= 0)[..., None, None]
    low, high = frame_span[:, None, None, :, 0], frame_span[:, None, None, :, 1]
    during = (low < events[..., 1, None]) & (high > events[..., 0, None])
    inside = (there * during[..., None]).amax(2)
    own = batch["point_times"][..., None]
    reach = (high - low)[:, :, 0]
    near = (own > low[:, :, 0] - reach) & (own < high[:, :, 0] + reach)
    edge = (there * near[:, :, None, :, None]).amax(2)
    edge = torch.where((own >= 0)[..., None], edge, inside)
    return torch.stack([inside, edge]).flatten(3)


def telling_loss(logits: Tensor, acts: Tensor) -> Tensor:
    """Cross entropy over the verbs alone: what a noun's state tells of its actor.

    Args:
        logits: (..., actions) of the first word of every action.
        acts: the same shape, 1 for everything that the actor does, all equally right; a row of
            zeros where nothing is told.
    """
    told = acts.amax(-1) > 0
    share = acts[told] / acts[told].sum(-1, keepdim=True)
    return -(share * F.log_softmax(logits[told].float(), dim=-1)).sum(-1).mean()


def pointing_loss(
    model: NativeVideoLLM,
    hidden: Tensor,
    layer: int,
    positions: Tensor,
    video: slice,
    points: Tensor,
    target: Tensor,
) -> Tensor:
    """How little attention the told words pay to where they should look.

    A third of the heads follows each target: the evidence, the edge that a time field tells.

    Args:
        hidden: (B, L, D) what enters decoder layer `layer`.
        positions: (B, L) position ids.
        video: where the video tokens stand in the sequence.
        points: (B, P) places of the words in the text, or -1.
        target: (1 or 2, B, P, V) of `pointing_targets`, reduced as the tokens are.
    """
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    core = model.language_model.model
    block = core.layers[layer]
    attention = block.self_attn
    normed = block.input_layernorm(hidden)
    cos, sin = core.rotary_emb(hidden, positions)
    rows = (points.clamp(min=0) + video.stop)[..., None].expand(-1, -1, hidden.shape[-1])
    heads = attention.config.num_attention_heads
    query = attention.q_proj(normed.gather(1, rows)).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = attention.k_proj(normed[:, video]).unflatten(-1, (-1, query.shape[-1])).transpose(1, 2)
    at = rows[..., :1].expand(-1, -1, cos.shape[-1])
    query, _ = apply_rotary_pos_emb(query, query, cos.gather(1, at), sin.gather(1, at))
    key, _ = apply_rotary_pos_emb(key, key, cos[:, video], sin[:, video])
    third = max(1, heads // 3)
    led = len(target) * third
    key = key.repeat_interleave(heads // key.shape[1], dim=1)[:, :led]
    scores = (query[:, :led] @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    hit = target.repeat_interleave(third, dim=0).transpose(0, 1)  # (B, heads, P, V)
    mass = (torch.softmax(scores, dim=-1) * hit).sum(-1)
    used = (points >= 0)[:, None] & (hit.amax(-1) > 0)
    return -(mass + 1e-6).log()[used].mean()
