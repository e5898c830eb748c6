"""The random choices of a configuration as files: the clips of its few-shot draws, or the classes of its draws."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from alt.data.clip_lists import write_labels, write_list
from alt.data.clips import ClipFiles
from alt.data.new_classes import ClassDraws, write_draws
from alt.errors import UserError
from alt.train.config import TrainConfig
from alt.train.sources import choose_clips, open_list

from .class_draws import choose_classes
from .execute import list_new_sets

__all__ = ["write_sampling_lists"]


def write_sampling_lists(config: TrainConfig, folder: Path) -> list[Path]:
    """Writes what a protocol draws at random, and returns the paths.

    Few-shot: for each draw a list ``path label`` of its clips and the class names as ``labels.csv``. Paths are relative
    to the deepest folder that holds every clip of the training list. Zero-shot on subsets: ``draws.csv`` with the
    classes of each draw, as ``evaluation.class_draws`` reads it.

    Raises:
        UserError: the configuration draws nothing, is of generated clips, or its lists cannot be read.
    """
    data, section = config.data, config.evaluation
    if data.kind != "frames":
        raise UserError("data.kind: list files are expected (frames), the clips of a generated world have no paths.")
    if data.shots is not None:
        first = data.shots_seed
        clips = open_list(data, data.root, data.train_list)
        paths = [write_labels(folder / "labels.csv", clips.class_names)]
        for seed in range(first, first + (section.draws or 1)):
            drawn = dataclasses.replace(config, data=dataclasses.replace(data, shots_seed=seed))
            rows = choose_clips(drawn, clips.labels).tolist()
            paths.append(_write_list(clips, rows, folder / f"{data.shots}shot-{seed}.txt"))
        return paths
    if section.subset is None and section.class_draws is None:
        raise UserError(f"{config.name} draws nothing at random: data.shots or evaluation.subset is expected.")
    trained = open_list(data, data.root, data.train_list).class_names
    (_, clips), *_ = list_new_sets(config)
    names = clips.class_names
    chosen = choose_classes(section, names, trained)
    draws = tuple(tuple(names[number] for number in draw) for draw in chosen.draws)
    return [write_draws(ClassDraws(tuple(names[number] for number in chosen.pool), draws), folder / "draws.csv")]


def _write_list(clips: ClipFiles, rows: list[int], path: Path) -> Path:
    shared = os.path.commonpath([entry.path.parent for entry in clips.entries])
    return write_list(path, (clips.entries[row] for row in rows), Path(shared))
