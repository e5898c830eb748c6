"""Proposals of a language model: what is asked, kept, replayed and understood; a stub stands for the endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alt.cli import build_app
from alt.corpus import Corpus
from alt.corpus.build import build_corpus
from alt.corpus.degrade import degrade_corpus
from alt.corpus.expand import expand_corpus, parse_proposals
from alt.corpus.language_model import KEY_VARIABLE, LanguageModel
from alt.corpus.prompts import PROMPTS
from alt.corpus.wordnet import WordNet

from .endpoint import Stub
from .tiny_wordnet import write_wordnet


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet(write_wordnet(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(scope="module")
def corpus(wordnet: WordNet) -> Corpus:
    return build_corpus(["lifting hat", "riding mechanical bull"], wordnet)


def test_prompts_word_for_word() -> None:
    units = PROMPTS["cvpr"].units.format("riding bull")
    assert units == (
        "What are identifying visual characteristics, such as object, body parts, scenes, and roles, of a/an "
        "riding bull video action? List them concisely."
    )
    assert PROMPTS["iclr"].units.format("riding bull") == (
        "What are identifying object/body parts/scenes/roles of an action riding bull? List them concisely."
    )
    assert [prompt.format("X") for prompt in PROMPTS["cvpr"].descriptions] == [
        "Concisely describe what a/an X looks like",
        "Concisely list potential explanations for X",
        "Concisely explain X in one sentence",
    ]
    assert PROMPTS["iclr"].descriptions[0].format("X") == "Concisely describe what an action X looks like"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Objects: ball, bat\nBody parts: hands and arms", "ball/object bat/object hands/body_part arms/body_part"),
        ("**Scenes:**\n- a kitchen\n* Restaurant", "kitchen/scene restaurant/scene"),
        ("1. Roles: cook (usually one), waiter.", "cook/object waiter/object"),
        ("Sure! Here is a long sentence that lists nothing at all.", ""),
        ("hat", "hat/object"),
        ("", ""),
    ],
)
def test_answers_are_parsed(answer: str, found: str) -> None:
    assert [f"{unit}/{category}" for unit, category in parse_proposals(answer)] == found.split()


def test_expansion_and_replay(stub: Stub, wordnet: WordNet, corpus: Corpus, tmp_path: Path) -> None:
    first = LanguageModel("m", tmp_path / "answers.jsonl", stub.url, per_minute=1e9)
    grown = expand_corpus(corpus, first, wordnet)
    assert grown.units[: len(corpus)] == corpus.units
    found = {entity.unit: entity for entity in grown}
    assert found["kitchen"].category == "scene"
    assert found["kitchen"].origin == "WordNet kitchen%1:06:00::"
    assert found["hat"].sources == ("lifting hat", "riding mechanical bull")  # known before, now in two labels
    assert found["magic wand"].description.startswith("about Concisely")
    assert found["mechanical bull"].origin.startswith("model m, prompt 'Concisely")
    assert all(entity.description for entity in grown if entity.unit not in corpus.units)
    assert len(stub.prompts) == len(set(stub.prompts)) == first.asked
    replay = LanguageModel("m", tmp_path / "answers.jsonl")
    assert expand_corpus(corpus, replay, wordnet).content_hash() == grown.content_hash()
    assert replay.asked == 0
    with pytest.raises(LookupError, match=r"has no answer of n to .*; name an endpoint"):
        expand_corpus(corpus, LanguageModel("n", tmp_path / "answers.jsonl"), wordnet)


def test_the_hubs_token_is_not_sent(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    LanguageModel("m", tmp_path / "a.jsonl", stub.url).ask("one")
    monkeypatch.setenv(KEY_VARIABLE, "mine")
    LanguageModel("m", tmp_path / "a.jsonl", stub.url).ask("two")
    assert stub.keys == {"Bearer none", "Bearer mine"}


def test_rate_and_busy_endpoints(stub: Stub, tmp_path: Path) -> None:
    clock = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    model = LanguageModel("m", tmp_path / "a.jsonl", stub.url, per_minute=30, sleep=sleep, now=lambda: clock[0])
    for prompt in ("one", "two", "one", "three"):
        model.ask(prompt)
    assert slept == [2.0, 2.0]  # the kept answer waits for nothing
    stub.fail = [429, 503]
    model.ask("four")
    assert slept[2:] == [2.0, 7.0, 7.0]  # what the endpoint names
    stub.fail = [401]
    with pytest.raises(ConnectionError, match=r"endpoint: http://127.* answered 401; answers so far are kept"):
        model.ask("five")
    stub.fail = [500] * 5
    with pytest.raises(ConnectionError, match="answered 500"):
        model.ask("five")
    away = LanguageModel("m", tmp_path / "a.jsonl", "http://127.0.0.1:1/v1", tries=2, sleep=sleep)
    assert away.ask("one")
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1/v1 does not answer \("):
        away.ask("five")


def test_half_a_line_is_dropped_and_other_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": "k", "answer": "a"}\n{"key": "l", "ans')
    LanguageModel("m", path)
    assert path.read_text() == '{"key": "k", "answer": "a"}\n'
    path.write_text("[]\n")
    with pytest.raises(ValueError, match=r"answers: .*a\.jsonl, line 1 cannot be read"):
        LanguageModel("m", path)
    for change, match in (
        ({"per_minute": 0}, "per_minute: expected more than 0 requests, got 0"),
        ({"tries": 0}, "tries: expected at least 1"),
        ({"endpoint": "localhost:8000"}, "endpoint: expected a URL such as"),
    ):
        with pytest.raises(ValueError, match=match):
            LanguageModel("m", tmp_path / "b.jsonl", **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["kill", "ctrl-c"]
)
def test_kill_and_resume_lose_nothing(
    stub: Stub, wordnet: WordNet, corpus: Corpus, tmp_path: Path, how: signal.Signals
) -> None:
    corpus.save(tmp_path / "a.json")
    arguments = ["corpus", "expand", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--llm", "m"]
    arguments += ["--answers", str(tmp_path / "answers.jsonl"), "--endpoint", stub.url, "--per-minute", "1e9"]
    arguments += ["--wordnet", str(wordnet.folder)]
    stub.hang_after = 3
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from alt.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", reset, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stub.hanging.wait(120)
    process.send_signal(how)
    said = process.communicate(timeout=60)[1]
    if how == signal.SIGINT:
        assert said == f"Interrupted; answers are kept in {tmp_path / 'answers.jsonl'}, and the same command goes on.\n"
    before = list(stub.prompts)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(before) == 3
    assert not (tmp_path / "b.json").exists()
    stub.hang_after = 10**9
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    assert stub.prompts[:3] == before
    assert len(stub.prompts) == len(set(stub.prompts))  # nothing was asked twice
    at_once = expand_corpus(corpus, LanguageModel("m", tmp_path / "whole.jsonl", stub.url, per_minute=1e9), wordnet)
    assert Corpus.load(tmp_path / "b.json").content_hash() == at_once.content_hash()


# ---------------------------------------------------------------------------------------------------- worse corpora


def test_damage_is_nested_counted_and_repeatable(wordnet: WordNet, corpus: Corpus) -> None:
    whole = {entity.unit for entity in corpus}
    left = [{e.unit for e in degrade_corpus(corpus, "removed", share)} for share in (0.0, 0.25, 0.5)]
    assert left[0] == whole
    assert left[2] < left[1] < whole
    assert len(left[2]) == len(corpus) - round(len(corpus) / 2)
    assert {e.unit for e in degrade_corpus(corpus, "removed", 0.5, draw=1)} != left[2]

    replaced = degrade_corpus(corpus, "replaced", 0.5, wordnet)
    other = [i for i in range(len(corpus)) if replaced[i] != corpus[i]]
    assert len(replaced) == len(corpus)
    assert 0 < len(other) <= round(len(corpus) / 2)  # a word may be drawn for itself
    assert replaced.categories == corpus.categories
    assert replaced.content_hash() == degrade_corpus(corpus, "replaced", 0.5, wordnet).content_hash()


def test_a_wrong_sense_keeps_the_word(wordnet: WordNet) -> None:
    corpus = build_corpus(["robbing bank money", "GolfSwing"], wordnet)
    wrong = degrade_corpus(corpus, "wrong-sense", 1.0, wordnet)
    assert wrong.units == corpus.units
    changed = {corpus[i].unit: wrong[i] for i in range(len(corpus)) if wrong[i] != corpus[i]}
    assert set(changed) == {"bank", "swing"}  # the others have one sense
    assert changed["bank"].origin == "wrong-sense WordNet bank%1:17:00::"
    assert changed["bank"].description == "sloping land beside a body of water"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("burnt", 0.5), "damage: expected one of removed, replaced, wrong-sense, got 'burnt'"),
        (("removed", 1.5), r"share: expected 0 to 1, got 1\.5"),
        (("removed", 1.0), r"share: 1\.0 of \d+ entities leaves none"),
        (("replaced", 0.5), "wordnet: replaced needs WordNet's files"),
    ],
)
def test_bad_damage(corpus: Corpus, arguments: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        degrade_corpus(corpus, *arguments)
