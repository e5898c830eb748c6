"""What a training run is made of. Defaults are those of the paper's fully supervised runs.

A configuration is YAML with the groups below, on top of another one where it says ``base: NAME``. The shipped ones are
found by their bare name (:mod:`alt.train.catalogue`); values on the command line (``--set optim.lr=1e-5``) come last.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from alt.errors import UserError

from .parse import apply_override, build, coerce, flat, merge, nearest, plain


def _positive(value: float | None, name: str) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} must be above 0, got {value}.")


def _share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, got {value}.")


@dataclass(frozen=True)
class ModelSection:
    """``name``, ``pretrained``, ``frames`` and ``r`` go to :func:`alt.create_model` as they are, ``options`` are the
    other fields of its configuration. ``init_from``: weights of an earlier run to start from (few-shot).
    ``templates``: the prompts of the class texts. ``corpus``: a file, "world" (EntityWorld's own) or "labels"
    (the class names are the entities); ``corpus_categories``: keep these only."""

    name: str = "alt-b16"
    pretrained: str | None = "openai"
    init_from: str | None = None
    frames: int = 8
    r: int | float | tuple[int, ...] = 8
    corpus: str | None = None
    corpus_categories: tuple[str, ...] | None = None
    templates: str = "alt16"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive(self.frames, "model.frames")


@dataclass(frozen=True)
class DataSection:
    """``kind`` "entity_world": ``preset`` and the splits name generated clips. ``kind`` "frames": list files of clips
    (``path label`` a line) under ``root``, class names in ``labels``.

    ``batch_size`` is the number of clips of one optimiser step over all devices and accumulated parts.
    ``shots``: train on this many clips of every class (a nested, seeded choice). ``workers``: processes that load.
    ``size``: side of the input in pixels; ``resize``: short side before the test crop.
    """

    kind: Literal["entity_world", "frames"] = "frames"
    preset: str = "cpu"
    train_split: str = "seen-train"
    val_split: str | None = "seen-test"
    root: str | None = None
    train_list: str = "train.txt"
    val_list: str | None = "val.txt"
    labels: str = "labels.csv"
    size: int = 224
    resize: int = 256
    batch_size: int = 256
    shots: int | None = None
    shots_seed: int = 0
    limit: int | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        for name in ("size", "resize", "batch_size", "shots", "limit"):
            _positive(getattr(self, name), f"data.{name}")
        if self.workers < 0:
            raise UserError(f"data.workers must be 0 or more, got {self.workers}.")


@dataclass(frozen=True)
class OptimSection:
    """AdamW. CLIP's own parameters learn at ``lr``, others at ``lr * new_multiplier * few_shot_multiplier``."""

    lr: float = 8e-6
    new_multiplier: float = 10.0
    few_shot_multiplier: float = 1.0
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 1e-3
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "new_multiplier", "few_shot_multiplier", "eps", "clip_norm"):
            _positive(getattr(self, name), f"optim.{name}")
        if self.weight_decay < 0:
            raise UserError(f"optim.weight_decay must be 0 or more, got {self.weight_decay}.")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas must be two numbers from 0 to below 1, got {list(self.betas)}.")


@dataclass(frozen=True)
class ScheduleSection:
    """Linear warm-up from 0, then a cosine down to ``lr * min_ratio``, over ``epochs`` (or ``steps``, which wins)."""

    epochs: int = 30
    warmup_epochs: int = 5
    steps: int | None = None
    warmup_steps: int | None = None
    min_ratio: float = 0.01

    def __post_init__(self) -> None:
        _positive(self.epochs, "schedule.epochs")
        _positive(self.steps, "schedule.steps")
        _share(self.min_ratio, "schedule.min_ratio")
        for name in ("warmup_epochs", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"schedule.{name} must be 0 or more, got {value}.")
        if self.steps is None and self.warmup_steps is None and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"schedule.warmup_epochs ({self.warmup_epochs}) must be below schedule.epochs ({self.epochs})."
            )
        if self.steps is not None and self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise UserError(f"schedule.warmup_steps ({self.warmup_steps}) must be below schedule.steps ({self.steps}).")

    def length(self, steps_per_epoch: int) -> tuple[int, int]:
        """(all steps, steps of the warm-up)."""
        total = self.steps if self.steps is not None else self.epochs * steps_per_epoch
        if self.warmup_steps is not None:
            warmup = self.warmup_steps
        elif self.steps is not None:
            warmup = round(total * self.warmup_epochs / self.epochs)
        else:
            warmup = self.warmup_epochs * steps_per_epoch
        return total, min(warmup, total - 1)


