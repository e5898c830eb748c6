"""Contrastive training of the small CLIP on single pictures of an entity world, from scratch.

The shipped weights are what ``python -m alt.entityworld.mini_clip_training`` writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt.entityworld.mini_clip import SHIPPED, MiniClip, MiniClipConfig, WordTokenizer, build_mini_clip, save_mini_clip
from alt.entityworld.world import Images, World, WorldConfig, normalise
from alt.hosts import find_tower
from alt.models.region_encoder import RegionEncoder
from alt.patch import unpatch
from alt.train.config import OptimSection
from alt.train.module import Learner
from alt.train.optim import parameter_groups
from alt.train.trainer import run_steps

__all__ = ["Pretraining", "contrastive_loss", "pretrain", "region_scores"]


@dataclass(frozen=True)
class Pretraining:
    """The training of the small CLIP.

    Args:
        images: pictures in all, each with a global and a local caption. steps, batch_size, lr, weight_decay: of AdamW
            with a linear warm-up from zero and a cosine to zero.
        text_start: share of the steps before the text tower is trained too. If both towers move from the start, words
            that pictures do not distinguish yet (the five places) get the same embedding. Then neither tower gets a
            gradient that would separate them.
        r: numbers of tokens to merge per block. Steps cycle through them, so that the tower learns with all.
        loss: "regions": half the weight on the class token with global captions, half on regions with local ones;
            "plain": the class token with both.
        seed: of weights, pictures and batches.
        mixed_precision: bfloat16 autocast, on a GPU.
    """

    images: int = 12_000
    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 100
    text_start: float = 0.25
    r: tuple[int, ...] = (0,)
    loss: str = "regions"
    seed: int = 0
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an int >= 1, got {getattr(self, name)}")
        if self.images < self.batch_size:
            raise ValueError(f"images: expected at least a batch of {self.batch_size}, got {self.images}")
        if self.loss not in ("regions", "plain"):
            raise ValueError(f"loss: expected 'regions' or 'plain', got {self.loss!r}")
        if not self.r:
            raise ValueError("r: expected at least one number of tokens")


def region_scores(regions: Tensor, texts: Tensor) -> Tensor:
    """Returns each picture's and text's largest cosine of any region, ``[B, B']``. regions: unit rows ``[B, n, d]``."""
    return torch.einsum("bnd,cd->bcn", regions, texts).amax(-1)


def contrastive_loss(scores: Tensor, captions: Tensor) -> Tensor:
    """Returns the symmetric InfoNCE loss of ``[B, B]`` logits; pictures with equal captions share the target evenly.

    Args:
        scores: logits of picture i and caption j. captions: int64 ``[B]``, equal numbers for equal captions.
    """
    same = (captions[:, None] == captions[None]).to(scores.dtype)
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target))


def pretrain(
    world: World,
    clip_config: MiniClipConfig | None = None,
    training: Pretraining | None = None,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[int, float], None] | None = None,
) -> MiniClip:
    """Trains a small CLIP on pictures of ``world``.

    Args:
        clip_config: sizes of the towers; None: the CPU's, with the world's image size.
        training: how. device: where pictures are rendered and the towers trained.
        report: called with (step, loss) after every step; it may raise to stop.

    Returns:
        MiniClip: on the CPU, its ``about`` holding world, training, and the loss of every 50th and of the first steps.
    """
    config = clip_config or MiniClipConfig(image_size=world.config.size)
    training = training or Pretraining()
    if config.image_size != world.config.size:
        raise ValueError(f"clip_config: image_size is {config.image_size}, but the world draws {world.config.size} px")
    tokenizer = WordTokenizer(world.vocabulary(), config.context_length)
    clip = build_mini_clip(config, tokenizer.vocab_size, seed=training.seed)
    _initialise(clip, training.seed)
    clip.to(device)
    pictures = world.images(training.images, seed=training.seed, device=device)
    learner = ContrastiveLearner(clip, pictures, tokenizer, training)
    losses: list[float] = []

    def keep(step: int, loss: Tensor) -> None:
        if step < 10 or step % 50 == 49 or report is not None:
            losses.append(float(loss))
            if report is not None:
                report(step, losses[-1])

    clip.train()
    seconds = run_steps(
        learner,
        lambda rows: rows,
        samples=training.images,
        batch_size=training.batch_size,
        seed=training.seed,
        device=device,
        mixed_precision=training.mixed_precision,
        report=keep,
    )
    unpatch(clip)
    clip.requires_grad_(False).eval().to("cpu")
    about = {
        "world": dataclasses.asdict(world.config),
        "training": dataclasses.asdict(training),
        "first_losses": [round(value, 6) for value in losses[:10]],
        "last_loss": round(losses[-1], 4),
        "seconds": round(seconds, 1),
    }
    return MiniClip(clip, tokenizer, config, about)


