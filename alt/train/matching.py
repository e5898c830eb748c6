"""MAXI's bags of a run: clips matched with a dictionary by CLIP before training, kept in a file, and trained with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alt.data.action_names import name_to_text, read_names
from alt.data.clips import ClipFiles
from alt.errors import UserError, one_line
from alt.models.modes import evaluation_mode

from .bag_file import BagFile, ClipBag, read_bags, write_bags
from .bags import BagObjective, DictionaryObjective, bag_prompts, keep_share, match_texts
from .build import build_with_encoder
from .config import BagsSection, TrainConfig
from .data import ClipData, ClipDataset, ClipTransform
from .objective import Objective
from .processes import is_first_process

__all__ = ["MatchedBags", "fits_run", "make_bags", "name_clips", "open_bags", "read_dictionary"]

Built = tuple[Any, Any]
"""A model and the encoder of its texts, of :func:`build_with_encoder`."""

BAGS = "bags.json"
"""The file that a run makes in its folder if none is named."""


class MatchedBags:
    """The bags of a run's clips.

    Args:
        file: with a bag for every clip. data: the clips. section: which to keep, and how to train with them.

    Attributes:
        kept: int64, numbers of the clips to train on. file: as given. dictionary: the names that matched ones are told
            from, of ``form`` "dictionary"; else none.

    Raises:
        UserError: a clip has no bag, none would be kept, or the dictionary lacks a matched name that is to be told
            from its others.
    """

    def __init__(self, file: BagFile, data: ClipData, section: BagsSection, where: Path) -> None:
        self.file, self.section = file, section
        clips, numbers = name_clips(data), data.train_set.chosen
        found = {bag.clip: bag for bag in file.clips}
        lacking = next((clips[i] for i in numbers.tolist() if clips[i] not in found), None)
        if lacking is not None:
            raise UserError(f"bags.file: {where} has no bag for {lacking}; `alt bags` makes one for these clips.")
        self._bags = {i: found[clips[i]] for i in numbers.tolist()}
        similarity = torch.tensor([bag.similarity for bag in self._bags.values()], dtype=torch.float64)
        self.kept = numbers[keep_share(similarity, section.share)]
        if len(self.kept) == 0:
            raise UserError(f"bags.share: {section.share} of {len(numbers)} clips keeps none.")
        self._count = len(clips)
        self.dictionary: list[str] = []
        if section.form == "dictionary":
            self.dictionary = read_dictionary(section.dictionary, data.class_names)
            known = set(self.dictionary)
            other = next((bag.name for bag in self._bags.values() if bag.name not in known), None)
            if other is not None:
                raise UserError(
                    f"bags.file: {where} matches clips with {other!r}, which bags.dictionary does not have."
                )

    def describe(self) -> str:
        """Returns a line on what is trained on."""
        bags = [self._bags[i] for i in self.kept.tolist()]
        texts = sum(len(self.file.texts_of(bag)) for bag in bags) / len(bags)
        names = len({bag.name for bag in bags})
        return (
            f"Bags: {len(bags)} of {len(self._bags)} clips are kept, with {names} names and {texts:.1f} texts per clip."
        )

    def make_objective(self, encoder: Any, report: Callable[[str], None]) -> Objective:
        """Returns what a step minimises; ``encoder`` makes the ids of the prompts.

        Texts whose words the text tower does not know are left out, and reported. CLIP's own knows all words, and the
        small CLIP few.

        Raises:
            UserError: the text tower cannot read a name.
        """
        section, kept = self.section, self.kept.tolist()
        names = self.dictionary or dict.fromkeys(bag.name for bag in self._bags.values())
        numbers = {name: number for number, name in enumerate(names)}
        matches = torch.full((self._count,), -1)
        for i, bag in self._bags.items():
            matches[i] = numbers[bag.name]
        try:
            if section.form == "dictionary":
                ids = encoder.tokenise([self._list_prompts(name, [])[0] for name in self.dictionary])
                return DictionaryObjective(ids, matches, sigma=section.sigma)
            texts = {i: self.file.texts_of(self._bags[i]) for i in kept}
            unknown = dict.fromkeys(find_unreadable([text for i in kept for text in texts[i]], encoder.tokenise))
            if unknown:
                report(
                    f"The text tower does not know {len(unknown)} of the texts, which are left out: "
                    f"{next(iter(unknown))!r} first."
                )
            known = {i: [text for text in texts[i] if text not in unknown] for i in kept}
            prompts = {i: self._list_prompts(self._bags[i].name, known[i]) for i in kept}
            bags = PromptIds(prompts, self._count, encoder.tokenise)
        except ValueError as error:
            raise UserError(f"bags.file: the text tower cannot read its names: {one_line(error)}.") from None
        return BagObjective(bags, matches, size=section.size, form=section.form, sigma=section.sigma)

    def _list_prompts(self, name: str, texts: Sequence[str]) -> list[str]:
        return bag_prompts(name, texts) if self.section.prompts == "photo" else [name, *texts]


class PromptIds(Sequence[Tensor]):
    """The ids of every clip's prompts, int64 ``[n_i, length]``. Equal prompts are kept once, without their padding.

    Args:
        prompts: of clips by number. count: N, clips of the list; those without prompts have no rows.
        tokenise: from prompts to ids ``[n, length]``.
    """

    def __init__(self, prompts: dict[int, list[str]], count: int, tokenise: Callable[[list[str]], Tensor]) -> None:
        places: dict[str, int] = {}
        self._rows = {
            i: torch.tensor([places.setdefault(text, len(places)) for text in texts]) for i, texts in prompts.items()
        }
        ids, self._count = tokenise(list(places)), count
        self._length = ids.shape[1]
        self._padding = tokenise([""])[0, -1]
        used = int((ids != self._padding).any(0).nonzero().max()) + 1
        self._ids = ids[:, :used].to(torch.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        rows = self._ids[self._rows.get(number, torch.empty(0, dtype=torch.int64))].long()
        return torch.nn.functional.pad(rows, (0, self._length - rows.shape[1]), value=int(self._padding))


def find_unreadable(texts: Sequence[str], tokenise: Callable[[list[str]], Tensor]) -> list[str]:
    """Returns the texts that a tokenizer refuses, each once, in their order."""
    names = list(dict.fromkeys(texts))
    try:
        if names:
            tokenise(names)
        return []
    except ValueError:
        half = len(names) // 2
        if half == 0:
            return names
        return [*find_unreadable(names[:half], tokenise), *find_unreadable(names[half:], tokenise)]


def name_clips(data: ClipData) -> list[str]:
    """Returns what a file of bags calls each clip of the training list: as the list does, or by its number."""
    source = data.train_set.clips
    if isinstance(source, ClipFiles):
        return source.names_below(data.config.data.root)
    return [f"clip {i}" for i in range(len(source.labels))]


def read_dictionary(sources: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Returns the names of a dictionary, each once: of ``classes`` for "labels", and of sets and files as words.

    Raises:
        UserError: a source cannot be read, or there are no names.
    """
    names: list[str] = []
    for source in sources:
        try:
            names += classes if source == "labels" else map(name_to_text, read_names(source))
        except (OSError, ValueError) as error:
            raise UserError(f"bags.dictionary: {one_line(error, 300)}.") from None
    if not names:
        raise UserError(f"bags.dictionary: {', '.join(sources)} has no names.")
    return list(dict.fromkeys(names))


