"""``alt corpus``: builds, shows, changes and embeds the entities with which ALT aligns the regions of a video."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alt.errors import UsageError, UserError

from .options import (
    Device,
    Endpoint,
    RequestsPerMinute,
    TaggerName,
    WordNetFolder,
    kept_answers,
    language_model,
    parse_device,
)
from .outputs import check_file
from .progress import progress_bar
from .terminal import echo, say

if TYPE_CHECKING:
    from alt.corpus import Corpus
    from alt.corpus.sense_model import SenseModel

corpus = typer.Typer(no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(metavar="FROM", help="A corpus: its .json file, or the name of one that ships.", show_default=False),
]
Target = Annotated[Path, typer.Argument(metavar="TO", help="The corpus to write, a .json file.", show_default=False)]


@corpus.callback()
def _corpus() -> None:
    """Build, show, change and embed text corpora: the entities with which ALT aligns the regions of a video."""


@corpus.command()
def build(
    to: Target,
    labels: Annotated[
        list[str],
        typer.Argument(
            metavar="LABELS...",
            help="Action names: hmdb51, k400, k600, ssv2 or ucf101, a CSV with the columns id and name, or a text file "
            "with one name per line.",
            show_default=False,
        ),
    ],
    onto: Annotated[
        str | None,
        typer.Option(
            "--onto",
            metavar="CORPUS",
            help="Keep all entities of this corpus under their numbers, and append the new ones.",
            show_default=False,
        ),
    ] = None,
    verbatim: Annotated[
        bool, typer.Option("--verbatim", help="The names themselves are the entities (the paper's choice for SS-v2).")
    ] = False,
    wordnet: WordNetFolder = None,
    tagger: TaggerName = "auto",
    wsd: Annotated[
        str,
        typer.Option(
            "--wsd",
            metavar="NAME",
            help="Choice of a word's sense: lesk, frequent (WordNet's first), t5 (a published T5 for senses, from the "
            "Hub), or t5:FOLDER.",
        ),
    ] = "lesk",
    device: Device = "auto",
) -> None:
    """Build a corpus from action names, with WordNet's descriptions and no language model.

    The same names, WordNet and tagger give the same corpus, whose hash is shown at the end.
    """
    from alt.corpus import Corpus
    from alt.corpus.build import build_corpus
    from alt.corpus.tagging import open_tagger
    from alt.corpus.wordnet import WordNet

    _check_target(to)
    names = [name for source in labels for name in _read_names(source)]
    earlier = None if onto is None else _load(onto)
    if earlier is not None and earlier.embeddings is not None:
        raise UserError(f"--onto: {onto} is embedded; append to one without embeddings, and embed the result.")
    about: dict[str, object] = {"labels": [Path(source).name for source in labels], "count of labels": len(set(names))}
    begin = time.perf_counter()
    if verbatim:
        built = Corpus.from_labels(names)
    else:
        data = WordNet(wordnet)
        chosen = open_tagger(tagger, data)
        method = _open_senses(wsd, device)
        about |= {"WordNet": data.version, "tagger": chosen.name, "wsd": wsd}
        with progress_bar("labels", len(set(names))) as move:
            built = build_corpus(names, data, chosen, method, move)
    if earlier is not None:
        about["onto"] = Path(str(onto)).name
        built = earlier.expand(built)
    built.save(to, about)
    say(f"Built in {time.perf_counter() - begin:.1f} s.")
    _describe(built)
    echo(f"Wrote {to}.")


@corpus.command()
def show(
    source: Source,
    first: Annotated[int, typer.Option("--first", metavar="N", min=0, help="Number of entities to show.")] = 20,
) -> None:
    """Show what is in a corpus: entities by group, where they came from, and the encoder of its embeddings."""
    from alt.corpus import Corpus
    from alt.corpus.corpus_file import read_corpus_file
    from alt.tables import to_markdown

    file = read_corpus_file(source)
    found = Corpus.from_file(file)
    for name, value in file.about.items():
        echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    _describe(found)
    if file.edited:
        echo("Edited by hand since it was written.")
    if found.embeddings is None:
        echo("Not embedded.")
    else:
        echo(f"Embedded by {found.encoder or 'an encoder that is not known'}, {found.width} channels.")
    if first:
        step = max(1, len(found) // first)
        rows = [
            [i, entity.unit, entity.category, _shorten(entity.description, 60), _shorten(", ".join(entity.sources), 40)]
            for i, entity in list(enumerate(found))[::step][:first]
        ]
        echo("")
        echo(to_markdown(["row", "unit", "category", "description", "found in"], rows))


@corpus.command()
def subset(
    source: Source,
    to: Target,
    categories: Annotated[
        str,
        typer.Option(
            "--categories",
            metavar="NAME,...",
            help="Groups to keep: object, body_part, scene, motion, label.",
            show_default=False,
        ),
    ],
) -> None:
    """Write the entities of some groups, embeddings included."""
    _check_target(to)
    kept = _load(source).subset([name.strip() for name in categories.split(",")])
    kept.save(to, {"subset of": Path(source).name})
    _describe(kept)
    echo(f"Wrote {to}.")


@corpus.command()
def embed(
    source: Source,
    to: Target,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of this package (alt-b16), of open_clip (ViT-B-16), or hf:PATH.",
            show_default=False,
        ),
    ],
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            metavar="CLIP",
            help="Its weights: a tag of open_clip, or a file. Default: openai; hf:PATH brings its own.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Embed the entities with a frozen text encoder, once. `alt train` also does so by itself."""
    from alt.corpus.corpus_file import read_corpus_file
    from alt.models.clip import check_weights, has_own_weights
    from alt.models.families import BACKBONES, list_models
    from alt.models.registry import create_text_encoder

    _check_target(to)
    loaded, where = _load(source), parse_device(device)
    if pretrained is None and not has_own_weights(model):
        pretrained = "openai"
    check_weights(BACKBONES[model.rpartition("-")[2]][0] if model in list_models() else model, pretrained)
    encoder = create_text_encoder(model, pretrained=pretrained, device=where)
    begin = time.perf_counter()
    embedded = loaded.embed(encoder)
    embedded.save(to, read_corpus_file(source).about)
    say(f"Embedded in {time.perf_counter() - begin:.1f} s.")
    echo(f"Wrote {to}: {len(embedded)} rows of {embedded.width} channels by {embedded.encoder}.")


