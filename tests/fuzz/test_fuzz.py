"""The short form of ``make fuzz``: a few inputs of every kind, in this process."""

from __future__ import annotations

import pytest

from .kinds import KINDS
from .run import read_inputs


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused_in_one_sentence(kind: str) -> None:
    outcomes = list(read_inputs(kind, range(25), seed=1))
    assert len(outcomes) == 25
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    assert not failed, failed
    assert sum(outcome.verdict == "refused" for outcome in outcomes) >= 5, "the mutations reach nothing"
