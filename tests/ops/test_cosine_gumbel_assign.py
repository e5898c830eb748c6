"""Cosine-Gumbel assignment against the dense formula in float64: values, gradients, invariances, memory."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_kernels import Assignment, backends, cosine_gumbel_assign, testing
from alt_kernels.reference.cosine_gumbel_assign import gumbel_noise

# x, entities: equal dtypes, and what autocast mixes.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float64),
]


class Problem(NamedTuple):
    x: Tensor
    entities: Tensor
    noise: Tensor
    grad: Tensor
    tau: float


def _problem(
    rows: int, count: int, depth: int, dtypes: tuple[torch.dtype, ...] = (torch.float64,) * 2, tau: float = 0.4
) -> Problem:
    """Noise that any dtype holds exactly, and incoming gradients in the output's dtype."""
    x = torch.randn(rows, depth, dtype=torch.float64).to(dtypes[0])
    entities = torch.randn(count, depth, dtype=torch.float64).to(dtypes[1])
    noise = gumbel_noise(torch.tensor(1), rows, count, torch.bfloat16)
    grad = torch.randn(rows, depth, dtype=torch.float64).to(torch.promote_types(*dtypes))
    return Problem(x, entities, noise, grad, tau)


def _dense(x: Tensor, entities: Tensor, tau: Tensor | float, noise: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    """(output, A) as the paper prints them, all M x K of it."""
    cosine = F.normalize(x, dim=-1) @ F.normalize(entities, dim=-1).T
    a = (cosine / tau + noise).softmax(-1)
    if hard:
        chosen = F.one_hot(a.argmax(-1), entities.shape[0]).to(a.dtype)
        return (chosen + a - a.detach()) @ entities, a
    return a @ entities, a


class Truth(NamedTuple):
    output: Tensor
    index: Tensor
    normalizer: Tensor
    grads: tuple[Tensor, Tensor, Tensor]
    logit_error: float
    magnitudes: tuple[Tensor, Tensor, Tensor, Tensor]


def _truth(p: Problem, hard: bool) -> Truth:
    """Float64 values, and per result the sum of the magnitudes of its terms, which rounding is relative to."""
    x, s = (t.double().requires_grad_() for t in (p.x, p.entities))
    tau = torch.tensor(p.tau, dtype=torch.float64, requires_grad=True)
    output, a = _dense(x, s, tau, p.noise.double(), hard)
    grads = torch.autograd.grad(output, (x, s, tau), p.grad.double())
    x, s, a, do = x.detach(), s.detach(), a.detach(), p.grad.double().abs()
    unit_x, unit_s = F.normalize(x, dim=-1), F.normalize(s, dim=-1)
    logits = unit_x @ unit_s.T / p.tau + p.noise.double()
    da = do @ s.abs().T
    dl = a * (da + (a * da).sum(-1, keepdim=True))
    dux, dus = dl @ unit_s.abs() / p.tau, dl.T @ unit_x.abs() / p.tau
    mag_x = (dux + unit_x.abs() * (dux * unit_x.abs()).sum(-1, keepdim=True)) / x.norm(dim=-1, keepdim=True)
    mag_s = (dus + unit_s.abs() * (dus * unit_s.abs()).sum(-1, keepdim=True)) / s.norm(dim=-1, keepdim=True)
    value_path = F.one_hot(logits.argmax(-1), s.shape[0]).double() if hard else a
    mag_s = mag_s + value_path.T @ do
    mag_tau = (dl * (unit_x.abs() @ unit_s.abs().T)).sum() / p.tau**2
    # A cosine: d products and two normalisations of d squares each; then a division and a sum.
    u = testing.roundoff(testing.accumulate_dtype(torch.promote_types(p.x.dtype, p.entities.dtype)))
    error = (2 * x.shape[1] + 8) * u / p.tau + 2 * u * float(logits.abs().max())
    magnitudes = (a @ s.abs(), mag_x, mag_s, mag_tau)
    return Truth(output.detach(), logits.argmax(-1), logits.logsumexp(-1), grads, error, magnitudes)


def _band(value: Tensor, magnitude: Tensor, terms: int, t: Truth, dtype: torch.dtype, result: torch.dtype) -> Tensor:
    """A's error is twice that of a logit, it enters products twice; the rest is sums of ``terms`` terms."""
    inner = (4 * t.logit_error + testing.gamma(terms, dtype)) * magnitude
    spacing = torch.finfo(result).smallest_normal * torch.finfo(result).eps
    return inner + testing.roundoff(result) * (value.abs() + inner) + spacing


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "count", "depth"),
    [(6, 5, 4), (37, 70, 16), (300, 131, 24), (5, 1, 3), (1, 2100, 8)],
    ids=["small", "odd", "chunks", "one-entity", "tiles"],
)
def test_values_and_gradients(
    rows: int, count: int, depth: int, dtypes: tuple[torch.dtype, torch.dtype], hard: bool, impl: str
) -> None:
    """Output, index, log-normalizer and the gradients of x, entities and tau, for the same noise tensor."""
    p = _problem(rows, count, depth, dtypes)
    t = _truth(p, hard)
    out_dtype = torch.promote_types(*dtypes)
    acc = testing.accumulate_dtype(out_dtype)
    x, s = (v.clone().requires_grad_() for v in (p.x, p.entities))
    tau = torch.tensor(p.tau, dtype=acc, requires_grad=True)
    result = cosine_gumbel_assign(x, s, tau=tau, hard=hard, noise=p.noise, impl=impl)
    assert isinstance(result, Assignment)
    assert (result.output.dtype, result.index.dtype, result.log_normalizer.dtype) == (out_dtype, torch.int64, acc)
    assert torch.equal(result.index, t.index), "the problem has no near-ties"
    if hard:  # the entity itself, bit for bit
        testing.assert_same_bits(result.output.detach(), p.entities.to(out_dtype)[t.index], name="output")
    else:
        band = _band(t.output, t.magnitudes[0], count + 8, t, acc, out_dtype)
        testing.assert_error_band(result.output.detach(), t.output, band, name="output")
    band = t.logit_error + testing.gamma(count + 8, acc) + testing.roundoff(acc) * t.normalizer.abs()
    testing.assert_error_band(result.log_normalizer, t.normalizer, band, name="log_normalizer")

    grads = torch.autograd.grad(result.output, (x, s, tau), p.grad)
    terms = (3 * (depth + count) + 30, 3 * (depth + count) + rows + 30, 2 * depth + 3 * count + rows * count + 30)
    for name, actual, truth, magnitude, n, leaf in zip(
        ("x", "entities", "tau"), grads, t.grads, t.magnitudes[1:], terms, (x, s, tau), strict=True
    ):
        assert actual.dtype == leaf.dtype
        band = _band(truth, magnitude, n, t, acc, leaf.dtype)
        testing.assert_error_band(actual, truth, band, name=f"gradient of {name}")


