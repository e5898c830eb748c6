"""Reads mutated inputs one after the other, and says what came of each: read, refused in one sentence, or a failure."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .kinds import KINDS

__all__ = ["Outcome", "read_inputs"]

SECONDS = 20


class Outcome(NamedTuple):
    """verdict: "read", "refused" or "failed". growth: KiB by which the peak of this process grew."""

    kind: str
    number: int
    verdict: str
    message: str
    growth: int


class Hang(BaseException):
    """Raised by the alarm; no reader catches it."""


def read_inputs(kind: str, numbers: range, seed: int) -> Iterator[Outcome]:
    """Yields the outcome of every input of a kind; input ``number`` depends on (seed, kind, number) alone."""
    import alt.errors

    maker = KINDS[kind]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        valid = maker.make(folder)
        for file, data in valid.items():
            target = folder / f"valid-{file}" / file
            target.parent.mkdir()
            target.write_bytes(data)
            for beside in folder.iterdir():  # what a list names, or the embeddings of a corpus
                if beside.name not in valid and not beside.name.startswith("valid-"):
                    (target.parent / beside.name).symlink_to(beside)
            if not file.startswith("list"):
                maker.read(target)  # the valid one is read
        for number in numbers:
            rng = random.Random(f"{seed} {kind} {number}")
            file = rng.choice(sorted(valid))
            path = folder / f"valid-{file}" / file
            path.write_bytes(maker.change(valid[file], rng))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            verdict, message = "read", ""
            try:
                with _alarm():
                    maker.read(path)
            except Hang:
                verdict, message = "failed", f"no answer within {SECONDS} s"
            except (ValueError, TypeError, OSError) as error:
                message = str(error)
                one_sentence = message.strip() and "\n" not in message and len(message) < 1000
                verdict = "refused" if one_sentence and not isinstance(error, TypeError) else "failed"
                if verdict == "failed":
                    message = f"{type(error).__name__}: {message}"
            except Exception as error:
                verdict, message = "failed", f"{type(error).__name__}: {error}"
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            yield Outcome(kind, number, verdict, f"{file}: {alt.errors.printable(message)[:300]}", growth)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