def open_bags(
    config: TrainConfig,
    data: ClipData,
    folder: Path,
    report: Callable[[str], None],
    *,
    resume: bool,
    build: Callable[[], Built] | None = None,
) -> MatchedBags:
    """Returns the bags of a run: those of ``bags.file``, or of a file in its folder, which is made here if it is not
    there yet. Of these clips, ``data`` keeps the share with the best matches.

    Args:
        resume: the run goes on, so the file must be there. build: see :func:`make_bags`.

    Raises:
        UserError: the file is missing, belongs to other clips or to another dictionary, or cannot be made.
    """
    section = config.bags
    path = folder / BAGS if section.file is None else Path(section.file)
    if not path.exists():
        if section.file is not None:
            raise UserError(f"bags.file: there is no file {path}; `alt bags {config.name} bags.file={path}` makes it.")
        if resume:
            raise UserError(f"{folder} has no {BAGS} any more, which its run began with; put it back, or start anew.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"bags.file: several processes need it before they start; `alt bags {config.name} bags.file={path}` "
                "makes it."
            )
        bags = make_bags(config, data, report, build=build)
        if is_first_process():
            folder.mkdir(parents=True, exist_ok=True)
            write_bags(path, bags)
            report(f"Wrote {path}")
    try:
        bags = read_bags(path)
    except (OSError, ValueError) as error:
        raise UserError(f"bags.file: {one_line(error, 300)}.") from None
    for key, value in _describe(section).items():
        made = bags.about.get(key, value)  # a file by hand need not say it
        if made != value:
            raise UserError(
                f"bags.file: {path} was made with bags.{key} {made}, and this run has {value}; make it anew."
            )
    found = MatchedBags(bags, data, section, path)
    data.keep_clips(found.kept)
    report(found.describe())
    return found


