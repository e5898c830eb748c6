"""The corpus: texts, categories, subset and expansion, and what comes back from the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alt.corpus import CATEGORIES, Corpus, TextSource
from alt.corpus.corpus_file import read_corpus_file

ENTITIES = [
    ("cup", "a small open container", "object", "lifting cup"),
    ("hand", "the end of an arm", "body_part", ""),
    ("kitchen", "a room for cooking", "scene", "lifting cup"),
    ("lifting", "moving upwards", "motion", "lifting cup"),
    ("ball", "", "object", ""),
]


class CountingEncoder:
    """Rows that depend on the text alone, of length other than 1."""

    def __init__(self, width: int = 6) -> None:
        self.width = width

    def embed(self, texts: list[str]) -> Tensor:
        rows = [
            torch.randn(self.width, generator=torch.Generator().manual_seed(sum(text.encode()) * 31 + len(text)))
            for text in texts
        ]
        return 3.0 * torch.stack(rows)


def corpus(width: int | None = 6) -> Corpus:
    bare = Corpus.from_entities(ENTITIES)
    return bare if width is None else bare.embed(CountingEncoder(width))


def test_texts_join_unit_and_description() -> None:
    assert corpus().texts == [
        "cup: a small open container",
        "hand: the end of an arm",
        "kitchen: a room for cooking",
        "lifting: moving upwards",
        "ball",
    ]
    assert corpus()[0].sources == ("lifting cup",)
    assert corpus()[1].sources == ()
    assert [entity.unit for entity in corpus()] == ["cup", "hand", "kitchen", "lifting", "ball"]
    assert corpus().counts() == {"object": 2, "body_part": 1, "scene": 1, "motion": 1}


def test_embeddings_are_frozen_unit_rows_of_the_texts() -> None:
    encoder = CountingEncoder()
    found = corpus().embeddings
    assert found is not None
    assert not found.requires_grad
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    expected = encoder.embed(corpus().texts)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def test_subset_changes_the_number_of_entities_only() -> None:
    whole = corpus()
    objects = whole.subset("object")
    assert objects.units == ("cup", "ball")
    assert torch.equal(objects.embeddings, whole.embeddings[[0, 4]])
    assert objects.width == whole.width
    assert whole.subset(CATEGORIES[:4]).units == whole.units
    assert whole.subset(["motion", "body_part"]).units == ("hand", "lifting")  # in the corpus's order
    with pytest.raises(ValueError, match="no entity of category label"):
        whole.subset("label")
    with pytest.raises(ValueError, match=r"must be of object.*got 'colour'"):
        whole.subset(["object", "colour"])


def test_expand_keeps_all_and_appends_the_new_ones() -> None:
    first = corpus()
    second = Corpus.from_entities(
        [
            ("ball", "", "object", "rolling ball"),  # known
            ("cup", "a trophy", "object", "winning cup"),  # another description: another entity
            ("table", "a flat top on legs", "object", ""),
            ("table", "a flat top on legs", "object", ""),  # twice in what is appended
        ]
    ).embed(CountingEncoder())
    joined = first.expand(second)
    assert joined.units == (*first.units, "cup", "table")
    assert joined.sources[-2:] == (("winning cup",), ())
    assert joined.sources[4] == ("rolling ball",)  # the known entity, found in one more label
    assert torch.equal(joined.embeddings[:5], first.embeddings)
    assert torch.equal(joined.embeddings[5:], second.embeddings[1:3])
    assert joined.expand(second) is joined
    assert joined.expand(first) is joined


def test_expand_refuses_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="embed both, or neither"):
        corpus().expand(corpus(None))
    with pytest.raises(ValueError, match="embed both, or neither"):
        corpus(None).expand(corpus())
    other = Corpus.from_labels(["jumping"]).embed(CountingEncoder(8))
    with pytest.raises(ValueError, match="width 8, this one at width 6"):
        corpus().expand(other)


def test_labels_verbatim() -> None:
    labels = Corpus.from_labels(["Lifting something", "Pushing something", "Lifting something"])
    assert labels.texts == ["Lifting something", "Pushing something"]
    assert set(labels.categories) == {"label"}
    with pytest.raises(TypeError, match="one str"):
        Corpus.from_labels("lifting")


@pytest.mark.parametrize("width", [6, None])
def test_save_and_load_bit_for_bit(tmp_path: Path, width: int | None) -> None:
    saved = corpus(width)
    path = saved.save(tmp_path / "inner" / "corpus.json")
    loaded = Corpus.load(path)
    assert list(loaded) == list(saved)
    if width is None:
        assert loaded.embeddings is None
    else:
        assert torch.equal(loaded.embeddings, saved.embeddings)
    names = {file.name for file in path.parent.iterdir()}
    assert names == ({"corpus.json"} if width is None else {"corpus.json", "corpus.safetensors"})


def test_every_field_survives_and_an_edit_shows(tmp_path: Path) -> None:
    rows = [("cup", "a vessel", "object", ["lifting cup", "drinking", "drinking"], "WordNet cup%1:06:00::")]
    saved = Corpus.from_entities([*rows, ("hand", "", "body_part")])
    path = saved.save(tmp_path / "c.json", {"command": "a test"})
    file = read_corpus_file(path)
    assert Corpus.load(path)[0] == ("cup", "a vessel", "object", ("lifting cup", "drinking"), "WordNet cup%1:06:00::")
    assert (file.about, file.edited) == ({"command": "a test"}, False)
    lines = path.read_text().splitlines()
    assert sum('"unit"' in line for line in lines) == 2  # one line per entity, for people
    path.write_text(path.read_text().replace("a vessel", "a trophy"))
    assert read_corpus_file(path).edited
    assert Corpus.load(path)[0].description == "a trophy"
    assert Corpus.load(path).content_hash() != saved.content_hash()


def test_format_1_still_loads(tmp_path: Path) -> None:
    first = {"unit": "cup", "description": "a vessel", "category": "object", "source": "lifting cup"}
    second = {"unit": "hand", "description": "", "category": "body_part", "source": ""}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"format": 1, "embeddings": None, "entities": [first, second]}))
    assert list(Corpus.load(path)) == list(
        Corpus.from_entities([("cup", "a vessel", "object", "lifting cup"), ("hand", "", "body_part")])
    )
    assert not read_corpus_file(path).edited
    path.write_text(json.dumps({"format": 3, "embeddings": None, "entities": [first]}))
    with pytest.raises(ValueError, match="it has format 3, and this version reads 1 and 2"):
        Corpus.load(path)


class NamedEncoder(CountingEncoder):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def source(self) -> TextSource:
        return TextSource("ViT-B-16", self.name, self.name * 8)


def test_embeddings_know_their_encoder(tmp_path: Path) -> None:
    openai, laion = NamedEncoder("openai"), NamedEncoder("laion")
    saved = corpus(None).embed(openai)
    loaded = Corpus.load(saved.save(tmp_path / "c.json"))
    assert loaded.encoder == openai.source()
    assert loaded.subset("object").encoder == openai.source()
    other = Corpus.from_labels(["jumping"])
    assert loaded.expand(other.embed(openai)).encoder == openai.source()
    assert loaded.expand(other.embed(CountingEncoder())).encoder == openai.source()  # one that is not known
    with pytest.raises(ValueError, match=r"by ViT-B-16 with the weights laion \(laionlai\), and this one belongs to"):
        loaded.expand(other.embed(laion))


def test_embeddings_of_other_texts_are_noticed(tmp_path: Path) -> None:
    path = corpus().save(tmp_path / "corpus.json")
    document = json.loads(path.read_text())
    document["entities"][0]["description"] = "a large open container"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="are of other texts"):
        Corpus.load(path)
    corpus(None).save(path)  # not embedded any more: the old embeddings beside it are not taken for its own
    assert Corpus.load(path).embeddings is None
    (tmp_path / "corpus.safetensors").unlink()
    corpus().save(path)
    (tmp_path / "corpus.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="which is not beside it"):
        Corpus.load(path)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no corpus at"):
        Corpus.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="is not a corpus file"):
        Corpus.load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a corpus file"):
        Corpus.load(tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"a corpus is a \.json file"):
        corpus().save(tmp_path / "corpus.txt")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus().save(tmp_path / "corpus.json")
    before = path.read_bytes()

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not save the corpus to .*: No space left on device, the previous file"):
        Corpus.from_labels(["jumping"]).save(path)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"corpus.json", "corpus.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (((), (), ()), ValueError, "the corpus is empty"),
        ((("a", "b"), ("",), ("object",) * 2), ValueError, "descriptions must have one entry per unit, 2, got 1"),
        ((("a", " "), ("", ""), ("object",) * 2), ValueError, r"units\[1\] is empty"),
        ((("a",), ("",), ("colour",)), ValueError, "categories must be of object"),
        ((("a",), (3,), ("object",)), TypeError, "descriptions must hold str only, got int"),
        (("a", ("",), ("object",)), TypeError, "units must be a sequence of str"),
        ((("a",), ("",), ("object",), (), torch.ones(2, 3)), ValueError, r"embeddings must be \[1, d\]"),
        ((("a",), ("",), ("object",), (), torch.zeros(1, 3)), ValueError, r"embeddings\[0\] is zero"),
        ((("a",), ("",), ("object",), (), torch.ones(1, 3, dtype=torch.int64)), TypeError, "float tensor"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Corpus(*arguments)


def test_no_entities_at_all() -> None:
    for make in (Corpus.from_entities, Corpus.from_labels):
        with pytest.raises(ValueError, match="the corpus is empty"):
            make([])


ENTITY = {"unit": "cup", "description": "", "category": "object", "source": ""}


@pytest.mark.parametrize(
    "document",
    [
        {"format": 1, "embeddings": None, "entities": [{**ENTITY, "source": 5}]},
        {"format": 1, "embeddings": None, "entities": [{**ENTITY, "category": ["object"]}]},
        {"format": 1, "embeddings": None, "entities": []},
        {"format": 1, "embeddings": None, "entities": 3},
        {"format": 1, "entities": [ENTITY]},
        [ENTITY],
        "cup",
    ],
)
def test_a_document_that_is_no_corpus_is_one_sentence(tmp_path: Path, document: object) -> None:
    """Kind: tracebacks from corpora; documented are FileNotFoundError and ValueError."""
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"c\.json is not a corpus file") as caught:
        Corpus.load(tmp_path / "c.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [["a"], "../other.safetensors", "/etc/passwd", 5])
def test_a_corpus_names_no_other_file(tmp_path: Path, name: object) -> None:
    """Kind: a file decides which other file is read. The embeddings lie beside it, under its own name."""
    path = Corpus.from_labels(["a", "b"]).embed(CountingEncoder(4)).save(tmp_path / "c.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "embeddings": name}))
    loaded = Corpus.load(path)
    assert loaded.embeddings is not None
    (tmp_path / "c.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.safetensors, which is not beside it"):
        Corpus.load(path)


def test_a_set_of_labels_is_refused() -> None:
    """Kind: an order that Python does not define would decide which row an entity has."""
    with pytest.raises(TypeError, match="labels: expected a list or another sequence, got a set"):
        Corpus.from_labels({"a", "b"})
    with pytest.raises(TypeError, match="units: expected a list"):
        Corpus(frozenset("ab"), ("", ""), ("label", "label"))  # type: ignore[arg-type]
