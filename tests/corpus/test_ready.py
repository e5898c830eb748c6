"""The corpora and action names that ship, and that every configuration names one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alt.corpus import READY, Corpus
from alt.corpus.build import build_corpus
from alt.corpus.corpus_file import SHIPPED, read_corpus_file
from alt.corpus.wordnet import WordNet, find_wordnet
from alt.data.action_names import ACTION_SETS, name_to_text, read_action_names
from alt.train import load_config
from alt.train.catalogue import names

from .senses import find_wrong, read_sample

COUNTS = {"hmdb51": 51, "k400": 400, "k600": 600, "minikinetics": 200, "minissv2": 87, "ssv2": 174, "ucf101": 101}
HALVES = {"minikinetics": "k400", "minissv2": "ssv2"}


def real_wordnet() -> WordNet:
    try:
        return WordNet(find_wordnet())
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_lists_have_the_published_numbers_of_names() -> None:
    assert set(ACTION_SETS) == set(COUNTS)
    for name, count in COUNTS.items():
        found = read_action_names(name)
        assert len(found) == len(set(found)) == count
    assert read_action_names("k400")[::399] == ["abseiling", "zumba"]
    assert read_action_names("ucf101")[0] == "ApplyEyeMakeup"
    for mini, whole in HALVES.items():
        found = read_action_names(mini)
        assert [name for name in read_action_names(whole) if name in found] == found
    with pytest.raises(ValueError, match="expected one of hmdb51"):
        read_action_names("k700")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("HandstandPushups", "handstand pushups"),
        ("brush_hair", "brush hair"),
        ("YoYo", "yo yo"),
        ("passing American football (in game)", "passing American football (in game)"),
        ("abseiling", "abseiling"),
    ],
)
def test_names_as_words(name: str, text: str) -> None:
    assert name_to_text(name) == text


def test_shipped_corpora_are_whole_and_theirs() -> None:
    assert READY == ("k400", "k400-hmdb51-ucf101", "k400-hmdb51-ucf101-k600", "ssv2")
    for name in READY:
        file = read_corpus_file(name)
        assert not file.edited
        assert not any("model" in entity.origin for entity in file.entities)  # no language model's text
    whole, more = Corpus.load(READY[1]), Corpus.load(READY[2])
    assert set(whole.counts()) == {"object", "body_part", "scene", "motion"}
    assert more.texts[: len(whole)] == whole.texts  # the rule for a new dataset
    assert Corpus.load("ssv2").texts == read_action_names("ssv2")
    assert {label for sources in whole.sources for label in sources} >= set(read_action_names("hmdb51"))
    assert "Princeton" in (SHIPPED / "LICENSE-WordNet.txt").read_text()


def test_every_configuration_names_a_corpus_that_is_there() -> None:
    named = {name: load_config(name).model.corpus for name in names()}
    assert set(named.values()) == {None, "world", "labels", READY[1], READY[2]}


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or one of k400, k400-hmdb51-ucf101, .*; got 'k700'"):
        Corpus.load("k700")


@pytest.mark.slow
def test_shipped_corpora_are_what_the_command_builds() -> None:
    wordnet = real_wordnet()
    labels = [label for which in ("k400", "hmdb51", "ucf101") for label in read_action_names(which)]
    built = build_corpus(labels, wordnet)
    assert built.content_hash() == Corpus.load(READY[1]).content_hash()
    more = built.expand(build_corpus(read_action_names("k600"), wordnet))
    assert more.content_hash() == Corpus.load(READY[2]).content_hash()


def test_the_sample_of_senses_read_by_hand() -> None:
    wordnet = real_wordnet()
    assert len(read_sample()) == 50
    right = {method: 50 - len(find_wrong(wordnet, method)) for method in ("lesk", "frequent")}
    assert right["lesk"] >= 41
    assert right["frequent"] <= 35