class ContrastiveLearner(Learner):
    """A CLIP on pictures with a global and a local caption each. A batch is the rows of its pictures, int64 ``[B]``."""

    def __init__(self, clip: Any, pictures: Images, tokenizer: WordTokenizer, training: Pretraining) -> None:
        optim = OptimSection(lr=training.lr, new_multiplier=1.0, weight_decay=training.weight_decay)
        super().__init__(optim, training.steps, min(training.warmup, training.steps - 1), min_ratio=0.0)
        self.clip, self.training_plan = clip, training
        self.tower = RegionEncoder(find_tower(clip)[1], training.r[0])
        self.frames = pictures.frames
        self.captions = [
            _Captions(texts, tokenizer, pictures.frames.device)
            for texts in (pictures.global_captions, pictures.local_captions)
        ]

    def groups(self) -> list[dict[str, Any]]:
        """Returns groups for the image tower and the later starting text tower, each with and without decay."""
        groups = parameter_groups(
            self.clip,
            self.optim,
            is_backbone=lambda name: name.startswith(("visual.", "logit_scale")),
            no_decay=self.tower.host.no_decay(self.clip),
        )
        for group in groups:
            if group["name"].startswith("new/"):
                group["start"] = math.ceil(self.training_plan.text_start * self.training_plan.steps)
        return groups

    def loss(self, batch: Tensor, batch_idx: int) -> Tensor:
        r = self.training_plan.r[self.global_step % len(self.training_plan.r)]
        if self.tower.r != r:
            self.tower.r = r
        captions = [texts.take(batch) for texts in self.captions]
        return _loss(self.clip, self.tower, normalise(self.frames[batch]), captions, self.training_plan.loss)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(100.0))


@torch.no_grad()
def _initialise(clip: Any, seed: int) -> None:
    """Initialises more widely than open_clip, because the training is short.

    Positions in the picture and distinctive words must be visible to the other tower from the first step.
    """
    generator = torch.Generator().manual_seed(seed)
    host, tower = find_tower(clip)
    host.position_embedding(tower).normal_(std=0.5, generator=generator)
    words: Any = host.token_embedding(clip).weight
    words.normal_(std=0.1, generator=generator)
    clip.logit_scale.fill_(math.log(20.0))


class _Captions:
    """Captions as ids, each distinct caption once."""

    def __init__(self, texts: Sequence[str], tokenizer: WordTokenizer, device: torch.device | str) -> None:
        distinct = sorted(set(texts))
        number = {text: i for i, text in enumerate(distinct)}
        self.ids = tokenizer(distinct).to(device)
        self.numbers = torch.tensor([number[text] for text in texts], device=device)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        numbers = self.numbers[rows]
        return self.ids[numbers], numbers


def _loss(
    clip: Any, tower: RegionEncoder, pictures: Tensor, captions: list[tuple[Tensor, Tensor]], kind: str
) -> Tensor:
    tokens = tower(pictures[:, None])
    classes, regions = F.normalize(tokens.frame[:, 0], dim=-1), F.normalize(tokens.regions[:, 0], dim=-1)
    (whole, whole_number), (local, local_number) = captions
    texts = F.normalize(clip.encode_text(torch.cat([whole, local])), dim=-1)
    first, second = texts.chunk(2)
    scale = clip.logit_scale.exp()
    of_local = region_scores(regions, second) if kind == "regions" else classes @ second.T
    return 0.5 * contrastive_loss(scale * (classes @ first.T).float(), whole_number) + 0.5 * contrastive_loss(
        scale * of_local.float(), local_number
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alt.entityworld.mini_clip_training", description=__doc__)
    parser.add_argument("--preset", default="cpu", choices=("cpu", "gpu", "tiny"), help="world and sizes")
    parser.add_argument("--out", default=str(SHIPPED), help="file to write (default: the one that ships)")
    parser.add_argument("--steps", type=int, default=Pretraining.steps)
    parser.add_argument("--images", type=int, default=Pretraining.images)
    parser.add_argument("--loss", default="regions", choices=("regions", "plain"))
    parser.add_argument("--r", type=int, nargs="+", default=list(Pretraining.r))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where pictures are rendered and the towers trained")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    training = Pretraining(
        images=options.images, steps=options.steps, loss=options.loss, r=tuple(options.r), seed=options.seed
    )
    world = World(WorldConfig.preset(options.preset))

    def report(step: int, loss: float) -> None:
        if step % 50 == 49 or step < 3:
            print(f"step {step + 1:5d}  loss {loss:.4f}", flush=True)

    mini = pretrain(world, MiniClipConfig.preset(options.preset), training, device=options.device, report=report)
    given = [f"--{name} {value}" for name, value in (("preset", options.preset), ("steps", options.steps))]
    if options.loss != "regions":
        given.append(f"--loss {options.loss}")
    given += [f"--images {options.images}", f"--r {' '.join(map(str, options.r))}", f"--seed {options.seed}"]
    mini.about["command"] = " ".join([parser.prog, *given])
    print(f"saved to {save_mini_clip(mini, options.out)} after {mini.about['seconds']:.0f} s")


if __name__ == "__main__":
    main()
