"""Forward passes that go past a compress block: refused before any work, or said on leaving it."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf_tiny import Video, hf_inputs, hf_model, tokenizer
from torch import Tensor, nn

from vidllm import InputError
from vidllm.ask.compression import compress

FAMILY = "llava_onevision"
SMALL = {"max_new_tokens": 3, "do_sample": False}


def ready() -> tuple[Any, dict[str, Any]]:
    return copy.deepcopy(hf_model(FAMILY)), hf_inputs(FAMILY, [[3, Video(4), 6]])


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    yield
    torch._dynamo.reset()


def _model_forward(model: Any) -> None:
    model.forward = compiled(model.forward)


def _model(model: Any) -> None:
    model.compile(backend="eager")


def _core(model: Any) -> None:
    model.model.forward = functools.partial(compiled(model.model.forward))


def _core_module(model: Any) -> None:
    model.model = compiled(model.model)


def _decoder(model: Any) -> None:
    model.model.language_model.compile(backend="eager")


def _decoder_forward(model: Any) -> None:
    decoder = model.model.language_model
    decoder.forward = types.MethodType(compiled(type(decoder).forward), decoder)


def _layers(model: Any) -> None:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")


def _tower(model: Any) -> None:
    model.model.vision_tower.forward = compiled(model.model.vision_tower.forward)


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        (_model_forward, "aim"),
        (_model, "aim"),
        (_core, "aim"),
        (_core_module, "aim"),
        (_decoder, "aim"),
        (_decoder_forward, "fastv"),
        (_layers, "fastv"),
        (_tower, "visionzip"),
    ],
)
@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_hooks_under_compiled_code_are_refused_before_any_work(
    how: Callable[[Any], None], spec: str, keep: float
) -> None:
    model, inputs = ready()
    how(model)
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match="is compiled, and compiled code does not run") as caught:
        if keep == 1.0 and spec == "visionzip":  # it looks at nothing then
            compress(model, "visionzip", keep=0.5).__enter__()
        with compress(model, spec, keep=keep):
            model.generate(**inputs, **SMALL)
    assert "\n" not in str(caught.value) and not calls


@pytest.mark.parametrize("how", [_layers, _tower, _decoder_forward])
def test_compiled_parts_without_hooks_in_them_are_compressed_rightly(
    how: Callable[[Any], None],
) -> None:
    model, inputs = ready()
    with compress(model, "aim", keep=0.25):
        want = model(**inputs).logits
    how(model)
    plain = model(**inputs).logits
    with compress(model, "aim", keep=0.25) as c:
        torch.testing.assert_close(model(**inputs).logits, want, atol=1e-5, rtol=1e-5)
    assert c.receipt.tokens_kept == 4
    with compress(model, "aim", keep=1.0):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("in_a_block_before", [False, True])
def test_a_compiled_copy_that_somebody_holds_is_compressed_or_refused(
    in_a_block_before: bool,
) -> None:
    """Nothing of it shows on the model."""
    model, inputs = ready()
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, "aim", keep=0.25):
            want = model(**inputs).logits
        held = compiled(model.model)
        if in_a_block_before:
            with compress(model, "aim", keep=0.25):
                held(**inputs)
        else:
            held(**inputs)
        said = ""
        try:
            with compress(model, "aim", keep=0.25):
                got = model.lm_head(held(**inputs).last_hidden_state)
        except InputError as error:
            said = str(error)
        assert "went past compress" in said or torch.equal(got, want)
        behind = model.lm_head(held(**inputs).last_hidden_state)
        torch.testing.assert_close(behind, plain, atol=1e-5, rtol=1e-5)


def test_what_torch_compiles_holds_nothing_of_a_session() -> None:
    """Its hooks run as they are: to trace them would take longer than the model itself."""
    model, inputs = ready()
    files: set[str] = set()

    def backend(graph: Any, _: Any) -> Any:
        stacks = [node.stack_trace or "" for node in graph.graph.nodes]
        files.update(line for stack in stacks for line in stack.splitlines() if "File" in line)
        return graph.forward

    held = torch.compile(model.model, backend=backend)
    with torch.no_grad(), compress(model, "aim", keep=0.25) as c:
        held(**inputs)
    assert c.receipt.tokens_kept == 4
    assert any("modeling_llava_onevision.py" in line for line in files)
    assert not any("session.py" in line for line in files)


def _replayed(model: Any, inputs: dict[str, Any], part: Any, **call: Any) -> None:
    """What a captured graph does: the outputs of another run, and no layer is called."""
    kept: list[Any] = []
    handle = part.register_forward_hook(lambda _m, _a, output: kept.append(output))
    model(**inputs, **call)
    handle.remove()
    part.forward = lambda *_, **__: kept[0]


def _by_layers(model: Any, inputs: dict[str, Any]) -> Tensor:
    """A forward of somebody's own, over the layers."""
    decoder = model.model.language_model
    hidden = model.get_input_embeddings()(inputs["input_ids"])
    place = torch.arange(hidden.shape[1])[None]
    angles = decoder.rotary_emb(hidden, place)
    for layer in decoder.layers:
        hidden = layer(hidden, position_embeddings=angles, position_ids=place)
    return model.lm_head(decoder.norm(hidden))


def _replaced_core(model: Any, inputs: dict[str, Any]) -> None:
    core = model.model

    def forward(self: Any, input_ids: Tensor, **_: Any) -> Any:
        return type(core.language_model).forward(
            core.language_model, inputs_embeds=core.get_input_embeddings()(input_ids)
        )

    core.forward = types.MethodType(forward, core)
    core(**inputs)


