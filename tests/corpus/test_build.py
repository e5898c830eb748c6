"""From action labels to entities: WordNet's files, units, senses, groups, and the same corpus every time."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alt.corpus.build import build_corpus, choose_senses
from alt.corpus.disambiguate import SenseChooser
from alt.corpus.groups import BODY_PARTS
from alt.corpus.inflect import form_gerund
from alt.corpus.tagging import open_tagger
from alt.corpus.units import extract_units, split_label
from alt.corpus.wordnet import WordNet, find_wordnet

from .tiny_wordnet import write_wordnet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def wordnet(folder: Path) -> WordNet:
    return WordNet(folder)


def test_senses_of_the_files(wordnet: WordNet) -> None:
    first, second = wordnet.senses("banks", "n")
    assert (first.key, first.number, first.group) == ("bank%1:14:00::", 1, 14)
    assert first.gloss == "a place that keeps deposits and money"
    assert first.examples == ("he cashed a check",)
    assert first.synonyms == ("bank", "depository")
    assert second.key == "bank%1:17:00::"
    assert wordnet.version == "3.0"
    assert wordnet.hypernyms(wordnet.senses("kitchen", "n")[0]) == {"room", "structure", "artifact", "entity"}
    assert any("canoe" in text for text in wordnet.related(wordnet.senses("artifact", "n")[0]))
    assert wordnet.frequency("hats", "n") == 5


@pytest.mark.parametrize(
    ("form", "part", "bases"),
    [
        ("hats", "n", ["hat"]),
        ("ice creams", "n", ["ice cream"]),
        ("washing", "v", ["wash"]),
        ("riding", "v", ["ride"]),
        ("ate", "v", ["eat"]),
        ("sitting", "v", ["sit"]),
        ("waking up", "v", ["wake up"]),
        ("swinging", "v", ["swing", "swinge"]),  # the more frequent first
        ("unheard", "n", []),
    ],
)
def test_base_forms(wordnet: WordNet, form: str, part: str, bases: list[str]) -> None:
    assert wordnet.base_forms(form, part) == bases


def test_missing_and_mixed_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=f"no WordNet files .* in {tmp_path}; install Debian's wordnet-base"):
        WordNet(tmp_path)
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    assert find_wordnet() == folder
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "data.noun").write_text("  1 another version\n")
    with pytest.raises(ValueError, match=r"data\.noun: there is no meaning at byte \d+; the files are not of one"):
        WordNet(tmp_path).senses("hat", "n")


@pytest.mark.parametrize(
    ("label", "units"),
    [
        ("lifting hat", ["lifting/v", "hat/n"]),
        ("LiftingHat", ["lifting/v", "hat/n"]),
        ("eating ice cream", ["eating/v", "ice cream/n"]),
        ("washing or lifting hands", ["washing/v", "lifting/v", "hands/n"]),
        ("baby waking up", ["baby/n", "waking up/v"]),
        ("riding mechanical bull", ["riding/v", "mechanical bull/n", "bull/n"]),
        ("GolfSwing", ["golf swing/n", "golf/n", "swing/n"]),
        ("fencing (sport)", ["fencing/v"]),
        ("washing person's head", ["washing/v", "head/n"]),
        ("playing golf", ["golf/n"]),
    ],
)
def test_units_of_ten_labels(wordnet: WordNet, label: str, units: list[str]) -> None:
    tagger = open_tagger("lexicon", wordnet)
    assert [f"{unit.words}/{unit.part}" for unit in extract_units(label, tagger, wordnet)] == units


def test_remarks_are_read_and_negated_ones_left_out() -> None:
    assert split_label("curling (sport)") == (["curling"], ["sport"])
    assert split_label("petting animal (not cat)") == (["petting", "animal"], [])


def test_bank_is_chosen_by_its_context_both_ways(wordnet: WordNet) -> None:
    found = {
        choice.label: choice.sense.key
        for choice in choose_senses(["sitting on river bank", "robbing bank money"], wordnet)
        if choice.unit.words == "bank" and choice.sense
    }
    assert found == {"sitting on river bank": "bank%1:17:00::", "robbing bank money": "bank%1:14:00::"}
    frequent = SenseChooser(wordnet, "frequent")
    assert frequent.choose(wordnet.senses("bank", "n"), ["river"]).key == "bank%1:14:00::"


def test_what_names_the_action_is_an_act(wordnet: WordNet) -> None:
    corpus = build_corpus(["fencing (sport)", "GolfSwing"], wordnet)
    found = {entity.unit: entity for entity in corpus}
    assert found["fencing"].description == "the sport of fighting with swords"
    assert found["swing"].description == "the act of swinging a golf club"


def test_the_corpus_of_some_labels(wordnet: WordNet) -> None:
    labels = ["lifting hat", "raising lid", "washing hands", "sitting in kitchen", "riding mechanical bull"]
    corpus = build_corpus(labels, wordnet)
    assert corpus.units[: len(BODY_PARTS)] == BODY_PARTS
    assert set(corpus.categories[: len(BODY_PARTS)]) == {"body_part"}
    found = {entity.unit: entity for entity in corpus}
    assert found["hand"].sources == ("washing hands",)
    assert found["hand"].description == "the extremity of the superior limb"
    assert found["toe"] == ("toe", "", "body_part", (), "")  # not in this WordNet
    assert found["hat"].origin == "WordNet hat%1:06:00::"
    assert found["hat"].sources == ("lifting hat", "raising lid")  # one meaning: one entity
    assert found["lifting"].sources == ("lifting hat", "raising lid")
    assert {"lid", "raising"}.isdisjoint(found)
    assert found["mechanical bull"].description == ""
    categories = {unit: found[unit].category for unit in ("hat", "kitchen", "lifting", "bull", "mechanical bull")}
    assert categories == {
        "hat": "object",
        "kitchen": "scene",
        "lifting": "motion",
        "bull": "object",
        "mechanical bull": "object",
    }


def test_a_second_build_has_the_same_hash(folder: Path) -> None:
    labels = ["lifting hat", "GolfSwing", "sitting on river bank"]
    first, second = (build_corpus(labels, WordNet(folder)) for _ in range(2))
    assert first.content_hash() == second.content_hash()
    assert build_corpus([*labels, "lifting hat"], WordNet(folder)).content_hash() == first.content_hash()
    assert build_corpus(labels[:2], WordNet(folder)).content_hash() != first.content_hash()


def test_bad_input(wordnet: WordNet) -> None:
    for labels, error, match in (
        ("lifting", TypeError, "labels: expected a sequence of str, got one str"),
        ({"lifting"}, TypeError, "labels: expected a list"),
        ([], ValueError, "labels: expected at least one action label"),
        (["lifting", "12"], ValueError, "labels: expected action labels with letters, got '12'"),
    ):
        with pytest.raises(error, match=match):
            build_corpus(labels, wordnet)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wsd: expected lesk, frequent or a T5, got 'best'"):
        build_corpus(["lifting"], wordnet, wsd="best")
    with pytest.raises(ValueError, match="tagger: expected one of auto, lexicon, nltk, spacy, got 'brill'"):
        open_tagger("brill", wordnet)


def test_taggers_that_are_not_installed(wordnet: WordNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)

    def no_data(words: list[str], tagset: str) -> list[tuple[str, str]]:
        raise LookupError("\n\nResource averaged_perceptron_tagger not found.\nUse the downloader")

    monkeypatch.setitem(sys.modules, "nltk", SimpleNamespace(pos_tag=no_data, __version__="3"))
    with pytest.raises(ValueError, match="tagger: spacy or its data is not installed"):
        open_tagger("spacy", wordnet)
    with pytest.raises(ValueError, match=r"nltk or its data is not installed \(Resource averaged_perceptron"):
        open_tagger("nltk", wordnet)
    assert open_tagger("auto", wordnet).name == "lexicon"
    tagged = SimpleNamespace(pos_tag=lambda words, tagset: [(word, "VERB") for word in words], __version__="3")
    monkeypatch.setitem(sys.modules, "nltk", tagged)
    tagger = open_tagger("auto", wordnet)
    assert tagger.name == "NLTK 3"
    assert [unit.part for unit in extract_units("lifting raising", tagger, wordnet)] == ["v", "v"]


@pytest.mark.parametrize(
    ("verb", "gerund"),
    [
        *(("run", "running"), ("lie", "lying"), ("make", "making"), ("cut", "cutting"), ("see", "seeing")),
        *(("clap", "clapping"), ("play", "playing"), ("swim", "swimming"), ("ski", "skiing"), ("sing", "singing")),
        *(
            ("swing", "swinging"),
            ("row", "rowing"),
            ("open", "opening"),
            ("begin", "beginning"),
            ("wake up", "waking up"),
        ),
        *(("quit", "quitting"), ("picnic", "picnicking"), ("fix", "fixing"), ("dye", "dyeing"), ("shoot", "shooting")),
        *(("eat", "eating"), ("bring", "bringing"), ("squat", "squatting"), ("argue", "arguing"), ("hoe", "hoeing")),
    ],
)
def test_gerunds(verb: str, gerund: str) -> None:
    assert form_gerund(verb) == gerund
