"""The share of senses chosen right in a sample read by hand: ``python -m tests.corpus.senses [--wordnet FOLDER]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from alt.corpus.build import choose_sense
from alt.corpus.disambiguate import CHOICES, SenseChooser
from alt.corpus.sense_model import DEFAULT, SenseModel
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


def find_wrong(wordnet: WordNet, method: str | SenseModel) -> list[str]:
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
    parser.add_argument("--t5", nargs="?", const=DEFAULT, help="also by a T5: its folder, or a published one")
    arguments = parser.parse_args()
    wordnet = WordNet(arguments.wordnet)
    methods: dict[str, str | SenseModel] = {name: name for name in CHOICES}
    if arguments.t5 is not None:
        methods[arguments.t5] = SenseModel(arguments.t5)
    count = len(read_sample())
    for name, method in methods.items():
        wrong = find_wrong(wordnet, method)
        print(f"{name}: {count - len(wrong)} of {count} right")
        print("".join(f"  {line}\n" for line in wrong), end="")
