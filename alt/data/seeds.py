"""Random numbers as functions of named integers; no function here reads or advances a global generator.

    generator = make_generator("order", seed=0, epoch=3)

A run can resume at any step, because no generator state has to be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

# Purpose -> number. A change here changes the data order of every saved run.
_PURPOSES = {
    "order": 0x0DE5,  # of the clips in an epoch
    "augmentation": 0xA06,  # of a clip in an epoch
    "step": 0x51E9,  # everything random in one part of a step
    "mix": 1,  # mixup and CutMix of that part
    "noise": 2,  # Gumbel noise of that part
    "bags": 3,  # texts drawn from the bags of that part
    "sample": 0x5A3F,  # frames and augmentation of a clip, drawn together
    "init": 0x1217,  # new parameters
    "corpus": 0xC0A9,  # entities to damage, and by what
    "replacement": 0xDA3A6E,  # of a damaged clip
}
# The order in which named integers are hashed, so that the order of the keywords does not matter.
_NAMES = ("seed", "epoch", "step", "part", "rank", "clip")
_MASK = (1 << 64) - 1


def derive_seed(purpose: str, **numbers: int) -> int:
    """Returns a 63-bit seed from named integers (splitmix64 over each); near inputs give unrelated seeds.

    Args:
        purpose: one of the purposes of this module; seeds of two purposes are unrelated.
        numbers: any of seed, epoch, step, part, rank, clip, in any order.

    Raises:
        ValueError: the purpose or a name is unknown.
    """
    if purpose not in _PURPOSES:
        raise ValueError(f"purpose: expected one of {', '.join(_PURPOSES)}, got {purpose!r}")
    unknown = [name for name in numbers if name not in _NAMES]
    if unknown:
        raise ValueError(f"numbers: expected names among {', '.join(_NAMES)}, got {unknown[0]!r}")
    state = 0
    for value in (*(numbers[name] for name in _NAMES if name in numbers), _PURPOSES[purpose]):
        state = (state ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def make_generator(purpose: str, **numbers: int) -> torch.Generator:
    """Returns a CPU generator seeded by :func:`derive_seed` of the same arguments."""
    return torch.Generator().manual_seed(derive_seed(purpose, **numbers))


def make_numpy_generator(seed: int, stream: int) -> np.random.Generator:
    """Returns NumPy's Philox generator with the key (seed, stream), for draws that must not change with torch."""
    return np.random.Generator(np.random.Philox(key=[seed & _MASK, stream]))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the block, and restores its state afterwards.

    Meant for constructors that draw their weights from it. Generators of GPUs are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