@corpus.command()
def expand(
    source: Source,
    to: Target,
    llm: Annotated[str, language_model()],
    answers: Annotated[Path, kept_answers()],
    endpoint: Endpoint = None,
    prompts: Annotated[
        str,
        typer.Option("--prompts", metavar="NAME", help="Prompts of the paper's version cvpr or iclr."),
    ] = "cvpr",
    per_minute: RequestsPerMinute = 60.0,
    wordnet: WordNetFolder = None,
) -> None:
    """Add the units that a language model proposes for the labels of a corpus, and its descriptions of phrases.

    Ctrl-C loses no answer: the same command goes on where it stopped.
    """
    from alt.corpus.expand import expand_corpus
    from alt.corpus.language_model import LanguageModel
    from alt.corpus.wordnet import WordNet

    _check_target(to)
    check_file(answers, "--answers")
    loaded, data = _load(source), WordNet(wordnet)
    model = LanguageModel(llm, answers, endpoint, per_minute=per_minute)
    try:
        with progress_bar("questions", len(loaded)) as move:
            grown = expand_corpus(loaded, model, data, prompts, move)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted; answers are kept in {answers}, and the same command goes on.") from None
    except LookupError as error:
        raise UserError(f"--endpoint: {error.args[0]}.") from None
    grown.save(to, {"expanded from": Path(source).name, "language model": llm, "prompts": prompts})
    say(f"Asked {model.asked} times.")
    _describe(grown)
    echo(f"Wrote {to}.")


