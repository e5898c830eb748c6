"""The configuration of a training run. Defaults are those of the paper's fully supervised runs.

A configuration is YAML with the groups below. ``base: NAME`` puts it on top of another one. Shipped configurations are
found by their bare name (:mod:`alt.train.catalogue`). Values on the command line (``--set optim.lr=1e-5``) come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Strict, ValidationInfo, model_validator

from alt.errors import UsageError, UserError
from alt.models.families import BACKBONES, FAMILIES, parse_name
from alt.validation import (
    Count,
    Finite,
    Flag,
    Group,
    Natural,
    NotNegative,
    Positive,
    Reduction,
    Share,
    ShareBelowOne,
    Text,
    checked,
    expected,
    from_mapping,
    plain,
)

from .catalogue import find
from .parse import read_override

Form = Literal["sum", "pairwise", "instance", "max", "one"]
"""Forms of MAXI's loss over bags, see :func:`alt.train.bags.bag_loss`."""


def _betas(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise expected("two numbers from 0 to below 1")
    return value


def _scales(value: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 < scale <= 1 for scale in value):
        raise expected("a list of numbers above 0 and up to 1")
    return value


def _dictionary(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise expected("a list of at least one source of names")
    return value


def _model_name(value: str) -> str:
    try:
        parse_name(value)
    except ValueError as error:
        raise ValueError(f"model.{error}.") from None
    return value


def _model_options(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Checks ``model.options`` against the configuration of the named model."""
    for key, owner in (("backbone", "backbone"), ("frames", "frames"), ("r", "r")):
        if key in options:
            raise ValueError(f"model.options.{key} is not set here but by model.{owner}.")
    if "name" not in info.data:  # it is wrong, and the first error
        return options
    values = from_mapping(FAMILIES[parse_name(info.data["name"])[0]].config, options, "model.options.")
    return {key: getattr(values, key) for key in options}


@checked
class ModelSection:
    """``name``, ``backbone``, ``pretrained``, ``frames`` and ``r`` go to :func:`alt.create_model` as they are,
    ``options`` are the other fields of its configuration. The backbone "hf:PATH" has its weights, so ``pretrained`` is
    null. ``init_from``: weights of an earlier run to start from (few-shot).
    ``corpus``: a file, "world" (EntityWorld's own) or "labels" (the class names are the entities);
    ``corpus_categories``: keep these only. ``texts``: "clip" embeds class names and corpus with CLIP's text tower,
    "random" gives each text a fixed random direction. ``templates``: the prompts of the class texts."""

    name: Annotated[Text, AfterValidator(_model_name)] = "alt-b16"
    backbone: Text | None = None
    pretrained: Text | None = "openai"
    init_from: Text | None = None
    frames: Count = 8
    r: Reduction = 8
    corpus: Text | None = None
    corpus_categories: tuple[Text, ...] | None = None
    texts: Literal["clip", "random"] = "clip"
    templates: Text = "alt16"
    options: Annotated[dict[str, Any], Group, AfterValidator(_model_options)] = field(default_factory=dict)

    @property
    def clip(self) -> str:
        """Returns the name of the CLIP inside the model."""
        return BACKBONES[parse_name(self.name)[1]][0] if self.backbone is None else self.backbone


@checked
class DataSection:
    """``kind`` "entity_world": ``preset`` and the splits name generated clips. ``kind`` "frames": list files of clips
    (``path label`` a line) under ``root``, class names in ``labels``.

    ``batch_size``: clips per optimiser step, over all devices and accumulated parts.
    ``shots``: clips per class to train on (a nested, seeded draw). ``workers``: processes that load clips.
    ``size``: side of the input in pixels; ``resize``: short side before the test crop.
    ``stride``: frames of a training clip are so many frames apart (dense sampling); None: one per segment (sparse).
    ``sets``: a YAML file on data sets in their own formats (:mod:`alt.train.data_sets`); the last part of ``root``, and
    each of ``evaluation.sets``, is then a name in it, and a list is "train1.txt", "test1.txt", ... of that set.
    ``damaged``: a clip that cannot be read is replaced by another one of the list, always the same, or is an error.
    ``frame_cache``: a folder that keeps decoded frames of clips (:mod:`alt.data.frame_cache`). ``feature_cache``: one
    that keeps the tower's tokens of test clips (:mod:`alt.evaluate.feature_cache`). Each holds ``cache_gib`` at most.
    """

    kind: Literal["entity_world", "frames"] = "frames"
    preset: Text = "cpu"
    train_split: Text = "seen-train"
    val_split: Text | None = "seen-test"
    root: Text | None = None
    train_list: Text = "train.txt"
    val_list: Text | None = "val.txt"
    labels: Text = "labels.csv"
    sets: Text | None = None
    size: Count = 224
    resize: Count = 256
    stride: Count | None = None
    batch_size: Count = 256
    shots: Count | None = None
    shots_seed: Annotated[int, Strict()] = 0
    limit: Count | None = None
    workers: Natural = 4
    damaged: Literal["replace", "error"] = "replace"
    frame_cache: Text | None = None
    feature_cache: Text | None = None
    cache_gib: Count = 64

    @model_validator(mode="after")
    def _files_can_be_cached(self) -> DataSection:
        for name in ("frame_cache", "feature_cache"):
            if getattr(self, name) is not None and self.kind == "entity_world":
                raise ValueError(f"data.{name} is for clips in files, and data.kind is entity_world, which has none.")
        return self


@checked
class OptimSection:
    """AdamW. CLIP's own parameters learn at ``lr``, others at ``lr * new_multiplier``, and in few-shot runs at
    ``few_shot_multiplier`` times that: those of ALT's video adapter (the paper's words), or all "new" ones, as in
    models without one."""

    lr: Positive = 8e-6
    new_multiplier: Positive = 10.0
    few_shot_multiplier: Positive = 1.0
    few_shot_scope: Literal["adapter", "new"] = "adapter"
    betas: Annotated[tuple[Finite, ...], AfterValidator(_betas)] = (0.9, 0.98)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 1e-3
    clip_norm: Positive | None = None


@checked
class ScheduleSection:
    """Linear warm-up from 0, then a cosine down to ``lr * min_ratio``, over ``epochs`` (or ``steps``, which wins)."""

    epochs: Count = 30
    warmup_epochs: Natural = 5
    steps: Count | None = None
    warmup_steps: Natural | None = None
    min_ratio: Share = 0.01

    @model_validator(mode="after")
    def _warm_up_is_shorter(self) -> ScheduleSection:
        if self.steps is None and self.warmup_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs ({self.warmup_epochs}) must be below schedule.epochs ({self.epochs})."
            )
        if self.steps is not None and self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps ({self.warmup_steps}) must be below schedule.steps ({self.steps})."
            )
        return self

    def length(self, steps_per_epoch: int) -> tuple[int, int]:
        """Returns (all steps, steps of the warm-up)."""
        total = self.steps if self.steps is not None else self.epochs * steps_per_epoch
        if self.warmup_steps is not None:
            warmup = self.warmup_steps
        elif self.steps is not None:
            warmup = round(total * self.warmup_epochs / self.epochs)
        else:
            warmup = self.warmup_epochs * steps_per_epoch
        return total, min(warmup, total - 1)


@checked
class AugmentationSection:
    """Flip, crop, jitter and gray, drawn once per clip, and mixup and cutmix per batch. All off: the test transform."""

    flip: Share = 0.5
    crop_scales: Annotated[tuple[Finite, ...], AfterValidator(_scales)] | None = (1.0, 0.875, 0.75, 0.66)
    color_jitter: Share = 0.8
    grayscale: Share = 0.2
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    switch: Share = 0.5
    label_smoothing: ShareBelowOne = 0.1


@checked
class TrainerSection:
    """Settings of Lightning's Trainer. ``accumulate``: parts of a step on each device. ``checkpoint_every``: steps
    between checkpoints, None: one per epoch. ``validate_every``: epochs between validations, 0: never."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Count | None = None
    nodes: Count = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    accumulate: Count = 1
    checkpoint_every: Count | None = None
    validate_every: Natural = 1
    log_every: Count = 10
    progress: Flag = True
    threads: Count | None = None


@checked
class EvaluationSection:
    """The evaluation of the trained model by ``alt eval`` (:func:`alt.evaluate.execute.execute`), as in the paper.

    Training itself validates with one view. ``frames`` (None: the model's) and views ``crops`` x ``clips``.
    ``stride``: frames of a clip are so many frames apart (dense sampling); None: one per segment (sparse). ``sets``:
    data sets; in a zero-shot protocol they are folders beside ``data.root``, otherwise they name ``data.root``.
    ``splits``: official splits. ``draws``: of ``subset`` random classes (zero-shot), or of the few shots.
    ``class_draws``: takes the classes of the draws from a file instead (:func:`alt.data.new_classes.read_draws`).
    ``clip_share``: the share of CLIP's own weights in the mean with the trained ones that is evaluated
    (:func:`alt.models.average_weights`), for models that add none to CLIP."""

    protocol: Literal["supervised", "few-shot", "zero-shot", "linear-probe"] = "supervised"
    sets: tuple[Text, ...] = ()
    splits: tuple[Count, ...] = (1,)
    frames: Count | None = None
    crops: Literal[1, 3] = 1
    clips: Count = 1
    stride: Count | None = None
    subset: Count | None = None
    draws: Count | None = None
    class_draws: Text | None = None
    clip_share: Share = 0.0

    @model_validator(mode="after")
    def _trained_weights_are_averaged(self) -> EvaluationSection:
        if self.clip_share and self.protocol in ("few-shot", "linear-probe"):
            raise ValueError(
                f"evaluation.clip_share: expected 0 for {self.protocol}, which trains first, got {self.clip_share:g}."
            )
        return self


@checked
class BagsSection:
    """MAXI's bags of texts, for ``task`` "unlabelled".

    ``file``: what `alt bags` wrote; None: ``bags.json`` in the folder of the run, which first makes it, by matching
    alone. ``dictionary``: names that clips are matched with: "labels" (the class names of the data), sets whose action
    names ship (k400), and files of names. ``templates``: of these names, while clips are matched. ``share``: p, the
    share of clips with the best matches that is trained on. ``size``: N_bag, texts per clip and step. ``prompts``:
    "photo" puts a text behind its name, ``a photo of a NAME. TEXT.``; "bare" are name and texts alone. ``form``,
    ``sigma``: of the loss, see :func:`alt.train.bags.bag_loss`; "dictionary" is
    :func:`alt.train.bags.dictionary_loss`, which reads no texts but the names."""

    file: Text | None = None
    dictionary: Annotated[tuple[Text, ...], AfterValidator(_dictionary)] = ("labels",)
    templates: Text = "kinetics28"
    share: Share = 0.9
    size: Count = 16
    prompts: Literal["photo", "bare"] = "photo"
    form: Literal[Form, "dictionary"] = "sum"
    sigma: Positive = 0.02


@checked
class TrainConfig:
    """One run. ``seed`` decides the order of the clips, every augmentation and every draw of noise. ``task``: with
    labels, of the head alone, or MAXI's, which reads no labels."""

    name: Text = "run"
    about: Text = ""
    seed: Natural = 0
    task: Literal["supervised", "linear-probe", "unlabelled"] = "supervised"
    model: Annotated[ModelSection, Group] = field(default_factory=ModelSection)
    data: Annotated[DataSection, Group] = field(default_factory=DataSection)
    optim: Annotated[OptimSection, Group] = field(default_factory=OptimSection)
    schedule: Annotated[ScheduleSection, Group] = field(default_factory=ScheduleSection)
    augmentation: Annotated[AugmentationSection, Group] = field(default_factory=AugmentationSection)
    trainer: Annotated[TrainerSection, Group] = field(default_factory=TrainerSection)
    evaluation: Annotated[EvaluationSection, Group] = field(default_factory=EvaluationSection)
    bags: Annotated[BagsSection, Group] = field(default_factory=BagsSection)

    @model_validator(mode="after")
    def _bags_can_be_trained_with(self) -> TrainConfig:
        if self.task != "unlabelled":
            return self
        options = FAMILIES[parse_name(self.model.name)[0]].config(**self.model.options)
        if options.text != "trained":
            raise ValueError(
                f"task is unlabelled, which trains the text tower too, and {self.model.name} does not; name a model "
                "such as maxi-b16."
            )
        if self.trainer.strategy == "fsdp":
            raise ValueError("task is unlabelled, whose processes share no parameters; trainer.strategy must be ddp.")
        if self.data.shots is not None:
            raise ValueError("task is unlabelled, so data.shots, clips per class, cannot be taken.")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(plain(self), sort_keys=False, allow_unicode=True)


def from_tree(tree: dict[str, Any]) -> TrainConfig:
    """Builds a checked configuration from nested mappings.

    Raises:
        UserError: a key is unknown, or a value has a wrong type or is out of range. The message is one sentence.
    """
    try:
        return from_mapping(TrainConfig, tree)
    except ValueError as error:
        raise UserError(str(error)) from None


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Loads the configuration of a file or a shipped name, with ``a.b=c`` overrides on top.

    Raises:
        UserError: the file or name is unknown, it is not YAML, or a key, type or value in it is wrong.
        UsageError: an override is wrong.
    """
    changes = [read_override(text) for text in overrides]
    try:
        return from_mapping(TrainConfig, find(source, changes))
    except ValueError as error:
        if not changes:
            raise UserError(str(error)) from None
        load_config(source)  # raises if the source alone is wrong
        raise UsageError(str(error)) from None
