"""Cosine-Gumbel assignment to a corpus: time at K = 913 forward and with backward, peak memory at K = 100,000."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gates
import pytest
import rivals
import shapes
import torch
import torch.nn.functional as F
from torch import Tensor

from alt.measure import call_fresh_process
from alt_kernels import cosine_gumbel_assign

TAU = 0.05  # cosines of random rows are small; this tau makes the choice far from uniform, so the law can be checked
SEED = 5


class Case(NamedTuple):
    shape: shapes.Corpus
    x: Tensor
    entities: Tensor
    grad: Tensor


@pytest.fixture
def case(device: torch.device) -> Case:
    shape = shapes.corpus(device)
    generator = torch.Generator(device).manual_seed(SEED)
    rows, corpus = (shape.rows, shape.channels), (shape.entities, shape.channels)
    x, entities, grad = (
        torch.randn(sizes, generator=generator, device=device).to(shape.dtype) for sizes in (rows, corpus, rows)
    )
    return Case(shape, x, entities, grad)


def definition(case: Case, noise: Tensor | None, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns output and gradient to x in float64, for given noise or for the noise of a seed."""
    x = case.x.double().requires_grad_()
    drawn: Any = "gumbel" if noise is None else noise.double()
    output = cosine_gumbel_assign(x, case.entities.double(), tau=TAU, noise=drawn, seed=seed, impl="reference").output
    return output.detach(), torch.autograd.grad(output, x, case.grad.double())[0]


def test_assignment(contest: Any, compiled_rival: Any, case: Case) -> None:
    shape, x, entities, _ = case
    seed = torch.tensor(SEED, device=x.device)
    ours_want, _ = definition(case, None, seed)
    noise = rivals.noise_of_gumbel_softmax(SEED, shape.rows, shape.entities, x)
    rival_want, _ = definition(case, noise, None)
    law = gates.law_gate(x, entities, TAU)

    def eager_gate(_: Tensor) -> float:
        torch.manual_seed(SEED)  # run again with noise whose answer is known
        return gates.error(rivals.assign(x, entities, TAU), rival_want)

    def ours_gate(result: Any) -> float:
        """Checks by value for a known seed, and by law for the seeds of the timed calls."""
        known = cosine_gumbel_assign(x, entities, tau=TAU, seed=seed).output
        return max(gates.error(known, ours_want), law(result.output))

    compiled = compiled_rival("F.gumbel_softmax, compiled", rivals.assign)
    contest(
        "cosine_gumbel_assign",
        lambda: cosine_gumbel_assign(x, entities, tau=TAU),
        rivals={"F.gumbel_softmax": lambda: rivals.assign(x, entities, TAU)}
        | {name: (lambda f=f: f(x, entities, TAU)) for name, f in compiled.items()},
        floors={"one matmul": lambda: x @ entities.T},
        gates={"ours": ours_gate, "F.gumbel_softmax": eager_gate} | dict.fromkeys(compiled, law),
        bound=gates.roundings(64, shape.dtype),
        why_bound="the straight-through sum 1 - a + a rounds, then a product of 913 terms",
        cost=shape.cost(backward=False),
        shape=shape.label,
        targets={"F.gumbel_softmax": 2.5},
    )


def test_assignment_with_backward(contest: Any, compiled_rival: Any, case: Case) -> None:
    shape, x, entities, grad = case
    x = x.requires_grad_()
    seed = torch.tensor(SEED, device=x.device)
    _, ours_want = definition(case, None, seed)
    noise = rivals.noise_of_gumbel_softmax(SEED, shape.rows, shape.entities, x)
    _, rival_want = definition(case, noise, None)
    unit = F.normalize(entities, dim=-1)
    products = torch.empty(shape.rows, shape.entities, dtype=x.dtype, device=x.device)

    def ours(seed: Tensor | None = None) -> Tensor:
        output = cosine_gumbel_assign(x, entities, tau=TAU, seed=seed).output
        return torch.autograd.grad(output, x, grad)[0]

    def rival(assign: Any) -> Tensor:
        return torch.autograd.grad(assign(x, entities, TAU), x, grad)[0]

    def rival_gate(assign: Any) -> Any:
        def gate(timed: Tensor) -> float:
            torch.manual_seed(SEED)
            known = gates.error(rival(assign), rival_want)
            return known if torch.isfinite(timed).all() else float("inf")

        return gate

    def four_matmuls() -> Tensor:
        """Similarities; for the backward the same again, the gradient of the assignment, and the gradient of x."""
        with torch.no_grad():
            torch.mm(x, unit.T, out=products)
            torch.mm(x, unit.T, out=products)
            torch.mm(grad, entities.T, out=products)
            return products @ unit

    compiled = compiled_rival("F.gumbel_softmax, compiled", rivals.assign)
    # Eager noise gives the compiled graph a known answer; the timed one differs from it in the generator alone.
    twin = {name: rival_gate(rivals.compiled_with_eager_noise(rivals.assign)) for name in compiled}
    contest(
        "cosine_gumbel_assign, forward and backward",
        ours,
        rivals={"F.gumbel_softmax": lambda: rival(rivals.assign)}
        | {name: (lambda f=f: rival(f)) for name, f in compiled.items()},
        floors={"four matmuls": four_matmuls},
        gates={
            "ours": lambda _: gates.error(ours(seed), ours_want),
            "F.gumbel_softmax": rival_gate(rivals.assign),
        }
        | twin,
        bound=gates.roundings(512, shape.dtype),
        why_bound="the softmax's logits are cosines over tau = 0.05: 20 roundings before two products",
        cost=shape.cost(backward=True),
        shape=shape.label,
        targets={"F.gumbel_softmax": 1.2},
    )


@pytest.mark.parametrize("entities_gradient", [False, True], ids=["x", "x_and_entities"])
def test_peak_memory(benchmark: Any, device: torch.device, entities_gradient: bool) -> None:
    """Measures peak memory of forward and backward on a large corpus beyond inputs and outputs, in fresh processes."""
    shape = shapes.LARGE_CORPUS
    boundary = shape.inputs_and_outputs(entities_gradient=entities_gradient)

    def measure(entrant: str) -> dict[str, Any]:
        script = Path(__file__).with_name("peak_memory_assign.py")
        options = ["--device", device.type, *(["--entities-gradient"] if entities_gradient else [])]
        found: dict[str, Any] = call_fresh_process([str(script), entrant, *options], timeout=300)
        return found

    names = {"ours": "ours"} if benchmark.disabled else {"ours": "ours", "F.gumbel_softmax": "rival"}
    measured = {name: measure(entrant) for name, entrant in names.items()}
    benchmark.group = "peak memory"
    benchmark.extra_info |= {
        "title": "cosine_gumbel_assign, peak memory of forward and backward",
        "shape": f"{shape.label}, gradient to {'x and entities' if entities_gradient else 'x'}",
        "inputs_and_outputs_bytes": boundary,
        "extra_bytes": {name: m["extra_bytes"] for name, m in measured.items()},
        "over_inputs_and_outputs": {name: m["extra_bytes"] / boundary for name, m in measured.items()},
        "target": 1.5,
        "how": measured["ours"]["how"],
    }
    benchmark.pedantic(lambda: None, rounds=1)  # memory is measured, not time
