"""Verbs of phrases and captions, and the providers that give them: a language model, files of captions, BLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from alt.cli import build_app
from alt.corpus.captions import BlipCaptioner, Captions
from alt.corpus.inflect import form_gerund
from alt.corpus.tagging import Tagger, open_tagger
from alt.corpus.verbs import list_phrase_texts, list_verb_texts
from alt.corpus.wordnet import WordNet
from alt.train.bag_file import read_bags

from .endpoint import Stub
from .tiny_wordnet import write_wordnet

VERBS = "clap cover hold run lie make cut see rub dance jump dress"


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet(write_wordnet(tmp_path_factory.mktemp("wordnet"), VERBS))


@pytest.fixture(scope="module")
def tagger(wordnet: WordNet) -> Tagger:
    return open_tagger("lexicon", wordnet, sentences=True)


@pytest.mark.parametrize(
    ("verb", "gerund"),
    [
        ("run", "running"),
        ("lie", "lying"),
        ("make", "making"),
        ("cut", "cutting"),
        ("see", "seeing"),
        ("clap", "clapping"),
    ],
)
def test_gerunds_and_lemmas(verb: str, gerund: str, tagger: Tagger, wordnet: WordNet) -> None:
    assert form_gerund(verb) == gerund
    if verb != "lie":  # WordNet itself lists its irregular form, the small data base does not
        assert list_verb_texts(gerund, tagger, wordnet) == [verb, gerund]


@pytest.mark.parametrize(
    ("phrase", "texts"),
    [
        ("Clapping hands.", ["clap", "clapping", "clapping hands"]),
        ("rub cream", ["rub", "rubbing", "rubbing cream"]),
        ("to rub cream", ["rub", "rubbing", "rubbing cream"]),
        ("run and jump over the fence into a river", ["run", "running", "jump", "jumping"]),  # a sentence is no name
        ("a golf hat", []),
        ("", []),
    ],
)
def test_phrases(phrase: str, texts: list[str], tagger: Tagger, wordnet: WordNet) -> None:
    assert list_phrase_texts(phrase, tagger, wordnet) == texts
    nouns = Tagger("of sentences", lambda words: ["NOUN"] * len(words))  # as spaCy reads two words without a subject
    assert list_phrase_texts(phrase, nouns, wordnet) == texts


@pytest.mark.parametrize(
    ("caption", "verbs"),
    [
        ("a robber covers her head with her hands", "cover"),
        ("a robber holding a hat in a river", "hold"),
        ("two robbers dance on ice", "dance"),
        ("a hand is washing hats and lifting a canoe", "wash lift"),
        ("a robber dressed in ice jumps over the river", "dress jump"),
        ("ice cream in a swinging hat", ""),
        ("a man is seated", ""),
    ],
)
def test_captions_are_sentences(caption: str, verbs: str, tagger: Tagger, wordnet: WordNet) -> None:
    assert list_verb_texts(caption, tagger, wordnet)[::2] == verbs.split()


SETTINGS = ["data.preset=tiny", "data.limit=6", "data.val_split="]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def test_bags_from_matches_phrases_and_captions(stub: Stub, wordnet: WordNet, tmp_path: Path) -> None:
    out, answers, captions = (tmp_path / name for name in ("bags.json", "answers.jsonl", "captions.jsonl"))
    rows = [{"clip": f"clip {i}", "captions": ["a robber covers a hat", "two robbers dance on ice"]} for i in range(5)]
    captions.write_text("\n".join(map(json.dumps, rows)))  # by hand: no end of the last line
    command = ["bags", "entity-world-maxi", *SETTINGS, f"bags.file={out}", "--wordnet", wordnet.folder]
    code, said = run(*command, "--tagger", "lexicon")
    assert (code, read_bags(out).names) == (0, {})
    command += ["--llm", "m", "--answers", answers, "--captions", captions, "--tagger", "lexicon"]
    code, said = run(*command, "--endpoint", stub.url, "--per-minute", 1e9)
    assert code == 0, said
    assert f"Keeping the matches in {out}." in said
    assert "1 of 6 clips have no captions." in said
    found = read_bags(out)
    names = {bag.name for bag in found.clips}
    assert sorted(stub.prompts) == sorted(
        f"Generate 5 phrases to describe the action of {name} in simple words" for name in names
    )
    assert set(found.names) == names
    assert all(list(texts) == ["lift", "lifting", "lifting a hat", "wash", "washing"] for texts in found.names.values())
    assert [bag.texts for bag in found.clips] == [("cover", "covering", "dance", "dancing")] * 5 + [()]
    before = out.read_bytes()
    assert run(*command)[0] == 0  # without an endpoint: everything is replayed
    assert out.read_bytes() == before
    answers.unlink()
    code, said = run(*command)
    assert code == 1
    assert "--endpoint: " in said
    assert "name an endpoint to ask it." in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["entity-world-cpu", "bags.file=a.json"], "trains with labels; bags are for runs with task=unlabelled."),
        (["entity-world-maxi"], "bags.file: expected the .json file to write, got None."),
        (["entity-world-maxi", "bags.file=a.json", "--llm", "m"], "--llm and --answers go together"),
        (["entity-world-maxi", "bags.file=a.json", "--caption-model", "m"], "--caption-model needs --captions"),
        (
            ["entity-world-maxi", "bags.file=a.json", "--captions", "no.jsonl"],
            "--captions: there is no file 'no.jsonl'",
        ),
        (
            ["entity-world-maxi", "bags.file=a.json", "--llm", "m", "--answers", "a.jsonl", "--wordnet", "nowhere"],
            "there are no WordNet files",
        ),
    ],
)
def test_what_bags_are_refused(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = run("bags", *words)
    assert code in (1, 2)
    assert says in said
    assert "Traceback" not in said


def test_the_most_frequent_verbs_are_a_dictionary(wordnet: WordNet, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a robber covers a hat\na hand covering a river\ntwo robbers dance\n\n")
    command = ["corpus", "verbs", tmp_path / "captions.txt", tmp_path / "verbs.txt", "--wordnet", wordnet.folder]
    assert run(*command, "--tagger", "lexicon", "--count", 1)[0] == 0
    assert (tmp_path / "verbs.txt").read_text() == "covering\n"
    (tmp_path / "captions.txt").write_text("ice\n")
    code, said = run(*command, "--tagger", "lexicon")
    assert (code, "no verb is in the 1 lines of" in said) == (1, True)


def test_captions_of_another_model_are_refused(tmp_path: Path) -> None:
    kept = Captions(tmp_path / "c.jsonl", "one")
    kept.add("a.mp4", ["a hat"])
    assert Captions(tmp_path / "c.jsonl", "one").find("a.mp4") == ["a hat"]
    assert Captions(tmp_path / "c.jsonl").find("b.mp4") is None
    with pytest.raises(ValueError, match="has captions by one, and two is to make the others"):
        Captions(tmp_path / "c.jsonl", "two")
    (tmp_path / "c.jsonl").write_text('{"clip": "a", "captions": "a hat"}\n')
    with pytest.raises(ValueError, match=r"captions: .*c\.jsonl, line 1 cannot be read \(captions must be a list"):
        Captions(tmp_path / "c.jsonl")


def test_blip(tmp_path: Path) -> None:
    """A small BLIP of random weights: what is read, and that its texts come back."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "hat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BlipConfig(
        text_config={
            **small, "vocab_size": 7, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0
        },
        vision_config={**small, "image_size": 32, "patch_size": 16},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    reader = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    tokens = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    transformers.BlipProcessor(reader, tokens).save_pretrained(tmp_path)
    blip = BlipCaptioner(str(tmp_path))
    frames = torch.randint(256, (1, 3, 40, 50), dtype=torch.uint8).expand(3, -1, -1, -1)
    captions = blip.caption(frames)
    assert len(captions) == 1  # three equal frames
    assert set(captions[0].split()) <= {"a", "hat"}
    with pytest.raises(ValueError, match=r"caption-model: the BLIP '.*nowhere' cannot be loaded"):
        BlipCaptioner(str(tmp_path / "nowhere"))
