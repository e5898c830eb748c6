"""Senses by a T5: the question, the choice of the likeliest description, and a corpus built with it.

The model is small and of random weights, so what it chooses means nothing; that it is the likeliest is checked by a
sum over the answer's tokens.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alt.corpus.build import build_corpus
from alt.corpus.sense_model import SenseModel, write_question
from alt.corpus.tagging import open_tagger
from alt.corpus.wordnet import WordNet

from .tiny_wordnet import SYNSETS, write_wordnet

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for row in SYNSETS.values() for word in row[3].replace(",", " , ").split()})
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path = tmp_path_factory.mktemp("t5")
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=len(vocabulary), decoder_start_token_id=0, **small)
    torch.manual_seed(1)
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    return path


def test_the_question_of_the_authors_page() -> None:
    senses = ["A drink consisting of an infusion of ground coffee beans", "a language", "an island in Indonesia"]
    assert write_question("java", senses, "I like to drink java in the morning") == (
        'question: which description describes the word " java " best in the following context? descriptions: [ '
        '" A drink consisting of an infusion of ground coffee beans " , " a language " , or " an island in Indonesia " '
        '] context: I like to drink " java " in the morning .'
    )


def test_the_likeliest_description_is_chosen(folder: Path, tmp_path: Path) -> None:
    model = SenseModel(str(folder))
    senses = ["the act of swinging a golf club", "a game", "move in a curve"]
    scores = model.score("swing", senses, "golf swing")
    tower = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    question = tokenizer(write_question("swing", senses, "golf swing"), return_tensors="pt").input_ids
    for sense, score in zip(senses, scores.tolist(), strict=True):
        answer, total = tokenizer(sense).input_ids, 0.0
        for i, token in enumerate(answer):  # one token after the other, as it would write them
            with torch.no_grad():
                logits = tower(input_ids=question, decoder_input_ids=torch.tensor([[0, *answer[:i]]])).logits
            total += logits[0, -1].log_softmax(-1)[token].item()
        assert score == pytest.approx(total, abs=1e-4)
    assert model.choose("swing", senses, "golf swing") == scores.argmax()
    assert model.choose("swing", ["a game", "a game"], "golf swing") == 0
    with pytest.raises(ValueError, match=r"wsd: the T5 '.*nowhere' cannot be loaded"):
        SenseModel(str(tmp_path / "nowhere"))


def test_a_corpus_takes_the_models_senses(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wordnet = WordNet(write_wordnet(tmp_path))
    asked = []

    def choose(self: SenseModel, word: str, descriptions: list[str], sentence: str) -> int:
        asked.append((word, len(descriptions), sentence))
        return len(descriptions) - 1

    monkeypatch.setattr(SenseModel, "choose", choose)
    built = build_corpus(
        ["golf swing", "robbing bank"], wordnet, open_tagger("lexicon", wordnet), SenseModel(str(folder))
    )
    assert asked == [("swing", 2, "golf swing"), ("bank", 2, "robbing bank")]
    found = {entity.unit: entity.description for entity in built}
    assert found["bank"].startswith("sloping land")  # the model's choice, which Lesk would not make here
