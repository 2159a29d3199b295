"""Ways to generate under compression: what each takes, and which are refused.

A prompt that was only shortened before the decoder (stages "vision" and "tokens") leaves the same
entries in every layer's cache, so caches of other kinds and assisted decoding go on from it as from
any shorter prompt. Guesses (`prompt_lookup_num_tokens`, `assistant_model`) begin behind the prompt,
which is read alone, as without them. Caches of fixed length come with masks that are laid out for
the full prompt; these become the plain mask (B, L) again, of which the decoder makes its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationMixin, cache_utils

from vidllm.compressors import LATE, Compressor
from vidllm.errors import InputError

from ..families.family import Adapter
from .layers import carries_state, views_of
from .vision_tower import instead

#: Values of `cache_implementation`, by what they are to a prompt that was shortened.
_GROWING = (None, "dynamic", "offloaded")
_QUANTIZED = ("quantized",)
_FIXED = ("static", "offloaded_static")
#: The base of layers of fewer bits; in transformers before 5.23 `QuantizedLayer` is.
_FEWER_BITS = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)
#: Options of `generate` that guess tokens, and such as need more than the model's own answers.
_GUESSES = ("prompt_lookup_num_tokens", "assistant_model")
_INSIDE = ("assistant_early_exit", "use_mtp", "speculation_type")


def is_fixed(cache: Any) -> bool:
    """Whether a cache has a fixed length."""
    return cache is not None and bool(getattr(cache, "is_compileable", False))


def is_quantized(cache: Any) -> bool:
    """Whether a cache holds numbers of fewer bits."""
    return any(isinstance(layer, _FEWER_BITS) for layer in getattr(cache, "layers", ()))


def plain_mask(mask: Any, length: int) -> Any:
    """The mask (B, L) of a prompt of so many tokens, from one that is laid out for a fixed cache.

    Args:
        mask: (B, 1, L, K) bool or additive, a dict of these by kind of layer, (B, L) or None.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        return mask
    last = mask[:, 0, -1, :length]  # the last query sees every token that is no padding
    return (last if last.dtype == torch.bool else last == 0).long()


def check_generate(
    adapter: Adapter, method: Compressor, arguments: Mapping[str, Any], sharing: bool = False
) -> dict[str, Any]:
    """Refuse ways to generate that count on the full prompt.

    Args:
        arguments: of `generate`, by name. sharing: prompts begin with a video that was read before.

    Returns:
        Options that `generate` is to be called with as well.

    Raises:
        InputError: names the method, the model and the reason.
    """
    config = arguments.get("generation_config") or getattr(adapter.model, "generation_config", None)

    def option(name: str) -> Any:
        value = arguments.get(name)
        return getattr(config, name, None) if value is None else value

    who = f"{method.name} on {adapter.family}"
    kind, cache = option("cache_implementation"), arguments.get("past_key_values")
    if kind not in (*_GROWING, *_QUANTIZED, *_FIXED):
        raise InputError(
            f"{who}: a {kind} cache is laid out for the full prompt: leave out "
            f"cache_implementation='{kind}', so that the default dynamic cache is used"
        )
    fixed, quantized = kind in _FIXED or is_fixed(cache), kind in _QUANTIZED or is_quantized(cache)
    what = f"{kind} cache" if cache is None else type(cache).__name__
    if fixed or quantized:
        _check_kind(adapter, method, what, fixed, sharing)
    if kind == "offloaded" or getattr(cache, "offloading", False):
        _check_offloaded(adapter, method)
    guessing = next((name for name in _GUESSES if option(name)), None)
    inside = next((name for name in _INSIDE if option(name)), None)
    if inside is not None:
        raise InputError(
            f"{who}: {inside} guesses from inside the model, which holds fewer tokens than the "
            "prompt: use prompt_lookup_num_tokens or an assistant_model"
        )
    if guessing is not None:
        _check_guesses(adapter, method, guessing, quantized)
    if option("assistant_model") is adapter.model:
        raise InputError(
            f"{who}: the model cannot be its own assistant_model, whose guesses come from the full "
            "prompt: pass another, smaller one, or prompt_lookup_num_tokens"
        )
    if option("prefill_chunk_size"):
        raise InputError(
            f"{who}: a video is compressed as a whole, and prefill_chunk_size reads the prompt in "
            "parts: leave it out"
        )
    if option("input_ids") is None and arguments.get("inputs_embeds") is not None:
        raise InputError("compress reads the prompt: pass input_ids, not inputs_embeds")
    # On a GPU the library would compile the steps, and compiled code runs no hooks.
    return {"disable_compile": True} if fixed else {}


