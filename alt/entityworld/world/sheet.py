"""A sheet of clips to look at: ``python -m alt.entityworld.world.sheet cpu world.png``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from .world import World
from .world_config import PRESETS, STYLES


def contact_sheet(world: World, style: str = "seen", enlarge: int = 4) -> Tensor:
    """Draws one clip of every motion as a row of frames, in two columns; uint8 ``[3, H, W]``."""
    specs = world.split("ssv2-test")
    chosen = [next(s for s in specs if s.motion == m)._replace(style=style) for m in range(world.config.motions)]
    frames = world.render(chosen).frames.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    rows = [torch.cat([pad(frame, (2, 2, 2, 2), value=255) for frame in clip], -1) for clip in frames]
    rows += [torch.full_like(rows[0], 255)] * (len(rows) % 2)
    half = len(rows) // 2
    return torch.cat([torch.cat(rows[:half], 1), torch.full((3, half * rows[0].shape[1], 8), 255, dtype=torch.uint8),
                      torch.cat(rows[half:], 1)], 2)  # fmt: skip


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description="Write a picture with one clip of every motion.")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("path", type=Path)
    parser.add_argument("--style", choices=STYLES, default="seen")
    options = parser.parse_args()
    sheet = contact_sheet(World(options.preset), options.style)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(options.path)


if __name__ == "__main__":
    main()
