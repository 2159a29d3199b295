"""LSSL, H3 and LMU: their convolutions equal the recurrences, and the systems are the papers'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from authors.recurrences import System, recurrence, start, step
from torch import Tensor
from torch.nn import functional as F

from vidllm.encoders.temporal import get_temporal
from vidllm.encoders.temporal.base import Mixer
from vidllm.encoders.temporal.diagonal import DiagonalSystem, convolve_steps
from vidllm.encoders.temporal.h3 import H3Mixer
from vidllm.encoders.temporal.lmu import LMUMixer, legendre_memory
from vidllm.encoders.temporal.longconv import DenseSystem, convolve, fir
from vidllm.encoders.temporal.lssl import LSSLMixer, bilinear, hippo_legs
from vidllm.errors import InputError

EXACT = 1e-10
FEATURES, STATES, READS = 3, 4, 2


def near(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() < tolerance).all())


def dense(features: int = FEATURES, seed: int = 0) -> DenseSystem:
    torch.manual_seed(seed)
    a = torch.randn(features, STATES, STATES, dtype=torch.float64)
    a = 0.95 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    b, c = torch.randn(features, STATES), torch.randn(features, READS, STATES)
    return DenseSystem(a, b.double(), c.double())


def diagonal(seed: int = 0) -> DiagonalSystem:
    torch.manual_seed(seed)
    value = torch.complex(
        -torch.rand(FEATURES, STATES).double(), 3 * torch.randn(FEATURES, STATES).double()
    )
    c = torch.randn(FEATURES, READS, STATES, dtype=torch.complex128)
    return DiagonalSystem(0.3 * value, 1 / value, c)


SYSTEMS = {"dense": dense, "diagonal": diagonal}
EACH = pytest.mark.parametrize("kind", SYSTEMS)


def signal(length: int, features: int = FEATURES, batch: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(batch, length, features, dtype=torch.float64, generator=draw)


@EACH
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize(
    ("length", "block"),
    [
        (1, None),
        (2, 5),
        (7, 1),
        (40, None),
        (50, 50),
        (50, 16),
        (300, None),
        (300, 300),
        (300, 131),
    ],
)
def test_the_convolution_equals_the_recurrence(
    kind: str, length: int, block: int | None, carried: bool
) -> None:
    system: System = SYSTEMS[kind]()
    u = signal(length)
    state = torch.randn_like(start(system, 2)) if carried else None
    expected, last = recurrence(u, system, state)
    y, after = convolve(u, system.block, state, block)  # over 128 tokens a block: by FFT
    assert near(y, expected) and near(after, last)


@EACH
@pytest.mark.parametrize("block", [8, 150])
def test_the_convolution_has_the_gradients_of_the_recurrence(kind: str, block: int) -> None:
    system: System = SYSTEMS[kind]()
    u, state = signal(150), torch.randn_like(start(system, 2))
    given = [u, state, *vars(system).values()]
    for value in given:
        value.requires_grad_()
    grads = []
    for y, last in (recurrence(u, system, state), convolve(u, system.block, state, block)):
        grads.append(torch.autograd.grad(y.sin().sum() + last.sin().sum(), given))
    assert all(near(a, b, 1e-9) for a, b in zip(*grads, strict=True))


def test_one_system_serves_many_features() -> None:
    one, u = dense(1), signal(37, 5)
    many = DenseSystem(*(value.repeat_interleave(5, 0) for value in vars(one).values()))
    state = torch.randn(2, 5, STATES, dtype=torch.float64)
    for held in (None, state):
        expected, last = convolve(u, many.block, held)
        y, after = convolve(u, one.block, held)
        assert near(y, expected) and near(after, last)


@pytest.mark.parametrize("length", [1, 2, 9, 50])
@pytest.mark.parametrize("carried", [False, True])
def test_a_step_of_every_token_equals_its_recurrence(length: int, carried: bool) -> None:
    system, u = diagonal(), signal(length)
    scale = 3 * torch.rand(2, length, dtype=torch.float64)
    scale[:, length // 2] = 0  # a token that is skipped
    begin = torch.randn_like(start(system, 2)) if carried else start(system, 2)
    held, outputs = begin, []
    for t in range(length):
        held, y = step(system, held, u[:, t], scale[:, t])
        outputs.append(y)
    y, after = convolve_steps(u, scale, system, begin if carried else None)
    assert near(y, torch.stack(outputs, 1)) and near(after, held)
    even, last = convolve_steps(u, torch.ones_like(scale), system, begin)
    expected, final = convolve(u, system.block, begin)
    assert near(even, expected) and near(last, final)


@pytest.mark.parametrize("taps", [1, 2, 6, 20])
@pytest.mark.parametrize("length", [1, 5, 61])
def test_a_few_taps_are_the_shift_state_space(taps: int, length: int) -> None:
    weights, u = torch.randn(FEATURES, taps, dtype=torch.float64), signal(length)
    shift = torch.diag(torch.ones(taps - 1, dtype=torch.float64), -1).expand(FEATURES, -1, -1)
    first = torch.eye(taps, dtype=torch.float64)[0].expand(FEATURES, -1)
    system = DenseSystem(shift, first, weights[:, None])
    before = signal(taps - 1).flip(0)
    # h_t = (u_t, u_(t-1), …): the newest input first
    state = F.pad(before.flip(1), (0, 0, 0, 1)).transpose(1, 2)
    for tail, held in ((None, None), (before, state)):
        y, after = fir(u, weights, tail)
        expected, last = recurrence(u, system, held)
        assert near(y, expected[..., 0])
        assert near(after, last[:, :, : taps - 1].flip(2).transpose(1, 2))


def test_hippo_legs_and_its_bilinear_transform_by_hand() -> None:
    A, B = hippo_legs(3)
    r3, r5, r15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    hand = torch.tensor([[-1, 0, 0], [-r3, -2, 0], [-r5, -r15, -3]], dtype=torch.float64)
    assert near(A, hand, 1e-14) and near(B, torch.tensor([1, r3, r5], dtype=torch.float64), 1e-14)
    one = torch.ones(1, dtype=torch.float64)
    for alpha, a, b in ((0.5, 0.6, 0.4), (1.0, 2 / 3, 1 / 3), (0.0, 0.5, 0.5)):
        made, fed = bilinear(-one[:, None], one, 0.5 * one, alpha)  # x' = -x + u, step 1/2
        assert abs(made.item() - a) < 1e-14 and abs(fed.item() - b) < 1e-14
    steps = torch.tensor([0.02, 0.01], dtype=torch.float64)
    exact = torch.linalg.matrix_exp(steps[:, None, None] * A)
    for alpha, order in ((0.5, 3), (1.0, 2)):  # error of one step: O(step^3), O(step^2)
        errors = (bilinear(A, B, steps, alpha)[0] - exact).abs().amax((1, 2))
        assert abs(math.log2(float(errors[0] / errors[1])) - order) < 0.1


def test_lssl_starts_as_legs_and_stays_stable_whatever_it_learns() -> None:
    mixer = LSSLMixer(6, 8, 1, 0.5, False, 1e-3, 1e-1, None, True).double()
    mixer.reset_parameters()
    A, B = hippo_legs(8)
    step = mixer.log_step.detach().exp()
    assert bool(((step > 0.99e-3) & (step < 0.101)).all())
    for made, expected in zip(
        bilinear(A, B, step), vars(mixer.system(torch.float64)).values(), strict=False
    ):
        assert near(made, expected)
    with torch.no_grad():
        for weight in (mixer.A_skew, mixer.A_rank, mixer.A_decay, mixer.log_step):
            weight.normal_(std=3)
    norms = torch.linalg.matrix_norm(mixer.system(torch.float64).A, 2)
    assert bool((norms <= 1 + 1e-9).all())
    mixer.reset_parameters()
    made = bilinear(A, B, mixer.log_step.exp())[0]
    assert near(mixer.system(torch.float64).A, made, 1e-6) and not mixer.out_proj.weight.any()


def test_legendre_memory_is_the_exact_hold_and_remembers_a_window() -> None:
    A = torch.tensor([[-1, -1, -1], [3, -3, -3], [-5, 5, -5]], dtype=torch.float64) / 7
    B = torch.tensor([1, -3, 5], dtype=torch.float64) / 7
    made, fed = legendre_memory(3, 7.0)
    expected = torch.linalg.matrix_exp(A)
    assert near(made, expected, 1e-13)
    assert near(fed, torch.linalg.solve(A, (expected - torch.eye(3).double()) @ B), 1e-13)
    # u(t - s) is the sum of m_i P_i(2 s / theta - 1): all ones at s = theta, signs at s = 0
    order, theta = 12, 40
    made, fed = legendre_memory(order, float(theta))
    u = torch.sin(torch.arange(200, dtype=torch.float64) / 9)[None, :, None]
    reads = torch.stack([torch.ones(order), (-1.0) ** torch.arange(order)]).double()
    y, _ = convolve(u, DenseSystem(made[None], fed[None], reads[None]).block)
    old, new = y[0, 100:, 0, 0], y[0, 100:, 0, 1]
    held = u[0, :, 0]  # an input is held for a token: half a token late on average
    late = (held[100 - theta : -theta] + held[101 - theta : 1 - theta]) / 2
    assert float((old - late).abs().max()) < 5e-3
    assert float((new - held[100:]).abs().max()) < 0.1


def lssl_by_hand(m: Any, x: Tensor) -> Tensor:
    A, B = hippo_legs(m.B.shape[0])
    out = torch.zeros(*x.shape, m.C.shape[1], dtype=x.dtype)
    for d in range(x.shape[2]):
        step = m.log_step[d].exp()
        left = torch.linalg.inv(torch.eye(len(B), dtype=x.dtype) - step / 2 * A)
        ahead = left @ (torch.eye(len(B), dtype=x.dtype) + step / 2 * A)
        h = torch.zeros(x.shape[0], len(B), dtype=x.dtype)
        for t in range(x.shape[1]):
            h = h @ ahead.T + x[:, t, d, None] * (left @ B * step)
            out[:, t, d] = h @ m.C[d].T + m.D[d] * x[:, t, d, None]
    return m.out_proj(F.gelu(out).flatten(2))


def h3_by_hand(m: Any, x: Tensor) -> Tensor:
    (q, k, v), width, taps = m.in_proj(x).chunk(3, -1), m.head_dim, m.shift_C.shape[1]
    shifted = m.shift_D * k
    for age in range(min(taps, x.shape[1])):
        shifted[:, age:] += m.shift_C[:, age] * k[:, : x.shape[1] - age]
    q, k, v = (t.unflatten(-1, (-1, width)) for t in (q, shifted, v))
    value = torch.complex(-m.log_decay.exp(), m.frequency)
    step = m.log_step.exp()[:, None]
    ahead = torch.exp(step * value)[:, None, None]
    fed = ((ahead - 1) / value[:, None, None]) * torch.view_as_complex(m.C)[:, None, None]
    h: Any = 0
    outs = []
    for t in range(x.shape[1]):
        kv = torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
        h = ahead * h + fed * kv[..., None]
        w = 2 * h.real.sum(-1) + m.D[:, None, None] * kv
        outs.append(torch.einsum("bhi,bhij->bhj", q[:, t], w).flatten(1))
    return m.out_proj(torch.stack(outs, 1))


def lmu_by_hand(m: Any, x: Tensor) -> Tensor:
    (A, B), u, outs = legendre_memory(m.memory, m.theta), F.relu(m.write(x)), []
    h = torch.zeros(x.shape[0], u.shape[2], m.memory, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = h @ A.T + u[:, t, :, None] * B
        outs.append(F.relu(m.read(h.flatten(1)) + m.direct(x[:, t])))
    return m.out_proj(torch.stack(outs, 1))


def mixer(name: str, block: int | None = None) -> Mixer:
    torch.manual_seed(3)
    if name == "lssl":
        return LSSLMixer(6, 5, 2, 0.5, False, 1e-3, 1e-1, block, False)
    if name == "lmu":
        return LMUMixer(6, 7, 9.0, 4, block, False)
    return H3Mixer(6, 8, 2 if name == "h3 heads" else 1, 1e-3, 1e-1, block, False)


def restarted(made: Mixer) -> Mixer:
    """Initialised in the precision it has now: HiPPO is not rounded to float32."""
    torch.manual_seed(4)
    made.reset_parameters()
    return made


BY_HAND = {"lssl": lssl_by_hand, "h3": h3_by_hand, "h3 heads": h3_by_hand, "lmu": lmu_by_hand}
ALL = pytest.mark.parametrize("name", BY_HAND)


@ALL
@torch.no_grad()
def test_the_layers_are_the_equations_token_by_token(name: str) -> None:
    x = signal(150, 6)
    expected = BY_HAND[name](restarted(mixer(name).double()), x)
    for block in (None, 10, 150):  # chosen, short, and one FFT over the sequence
        made = restarted(mixer(name, block).double())
        assert near(made(x)[0], expected)
        y, state = made(x[:, :61])
        rest, _ = made(x[:, 61:], state=state)
        assert near(torch.cat([y, rest], 1), expected)


@ALL
@torch.no_grad()
def test_float32_streams_of_any_chunks_equal_the_whole_and_do_not_drift(name: str) -> None:
    made, x = mixer(name), signal(700, 6).float()
    whole, _ = made(x)
    state, parts = None, []
    for piece in x.split([1, 2, 97, 300, 1, 299], 1):
        y, state = made(piece, state=state)
        parts.append(y)
    assert near(torch.cat(parts, 1), whole, 1e-5)
    assert near(mixer(name).double()(x.double())[0].float(), whole, 1e-4)
    later = x.clone()
    later[:, 333:] += 100  # strictly causal: nothing leaks back, not even rounding
    assert torch.equal(made(later)[0][:, :333], whole[:, :333])


@ALL
def test_bf16_keeps_convolution_and_state_in_float32(name: str) -> None:
    x = signal(90, 6).float()
    exact = mixer(name)(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough, state = mixer(name)(x)
        rough.float().square().mean().backward()
    states = state if isinstance(state, tuple) else (state,)
    assert near(rough.float(), exact, 0.05) and all(s.dtype == torch.float32 for s in states)
    whole, state = mixer(name).bfloat16()(x.bfloat16())
    states = state if isinstance(state, tuple) else (state,)
    assert whole.dtype == torch.bfloat16 and all(s.dtype == torch.float32 for s in states)
    assert near(whole.float(), exact, 0.15)


def test_tables_taken_in_inference_mode_serve_training_later() -> None:
    made = LMUMixer(6, 5, 3.25, 2, None, False)
    with torch.inference_mode():
        made(torch.randn(1, 40, 6))
    made(torch.randn(1, 40, 6))[0].sum().backward()
    assert made.write.weight.grad is not None and bool(made.write.weight.grad.any())


def test_h3_sees_gaps_and_the_fixed_lssl_trains_no_system() -> None:
    torch.manual_seed(0)
    model = get_temporal("h3", 6, state=8, time="step", zero_init=False)
    plain = get_temporal("h3", 6, state=8, zero_init=False)
    plain.load_state_dict(model.state_dict())
    x, even = torch.randn(1, 6, 3, 6), torch.arange(6.0)[None]
    uneven = torch.tensor([[0.0, 1, 2, 10, 11, 12]])
    assert torch.allclose(model(x, even), plain(x, even), atol=1e-6)
    assert float((model(x, even) - model(x, uneven)).detach().abs().max()) > 1e-5
    assert torch.allclose(model(x, uneven), model(x, 60 * uneven + 5), atol=1e-5)
    full, fixed = (get_temporal("lssl", 6, state=4, fixed=fixed) for fixed in (False, True))
    names = {name for name, _ in fixed.named_parameters()}
    assert not any(part in name for name in names for part in ("A_", ".B", "log_step"))
    full.load_state_dict(fixed.state_dict())  # the same names: training may go on with all


def test_what_does_not_fit_is_refused() -> None:
    for name, options, message in (
        ("lssl", {"alpha": 0.2}, "stable"),
        ("lssl", {"channels": 0}, "at least 1"),
        ("lssl", {"dt_min": 0.2}, "dt_min"),
        ("lssl", {"time": "step"}, "embedding"),
        ("lmu", {"time": "step"}, "embedding"),
        ("lmu", {"theta": 0}, "theta"),
        ("lmu", {"heads": 0}, "at least 1"),
        ("h3", {"state": 7}, "even"),
        ("h3", {"head_dim": 5}, "divide"),
        ("h3", {"block": 0}, "block"),
    ):
        with pytest.raises(InputError, match=message):
            get_temporal(name, 16, **options)
    x, valid = torch.randn(2, 4, 6), torch.ones(2, 4).bool()
    for name in BY_HAND:
        _, state = mixer(name)(x)
        with pytest.raises(InputError, match="no padding"):
            mixer(name)(x, valid, state=state)