@dataclass(frozen=True)
class AugmentationSection:
    """One draw a clip for flip, crop, jitter and gray; mixup and cutmix once a batch. All off: the test transform."""

    flip: float = 0.5
    crop_scales: tuple[float, ...] | None = (1.0, 0.875, 0.75, 0.66)
    color_jitter: float = 0.8
    grayscale: float = 0.2
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("flip", "color_jitter", "grayscale", "switch"):
            _share(getattr(self, name), f"augmentation.{name}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"augmentation.label_smoothing must be from 0 to below 1, got {self.label_smoothing}.")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"augmentation.{name} must be 0 (off) or above, got {getattr(self, name)}.")
        if self.crop_scales is not None and not all(0 < s <= 1 for s in self.crop_scales):
            raise UserError(f"augmentation.crop_scales must lie above 0 and up to 1, got {list(self.crop_scales)}.")


@dataclass(frozen=True)
class TrainerSection:
    """How Lightning runs it. ``accumulate``: parts of a step on each device. ``checkpoint_every``: steps between
    checkpoints, None: once an epoch. ``validate_every``: epochs between validations, 0: never."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = None
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    accumulate: int = 1
    checkpoint_every: int | None = None
    validate_every: int = 1
    log_every: int = 10
    progress: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "nodes", "accumulate", "checkpoint_every", "log_every", "threads"):
            _positive(getattr(self, name), f"trainer.{name}")
        if self.validate_every < 0:
            raise UserError(f"trainer.validate_every must be 0 (never) or more, got {self.validate_every}.")


@dataclass(frozen=True)
class EvaluationSection:
    """How the row of the paper is measured afterwards; training only validates with one view.

    ``views``: spatial crops x temporal clips. ``sets``: data sets with ``splits`` official splits each;
    ``draws`` times ``subset`` classes at random where both are given (K600)."""

    protocol: Literal["supervised", "few-shot", "zero-shot", "linear-probe"] = "supervised"
    sets: tuple[str, ...] = ()
    splits: tuple[int, ...] = (1,)
    frames: int | None = None
    crops: int = 1
    clips: int = 1
    subset: int | None = None
    draws: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One run. ``seed`` decides the order of the clips, every augmentation and every draw of noise."""

    name: str = "run"
    about: str = ""
    seed: int = 0
    task: Literal["supervised", "linear-probe"] = "supervised"
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    augmentation: AugmentationSection = field(default_factory=AugmentationSection)
    trainer: TrainerSection = field(default_factory=TrainerSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, got {self.seed}.")

    def to_yaml(self) -> str:
        return yaml.safe_dump(plain(self), sort_keys=False, allow_unicode=True)


def from_tree(tree: dict[str, Any]) -> TrainConfig:
    """A checked configuration from nested mappings."""
    config = build(TrainConfig, tree)
    options = _checked_options(config.model.options)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, options=options))


def _checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """``model.options`` against the fields of the model's configuration."""
    import typing

    from alt.models.config import AltConfig

    hints = typing.get_type_hints(AltConfig)
    own = ("backbone", "frames", "r")
    names = [f.name for f in dataclasses.fields(AltConfig) if f.name not in own]
    checked = {}
    for key, value in options.items():
        if key in own:
            place = "model.name" if key == "backbone" else f"model.{key}"
            raise UserError(f"model.options.{key} is not set here but by {place}.")
        if key not in names:
            raise UserError(f"model.options.{key} is not a setting; {nearest(key, names)}")
        checked[key] = coerce(hints[key], value, ["model", "options", key])
    return checked


def load_config(source: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
    """The configuration of a file or a shipped name, with ``a.b=c`` overrides on top.

    Raises:
        UserError: one sentence: no such file or name, not YAML, an unknown key, a wrong type or value.
    """
    from .catalogue import find

    tree = find(source)
    for text in overrides:
        tree = apply_override(tree, text)
    return from_tree(tree)


# What a resumed run may change: nothing here touches the parameters it will have.
FREE_ON_RESUME = (
    "about", "data.workers", "data.root", "trainer.progress", "trainer.log_every", "trainer.checkpoint_every",
    "trainer.validate_every", "trainer.threads", "trainer.devices", "trainer.nodes", "trainer.strategy",
    "trainer.accelerator", "evaluation",
)  # fmt: skip


def first_difference(old: TrainConfig, new: TrainConfig) -> str | None:
    """The first setting that a run to be resumed must not change, in words; None where there is none."""
    before, after = flat(plain(old)), flat(plain(new))
    for key in [*before, *(k for k in after if k not in before)]:
        free = any(key == name or key.startswith(name + ".") for name in FREE_ON_RESUME)
        if not free and before.get(key) != after.get(key):
            return f"{key} was {before.get(key)!r} and is now {after.get(key)!r}"
    return None


SMOKE: dict[str, Any] = {
    "model": {"name": "alt-mini", "pretrained": None, "init_from": None, "corpus": "world", "frames": 4},
    "data": {"kind": "entity_world", "preset": "tiny", "train_split": "seen-train", "val_split": "seen-test",
             "batch_size": 4, "limit": 8, "workers": 0},
    "schedule": {"steps": 2, "warmup_steps": 1},
    "trainer": {"accelerator": "cpu", "devices": 1, "nodes": 1, "strategy": "auto", "checkpoint_every": None},
}  # fmt: skip


def smoke(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The same run on the small model and the smallest EntityWorld for two steps, and what that replaced.

    Strategy, alignment, optimiser, augmentation, precision, accumulation and protocol stay as they are.
    """
    tree = plain(config)
    over = {group: dict(values) for group, values in SMOKE.items()}
    family = config.model.name.rsplit("-", 1)[0]
    over["model"]["name"] = f"{family}-mini"
    if config.model.corpus == "labels" or config.model.corpus is None:
        over["model"]["corpus"] = config.model.corpus
    if config.data.shots is not None:  # the smallest world has four clips of a class
        over["data"]["shots"] = min(config.data.shots, 4)
    r = config.model.r
    # The small tower has four blocks of 37 tokens at most, a list of another length would not fit it.
    over["model"]["r"] = (min(r, 4) if not isinstance(r, float) else r) if not isinstance(r, tuple) else 4
    small = from_tree(merge(tree, over))
    before, after = flat(tree), flat(plain(small))
    return small, [f"{key}: {before.get(key)} -> {after[key]}" for key in after if before.get(key) != after[key]]