def check_cache(adapter: Adapter, method: Compressor, cache: Any) -> None:
    """Refuse a cache that cannot hold what a method leaves.

    Raises:
        InputError: names the method and the model.
    """
    if is_fixed(cache) or is_quantized(cache):
        _check_kind(adapter, method, type(cache).__name__, is_fixed(cache), False)


def _check_kind(
    adapter: Adapter, method: Compressor, what: str, fixed: bool, sharing: bool
) -> None:
    """Refuse a cache of another kind where layers differ, or where entries are put in or out."""
    who, decoder = f"{method.name} on {adapter.family}", cast(Any, adapter.decoder)
    late = _late(method)
    if late:
        raise InputError(
            f"{who}: {late} leaves layers of different length, which one {what} does not hold: use "
            "the default cache, or a method that acts before the decoder"
        )
    if sharing:
        raise InputError(
            f"{who}: what was read of a video goes into the default cache, and this is one {what}: "
            "leave it out, or ask without reuse"
        )
    if not fixed:
        return
    own = hasattr(type(adapter.model), "create_masks_for_generate")
    seen = views_of(decoder.config, len(decoder.layers))
    how = str(decoder.config._attn_implementation)
    if not seen.plain or own or how not in ("sdpa", "eager"):
        reason = (
            f"attention '{how}' lays its mask out in blocks"
            if how not in ("sdpa", "eager")
            else "its windows, or pictures whose tokens see each other, are laid out for the full "
            "prompt"
        )
        raise InputError(f"{who}: {reason}, so no {what} is served: use the default cache")


def _check_offloaded(adapter: Adapter, method: Compressor) -> None:
    """Refuse to take entries out of a cache whose layers wait in another memory."""
    for item in method.methods:
        if item.stage == "cache":
            raise InputError(
                f"{item.name} on {adapter.family}: it takes entries out of the cache, whose layers "
                "wait in another memory where it is offloaded: use the default cache"
            )


def _check_guesses(adapter: Adapter, method: Compressor, name: str, quantized: bool) -> None:
    """Refuse assisted decoding where guesses cannot be taken back."""
    who, late = f"{method.name} on {adapter.family}", _late(method)
    reason = ""
    if late:
        reason = f"{late} leaves layers of different length, out of which no guess is taken back"
    elif carries_state(list(cast(Any, adapter.decoder).layers)):
        reason = "its layers of linear attention hold a state, out of which no guess is taken back"
    elif quantized:
        reason = "a quantized cache does not count the guesses that are taken back"
    elif not hasattr(adapter.model, "_get_candidate_generator"):
        reason = "this transformers makes its guesses another way"
    if reason:
        raise InputError(f"{who}: assisted decoding ({name}): {reason}: leave out {name}")


def _late(method: Compressor) -> str:
    """The name of what acts inside the decoder; "" for nothing."""
    late = [item.name for item in method.methods if item.stage in LATE]
    return "it" if len(late) == len(method.methods) else ",".join(late)


@contextmanager
def around_generate(
    model: Any,
    around: Callable[[Mapping[str, Any]], AbstractContextManager[Mapping[str, Any]]],
) -> Iterator[None]:
    """Run every `generate` inside `around`, which sees its arguments by name and adds to them.

    A model without `generate` is left as it is, and every model behind the block.
    """
    plain = getattr(model, "generate", None)
    if plain is None:
        yield
        return
    signature = inspect.signature(plain)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    @wraps(plain)
    def generate(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
        for name in rest:
            arguments |= arguments.pop(name, {})
        if arguments.get("input_ids") is None and arguments.get("inputs") is not None:
            arguments["input_ids"] = arguments["inputs"]
        with around(arguments) as more, _prompt_first(model):
            return plain(*args, **{**kwargs, **more})

    with instead(model, "generate", generate):
        yield


@contextmanager
def _prompt_first(model: Any) -> Iterator[None]:
    """Let assisted decoding read the prompt before it guesses: what is compressed then is the
    prompt, of the same tokens and the same question as in plain decoding."""
    name = "_get_candidate_generator"
    if not isinstance(model, GenerationMixin) or name in vars(model):
        yield
        return
    plain = getattr(model, name)

    def made(*args: Any, **kwargs: Any) -> Any:
        generator = plain(*args, **kwargs)
        if getattr(generator, "requires_model_outputs", False):
            raise InputError(
                f"a {type(generator).__name__} reads the states of the full prompt, and compress "
                "leaves tokens out: use prompt_lookup_num_tokens or another assistant_model"
            )
        guess, begun = generator.get_candidates, list[bool]()

        def get_candidates(ids: Tensor, *rest: Any, **more: Any) -> Any:
            found = guess(ids, *rest, **more)  # an assistant reads the prompt as well
            if begun:
                return found
            begun.append(True)
            return ids, None

        generator.get_candidates = get_candidates
        return generator

    with instead(model, name, made):
        yield
