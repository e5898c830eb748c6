"""The share of senses chosen right in a sample read by hand: ``python -m tests.corpus.senses [--wordnet FOLDER]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from alt.corpus.build import choose_sense
from alt.corpus.disambiguate import CHOICES, SenseChooser
from alt.corpus.units import Unit
from alt.corpus.wordnet import WordNet

SAMPLE = Path(__file__).parent / "senses.txt"


class Row(NamedTuple):
    label: str
    unit: Unit
    right: set[str]


def read_sample() -> list[Row]:
    lines = [line.split(" | ") for line in SAMPLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Row(label, Unit(words, part), set(keys.split())) for label, words, part, keys in lines]


def find_wrong(wordnet: WordNet, method: str) -> list[str]:
    """Returns a line for every sense of the sample that a method chooses wrong."""
    chooser = SenseChooser(wordnet, method)
    wrong = []
    for row in read_sample():
        sense = choose_sense(row.label, row.unit, chooser).sense
        assert sense is not None
        if sense.key.partition("%")[2].removesuffix("::") not in row.right:
            wrong.append(f"{row.label}: {row.unit.words} is {sense.gloss}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", default=None, help="folder of WordNet's files")
    wordnet = WordNet(parser.parse_args().wordnet)
    count = len(read_sample())
    for method in CHOICES:
        wrong = find_wrong(wordnet, method)
        print(f"{method}: {count - len(wrong)} of {count} right")
        print("".join(f"  {line}\n" for line in wrong), end="")
