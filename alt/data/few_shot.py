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

    The samples of class c are permuted by (seed, c) and the first ``shots`` are taken. So sets are nested in
    ``shots``, and a class does not depend on the others. The permutation is NumPy's, of the generator Philox with the
    key (seed, c); tests/data/test_few_shot.py has it in integers.

    Args:
        labels: class number of every sample of the pool.
        shots: samples per class.
        seed: of the draw.
        classes: number of classes. If given, a class without any sample is an error too.

    Raises:
        ValueError: ``shots`` is below 1, the pool is empty, or a class has too few samples (it is named).
    """
    if shots < 1:
        raise ValueError(f"shots: expected at least 1 sample per class, got {shots}")
    found = torch.as_tensor(labels).to(torch.int64).numpy()
    if found.ndim != 1 or not len(found):
        raise ValueError(f"labels: expected a non-empty list of class numbers, got shape {list(found.shape)}")
    chosen: list[int] = []
    for number in range(classes) if classes is not None else np.unique(found).tolist():
        members = np.flatnonzero(found == number)
        if len(members) < shots:
            raise ValueError(f"shots: expected {shots} samples of every class, class {number} has {len(members)}")
        shuffled = make_numpy_generator(seed, number).permutation(len(members))
        chosen += members[shuffled[:shots]].tolist()
    return sorted(chosen)
