"""Contract of cosine-Gumbel assignment: a trainable choice of one entity per row."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import autograd, batching, checks, library
from ..reference import cosine_gumbel_assign as reference
from ..types import Assignment, Impl

_OPS = torch.ops.alt_kernels


def cosine_gumbel_assign(
    x: Tensor,
    entities: Tensor,
    *,
    tau: float | Tensor = 1.0,
    hard: bool = True,
    noise: Literal["gumbel"] | Tensor | None = "gumbel",
    seed: Tensor | None = None,
    impl: Impl = "auto",
) -> Assignment:
    r"""Assigns every row of ``x`` to an entity by cosine similarity and Gumbel noise.

    .. math:: l_{ik} = \frac{\cos(x_i, s_k)}{\tau} + g_{ik}, \qquad A = \mathrm{softmax}_k(l), \qquad
              k_i = \arg\max_k l_{ik}

    With ``hard`` the output is the chosen entity :math:`s_{k_i}`, with the straight-through gradient, that of
    :math:`\hat A S` with :math:`\hat A = \mathrm{onehot}(k) + A - \mathrm{sg}(A)`. Otherwise it is :math:`A S`.
    The similarity uses normalised rows; the output uses the entities as they are. The noise is *not* divided by tau,
    unlike in ``F.gumbel_softmax``: here tau only sharpens the similarity. To scale similarities by c, pass tau / c.
    A zero row has cosine 0 with every entity.

    The noise is a function of (seed, row, column). It does not depend on tiling, threads or implementation, and the
    backward draws it again. Compiled implementations never hold an M x K tensor, forward or backward: CPU scratch is
    a block of at most 256 rows. Sums accumulate in float32 (float64 if either input is float64).

    Args:
        x: ``[..., M, d]``, float32, float16, bfloat16 or float64, d >= 1.
        entities: ``[K, d]``, K >= 1, of any of these dtypes.
        tau: temperature, a finite number > 0 or a 0-d float tensor, which may require grad. The value of a tensor is
            checked on the CPU only. A logit carries the rounding of a cosine divided by tau, so gradients are only
            known to a factor 1 +- O(d 2^-24 / tau) in float32 (docs/kernels.md, "Small tau").
        hard: choose one entity (straight-through) or mix them.
        noise: ``"gumbel"`` draws Gumbel(0, 1) noise (training). None draws none (evaluation: the plain argmax).
            A float tensor ``[..., M, K]`` is the noise itself and gets no gradient.
        seed: 0-d int64 tensor on x's device, only with ``noise="gumbel"``; None draws one from torch's generator of
            that device. A Python int is refused: it would recompile every step and freeze under CUDA graphs.
        impl: ``"auto"``, ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``.

    Returns:
        Assignment: output ``[..., M, d]`` in the promoted dtype of x and entities, index ``[..., M]`` int64 (the
        lowest among equals), log_normalizer ``[..., M]``. Gradients go from the output to x, to the entities and to
        tau where they require it.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: ``impl`` names an implementation that cannot run here.

    Source: "Align before Adapt" (arXiv 2311.15619), Eq. 4 and 5; Jang et al., arXiv 1611.01144.
    """
    if not _fit(x, entities):
        _check(x, entities)
    if not isinstance(hard, bool):
        raise TypeError(f"hard: expected True or False, got {type(hard).__name__} {hard!r}")
    count, depth = entities.shape
    tau = _tau(tau, x, entities)
    given, seed = _noise(noise, seed, x, count)
    rows = x if x.dim() == 2 else x.reshape(-1, depth)
    run = reference.gumbel_assignment if library.use_reference(impl, x, entities, tau, given) else _gumbel_assignment
    results = run(rows, entities, tau, given, seed, hard)
    if x.dim() == 2:
        return Assignment(*results)
    output, index, normalizer = results
    lead = x.shape[:-1]
    return Assignment(output.reshape(x.shape), index.reshape(lead), normalizer.reshape(lead))


def _fit(x: Any, entities: Any) -> bool:
    """True if the arguments pass :func:`_check`."""
    if not (isinstance(x, Tensor) and isinstance(entities, Tensor) and x.dim() >= 2 and entities.dim() == 2):
        return False
    count, depth = entities.shape
    return (
        count > 0
        and x.shape[-1] == depth > 0
        and x.dtype in checks.FLOAT_DTYPES
        and entities.dtype in checks.FLOAT_DTYPES
        and x.device == entities.device
    )


def _check(x: Any, entities: Any) -> None:
    """Raises unless the arguments fit together."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor [..., M, d], got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"x: expected at least 2 dimensions [..., M, d], got shape {list(x.shape)}")
    checks.float_dtype("x", x)
    checks.tensor("entities", entities, "[K, d]")
    checks.same_device("entities", entities, "x", x)
    count, depth = entities.shape
    if count < 1 or depth < 1:
        raise ValueError(f"entities: expected at least one entity and one channel, got shape {list(entities.shape)}")
    if x.shape[-1] != depth:
        raise ValueError(f"x: expected rows of {depth} channels as in entities, got shape {list(x.shape)}")


def _tau(tau: float | Tensor, x: Tensor, entities: Tensor) -> Tensor:
    """Returns the checked temperature as a 0-d tensor on the device of ``x``."""
    if isinstance(tau, Tensor):
        if tau.dim() != 0:
            raise ValueError(f"tau: expected a number or a 0-d tensor, got shape {list(tau.shape)}")
        checks.float_dtype("tau", tau)
        checks.same_device("tau", tau, "x", x)
        return tau
    value = checks.finite_float("tau", tau, positive=True)
    double = torch.float64 in (x.dtype, entities.dtype)
    return torch.full((), value, dtype=torch.float64 if double else torch.float32, device=x.device)


