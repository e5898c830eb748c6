"""Train the small ALT model on generated video, look at one test clip, and merge more without retraining.

python examples/train_small_alt.py               # minutes on a CPU; nothing is downloaded
python examples/train_small_alt.py --out runs/mine schedule.epochs=5 optim.lr=1e-3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import alt
from alt.entityworld.world import World
from alt.visualize import explain, heat_rows, write_page


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/small-alt"), help="folder of the run")
    parser.add_argument("overrides", nargs="*", help="settings of the configuration, such as optim.lr=1e-3")
    options = parser.parse_args(arguments)

    config = alt.load_config("entity-world-cpu", options.overrides)
    alt.fit(config, options.out)

    model = alt.load_model(options.out / "model.safetensors").eval()
    world = World(config.data.preset)
    test = world.split("seen-test")
    frames = world.render(test[:1]).frames[0]  # uint8 [T, 3, H, W]
    shown = test.class_names[int(test.labels[0])]

    for r in (0, 2, 4):
        model.r = r
        found = explain(model, frames)
        best = ", ".join(entity.unit for entity in found.entities[:3])
        gmacs = alt.count_macs(model).native_g
        print(f"r = {r}: {gmacs:.4f} GMACs, “{found.classes[0].name}” for “{shown}”, regions like {best}")

    with torch.enable_grad():
        page = write_page(options.out / "clip.html", found, heat_rows(model, frames, found))
    print(f"The page {page} shows regions, entities and heat maps of the last line.")


if __name__ == "__main__":
    main()
