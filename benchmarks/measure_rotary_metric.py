"""Which keys to compare where attention rotates them: the table of docs/patching.md.

A script: ``python benchmarks/measure_rotary_metric.py [--steps 300] [--seeds 3]``. A small tower with DINOv3's rotary
positions and no others learns to name the object in frames of EntityWorld. Then its embedding of frames of other clips
is compared with and without merging, for the keys before the rotation and after it, and for untrained weights. Prints
one Markdown row per weights, r and metric.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from torch import Tensor, nn

import alt
from alt.entityworld.world import World
from alt.tables import to_markdown

METRICS = ("keys", "rotated")


def frames_of(world: World, name: str, clips: int) -> tuple[Tensor, Tensor]:
    """Returns the middle frame of the first clips of a split, ``[B, 3, H, W]`` in [-1, 1], and their objects."""
    split = world.split(name)
    split = split.subset(range(min(clips, len(split))))
    frames = world.render(split).frames
    middle = frames[:, frames.shape[1] // 2].float() / 127.5 - 1
    return middle, torch.tensor([clip.object for clip in split])


def make_tower(side: int, classes: int, seed: int) -> Any:
    torch.manual_seed(seed)
    options = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
    sizes = {"img_size": side, "patch_size": side // 8, "embed_dim": 64, "depth": 4, "num_heads": 2}
    return Eva(**sizes, **options, use_abs_pos_emb=False, num_reg_tokens=4, init_values=1.0, num_classes=classes)


def train(tower: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    optimiser = torch.optim.AdamW(tower.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=max(steps, 2))
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        F.cross_entropy(tower(images[batch]), labels[batch], label_smoothing=0.1).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


@torch.no_grad()
def compare(tower: Any, images: Tensor, labels: Tensor, r: int) -> dict[str, tuple[float, float]]:
    """Returns accuracy and mean cosine distance of the embedding from the unmerged one, for each metric and none."""
    exact = tower.forward_head(tower.forward_features(images), pre_logits=True)
    found = {"unmerged": (float((tower.head(exact).argmax(1) == labels).float().mean()), 0.0)}
    for metric in METRICS:
        with alt.patch_model(tower, r, metric=metric):
            merged = tower(images)
            head, tower.head = tower.head, nn.Identity()
            embedded = tower(images)
            tower.head = head
        accuracy = float((merged.argmax(1) == labels).float().mean())
        found[metric] = accuracy, float((1 - F.cosine_similarity(embedded, exact)).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=1500)
    options = parser.parse_args()
    world = World()
    images, labels = frames_of(world, "seen-train", options.clips)
    test, truth = frames_of(world, "seen-test", 400)
    rows = []
    for seed in range(options.seeds):
        tower = make_tower(images.shape[-1], int(max(labels.max(), truth.max())) + 1, seed)
        for weights in ("untrained", "trained"):
            if weights == "trained":
                train(tower.train(), images, labels, options.steps)
            for r in (4, 8, 12):
                for metric, (accuracy, distance) in compare(tower.eval(), test, truth, r).items():
                    rows.append((weights, seed, r, metric, f"{100 * accuracy:.1f} %", f"{distance:.2e}"))
                    print(*rows[-1], flush=True)
    print(to_markdown(("weights", "seed", "r", "metric", "accuracy", "distance"), rows))


if __name__ == "__main__":
    main()