@pytest.mark.parametrize("noise", ["tensor", "seed", "none"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_hard_gradient_is_autograd_of_the_straight_through_formula(hard: bool, noise: str, impl: str) -> None:
    """In float64 to the last digits, whichever way the noise came: the backward draws it again."""
    p = _problem(40, 23, 9)
    g = {"tensor": p.noise.double(), "seed": gumbel_noise(torch.tensor(6), 40, 23, torch.float64)}.get(noise)
    given = {
        "tensor": {"noise": g},
        "seed": {"seed": torch.tensor(6)},
        "none": {"noise": None},
    }[noise]
    leaves = [t.requires_grad_() for t in (p.x, p.entities, torch.tensor(0.7, dtype=torch.float64))]
    x, s, tau = leaves
    expected = torch.autograd.grad(_dense(x, s, tau, torch.zeros(()) if g is None else g, hard)[0], leaves, p.grad)
    actual = torch.autograd.grad(
        cosine_gumbel_assign(x, s, tau=tau, hard=hard, impl=impl, **given).output, leaves, p.grad
    )
    for name, a, e in zip(("x", "entities", "tau"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"gradient of {n}: {m}")


def test_gradcheck_of_the_soft_assignment(impl: str) -> None:
    p = _problem(4, 5, 3)
    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def soft(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return cosine_gumbel_assign(x, s, tau=t, hard=False, noise=p.noise, impl=impl).output

    assert torch.autograd.gradcheck(soft, (p.x.requires_grad_(), p.entities.requires_grad_(), tau))


@pytest.mark.parametrize("wanted", ["x", "entities", "tau"])
def test_one_gradient_alone_equals_all_together(wanted: str, impl: str) -> None:
    p = _problem(20, 9, 5, (torch.float32,) * 2)

    def grads(*names: str) -> dict[str, Tensor]:
        leaves = {"x": p.x.clone(), "entities": p.entities.clone(), "tau": torch.tensor(0.5)}
        for name in names:
            leaves[name].requires_grad_()
        out = cosine_gumbel_assign(leaves["x"], leaves["entities"], tau=leaves["tau"], noise=p.noise, impl=impl).output
        out.backward(p.grad)
        assert all((leaf.grad is not None) == (name in names) for name, leaf in leaves.items())
        return {name: leaves[name].grad for name in names}

    alone, together = grads(wanted)[wanted], grads("x", "entities", "tau")[wanted]
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)


def test_evaluation_is_the_plain_argmax(impl: str) -> None:
    """noise=None: no noise, deterministic, whatever tau; the lowest index among equals."""
    p = _problem(200, 30, 12)
    cosine = F.normalize(p.x, dim=-1) @ F.normalize(p.entities, dim=-1).T
    for tau in (1.0, 0.01, 50.0):
        result = cosine_gumbel_assign(p.x, p.entities, tau=tau, noise=None, impl=impl)
        assert torch.equal(result.index, cosine.argmax(-1))
        torch.testing.assert_close(result.log_normalizer, (cosine / tau).logsumexp(-1))
    again = cosine_gumbel_assign(p.x, p.entities, tau=50.0, noise=None, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(again, result, strict=True))
    # Ties: copies of entities, in exact arithmetic, near and far apart (other tiles).
    x = testing.exact_metric(1, 50, 3)[0]
    entities = torch.cat([testing.exact_metric(1, 40, 4, zeros=0.1)[0]] * 60)  # 2400 rows
    index = cosine_gumbel_assign(x, entities, noise=None, impl=impl).index
    score = F.normalize(x.double(), dim=-1) @ F.normalize(entities.double(), dim=-1).T
    best = score.round(decimals=10)  # multiples of 1/16 in exact arithmetic
    lowest = torch.where(best == best.amax(-1, keepdim=True), torch.arange(2400), 2400).amin(-1)
    assert torch.equal(index, lowest)
    assert index.max() < 40


def test_rescaling_rows_changes_nothing(impl: str) -> None:
    """Powers of two exactly; magnitudes whose squares overflow or vanish in float32 among them."""
    p = _problem(50, 20, 16, (torch.float32,) * 2)
    base = cosine_gumbel_assign(p.x, p.entities, tau=p.tau, noise=p.noise, impl=impl)
    scale_x = torch.exp2(torch.randint(-90, 90, (50, 1)).float())
    scale_s = torch.exp2(torch.randint(-90, 90, (20, 1)).float())
    scaled = cosine_gumbel_assign(p.x * scale_x, p.entities * scale_s, tau=p.tau, noise=p.noise, impl=impl)
    assert torch.equal(scaled.index, base.index)
    band = 2 * (2 * 16 + 8) * testing.roundoff(torch.float32) / p.tau + 1e-6
    assert (scaled.log_normalizer - base.log_normalizer).abs().max() < band
    assert torch.equal(scaled.output, (p.entities * scale_s)[base.index]), "the output is the entity as it is"
    odd = cosine_gumbel_assign(p.x * 3.7, p.entities, tau=p.tau, noise=p.noise, impl=impl)
    assert torch.equal(odd.index, base.index)


def test_zero_rows_have_cosine_zero(impl: str) -> None:
    p = _problem(6, 7, 5)
    p.x[2] = 0
    p.entities[3] = 0
    x, s = p.x.requires_grad_(), p.entities.requires_grad_()
    result = cosine_gumbel_assign(x, s, tau=p.tau, noise=p.noise, impl=impl)
    assert result.index[2] == p.noise[2].argmax()
    torch.testing.assert_close(result.log_normalizer[2], p.noise[2].double().logsumexp(0))
    result.output.backward(p.grad)
    assert torch.equal(x.grad[2], torch.zeros(5, dtype=torch.float64))
    value_path = F.one_hot(result.index, 7).double().T @ p.grad
    torch.testing.assert_close(s.grad[3], value_path[3])
    assert x.grad.isfinite().all()
    assert s.grad.isfinite().all()
    plain = cosine_gumbel_assign(torch.zeros(1, 5), p.entities.detach().float(), noise=None, impl=impl)
    assert plain.index.tolist() == [0]


def test_a_non_finite_row_stays_alone(impl: str) -> None:
    p = _problem(6, 7, 5, (torch.float32,) * 2)
    clean = cosine_gumbel_assign(p.x, p.entities, noise=p.noise, impl=impl)
    for value in (torch.nan, torch.inf, -torch.inf):
        x = p.x.clone()
        x[2, 1] = value
        result = cosine_gumbel_assign(x, p.entities, noise=p.noise, impl=impl)
        others = [0, 1, 3, 4, 5]
        assert torch.equal(result.index[others], clean.index[others])
        assert 0 <= result.index[2] < 7
        assert result.log_normalizer[2].isnan()
        assert result.log_normalizer[others].isfinite().all()


def test_tau_sharpens_the_similarity_alone(impl: str) -> None:
    """Equal to F.gumbel_softmax of logits / tau with its own tau = 1, for the noise that function draws."""
    p = _problem(60, 12, 8)
    tau = 0.3
    logits = F.normalize(p.x, dim=-1) @ F.normalize(p.entities, dim=-1).T / tau
    torch.manual_seed(4)
    noise = -torch.empty_like(logits).exponential_().log()  # as that function draws it
    for hard in (True, False):
        torch.manual_seed(4)
        rival = F.gumbel_softmax(logits, tau=1.0, hard=hard) @ p.entities
        ours = cosine_gumbel_assign(p.x, p.entities, tau=tau, hard=hard, noise=noise, impl=impl).output
        torch.testing.assert_close(ours, rival, rtol=1e-10, atol=1e-12)
    # Dividing the noise by tau as well picks others.
    other = cosine_gumbel_assign(p.x, p.entities, tau=tau, noise=noise / tau, impl=impl).index
    assert not torch.equal(other, (logits + noise).argmax(-1))


def test_seed_none_draws_from_torchs_generator(impl: str) -> None:
    p = _problem(50, 40, 4, (torch.float32,) * 2)

    def call() -> tuple[Tensor, Tensor]:
        x = p.x.clone().requires_grad_()
        result = cosine_gumbel_assign(x, p.entities, impl=impl)
        torch.rand(3)  # the generator moves on between forward and backward
        result.output.backward(p.grad)
        return result.log_normalizer, x.grad

    torch.manual_seed(5)
    first, second = call(), call()
    torch.manual_seed(5)
    again = call()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_seed_equals_its_noise_tensor(impl: str) -> None:
    """Forward and backward with a seed equal those with the explicit noise, in float32 to rounding of the noise."""
    p = _problem(70, 33, 8, (torch.float32,) * 2)
    noise = gumbel_noise(torch.tensor(8), 70, 33)
    outcome = []
    for given in ({"seed": torch.tensor(8)}, {"noise": noise}):
        x = p.x.clone().requires_grad_()
        result = cosine_gumbel_assign(x, p.entities, tau=p.tau, impl=impl, **given)
        result.output.backward(p.grad)
        outcome.append((result.index, result.log_normalizer, x.grad))
    (index, normalizer, grad), (expected_index, expected_normalizer, expected_grad) = outcome
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(normalizer, expected_normalizer, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=2e-5 * float(grad.abs().max()))


@pytest.mark.parametrize("lead", [(), (3,), (2, 0), (2, 3, 1)])
def test_leading_dimensions_and_empty_batches(lead: tuple[int, ...], impl: str) -> None:
    x = torch.randn(*lead, 4, 6, requires_grad=True)
    entities = torch.randn(5, 6, requires_grad=True)
    noise = gumbel_noise(torch.tensor(1), x[..., 0].numel(), 5).reshape(*lead, 4, 5)
    rows = noise.reshape(-1, 5)
    for given, folded in (
        ({"noise": noise}, {"noise": rows}),
        ({"seed": torch.tensor(1)},) * 2,
        ({"noise": None},) * 2,
    ):
        result = cosine_gumbel_assign(x, entities, impl=impl, **given)
        flat = cosine_gumbel_assign(x.reshape(-1, 6), entities, impl=impl, **folded)
        assert result.output.shape == x.shape
        assert result.index.shape == result.log_normalizer.shape == x.shape[:-1]
        assert torch.equal(result.index.flatten(), flat.index)
        assert torch.equal(result.output.reshape(-1, 6), flat.output)
    grads = torch.autograd.grad(result.output.sum(), (x, entities))
    assert [g.shape for g in grads] == [x.shape, entities.shape]
    if x.numel() == 0:
        assert torch.equal(grads[1], torch.zeros(5, 6))


def test_strides_do_not_matter(impl: str) -> None:
    p = _problem(20, 14, 6, (torch.float32,) * 2)
    plain = cosine_gumbel_assign(p.x, p.entities, noise=p.noise, impl=impl)
    x = p.x.t().contiguous().t().requires_grad_()
    entities = torch.stack([p.entities, -p.entities], 1).flatten(0, 1)[::2]
    noise = torch.stack([p.noise, p.noise], -1)[..., 0]
    result = cosine_gumbel_assign(x, entities, noise=noise, impl=impl)
    assert torch.equal(result.index, plain.index)
    assert torch.equal(result.output.detach(), plain.output)
    torch.testing.assert_close(result.log_normalizer, plain.log_normalizer)
    expected = p.x.clone().requires_grad_()
    cosine_gumbel_assign(expected, p.entities, noise=p.noise, impl=impl).output.sum().backward()
    result.output.sum().backward()  # an expanded gradient of strides zero
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-5, atol=1e-6)


def test_every_element_is_written(impl: str, poisoned_empty: None) -> None:
    p = _problem(37, 70, 9, (torch.bfloat16, torch.float32))
    x, s = p.x.requires_grad_(), p.entities.requires_grad_()
    for hard in (True, False):
        result = cosine_gumbel_assign(x, s, hard=hard, seed=torch.tensor(2), impl=impl)
        grads = torch.autograd.grad(result.output, (x, s), p.grad)
        assert all(t.isfinite().all() for t in (*result, *grads))
        assert result.index.max() < 70


def test_auto_is_the_compiled_kernel_on_cpu() -> None:
    p = _problem(37, 70, 9, (torch.float32,) * 2)
    name = "cpp" if backends()["cpp"].available else "reference"
    for a, b in zip(
        cosine_gumbel_assign(p.x, p.entities, noise=p.noise),
        cosine_gumbel_assign(p.x, p.entities, noise=p.noise, impl=name),
        strict=True,
    ):
        testing.assert_same_bits(a, b)


_PEAK = """
import sys, torch
from alt_kernels import cosine_gumbel_assign
torch.set_num_threads(1)
def peak():
    # Not ru_maxrss: that of a new process starts at its parent's, which may be larger than anything seen here.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def raise_of_peak(rows, count, depth, hard, **options):
    x = torch.randn(rows, depth, requires_grad=True)
    s = torch.randn(count, depth, requires_grad=True)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts again at what is held now
    before = peak()
    out = cosine_gumbel_assign(x, s, hard=hard, **options).output
    out.backward(torch.ones_like(out))
    return 1024 * (peak() - before)
rows, count, depth = (int(a) for a in sys.argv[1:4])
raise_of_peak(17, 40, depth, True)
print(raise_of_peak(rows, count, depth, True))
print(raise_of_peak(rows, count, depth, False))
if sys.argv[4:]:
    print(raise_of_peak(rows, count, depth, True, noise=None, impl="reference"))
"""


def _peaks(rows: int, count: int, depth: int, *control: str) -> list[int]:
    """Bytes by which forward and backward (hard, then soft) raise the peak of a fresh process with its inputs."""
    if not backends()["cpp"].available:
        pytest.skip(backends()["cpp"].reason)
    arguments = [str(a) for a in (rows, count, depth)]
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments, *control], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return [int(line) for line in run.stdout.split()]


def test_no_matrix_of_rows_by_entities() -> None:
    """The compiled forward and backward stay below a quarter of a float32 M x K of 82 MB.

    In that quarter: the outputs, the gradient of the entities (5 MB), and a chunk. The reference, measured in the
    same way, shows that the matrix would be seen.
    """
    matrix = 4 * 1024 * 20_000
    hard, soft, reference = _peaks(1024, 20_000, 64, "control")
    assert hard < matrix / 4
    assert soft < matrix / 4
    assert reference > matrix


@pytest.mark.slow
def test_peak_memory_at_a_hundred_thousand_entities() -> None:
    """M=808, K=100,000, d=512: extra memory below 1.5 times inputs and outputs; an M x K alone would be 323 MB."""
    inputs = outputs = 4 * 512 * (808 + 100_000)  # x and entities; the output and the two gradients
    hard, soft = _peaks(808, 100_000, 512)
    assert hard < 1.5 * (inputs + outputs)
    assert soft < 1.5 * (inputs + outputs)
