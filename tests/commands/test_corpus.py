"""``alt corpus`` on small lists of names: what it writes, and one sentence for what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.corpus import Corpus
from tests.corpus.tiny_wordnet import write_wordnet


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["corpus", *(str(argument) for argument in arguments)])


def test_build_show_subset(wordnet: Path, tmp_path: Path) -> None:
    names, more = tmp_path / "names.txt", tmp_path / "more.csv"
    names.write_text("# a list\nlifting hat\nsitting in kitchen\n")
    more.write_text("id,name\n0,GolfSwing\n1,lifting hat\n")
    first = run("build", tmp_path / "a.json", names, "--wordnet", wordnet, "--tagger", "lexicon")
    assert first.exit_code == 0, first.output
    built = Corpus.load(tmp_path / "a.json")
    assert f"{len(built)} entities" in first.stdout
    assert "the paper's corpus has 913" in first.stdout
    assert built.content_hash() in first.stdout
    again = run("build", tmp_path / "b.json", names, "--wordnet", wordnet, "--tagger", "lexicon")
    assert built.content_hash() in again.stdout

    joined = run("build", tmp_path / "c.json", more, "--wordnet", wordnet, "--onto", tmp_path / "a.json")
    assert joined.exit_code == 0, joined.output
    grown = Corpus.load(tmp_path / "c.json")
    assert grown.texts[: len(built)] == built.texts
    assert "golf" in grown.units

    shown = run("show", tmp_path / "c.json", "--first", 5)
    for text in ("labels: more.csv", "tagger: lexicon", "onto: a.json", "Not embedded.", "| head | body_part |"):
        assert text in shown.stdout
    path = tmp_path / "c.json"
    path.write_text(path.read_text().replace("headdress that", "a thing that"))
    assert "Edited by hand" in run("show", path).stdout

    kept = run("subset", path, tmp_path / "d.json", "--categories", "motion, scene")
    assert kept.exit_code == 0, kept.output
    assert set(Corpus.load(tmp_path / "d.json").categories) == {"motion", "scene"}


def test_names_verbatim_and_embedded(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cup\nbox\n")
    assert run("build", tmp_path / "a.json", names, "--verbatim").exit_code == 0
    result = run("embed", tmp_path / "a.json", tmp_path / "b.json", "alt-mini", "--pretrained", "entity-world")
    assert result.exit_code == 0, result.output
    assert "2 rows of 48 channels by mini with the weights entity-world" in result.stdout
    embedded = Corpus.load(tmp_path / "b.json")
    assert embedded.categories == ("label", "label")
    assert embedded.encoder is not None
    assert "Embedded by mini" in run("show", tmp_path / "b.json").stdout
    refused = run("build", tmp_path / "c.json", names, "--verbatim", "--onto", tmp_path / "b.json")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "append to one without embeddings" in refused.stderr


@pytest.mark.parametrize(
    ("status", "arguments", "sentence"),
    [
        (2, ["build", "{tmp}/a.txt", "k400"], "TO: a corpus is a .json file"),
        (1, ["build", "{tmp}/a.json", "k700"], "LABELS: 'k700' is neither a file nor one of hmdb51, k400"),
        (1, ["build", "{tmp}/a.json", "k400", "--wordnet", "{tmp}"], "install Debian's wordnet-base"),
        (1, ["build", "{tmp}/a.json", "{tmp}/empty.txt", "--verbatim"], "the corpus is empty"),
        (1, ["build", "{tmp}/a.json", "k400", "--verbatim", "--onto", "k9"], "or one of k400"),
        (1, ["show", "{tmp}/none.json"], "no corpus at"),
        (1, ["show", "k9"], "or one of k400"),
        (1, ["subset", "k400", "{tmp}/a.json", "--categories", "smell"], "categories must be of object"),
        (1, ["subset", "k400", "{tmp}/a.json", "--categories", "label"], "no entity of category label"),
        (1, ["embed", "k400", "{tmp}/a.json", "ViT-B-16", "--pretrained", "nobody"], "no such tag of ViT-B-16"),
        (1, ["embed", "k400", "{tmp}/a.json", "ViT-Q-16"], "open_clip has no model 'ViT-Q-16'"),
    ],
)
def test_bad_input_is_one_sentence(status: int, arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result.exit_code, result.stderr.count("\n")) == (status, 1), result.output
    assert sentence in result.stderr
    assert not list(tmp_path.glob("*.json"))


def test_expand_replays_and_degrade_writes(wordnet: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("lifting hat\n")
    assert run("build", tmp_path / "a.json", tmp_path / "names.txt", "--wordnet", wordnet).exit_code == 0
    rest = ["--llm", "m", "--answers", tmp_path / "answers.jsonl", "--wordnet", wordnet]
    result = run("expand", tmp_path / "a.json", tmp_path / "b.json", *rest)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("Error: --endpoint: ")
    assert "name an endpoint to ask it" in result.stderr
    result = run("expand", tmp_path / "a.json", tmp_path / "b.json", *rest, "--endpoint", "ftp://x")
    assert "endpoint: expected a URL" in result.stderr
    result = run("degrade", tmp_path / "a.json", tmp_path / "c.json", "--damage", "removed", "--share", 0.5)
    assert result.exit_code == 0, result.output
    assert len(Corpus.load(tmp_path / "c.json")) == 17  # of 35