def _generated(model: Any, inputs: dict[str, Any]) -> None:
    out = model(**inputs)
    model.forward = functools.wraps(model.forward)(lambda **_: out)
    model.generate(**inputs, **SMALL)


PAST: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "the text model alone": lambda m, i: m.model.language_model(input_ids=i["input_ids"]),
    "its forward": lambda m, i: m.model.language_model.forward(input_ids=i["input_ids"]),
    "layer by layer": _by_layers,
    "a replaced forward of the model": _replaced_core,
    "a graph of the whole model": lambda m, i: (_replayed(m, i, m), m(**i)),
    "a graph of the model": lambda m, i: (_replayed(m, i, m.model), m(**i)),
    "a graph of the text model": lambda m, i: (_replayed(m, i, m.model.language_model), m(**i)),
    "generate on a replay": _generated,
    "inference mode": lambda m, i: torch.inference_mode()(_by_layers)(m, i),
}


@pytest.mark.parametrize("what", PAST)
@pytest.mark.parametrize("spec", ["aim", "fastv"])
def test_a_pass_past_the_block_is_an_error_on_leaving(what: str, spec: str) -> None:
    model, inputs = ready()
    block = compress(model, spec, keep=0.25)
    c = block.__enter__()
    model(**inputs)
    assert len(c.kept) == 1
    PAST[what](model, inputs)
    for account in ("kept", "layers", "cached", "receipt"):
        with pytest.raises(InputError, match="went past compress"):
            getattr(c, account)
    with pytest.raises(InputError, match="went past compress") as caught:
        block.__exit__(None, None, None)
    assert "\n" not in str(caught.value)
    assert type(model.model.language_model.norm.weight) is nn.Parameter


def test_a_pass_in_another_thread_past_the_block_is_seen() -> None:
    from threading import Thread

    model, inputs = ready()
    with pytest.raises(InputError, match="went past compress"), compress(model, "aim", keep=0.25):
        thread = Thread(target=_by_layers, args=(model, inputs))
        thread.start()
        thread.join()


def _accelerated(model: Any) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    for part in (model, model.model, model.model.language_model, *model.model.modules()):
        if not hasattr(part, "_hf_hook"):
            add_hook_to_module(part, ModelHook())


def _disabled(model: Any) -> None:
    model.forward = torch.compiler.disable(model.forward)
    decoder = model.model.language_model
    decoder.forward = functools.partial(torch.compiler.disable(decoder.forward))


def _method(model: Any) -> None:
    decoder = model.model.language_model
    plain = type(decoder).forward
    decoder.forward = types.MethodType(lambda self, *a, **k: plain(self, *a, **k), decoder)


@pytest.mark.parametrize("how", [_accelerated, _disabled, _method])
@pytest.mark.parametrize("spec", ["aim", "fastv"])
def test_wrapped_forwards_that_call_the_layers_are_served(
    how: Callable[[Any], None], spec: str
) -> None:
    model, inputs = ready()
    with compress(model, spec, keep=0.25):
        want = model.generate(**inputs, **SMALL)
    how(model)
    with compress(model, spec, keep=0.25) as c:
        assert torch.equal(model.generate(**inputs, **SMALL), want)
    assert c.receipt.tokens_kept == 4


def test_what_is_no_pass_does_not_alarm() -> None:
    """A block in which nothing runs, training steps, copies, and passes that fail on the way."""
    model, inputs = ready()
    weight = model.model.language_model.norm.weight
    step = torch.optim.Adam([weight], lr=1e-3, weight_decay=0.1, foreach=False)
    with compress(model, "aim", keep=0.25) as c:
        model(**inputs).logits.sum().backward()
        step.step()
        assert weight.grad is not None and "weight" in repr(copy.deepcopy(model.model).state_dict())
        with pytest.raises(InputError, match="do not fit"):
            model(**{**inputs, "input_ids": inputs["input_ids"][:, :-8]})
        for error in (ValueError, KeyboardInterrupt):
            handle = model.lm_head.register_forward_pre_hook(_raises(error))
            deep = model.model.language_model.layers[2].register_forward_hook(_raises(error))
            with pytest.raises(error):
                model(**inputs)
            handle.remove()
            deep.remove()
            model(**inputs)
        assert c.receipt.tokens_kept == 4
    assert type(weight) is nn.Parameter and step.param_groups[0]["params"][0] is weight
    with compress(model, "aim", keep=0.25):
        pass


def _raises(error: type[BaseException]) -> Any:
    def hook(*_: Any) -> None:
        raise error("on the way")

    return hook


@pytest.mark.parametrize("spec", ["aim", "fastv"])
def test_wrappers_are_told_how_to_get_at_the_model(spec: str) -> None:
    model, inputs = ready()

    class Engine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = compiled(model)

    for wrapped, path in (
        (nn.DataParallel(model), "model.module"),
        (compiled(model), "model._orig_mod"),
        (Engine(), "model.module._orig_mod"),
    ):
        with pytest.raises(InputError, match=rf"pass {path}$"):
            compress(wrapped, spec, keep=0.25, processor=tokenizer()).__enter__()
    with compress(model, spec, keep=0.25) as c:  # and the wrapper may be called as before
        nn.DataParallel(model)(**inputs)
    assert c.receipt.tokens_kept == 4