def _noise(
    noise: Literal["gumbel"] | Tensor | None, seed: Tensor | None, x: Tensor, count: int
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the given noise ``[M, K]`` or None, and the seed or None."""
    if seed is not None and not (isinstance(noise, str) and noise == "gumbel"):
        raise ValueError("seed: only noise='gumbel' draws noise from a seed, got a seed together with other noise")
    if noise is None:
        return None, None
    if isinstance(noise, Tensor):
        checks.float_dtype("noise", noise)
        checks.shape("noise", noise, (*x.shape[:-1], count), "one value for each row of x and entity")
        checks.same_device("noise", noise, "x", x)
        if noise.requires_grad:
            raise ValueError("noise: a constant of the operation that gets no gradient, got requires_grad=True")
        return noise.reshape(-1, count), None
    if noise != "gumbel":
        raise ValueError(f"noise: expected 'gumbel', None or a tensor, got {noise!r}")
    if seed is None:
        limits = torch.iinfo(torch.int64)
        return None, torch.randint(limits.min, limits.max, (), dtype=torch.int64, device=x.device)
    if not isinstance(seed, Tensor):
        raise TypeError(f"seed: expected a 0-d int64 tensor or None, got {type(seed).__name__}")
    if seed.dtype != torch.int64:
        raise TypeError(f"seed: expected a 0-d int64 tensor, got {str(seed.dtype).removeprefix('torch.')}")
    if seed.dim() != 0:
        raise ValueError(f"seed: expected a 0-d int64 tensor, got shape {list(seed.shape)}")
    checks.same_device("seed", seed, "x", x)
    return None, seed


def _fake(
    x: Tensor, entities: Tensor, tau: Tensor, noise: Tensor | None, seed: Tensor | None, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    double = torch.float64 in (x.dtype, entities.dtype)
    output = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, entities.dtype))
    index = x.new_empty(x.shape[:1], dtype=torch.int64)
    return output, index, x.new_empty(x.shape[:1], dtype=torch.float64 if double else torch.float32)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    entities: Tensor,
    tau: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    index: Tensor,
    log_normalizer: Tensor,
    hard: bool,
    need_entities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_entities = entities.new_empty(entities.shape if need_entities else (0,))
    return x.new_empty(x.shape), grad_entities, tau.new_empty(())


def _flops(
    x_shape: tuple[int, ...],
    entities_shape: tuple[int, ...],
    tau_shape: object,
    noise_shape: object,
    seed_shape: object,
    hard: bool,
    **_: object,
) -> int:
    """2 M K d for the cosines, and the same for A S where it is not a gather."""
    return 2 * x_shape[0] * entities_shape[0] * x_shape[1] * (1 if hard else 2)


def _backward_flops(
    grad_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    entities_shape: tuple[int, ...],
    tau_shape: object,
    noise_shape: object,
    seed_shape: object,
    index_shape: object,
    normalizer_shape: object,
    hard: bool,
    need_entities: bool,
    **_: object,
) -> int:
    """The cosines again, dO S^T and dl S; for the entities dl^T x and, if soft, A^T dO."""
    products = 3 + (0 if not need_entities else 1 if hard else 2)
    return 2 * x_shape[0] * entities_shape[0] * x_shape[1] * products


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, entities, tau, noise, seed, ctx.hard = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(x, entities, tau, noise, seed, output[1], output[2])


def _backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 6
    need_entities = ctx.needs_input_grad[1]
    grad_x, grad_entities, grad_tau = _OPS.gumbel_assignment_backward(grad, *saved, ctx.hard, need_entities)
    return grad_x, grad_entities if need_entities else None, grad_tau, None, None, None


def _batch(op: Any, info: Any, dims: batching.Dims, *args: Any) -> tuple[Any, Any]:
    """Folds the rows, if the samples differ in nothing but rows and given noise.

    Otherwise the op runs once per sample: it takes one set of entities and one tau, and the noise of a seed depends on
    the number of the row in its own sample.
    """
    x, entities, tau, noise, seed, hard = args
    if seed is not None or dims[1] is not None or dims[2] is not None:
        return batching.repeat(op, info, dims, *args)
    count = info.batch_size
    rows, noise = batching.join(x, dims[0], count), batching.join(noise, dims[3], count)
    return batching.split_results(op(rows, entities, tau, noise, None, hard), count)


library.register(
    "gumbel_assignment(Tensor x, Tensor entities, Tensor tau, Tensor? noise, Tensor? seed, bool hard)"
    " -> (Tensor output, Tensor index, Tensor log_normalizer)",
    reference=reference.gumbel_assignment,
    fake=_fake,
    flops=_flops,
    batching=_batch,
    triton="cosine_gumbel_assign",
)
library.register(
    "gumbel_assignment_backward(Tensor grad, Tensor x, Tensor entities, Tensor tau, Tensor? noise, Tensor? seed,"
    " Tensor index, Tensor log_normalizer, bool hard, bool need_entities)"
    " -> (Tensor grad_x, Tensor grad_entities, Tensor grad_tau)",
    reference=reference.gumbel_assignment_backward,
    fake=_backward_fake,
    flops=_backward_flops,
    batching=batching.repeat,  # the op sums the gradients of the entities and of tau over all rows
    triton="cosine_gumbel_assign_backward",
)
autograd.register_autograd("gumbel_assignment", _backward, _save)
autograd.register_no_second_derivative("gumbel_assignment_backward")
_gumbel_assignment = autograd.entry("gumbel_assignment")
