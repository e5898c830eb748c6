"""Mutations of bytes and texts. Each is a function of a random generator, so an input is named by its seed."""

from __future__ import annotations

import random
import re

__all__ = ["mutate_bytes", "mutate_text"]

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_WORDS = (
    *("-1", "0", "1e999", "9" * 40, "1000000000", "null", "NaN", "true", '""', "[]", "{}", '"\\ud800"', "../x"),
    *("hf-hub:a/b", "[" * 200, "{" * 200, "\x1b[2J", "\x00", "\ufeff", "&a *a", "<<: *a", "'", '"', ",", ";"),
    "!!python/object:os.system x",
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns the data after one to four changes: bits, edge values, cuts, repeats, and pieces moved elsewhere."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return b""
        # Headers are where readers decide: half of the changes are made in the first or last hundred bytes.
        near = rng.random()
        at = rng.randrange(len(out))
        if near < 0.3:
            at = rng.randrange(min(100, len(out)))
        elif near < 0.5:
            at = len(out) - 1 - rng.randrange(min(100, len(out)))
        what = rng.randrange(7)
        if what == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(_EDGES) & ((1 << 8 * size) - 1)
            out[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
        elif what == 2:
            del out[at:]
        elif what == 3:
            del out[at : at + rng.randint(1, 64)]
        elif what == 4:
            out[at:at] = out[at : at + rng.randint(1, 64)] * rng.randint(1, 8)
        elif what == 5:
            source = rng.randrange(len(out))
            piece = out[source : source + rng.randint(1, 32)]
            out[at : at + len(piece)] = piece
        else:
            digits = list(re.finditer(rb"\d+", bytes(out)))
            if digits:
                found = rng.choice(digits)
                out[found.start() : found.end()] = str(rng.choice(_EDGES)).encode()
    return bytes(out)


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Returns the text after one to three changes of words, lines and characters, or of its bytes."""
    for _ in range(rng.randint(1, 3)):
        what = rng.randrange(5)
        lines = text.split("\n")
        place = rng.randrange(len(lines))
        if what == 0:
            words = list(re.finditer(r"[\w.+-]+", text))
            if words:
                found = rng.choice(words)
                text = text[: found.start()] + rng.choice(_WORDS) + text[found.end() :]
        elif what == 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
            text = "\n".join(lines)
        elif what == 2:
            del lines[place]
            text = "\n".join(lines)
        elif what == 3:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(_WORDS) + text[at:]
        else:
            return mutate_bytes(text.encode("utf-8", "surrogatepass"), rng)
    return text.encode("utf-8", "surrogatepass")