def fits_run(bags: BagFile, config: TrainConfig, data: ClipData) -> bool:
    """Returns whether bags are of the clips of a run, matched with its dictionary by its model."""
    about = {key: bags.about.get(key) for key in (*_describe(config.bags), "model", "pretrained", "frames")}
    clips = name_clips(data)
    same = [bag.clip for bag in bags.clips] == [clips[i] for i in data.train_set.chosen.tolist()]
    return same and about == _describe_model(config)


def _describe_model(config: TrainConfig) -> dict[str, Any]:
    model = config.model
    return {
        **_describe(config.bags),
        "model": model.name,
        "pretrained": model.init_from or model.pretrained or model.backbone,
        "frames": model.frames,
    }


def _describe(section: BagsSection) -> dict[str, Any]:
    return {"dictionary": list(section.dictionary), "templates": section.templates}


def make_bags(
    config: TrainConfig,
    data: ClipData,
    report: Callable[[str], None],
    progress: Callable[[int, int], object] = lambda done, total: None,
    *,
    build: Callable[[], Built] | None = None,
) -> BagFile:
    """Matches the clips of a run with its dictionary by the model before training; the bags have no further texts.

    Each clip is read as in evaluation, with the frames of ``model.frames``.

    Args:
        progress: is told how many clips of how many are done.
        build: gives the model of the run before training, which comes back on the CPU in the mode it was in; None: it
            is built here.

    Raises:
        UserError: the dictionary, the model or a clip cannot be read.
    """
    names = read_dictionary(config.bags.dictionary, data.class_names)
    model, encoder = build_with_encoder(config, data.class_names, data.world) if build is None else build()
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    report(f"Matching {len(data.train_set)} clips with {len(names)} names.")
    try:
        texts = encoder.embed_classes(names, config.bags.templates)
    except ValueError as error:
        raise UserError(f"bags.dictionary: {one_line(error, 300)}.") from None
    with evaluation_mode(model):
        videos = _embed_clips(model.to(device), config, data, device, progress)
    model.cpu()
    matches = match_texts(videos, texts.cpu())
    clips, chosen = name_clips(data), data.train_set.chosen.tolist()
    found = zip(chosen, matches.text.tolist(), matches.similarity.tolist(), strict=True)
    about = {**_describe_model(config), "names in it": len(names)}
    return BagFile([ClipBag(clips[i], names[text], cosine) for i, text, cosine in found], {}, about)


@torch.no_grad()
def _embed_clips(
    model: Any, config: TrainConfig, data: ClipData, device: torch.device, progress: Callable[[int, int], object]
) -> Tensor:
    """Returns the embeddings ``[N, d]`` of the clips that are trained on, on the CPU, in float32."""
    section, trained = config.data, data.train_set
    size = section.size if section.kind == "frames" else None
    clips = ClipDataset(
        trained.clips, trained.chosen, config.model.frames, ClipTransform(size, section.resize, None), None
    )
    batch = max(1, section.batch_size // config.trainer.accumulate)
    data.setup("fit")  # a generated world is drawn once, before other processes read it
    loader: DataLoader[Any] = DataLoader(clips, batch, num_workers=section.workers, generator=torch.Generator())
    low = device.type == "cuda" and config.trainer.precision != "32-true"
    rows: list[Tensor] = []
    for part in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            rows.append(model.embed(model.encode(part[0].to(device)), seed=None, noise=None)[0].float().cpu())
        progress(sum(map(len, rows)), len(clips))
    return torch.cat(rows)