@corpus.command()
def verbs(
    captions: Annotated[
        Path,
        typer.Argument(metavar="CAPTIONS", help="A text file, one caption per line.", show_default=False),
    ],
    to: Annotated[
        Path, typer.Argument(metavar="TO", help="The list of names to write, a .txt file.", show_default=False)
    ],
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Verbs, the most frequent ones.")] = 400,
    tagger: TaggerName = "auto",
    wordnet: WordNetFolder = None,
) -> None:
    """Write the most frequent verbs of captions as gerunds: names for a larger dictionary of MAXI (bags.dictionary)."""
    from alt.corpus.tagging import open_tagger
    from alt.corpus.verbs import count_verbs
    from alt.corpus.wordnet import WordNet
    from alt.files import read_text, replacing

    if to.suffix != ".txt":
        raise UsageError(f"TO: a list of names is a .txt file, got '{to}'.")
    check_file(to, "TO")
    if not captions.is_file():
        raise UserError(f"CAPTIONS: there is no file '{captions}'.")
    data = WordNet(wordnet)
    lines = [line.strip() for line in read_text(captions).splitlines() if line.strip()]
    found = [verb for verb, _ in count_verbs(lines, open_tagger(tagger, data, sentences=True), data).most_common(count)]
    if not found:
        raise UserError(f"CAPTIONS: no verb is in the {len(lines)} lines of '{captions}'.")
    with replacing(to, "the names") as partial:
        partial.write_text("\n".join(found) + "\n", encoding="utf-8")
    echo(f"Wrote {to}: {len(found)} verbs of {len(lines)} captions.")


@corpus.command()
def degrade(
    source: Source,
    to: Target,
    damage: Annotated[
        str,
        typer.Option(
            "--damage",
            metavar="NAME",
            help="What is done to entities: removed, replaced (by random words of WordNet), or wrong-sense.",
            show_default=False,
        ),
    ],
    share: Annotated[
        float, typer.Option("--share", metavar="X", help="Share of the entities, 0 to 1.", show_default=False)
    ],
    draw: Annotated[int, typer.Option("--draw", metavar="N", help="Number of the random draw.")] = 0,
    wordnet: WordNetFolder = None,
) -> None:
    """Write a worse corpus on purpose, to see how much the quality of the text matters."""
    from alt.corpus.degrade import degrade_corpus
    from alt.corpus.wordnet import WordNet

    _check_target(to)
    data = None if damage == "removed" else WordNet(wordnet)
    worse = degrade_corpus(_load(source), damage, share, data, draw)
    worse.save(to, {"degraded from": Path(source).name, "damage": damage, "share": share, "draw": draw})
    _describe(worse)
    echo(f"Wrote {to}.")


def _open_senses(wsd: str, device: str) -> str | SenseModel:
    """Returns the name of a choice of senses, or the model of "t5" and "t5:FOLDER"."""
    kind, _, name = wsd.partition(":")
    if kind != "t5":
        return wsd
    from alt.corpus.sense_model import DEFAULT, SenseModel

    return SenseModel(name or DEFAULT, parse_device(device))


def _check_target(to: Path) -> None:
    if to.suffix != ".json":
        raise UsageError(f"TO: a corpus is a .json file, got '{to}'.")
    check_file(to, "TO")


def _load(source: str) -> Corpus:
    from alt.corpus import Corpus

    return Corpus.load(source)


def _read_names(source: str) -> list[str]:
    from alt.data.action_names import read_names

    try:
        return read_names(source)
    except ValueError as error:
        raise UserError(f"LABELS: {error}.") from None


def _describe(found: Corpus) -> None:
    from alt.paper import ENTITIES

    groups = ", ".join(f"{count} {name}" for name, count in found.counts().items())
    bare = sum(not text for text in found.descriptions)
    echo(f"{len(found)} entities ({groups}), {bare} without a description; the paper's corpus has {ENTITIES}.")
    echo(f"Hash of the entities: {found.content_hash()}")


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
