"""The global random state, to be compared before and after something that must not touch it."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def global_random_state() -> dict[str, Any]:
    """The states of torch, NumPy and Python, and the variables in which Lightning keeps a seed."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "random": random.getstate(),
        "environment": {key: value for key, value in os.environ.items() if key.startswith("PL_")},
    }
