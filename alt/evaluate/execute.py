"""Evaluates a trained model as the group ``evaluation`` of a configuration says."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Subset

from alt.cost import count_macs
from alt.data.clip_views import Clips, ClipViews
from alt.data.clips import ClipFiles
from alt.errors import UserError, one_line
from alt.measure.machine import find_commit
from alt.models.registry import create_model
from alt.models.video_model import VideoModel
from alt.models.weight_average import average_weights
from alt.models.weights import model_file
from alt.train.config import DataSection, TrainConfig
from alt.train.sources import choose_clips, open_list, open_split, open_world

from .checkpoint import at_r, check_classes, open_model
from .class_draws import choose_classes
from .class_texts import open_class_texts
from .feature_cache import FeatureCache
from .linear_probe import ProbeConfig, linear_probe
from .metrics import Result
from .protocols import few_shot, listed_subsets, zero_shot
from .run import collect_logits, result_of
from .spread import Spread, spread
from .views import Views

__all__ = ["Evaluated", "Placement", "execute", "list_new_sets"]

Say = Callable[[str], None]


class Placement(NamedTuple):
    """The device of a model, and the settings of its loader.

    batch: videos per batch. workers: processes that read clips. progress: opened with ("clips", total videos), it
    returns a function of (finished videos, total videos).
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch: int = 8
    workers: int = 0
    progress: Callable[[str, int], AbstractContextManager[Callable[[int, int], None] | None]] = lambda *_: nullcontext()


