"""The project's own model: parts, saving, the cache, positions under compression."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import VISION, hub_model, tiny_model

from vidllm.compressors import build, names
from vidllm.models.native.model import NativeVideoLLM
from vidllm.tokens import Keep, VideoTokens

HEAD, TAIL = [3], [10, 11, 12, 4]


def clip_tokens(model: NativeVideoLLM, frames: int = 6) -> tuple[VideoTokens, float]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(frames, 3, *[model.vision.image_size] * 2, generator=generator)
    seconds = [0.0, 0.4, 1.1, 1.2, 3.0, 3.9][:frames]
    return model.encode(pixels, torch.tensor(seconds).numpy(), 4.0), 4.0


def next_logits(model: NativeVideoLLM, tokens: VideoTokens, duration: float) -> torch.Tensor:
    """Logits after HEAD, the tokens and TAIL, through the cache as generation runs it."""
    prefix = model.prefill(HEAD, tokens, duration)
    places = prefix.next_position + torch.arange(len(TAIL))
    with torch.inference_mode():
        return model.language_model(
            input_ids=torch.tensor([TAIL]),
            position_ids=places[None],
            attention_mask=torch.ones(1, prefix.length + len(TAIL), dtype=torch.long),
            past_key_values=prefix.cache,
        ).logits[0]


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    model, _ = tiny_model()
    model.save_pretrained(tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert "model.safetensors" in files
    assert not any(f.endswith((".bin", ".pt", ".pkl")) for f in files)
    again = NativeVideoLLM.from_pretrained(tmp_path).eval()
    tokens, duration = clip_tokens(model)
    same, _ = clip_tokens(again)
    assert torch.equal(tokens.features, same.features)
    assert torch.equal(next_logits(model, tokens, duration), next_logits(again, same, duration))


@pytest.mark.parametrize("vision", sorted(VISION))
@pytest.mark.parametrize("text", ["qwen2", "llama"])
def test_any_tower_and_decoder_compose(vision: str, text: str, tmp_path: Path) -> None:
    model = hub_model(vision, text, downsample=2)
    tokens, duration = clip_tokens(model)
    assert tokens.grid == (6, 2, 2)
    assert next_logits(model, tokens, duration).shape[0] == len(TAIL)
    model.save_pretrained(tmp_path)
    again, report = NativeVideoLLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same, _ = clip_tokens(again.eval())
    assert torch.equal(tokens.features, same.features)


def test_parts_from_folders_build_a_model(tmp_path: Path) -> None:
    whole = hub_model("siglip")
    whole.vision.model.save_pretrained(tmp_path / "tower")
    whole.language_model.save_pretrained(tmp_path / "llm")
    made = NativeVideoLLM.from_parts(
        str(tmp_path / "tower"), str(tmp_path / "llm"), temporal=[{"name": "ssd", "head_dim": 16}]
    ).eval()
    assert made.config.time_code == "text" and made.config.stamps
    frames = torch.rand(2, 3, 32, 32)
    assert torch.equal(made.vision(frames), whole.vision(frames))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(made.language_model(ids).logits, whole.language_model(ids).logits)


def test_cache_and_batch_do_not_change_the_answers() -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    prompts = [[10, 11, 12, 4], [20, 4], [30, 31, 32, 33, 34, 35, 4]]

    def answers(some: list[list[int]]) -> list[list[int]]:
        prefix = model.prefill(HEAD, tokens, duration)
        return model.generate_from(prefix, some, max_new_tokens=7, eos=-1)

    together = answers(prompts)
    assert together == [answers([p])[0] for p in prompts]
    with torch.inference_mode():
        embeds = model.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
        for prompt, answer in zip(prompts, together, strict=True):
            text = model.embed_tokens(torch.tensor(prompt + answer))
            whole = torch.cat([model.embed_tokens(torch.tensor(HEAD)), embeds, text])
            logits = model.language_model(inputs_embeds=whole[None]).logits[0]
            start = len(HEAD) + len(tokens) + len(prompt) - 1
            assert logits[start : start + 7].argmax(-1).tolist() == answer


@pytest.mark.parametrize("name", names())
def test_keep_one_is_bit_equal_to_no_compressor(name: str) -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    kept = build(name, keep=1.0)(tokens)
    assert torch.equal(next_logits(model, tokens, duration), next_logits(model, kept, duration))


@torch.inference_mode()
@pytest.mark.parametrize("stamped", [False, True])
def test_dropping_equals_masking_at_the_same_positions(stamped: bool) -> None:
    model, _ = tiny_model()
    tokens, duration = clip_tokens(model)
    keep = torch.tensor([0, 3, 4, 9, 10, 11, 17, 22])
    frames = tokens.grid[0]
    stamps = [[40 + i, 50 + i] for i in range(frames)] if stamped else None
    kept = tokens.apply(Keep(keep))
    prefix = model.prefill(HEAD, kept, duration, stamps)
    got = model.language_model(
        input_ids=torch.tensor([TAIL]),
        position_ids=prefix.next_position + torch.arange(len(TAIL))[None],
        attention_mask=torch.ones(1, prefix.length + len(TAIL), dtype=torch.long),
        past_key_values=prefix.cache,
    ).logits[0]

    cells = len(tokens) // frames
    embeds = model.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
    parts, visible = [model.embed_tokens(torch.tensor(HEAD))], [True]
    for f in range(frames):
        here = range(f * cells, (f + 1) * cells)
        if stamps is not None:
            parts.append(model.embed_tokens(torch.tensor(stamps[f])))
            visible += [True, True]  # also of a frame that lost all its tokens
        parts.append(embeds[f * cells : (f + 1) * cells])
        visible += [i in keep.tolist() for i in here]
    parts.append(model.embed_tokens(torch.tensor(TAIL)))
    visible += [True] * len(TAIL)
    length = len(visible)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & torch.tensor(visible)
    mask |= torch.eye(length, dtype=torch.bool)
    want = model.language_model(
        inputs_embeds=torch.cat(parts)[None],
        attention_mask=mask[None, None],
        position_ids=torch.arange(length)[None],
    ).logits[0, -len(TAIL) :]
    assert torch.allclose(got, want, atol=1e-5)


def test_time_is_told_by_the_span_of_a_token() -> None:
    model, _ = tiny_model()
    table = model.language_model.get_input_embeddings().weight
    first = model.config.time_token_start
    span = torch.tensor([[0.0, 0.0], [99.0, 99.0], [10.0, 20.0]])
    told = model.time_embedding(span, torch.tensor(99.0), table)
    gain = 2.5  # how much larger than a time token's row it starts
    assert torch.allclose(told[0], gain * table[first], atol=1e-6)
    assert torch.allclose(told[1], gain * table[first + 99], atol=1e-6)
    both = table[first + 10] + table[first + 20]
    assert torch.allclose(told[2], gain * both / 2, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("code", ["absolute", "text"])
def test_other_time_codes_start_without_effect(code: str) -> None:
    model = hub_model("siglip", time_code=code, time_embedding=True)
    tokens, duration = clip_tokens(model)
    told = model.video_embeds(tokens.features, tokens.span, torch.tensor(duration))
    assert torch.equal(told, model.video_norm(tokens.features))
