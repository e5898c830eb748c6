"""Random draws in plain integers, as another program could repeat them: the oracle of NumPy's draws."""

from __future__ import annotations

import itertools
from collections.abc import Iterator


def philox_words(key: tuple[int, int]) -> Iterator[int]:
    """The 32-bit words of Philox4x64-10 with a counter from 1, by the integers of its paper (Salmon et al. 2011)."""
    low = (1 << 64) - 1
    for counter in itertools.count(1):
        x, k = [counter, 0, 0, 0], list(key)
        for _ in range(10):
            first, second = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [second >> 64 ^ x[1] ^ k[0], second & low, first >> 64 ^ x[3] ^ k[1], first & low]
            k = [k[0] + 0x9E3779B97F4A7C15 & low, k[1] + 0xBB67AE8584CAA73B & low]
        for word in x:
            yield from (word & 0xFFFFFFFF, word >> 32)


def shuffle_by_hand(count: int, seed: int, stream: int) -> list[int]:
    """0, 1, ... with place i = count - 1, ..., 1 swapped with one of the places 0 to i (Fisher and Yates).

    The place is the next word with as many of its lowest bits as i needs; words that give more than i are passed over.
    """
    words, found = philox_words((seed, stream)), list(range(count))
    for i in range(count - 1, 0, -1):
        place = next(word for word in (word & (1 << i.bit_length()) - 1 for word in words) if word <= i)
        found[i], found[place] = found[place], found[i]
    return found


def choose_by_hand(count: int, size: int, seed: int) -> set[int]:
    """``size`` of the numbers below ``count``: for j = count - size, ..., count - 1 one from 0 to j, or j itself if
    that one is there already (Floyd).

    A word w stands for the number (j + 1) w / 2^32, unless it is one of the few that make some numbers likelier
    (Lemire 2019).
    """
    words, found = philox_words((seed, 0)), set[int]()
    for j in range(count - size, count):
        products = (word * (j + 1) for word in words)
        number = next(product for product in products if product & 0xFFFFFFFF >= 2**32 % (j + 1)) >> 32
        found.add(j if number in found else number)
    return found
