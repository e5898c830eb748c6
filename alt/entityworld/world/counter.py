"""Random numbers as functions of (key, counter), so the draws of a clip depend on the clip alone.

There are two generators. ``uniforms`` draws the parameters of a clip. It is Philox4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011), vectorised over keys in numpy. ``pixel_noise`` is a 32-bit integer hash on
the device of the picture, cheap enough for every value of every frame.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from alt.data.seeds import make_numpy_generator

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Returns Philox4x32-10 of 32-bit words in uint64: ``counter [..., 4]``, ``key [..., 2]`` -> ``[..., 4]``."""
    counter, key = np.broadcast_arrays(counter.astype(np.uint64), np.concatenate([key, key], -1).astype(np.uint64))
    c0, c1, c2, c3 = (counter[..., i].copy() for i in range(4))
    k0, k1 = key[..., 0].copy(), key[..., 1].copy()
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3], -1)


def _split(keys: np.ndarray) -> np.ndarray:
    """Splits 64-bit keys ``[n]`` into two 32-bit words ``[n, 2]``."""
    keys = np.asarray(keys).astype(np.uint64)
    return np.stack([keys & _LOW, keys >> _SHIFT], -1)


def stream(name: str) -> int:
    """Returns the number of a named stream; splits and purposes never share draws."""
    return zlib.crc32(name.encode())


def uniforms(keys: np.ndarray, slots: int, purpose: str) -> np.ndarray:
    """Returns uniform numbers in [0, 1), float64 ``[n, slots]``, a function of 64-bit key, slot and purpose.

    A larger ``slots`` does not change the earlier ones.
    """
    key = _split(keys)
    blocks = (slots + 3) // 4
    counter = np.zeros((1, blocks, 4), np.uint64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = stream(purpose)
    words = philox(counter, key[:, None, :]).reshape(len(key), 4 * blocks)
    return words[:, :slots].astype(np.float64) * 2.0**-32


def clip_keys(seed: int, name: str, index: np.ndarray) -> np.ndarray:
    """Returns the 63-bit key of sample ``index`` of stream ``name``: Philox of (index, name) under the world's seed."""
    index = np.asarray(index, np.uint64)
    counter = np.zeros((len(index), 4), np.uint64)
    counter[:, 0], counter[:, 1], counter[:, 2] = index & _LOW, index >> _SHIFT, stream(name)
    words = philox(counter, _split(np.array([seed])))
    return ((words[:, 0] | (words[:, 1] << _SHIFT)) >> np.uint64(1)).astype(np.int64)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Returns numpy's Philox for the one-time draws of a world, such as its list of classes."""
    return make_numpy_generator(seed, stream(purpose))


def hash32(x: Tensor) -> Tensor:
    """Mixes 32-bit words in int64 bijectively (two multiplies, three shifts; every input bit affects every output bit).

    The constants are those of Wellons' "lowbias32" search (public domain).
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF  # the product may wrap around in int64; its low 32 bits are right
    return x ^ (x >> 16)


def pixel_noise(keys: Tensor, phases: Tensor, values: int) -> Tensor:
    """Returns triangular noise in (-1, 1), float32 ``[B, T, values]``, from clip keys ``[B]`` and phases ``[B, T]``.

    It adds the two halves of a hashed word, so one hash gives a number with mean 0 and variance 1/6.
    """
    low, high = keys & 0xFFFFFFFF, keys >> 32
    state = hash32(hash32(low[:, None] ^ hash32(high[:, None])) ^ (phases + 1))
    position = torch.arange(values, device=keys.device, dtype=torch.int64)
    word = hash32(state[..., None] ^ (position * 0x9E3779B1 & 0xFFFFFFFF))
    total = (word & 0xFFFF) + (word >> 16)
    return (total.to(torch.float32) - 65535.0) * (1.0 / 65536.0)
