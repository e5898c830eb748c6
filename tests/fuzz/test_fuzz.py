"""The short form of ``make fuzz``: a few inputs of every kind, in this process."""

from __future__ import annotations

import re

import pytest

from .__main__ import read_in_children
from .kinds import KINDS
from .run import read_inputs


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused_in_one_sentence(kind: str) -> None:
    outcomes = list(read_inputs(kind, range(25), seed=1))
    assert len(outcomes) == 25
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    assert not failed, failed
    assert sum(outcome.verdict == "refused" for outcome in outcomes) >= 5, "the mutations reach nothing"


@pytest.mark.slow
def test_five_hundred_damaged_videos() -> None:
    """No crash, no hang and little memory; at least a third decode in part, and the check names every one of them."""
    outcomes = read_in_children("videos", 500, seed=0)
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    assert not failed, failed
    assert sum(outcome.growth for outcome in outcomes) < 50 << 10, "KiB by which the peak of memory grew"
    counts = [re.search(r": (\d+) of (\d+) frames could be decoded without error", o.message) for o in outcomes]
    assert sum(found is not None and int(found[1]) > 0 for found in counts) >= 500 // 3
