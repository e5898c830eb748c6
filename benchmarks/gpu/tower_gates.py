"""Gates of the towers: embeddings, or loss and gradient, must be near those of a float32 definition before timing."""

from __future__ import annotations

from collections.abc import Callable

import rival_tower
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MERGED = (8, 13)  # the r that are measured
Step = Callable[[Tensor], Tensor]
Gate = Callable[[Step, int], tuple[float, float]]


def embedding_gate(exact: nn.Module, low: nn.Module, images: Tensor) -> Gate:
    """(error, allowed): 1 - cosine of the first embeddings to those of the float32 definition at the same r, mean.

    Rounded keys may merge another of two pairs with nearly equal scores, so what is allowed is twice what the
    definition itself is off by in the working dtype, and a rounding; but no more than to the definition at another r.
    """
    whole, images = images, images[:16]  # an entrant is compiled for the whole batch

    def off(got: Tensor, r: int) -> float:
        return float((1 - F.cosine_similarity(got[: len(images)].double(), want[r].double(), dim=-1)).mean())

    with torch.inference_mode():
        want = {r: rival_tower.forward(exact, images.float(), r) for r in (0, *MERGED)}
        band = {r: 2 * off(rival_tower.forward(low, images, r), r) + 5e-4 for r in want}

    def gate(step: Step, r: int) -> tuple[float, float]:
        got = step(whole)
        return off(got, r), min(band[r], *(off(got, other) for other in want if other != r))

    return gate


def gradient_gate(exact: nn.Module, low: nn.Module, images: Tensor) -> Gate:
    """(error, allowed): the largest of 1 - cosine of the whole gradient to the float32 definition's, of the error of
    its length and of that of the loss; allowed as above.

    The definition goes over the batch in parts, which float32 has room for; the loss is a mean over images.
    """

    def definition(tower: nn.Module, r: int) -> tuple[list[Tensor], float]:
        loss, parameters = 0.0, list(tower.train().parameters())
        for part in images.to(parameters[0].dtype).split(16):
            share = loss_of(rival_tower.forward(tower, part, r, masked=True)) * len(part) / len(images)
            share.backward()
            loss += float(share.detach())
        gradient = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            p.grad = None
        return gradient, loss

    def off(gradient: list[Tensor], loss: float, r: int) -> float:
        right, right_loss = want[r]
        # In float64: a sum of 86 million products in float32 is off by more than what is measured here.
        pairs = [(a.double(), b.double()) for a, b in zip(gradient, right, strict=True)]
        along, got, whole = (
            float(sum((a * b).sum() for a, b in terms))
            for terms in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
        )
        return max(1 - along / (got * whole) ** 0.5, abs((got / whole) ** 0.5 - 1), abs(loss / right_loss - 1))

    want = {r: definition(exact, r) for r in (0, *MERGED)}
    band = {r: 2 * off(*definition(low, r), r) + 5e-3 for r in want}

    def gate(step: Step, r: int) -> tuple[float, float]:
        loss = float(loss_of(step(images)))
        gradient = [p.grad for p in step.parameters]  # type: ignore[attr-defined]
        others = (off(gradient, loss, other) for other in want if other != r)
        return off(gradient, loss, r), min(band[r], *others)

    return gate


def loss_of(output: Tensor) -> Tensor:
    return output.float().square().mean()
