"""The comparison on a GPU: trains the small CLIP on pictures rendered there, then whole models."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alt.corpus import Corpus
from alt.cost import count_macs
from alt.data.seeds import seeded
from alt.entityworld.mini_clip import MiniClip, MiniClipConfig, save_mini_clip
from alt.entityworld.world import World, WorldConfig
from alt.models.registry import create_model
from alt.models.text import TextEncoder
from alt.models.video_model import VideoModel

from .fine_tuning import FineTuning, RenderedSplit, fine_tune, render_split, top1
from .methods import Method
from .mini_clip_training import Pretraining, pretrain

__all__ = ["METHODS", "GpuPlan", "run_gpu"]

Results = dict[str, list[dict[str, float]]]


def _whole(name: str, model: str = "alt-mini", r: int = 0, corpus: str | None = None, **options: Any) -> Method:
    return Method(name, model, r, options, corpus, "clips")


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _whole("CLIP-Mean", "clip-mean-mini"),
        _whole("MIT", "mit-mini"),
        _whole("ALT r=0 cls", corpus="all", align_tokens="cls"),
        _whole("ALT r=4", r=4, corpus="all"),
        _whole("ALT r=0", corpus="all"),
        _whole("ALT r=2", r=2, corpus="all"),
        _whole("ALT r=7", r=7, corpus="all"),
        _whole("ALT no conv", r=4, corpus="all", convolution=False),
        _whole("ALT random queries", r=4, queries="random"),
        _whole("CLIP-One", "clip-one-mini"),
        _whole("CLIP-Joint", "clip-joint-mini"),
        _whole("ALT r=4 frozen", r=4, corpus="all", strategy="frozen"),
        _whole("ALT r=4 adapters S", r=4, corpus="all", strategy="s"),
        _whole("ALT r=4 adapters SM", r=4, corpus="all", strategy="sm"),
    )
}
"""The rows on a GPU, where more tokens merge. The main ones are run with every seed before the others."""
MAIN = ("CLIP-Mean", "MIT", "ALT r=0 cls", "ALT r=4")


@dataclass(frozen=True)
class GpuPlan:
    """The plan of a comparison. ``preset`` "gpu" is 64 px and 8 frames, planned for 8 minutes of an H200; "smoke" runs
    the same code in a few steps on any machine."""

    world: WorldConfig = field(default_factory=lambda: WorldConfig.preset("gpu"))
    clip: MiniClipConfig = field(default_factory=lambda: MiniClipConfig.preset("gpu"))
    pretraining: Pretraining = field(
        default_factory=lambda: Pretraining(
            images=200_000, steps=3000, batch_size=512, lr=1e-3, warmup=200, r=(0, 2, 4, 7), mixed_precision=True
        )
    )
    fine_tuning: FineTuning = field(
        default_factory=lambda: FineTuning(steps=300, batch_size=128, lr=3e-4, mixed_precision=True)
    )
    seconds: float = 440.0

    @classmethod
    def preset(cls, name: str) -> GpuPlan:
        if name == "gpu":
            return cls()
        if name != "smoke":
            raise ValueError(f"preset: expected 'gpu' or 'smoke', got {name!r}")
        world = WorldConfig.preset("tiny", size=64, frames=2)
        return cls(
            world,
            MiniClipConfig.preset("gpu", layers=2, text_layers=1),
            Pretraining(images=16, steps=3, batch_size=8, warmup=1, r=(0, 2)),
            FineTuning(steps=3, batch_size=2),
            600.0,
        )

    def with_limits(
        self, *, steps: int | None = None, pretraining_steps: int | None = None, seconds: float | None = None
    ) -> GpuPlan:
        """Returns the plan with other steps per method, pre-training steps, or seconds; None keeps the plan's value.

        The warm-up of the pre-training shrinks with its steps.
        """
        plan = self
        if steps is not None:
            plan = dataclasses.replace(plan, fine_tuning=dataclasses.replace(plan.fine_tuning, steps=steps))
        if pretraining_steps is not None:
            warmup = round(plan.pretraining.warmup * min(pretraining_steps / plan.pretraining.steps, 1))
            training = dataclasses.replace(plan.pretraining, steps=pretraining_steps, warmup=max(warmup, 1))
            plan = dataclasses.replace(plan, pretraining=training)
        return plan if seconds is None else dataclasses.replace(plan, seconds=seconds)


def run_gpu(
    plan: GpuPlan,
    *,
    device: torch.device | str,
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    done: Callable[[Results], None] = lambda results: None,
) -> tuple[Results, dict[str, Any]]:
    """Pre-trains, then fine-tunes every method: the main ones with every seed, then the others while time is left.

    Args:
        say: receives progress lines.
        done: called with all results so far after every run, so that an interruption keeps them.

    Returns:
        method -> measurements in percent, one per seed; and the setting, with the runs left out and the reason.
    """
    start = time.perf_counter()
    world, device = World(plan.world), torch.device(device)
    mini = pretrain(world, plan.clip, plan.pretraining, device=device, report=_lines(say, plan.pretraining.steps))
    say(f"small CLIP after {mini.about['seconds']:.0f} s, loss {mini.about['last_loss']:.3f}")
    clips = {name: render_split(world, name, device) for name in ("seen-train", "seen-test", "transfer-a-1")}
    say(f"{sum(len(part.labels) for part in clips.values())} clips rendered")
    left_out: list[str] = []
    setting: dict[str, Any] = {
        "what": f"EntityWorld at {plan.world.size} px, {plan.world.frames} frames, {len(clips['seen-train'].names)} "
        "seen classes, everything fine-tuned",
        "small_clip": {key: mini.about[key] for key in ("training", "first_losses", "last_loss", "seconds")},
        "fine_tuning": dataclasses.asdict(plan.fine_tuning),
        "left_out": left_out,
    }
    wanted = list(methods if methods is not None else METHODS)
    order = [(name, seed) for seed in seeds for name in wanted if name in MAIN]
    order += [(name, seed) for seed in seeds for name in wanted if name not in MAIN]
    results: Results = {}
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = save_mini_clip(mini, Path(folder) / "mini_clip.safetensors")
        texts = _Texts(world, mini)
        for name, seed in order:
            left = plan.seconds - (time.perf_counter() - start)
            if left < 1.3 * longest:
                left_out.append(f"{name}, seed {seed}: no time left")
                continue
            began = time.perf_counter()
            run = _run(name, seed, path, texts, clips, plan, device)
            longest = max(longest, time.perf_counter() - began)
            results.setdefault(name, []).append(run)
            say(f"{name}, seed {seed}: seen {run['seen']:.1f} %, {run['seconds']:.1f} s of training")
            done(results)
    return results, setting | {"seconds": time.perf_counter() - start}


class _Texts:
    """Text embeddings shared by all models of the run."""

    def __init__(self, world: World, mini: MiniClip) -> None:
        encoder = TextEncoder(mini.clip, mini.tokenizer)
        self.encoder = encoder
        self.corpus = Corpus.from_entities(world.corpus_rows()).embed(encoder)

    def classes(self, clips: RenderedSplit) -> tuple[list[str], torch.Tensor]:
        return clips.names, self.encoder.embed_classes(clips.names, "none")


def _run(
    name: str,
    seed: int,
    path: Path,
    texts: _Texts,
    clips: dict[str, RenderedSplit],
    plan: GpuPlan,
    device: torch.device,
) -> dict[str, float]:
    method = METHODS[name]
    with seeded(seed):
        model: VideoModel = create_model(
            method.model,
            pretrained=path,
            frames=plan.world.frames,
            r=method.r,
            corpus=texts.corpus if method.corpus == "all" else None,
            classes=texts.classes(clips["seen-train"]),
            **method.options,
        )
    gmacs = count_macs(model).native_g
    training = dataclasses.replace(plan.fine_tuning, strategy=model.config.strategy)
    seconds = fine_tune(model.to(device), clips["seen-train"], training, seed=seed)
    found = {"seconds": seconds, "gmacs": gmacs}
    forward, backward = (top1(model, clips["seen-test"], backwards=flag) for flag in (False, True))
    for label, values in (("seen", forward), ("reversed", backward)):
        for family, value in values.items():
            found[label if family == "all" else f"{label} {family}"] = value
    names, embeddings = texts.classes(clips["transfer-a-1"])
    model.set_classes(names, embeddings.to(device))
    found["zero-shot transfer-a"] = top1(model, clips["transfer-a-1"])["all"]
    frames = clips["seen-test"].frames
    began = time.perf_counter()
    top1(model, clips["transfer-a-1"])
    found["frames/s"] = clips["transfer-a-1"].labels.numel() * frames.shape[1] / (time.perf_counter() - began)
    return found


def _lines(say: Callable[[str], None], steps: int) -> Callable[[int, float], None] | None:
    """Returns a reporter that prints a line per tenth of the pre-training and reads the loss only then."""
    every = max(1, steps // 10)

    def report(step: int, loss: float) -> None:
        if step % every == every - 1:
            say(f"small CLIP, step {step + 1} of {steps}: loss {loss:.3f}")

    return report
