"""K samples a class, nested: the 2-shot set lies in the 4-shot set of the same seed, and so on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def few_shot_indices(
    labels: Sequence[int] | Tensor, shots: int, seed: int = 0, classes: int | None = None
) -> list[int]:
    """Indices of exactly ``shots`` samples of every class, ascending; disjoint from a test set as the given pool is.

    The samples of class c are ordered by a permutation that depends on (seed, c) and on their order in the list alone,
    and the first ``shots`` are taken: so the sets are nested in ``shots``, and a class does not depend on the others.
    ValueError names the first class with too few samples (``classes`` also finds those with none at all).
    """
    if shots < 1:
        raise ValueError(f"shots: at least 1 sample a class, got {shots}")
    found = torch.as_tensor(labels).to(torch.int64).numpy()
    if found.ndim != 1 or not len(found):
        raise ValueError(f"labels: a non-empty list of class numbers, got shape {list(found.shape)}")
    chosen: list[int] = []
    for number in range(classes) if classes is not None else np.unique(found).tolist():
        members = np.flatnonzero(found == number)
        if len(members) < shots:
            raise ValueError(f"shots: {shots} samples of every class are wanted, class {number} has {len(members)}")
        generator = np.random.Generator(np.random.Philox(key=[seed & 0xFFFFFFFFFFFFFFFF, number]))
        chosen += members[generator.permutation(len(members))[:shots]].tolist()
    return sorted(chosen)
