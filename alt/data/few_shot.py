"""K samples per class, nested: the 2-shot set lies in the 4-shot set of the same seed, and so on.

Training, the few-shot protocol and the comparison on EntityWorld all draw here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .seeds import make_numpy_generator


def few_shot_indices(
    labels: Sequence[int] | Tensor, shots: int, seed: int = 0, classes: int | None = None
) -> list[int]:
    """Returns the indices of exactly ``shots`` samples per class, ascending.

    The samples of class c are ordered by a permutation that depends only on (seed, c) and on their order in the list.
    The first ``shots`` are taken, so the sets are nested in ``shots`` and a class does not depend on the others.

    Args:
        labels: class number of every sample of the pool.
        shots: samples per class.
        seed: of the draw.
        classes: number of classes; with it, classes without any sample are found too.

    Raises:
        ValueError: ``shots`` below 1, an empty pool, or a class with too few samples, which is named.
    """
    if shots < 1:
        raise ValueError(f"shots: expected at least 1 sample per class, got {shots}")
    found = torch.as_tensor(labels).to(torch.int64).numpy()
    if found.ndim != 1 or not len(found):
        raise ValueError(f"labels: a non-empty list of class numbers, got shape {list(found.shape)}")
    chosen: list[int] = []
    for number in range(classes) if classes is not None else np.unique(found).tolist():
        members = np.flatnonzero(found == number)
        if len(members) < shots:
            raise ValueError(f"shots: {shots} samples of every class are wanted, class {number} has {len(members)}")
        shuffled = make_numpy_generator(seed, number).permutation(len(members))
        chosen += members[shuffled[:shots]].tolist()
    return sorted(chosen)