class Evaluated(NamedTuple):
    """top1: percent, over the splits, draws or seeds of the protocol. results: one for each. protocol: in words."""

    protocol: str
    top1: Spread
    results: tuple[Result, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: a single result, or several with their spread."""
        if len(self.results) == 1:
            return self.results[0].to_dict()
        return {"protocol": self.protocol, "top1": self.top1._asdict(), "results": [r.to_dict() for r in self.results]}


def execute(
    config: TrainConfig,
    checkpoint: Path,
    *,
    trained: TrainConfig | None = None,
    r: Any = None,
    where: Placement = Placement(),  # noqa: B008  (a NamedTuple)
    say: Say = lambda line: None,
    warn: Say | None = None,
) -> Evaluated:
    """Evaluates a checkpoint as ``config.evaluation`` says.

    ============= =====================================================================================
    supervised    the test clips of ``data`` (``val_split`` or ``val_list``)
    few-shot      trains on ``data.shots`` clips per class, ``draws`` times (once), and tests each time
    linear-probe  fits a linear layer on the frozen model's vectors of the training clips, for each of ``splits``
    zero-shot     new classes by their names: each of ``sets`` (a folder beside ``data.root``), each of ``splits``;
                  or ``draws`` times ``subset`` of the classes that training never saw, at random or as
                  ``class_draws`` lists them
    ============= =====================================================================================

    Few-shot and linear-probe runs of ``alt train`` are already trained for the protocol, so they are only tested.
    ``frames`` (None: the model's) and the views ``crops`` x ``clips`` apply to every protocol.

    Args:
        config: the data and the protocol. checkpoint: a model file or the folder of a run.
        trained: the configuration with which the checkpoint was trained, if known.
        r: tokens merged per block; None: as saved.
        say: receives lines on what is done. warn: lines on short and damaged clips and missing records; None: ``say``.

    Raises:
        UserError: clips, classes or weights are missing or do not fit. The message is one sentence.
    """
    section = config.evaluation
    job = _Job(config, checkpoint, r, where, say, say if warn is None else warn)
    if section.protocol == "zero-shot":
        return job.zero_shot()
    if section.protocol == "linear-probe" and not (trained is not None and trained.task == "linear-probe"):
        return job.linear_probe()
    if section.protocol == "few-shot" and (trained is None or trained.data.shots is None):
        return job.few_shot()
    if trained is not None and trained.data.shots is not None:
        job.check_shots(trained)
    shots = "" if config.data.shots is None else f"{config.data.shots}-shot, draw {config.data.shots_seed}, "
    result = job.test(job.open_test())
    return Evaluated(f"{shots}{section.protocol}", spread([result.top1]), (result,))


class _Job:
    """One model and one configuration: opens clips, runs the model on them, and records the setting of each result."""

    def __init__(self, config: TrainConfig, checkpoint: Path, r: Any, where: Placement, say: Say, warn: Say) -> None:
        self.config, self.checkpoint, self.r, self.where = config, checkpoint, r, where
        self.say, self.warn = say, warn
        self.section, folder = config.evaluation, config.data.feature_cache
        self.features = None if folder is None else FeatureCache(folder, config.data.cache_gib)
        self.model = self.open(checkpoint)
        if self.section.clip_share:
            self.add_clip(self.section.clip_share)
        self.replaced = 0  # damaged clips of the last test
        self.views = Views(self.section.crops, self.section.clips)
        self.world = None if config.data.kind == "frames" else open_world(config.data)

    # --- clips ---

    def open_train(self, data: DataSection | None = None) -> Clips:
        data = data or self.config.data
        name = data.train_list if self.world is None else data.train_split
        return open_split(data, name, self.model.config.frames, self.world)

    def open_test(self, data: DataSection | None = None) -> Clips:
        data = data or self.config.data
        name = data.val_list if self.world is None else data.val_split
        if not name:
            raise UserError("data.val_list and data.val_split name no clips to test on.")
        return open_split(data, name, self.model.config.frames, self.world)

    def dataset(self, clips: Clips, views: Views) -> ClipViews:
        """Returns the clips as the model reads them; a single crop is resized as in training's validation."""
        resize = self.config.data.resize if self.world is None and views.crops == 1 else None
        size = self.model.backbone.image_size[0]
        frames = self.model.config.frames
        stride = self.section.stride
        return ClipViews(clips, frames, size, crops=views.crops, clips=views.clips, resize=resize, stride=stride)

    def limit_clips(self, dataset: ClipViews) -> Dataset[Any]:
        limit = self.config.data.limit
        return dataset if limit is None else Subset(dataset, range(min(limit, len(dataset))))

    # --- the model on them ---

    def open(self, path: Path) -> VideoModel:
        """Opens a model with the frames of the protocol and the r that was asked for."""
        model = open_model(path, self.where.device, self.section.frames)
        return model if self.r is None else at_r(model, self.r)

    def add_clip(self, share: float) -> None:
        """Averages the model's weights with those of the CLIP that its training began with."""
        section = self.config.model
        if section.pretrained is None:
            raise UserError("evaluation.clip_share: expected the weights of a CLIP in model.pretrained, got null.")
        options = {**section.options, "frames": self.model.config.frames, "r": self.model.config.r}
        before = create_model(section.name, pretrained=section.pretrained, backbone=section.backbone, **options)
        try:
            average_weights(self.model, before.to(self.where.device), share)
        except ValueError as error:
            raise UserError(f"evaluation.clip_share: the checkpoint is no {section.name}: {one_line(error)}.") from None

    def test(self, clips: Clips, **setting: Any) -> Result:
        """Tests the model on clips whose classes are the model's."""
        check_classes(clips.class_names, self.model.classes, "The clips")
        return result_of(self.collect(clips), self.model.classes, **self.setting(**setting))

    def collect(self, clips: Clips) -> Any:
        dataset, where = self.dataset(clips, self.views), self.where
        limited: Any = self.limit_clips(dataset)
        with where.progress("clips", len(limited)) as progress:
            collected = collect_logits(
                self.model,
                limited,
                batch_size=where.batch,
                workers=where.workers,
                device=where.device,
                precision=where.precision,
                features=self.features,
                progress=progress,
            )
        self.report_clips(dataset)
        return collected

    def report_clips(self, dataset: ClipViews) -> None:
        """Says which clips were too short or damaged, and what came from caches."""
        for line in dataset.describe():
            self.warn(line)
        if isinstance(dataset.source, ClipFiles):
            for line in [*dataset.source.describe_cache(), *(self.features.describe() if self.features else ())]:
                self.say(line)
        self.replaced = dataset.replaced

    def setting(self, **more: Any) -> dict[str, Any]:
        """Returns the setting that is saved with a result."""
        config = self.model.config
        return {
            "configuration": self.config.name,
            "protocol": self.section.protocol,
            "sets": list(self.section.sets),
            "splits": list(self.section.splits),
            "frames": config.frames,
            "crops": self.views.crops,
            "clips": self.views.clips,
            "stride": self.section.stride,
            "r": config.r,
            "shots": self.config.data.shots,
            "clip_share": self.section.clip_share,
            "seed": self.config.seed,
            "commit": find_commit()["commit"],
            "replaced_clips": self.replaced,
            "gmacs_per_video": count_macs(self.model, views=self.views.total).native_g,
            **more,
        }

    # --- protocols ---

    def linear_probe(self) -> Evaluated:
        """Probes each of ``evaluation.splits``; a single one with the lists of ``data``, whatever their names."""
        if self.views != Views():
            raise UserError(f"evaluation: expected a single view for a linear probe, got {self.views}.")
        splits, data = self.section.splits, self.config.data
        parts = [data]
        if len(splits) > 1:
            if self.world is not None:
                raise UserError(f"evaluation.splits: expected one for clips of a generated world, got {len(splits)}.")
            parts = [
                dataclasses.replace(data, train_list=f"train{split}.txt", val_list=f"test{split}.txt")
                for split in splits
            ]
        opened = [(self.open_train(part), self.open_test(part)) for part in parts]  # all, before anything slow
        results = [self.probe(*clips, split=split) for clips, split in zip(opened, splits, strict=True)]
        top1 = spread([result.top1 for result in results], splits)
        return Evaluated("linear probe", top1, tuple(results))

    def probe(self, train: Clips, test: Clips, **setting: Any) -> Result:
        """Fits a layer on the vectors of the training clips and tests it."""
        config, single = self.config, Views()
        check_classes(train.class_names, test.class_names, "The training clips")
        rows = choose_clips(config, train.labels).tolist()
        steps, warmup_steps = config.schedule.length(math.ceil(len(rows) / config.data.batch_size))
        probe = ProbeConfig(
            lr=config.optim.lr * config.optim.new_multiplier * config.optim.few_shot_multiplier,
            epochs=config.schedule.epochs,
            warmup_epochs=config.schedule.warmup_epochs,
            batch_size=config.data.batch_size,
            weight_decay=config.optim.weight_decay,
            min_lr_ratio=config.schedule.min_ratio,
            seed=config.seed,
            steps=steps,
            warmup_steps=warmup_steps,
        )
        seen, unseen = self.dataset(train, single), self.dataset(test, single)
        self.say(f"Linear probe on {len(rows)} clips, {steps} steps.")
        fitted, tested, where = Subset(seen, rows), self.limit_clips(unseen), self.where
        with where.progress("clips", len(fitted) + len(tested)) as progress:  # type: ignore[arg-type]
            result = linear_probe(
                self.model,
                fitted,
                tested,
                test.class_names,
                config=probe,
                device=where.device,
                batch_size=where.batch,
                workers=where.workers,
                precision=where.precision,
                features=self.features,
                progress=progress,
            )
        self.report_clips(unseen)
        result.setting.update(self.setting(**setting))
        return result

    def check_shots(self, trained: TrainConfig) -> None:
        """Raises UserError if the run was trained on other clips than the configuration names."""
        there, here = trained.data, self.config.data
        if (there.shots, there.shots_seed) != (here.shots, here.shots_seed):
            raise UserError(
                f"data.shots: expected the run's {there.shots} clips per class of draw {there.shots_seed}, got "
                f"{here.shots} of draw {here.shots_seed}; another draw needs the checkpoint before that training."
            )

    def few_shot(self) -> Evaluated:
        from alt.train.run import fit  # imports Lightning

        config, shots = self.config, self.config.data.shots
        if shots is None:
            raise UserError("data.shots must be the number of clips per class on which the few-shot protocol trains.")
        start = model_file(self.checkpoint)
        if config.model.options.get("strategy") != "frozen":
            self.features = None  # every draw trains the tower, so none would find its tokens again
        labels = self.open_train().labels
        choose_clips(config, labels)  # raises before anything slow
        test, results = self.open_test(), []

        def train_and_test(rows: list[int], shots: int, seed: int) -> float:
            data = dataclasses.replace(config.data, shots_seed=seed)
            section = dataclasses.replace(config.model, init_from=str(start))
            self.say(f"{shots}-shot, draw {seed}: trains on {len(rows)} clips.")
            with tempfile.TemporaryDirectory(prefix="alt-few-shot-") as folder:
                run = fit(dataclasses.replace(config, data=data, model=section), folder, say=lambda line: None)
                self.model = self.open(run.weights)
            results.append(self.test(test, shots_seed=seed))
            return results[-1].top1

        first = config.data.shots_seed
        seeds = range(first, first + (self.section.draws or 1))
        top1 = few_shot(labels.tolist(), train_and_test, shots=(shots,), seeds=seeds)[shots]
        return Evaluated(f"{shots}-shot", top1, tuple(results))

    def zero_shot(self) -> Evaluated:
        results, sets, section = {}, self.new_sets(), self.section
        subsets = section.subset is not None or section.class_draws is not None
        if subsets and len(sets) > 1:
            raise UserError(
                f"evaluation.subset: expected one data set with one split to draw classes from, got {len(sets)}."
            )
        drawn = choose_classes(section, sets[0][1].class_names, self.model.classes) if subsets else None
        texts = open_class_texts(self.model, self.config.model, self.warn)
        for name, clips in sets:
            names = clips.class_names
            texts.name_classes(self.model, names, name)
            collected = self.collect(clips)
            if drawn is None:
                results[name] = result_of(collected, names, **self.setting(split=name))
                continue
            top1, found = listed_subsets(collected, names, drawn.draws, protocol=drawn.protocol, numbers=drawn.numbers)
            for result in found:
                result.setting.update({**self.setting(split=name), "protocol": drawn.protocol})
            size = len(drawn.draws[0])
            return Evaluated(f"zero-shot, {len(found)} draws of {size} classes", top1, tuple(found))
        return Evaluated(f"zero-shot on {', '.join(results)}", zero_shot(results), tuple(results.values()))

    def new_sets(self) -> list[tuple[str, Clips]]:
        """Returns (name, clips) of every new data set and split."""
        if self.world is not None:
            return [(str(self.config.data.val_split), self.open_test())]
        return [*list_new_sets(self.config)]


def list_new_sets(config: TrainConfig) -> list[tuple[str, ClipFiles]]:
    """Returns (name, clips) of every data set and split that a zero-shot configuration tests on.

    Raises:
        UserError: a folder or list is not there, or cannot be read.
    """
    data, section = config.data, config.evaluation
    if data.root is None:
        raise UserError("data.root must name the folder of the clips where data.kind is frames.")
    found = []
    for name in section.sets or (Path(data.root).name,):
        folder = Path(data.root).parent / name
        for split in section.splits:
            listed = f"test{split}.txt"
            own = data.sets is None and len(section.splits) == 1 and data.val_list is not None
            if own and not (folder / listed).is_file():
                listed = str(data.val_list)  # a set without official splits
            found.append((f"{name} split {split}", open_list(data, str(folder), listed)))
    return found
