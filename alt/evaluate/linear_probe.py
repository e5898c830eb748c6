"""Linear probe: one linear layer on the frozen model's video vectors.

    logits = W z + b,   loss = cross-entropy against one-hot labels

The ALT paper probes a Kinetics-trained model with 32 frames, a single view and the schedule of its training at
learning rate 4e-4: AdamW, betas (0.9, 0.98), weight decay 1e-3 on the matrix alone, linear warm-up, cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils.data import Dataset

from alt.data.seeds import make_generator
from alt.train.head_fitting import HeadRecipe, fit_head

from .encoder_identity import fingerprint
from .feature_cache import FeatureCache
from .metrics import Result, VideoMetrics
from .run import run_batches

__all__ = ["Features", "ProbeConfig", "extract_features", "fit_probe", "linear_probe"]


class ProbeConfig(NamedTuple):
    """lr and its floor: of AdamW. epochs: include warm-up. batch_size: in videos. seed: of the videos' order and the
    initial weights. steps, warmup_steps: of the schedule, instead of epochs."""

    lr: float = 4e-4
    epochs: int = 30
    warmup_epochs: int = 5
    batch_size: int = 64
    weight_decay: float = 1e-3
    min_lr_ratio: float = 0.01
    seed: int = 0
    steps: int | None = None
    warmup_steps: int | None = None


class Features(NamedTuple):
    """Video vectors ``[N, d]`` float32 and labels ``[N]`` int64, on the CPU."""

    embedding: Tensor
    labels: Tensor


def linear_probe(
    model: nn.Module,
    train: Dataset[Any],
    test: Dataset[Any],
    classes: Sequence[str],
    *,
    config: ProbeConfig | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    precision: str = "fp32",
    features: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Fits a probe on the frozen ``model`` and returns the test result.

    Args:
        model: a video model whose output has ``.embedding`` ``[B, d]``.
        train, test: items ``(clip [T, 3, H, W], label)``.
        classes: names, in the order of the labels.
        batch_size, workers, precision, features: of the model's passes, as in :func:`alt.evaluate.evaluate`. The layer
            is fitted in float32.
        progress: called with (videos done, videos of both sets) after every batch.

    Raises:
        RuntimeError: a parameter or buffer of the model changed, so its features were not frozen.
    """
    config = config or ProbeConfig()
    before = fingerprint(model)
    how: dict[str, Any] = {"device": device, "batch_size": batch_size, "workers": workers, "precision": precision}
    how["features"] = features
    first, total = len(train), len(train) + len(test)  # type: ignore[arg-type]
    tell = progress or (lambda done, of: None)
    seen = extract_features(model, train, progress=lambda done, _: tell(done, total), **how)
    unseen = extract_features(model, test, progress=lambda done, _: tell(first + done, total), **how)
    head = fit_probe(seen, len(classes), config)
    if fingerprint(model) != before:
        raise RuntimeError("the model changed while it was probed, so its features were not frozen")
    metrics = VideoMetrics(classes)
    with torch.no_grad():
        metrics.update(head(unseen.embedding), unseen.labels)
    return metrics.compute(protocol="linear probe", backbone=before, **config._asdict())


def extract_features(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    device: torch.device | str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    precision: str = "fp32",
    features: FeatureCache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Computes the video vectors of all items, in evaluation mode and without gradients.

    Arguments as in :func:`alt.evaluate.evaluate`.
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("no video to take features of: the dataset is empty")
    embedding, labels = run_batches(
        model,
        dataset,
        lambda clips: model(clips).embedding,
        lambda encoded: torch.cat([model.forward_tokens(part).embedding for part in encoded.parts]),  # type: ignore[operator]
        device=device,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        features=features,
        progress=progress,
    )
    return Features(embedding, labels.long())


def fit_probe(features: Features, num_classes: int, config: ProbeConfig | None = None) -> nn.Linear:
    """Trains the linear layer. The same inputs and seed give the same layer."""
    config = config or ProbeConfig()
    x, y = features
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"features: expected as many vectors as labels and at least one, got {len(x)} and {len(y)}")
    if int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise ValueError(f"labels: expected class numbers from 0 to {num_classes - 1}, got {int(y.max())}")
    head = skip_init(nn.Linear, x.shape[1], num_classes)  # otherwise it would draw from the global generator
    with torch.no_grad():
        head.weight.normal_(0, 0.02, generator=make_generator("init", seed=config.seed))
        head.bias.zero_()
    steps = math.ceil(len(x) / config.batch_size)
    recipe = HeadRecipe(
        lr=config.lr,
        steps=config.epochs * steps if config.steps is None else config.steps,
        warmup_steps=config.warmup_epochs * steps if config.warmup_steps is None else config.warmup_steps,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        min_ratio=config.min_lr_ratio,
    )
    fit_head(head, lambda rows, _: F.cross_entropy(head(x[rows]), y[rows]), len(x), recipe, seed=config.seed)
    return head.requires_grad_(False)
