"""``alt bags``: matches clips without labels with a dictionary, and collects texts for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alt.errors import UsageError, UserError

from .options import (
    Device,
    Endpoint,
    Overrides,
    RequestsPerMinute,
    TaggerName,
    WordNetFolder,
    is_given,
    kept_answers,
    language_model,
    parse_accelerator,
    parse_device,
)
from .outputs import check_file
from .progress import progress_bar
from .terminal import echo, say

if TYPE_CHECKING:
    from alt.corpus.captions import BlipCaptioner, Captions
    from alt.corpus.language_model import LanguageModel
    from alt.train.bag_file import BagFile
    from alt.train.data import ClipData


def bags(
    ctx: typer.Context,
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="The run: a YAML file, or a shipped one.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, as with --set.", show_default=False),
    ] = None,
    set_: Overrides = None,
    llm: Annotated[str | None, language_model()] = None,
    answers: Annotated[Path | None, kept_answers()] = None,
    endpoint: Endpoint = None,
    per_minute: RequestsPerMinute = 60.0,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            metavar="FILE",
            help='Captions (.jsonl), a line {"clip": PATH, "captions": [TEXT, ...]} per clip.',
            show_default=False,
        ),
    ] = None,
    caption_model: Annotated[
        str | None,
        typer.Option(
            "--caption-model",
            metavar="NAME",
            help="BLIP that makes the captions which the file lacks: a folder, or a name on the Hub.",
            show_default=False,
        ),
    ] = None,
    tagger: TaggerName = "auto",
    wordnet: WordNetFolder = None,
    device: Device = "auto",
) -> None:
    """Collect texts for clips without labels: the bags that MAXI trains with.

    They are written to the file that bags.file names. Every clip of the training list is matched with the names of
    bags.dictionary by the model before training, a CLIP. With --llm a language model gives phrases for each matched
    name, and --captions adds captions to clips; of both, the verbs are kept, as lemma and gerund. Ctrl-C loses nothing:
    matches, answers and captions are kept, and the same command goes on.
    """
    from alt.corpus.captions import BlipCaptioner, Captions
    from alt.train.bag_file import read_bags, write_bags
    from alt.train.build import check_files
    from alt.train.config import load_config
    from alt.train.data import ClipData
    from alt.train.matching import fits_run, make_bags

    changes = [*(set_ or []), *(overrides or [])]
    if is_given(ctx, "device"):
        changes.append(f"trainer.accelerator={parse_accelerator(device)}")
    chosen = load_config(config, changes)
    if chosen.task != "unlabelled":
        raise UserError(f"CONFIG: {chosen.name} trains with labels; bags are for runs with task=unlabelled.")
    target = Path(chosen.bags.file or "")
    if target.suffix != ".json":
        raise UserError(f"bags.file: expected the .json file to write, got {chosen.bags.file}.")
    if (llm is None) != (answers is None):
        raise UsageError("--llm and --answers go together: the model, and the file that keeps what it answers.")
    if caption_model is not None and captions is None:
        raise UsageError("--caption-model needs --captions, the file that keeps what it makes.")
    if caption_model is None and captions is not None and not captions.is_file():
        raise UserError(f"--captions: there is no file '{captions}'; --caption-model makes captions.")
    for path, option in ((target, "bags.file"), (answers, "--answers"), (captions, "--captions")):
        check_file(path, option)
    parser = _VerbParser(tagger, wordnet) if llm is not None or captions is not None else None
    model = None if llm is None or answers is None else _open_model(llm, answers, endpoint, per_minute)
    check_files(chosen)
    data = ClipData(chosen)
    kept = None if captions is None else Captions(captions, caption_model)
    writer = None if caption_model is None else BlipCaptioner(caption_model, parse_device(device))
    found = read_bags(target) if target.exists() else None
    if found is not None and fits_run(found, chosen, data):
        say(f"Keeping the matches in {target}.")
    elif found is not None:
        raise UserError(f"bags.file: {target} has the bags of other clips or another dictionary; name another file.")
    else:
        with progress_bar("clips", len(data.train_set)) as move:
            found = make_bags(chosen, data, say, move)
        write_bags(target, found)
    try:
        if parser is not None and model is not None:
            found = _add_phrases(found, parser, model)
        if parser is not None and kept is not None:
            found = _add_captions(found, parser, kept, data, writer)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Interrupted; answers and captions are kept, and the same command goes on.") from None
    except LookupError as error:
        raise UserError(f"--endpoint: {error.args[0]}.") from None
    write_bags(target, found)
    texts = sum(len(found.texts_of(bag)) for bag in found.clips) / len(found.clips)
    names = len({bag.name for bag in found.clips})
    echo(f"Wrote {target}: {len(found.clips)} clips, {names} names, {texts:.1f} texts per clip.")


class _VerbParser:
    """From phrases and captions to the texts of a bag. Its parts are opened once, before anything slow."""

    def __init__(self, tagger: str, wordnet: Path | None) -> None:
        from alt.corpus.tagging import open_tagger
        from alt.corpus.wordnet import WordNet

        self.wordnet = WordNet(wordnet)
        self.tagger = open_tagger(tagger, self.wordnet, sentences=True)


def _open_model(llm: str, answers: Path, endpoint: str | None, per_minute: float) -> LanguageModel:
    from alt.corpus.action_phrases import TEMPERATURE
    from alt.corpus.language_model import LanguageModel

    return LanguageModel(llm, answers, endpoint, per_minute=per_minute, temperature=TEMPERATURE)


def _add_phrases(found: BagFile, parser: _VerbParser, model: LanguageModel) -> BagFile:
    from dataclasses import replace

    from alt.corpus.action_phrases import expand_names

    names = list(dict.fromkeys(bag.name for bag in found.clips))
    with progress_bar("names", len(names)) as move:
        texts = expand_names(names, model, parser.tagger, parser.wordnet, move)
    say(f"Asked {model.asked} times.")
    about = {**found.about, "language model": model.model, "tagger": parser.tagger.name}
    return replace(found, names=texts, about=about)


def _add_captions(
    found: BagFile, parser: _VerbParser, kept: Captions, data: ClipData, writer: BlipCaptioner | None
) -> BagFile:
    from dataclasses import replace

    from alt.corpus.captions import FRAMES
    from alt.corpus.verbs import list_verb_texts
    from alt.data.sampling import take_frames

    clips, bags, lacking = data.train_set.clips, [], 0
    with progress_bar("captions", len(found.clips)) as move:
        for done, (bag, number) in enumerate(zip(found.clips, data.train_set.chosen.tolist(), strict=True)):
            move(done, len(found.clips))
            if kept.find(bag.clip) is None and writer is not None:
                frames, place = clips.take(number, lambda video: take_frames(video, FRAMES, None))
                kept.add(bag.clip, writer.caption(frames) if place == number else [])  # a damaged clip has none
            captions = kept.find(bag.clip)
            lacking += captions is None
            texts = [t for caption in captions or () for t in list_verb_texts(caption, parser.tagger, parser.wordnet)]
            bags.append(bag._replace(texts=tuple(dict.fromkeys(texts))))
    if lacking:
        say(f"{lacking} of {len(bags)} clips have no captions.")
    about = {**found.about, "captions": kept.model or "a file", "tagger": parser.tagger.name}
    return replace(found, clips=bags, about=about)
