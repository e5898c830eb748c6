"""How often heat maps and entities point at the planted object: the table of docs/visualize.md.

A script: ``python benchmarks/measure_heat_maps.py [--clips 200] [--r 2]``. It takes the shipped small CLIP with an
untrained adapter and the first clips of three splits of EntityWorld. Prints one Markdown row per split.

A map's peak counts with the share of its area inside the object's box, so chance is the box's share of the picture.

``--model RUN``, which may be repeated, prints another table instead: the cosine maps of the clip's class name by the
small CLIP before training and by each run, as `alt heatmaps` draws them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alt.corpus import Corpus
from alt.entityworld.world import World
from alt.entityworld.world.vocabulary import OBJECTS
from alt.models.registry import create_model, create_text_encoder
from alt.models.weights import load_model
from alt.tables import to_markdown
from alt.visualize import explain, gradient_heat_map, map_text, peak_inside, text_heat_map, text_of

SPLITS = ("seen-test", "transfer-a-1", "transfer-b-1")
SMALL = 0.15  # boxes below this share of the picture are also counted on their own


def measure(world: World, corpus: Corpus, name: str, clips: int, r: int) -> dict[str, list[float]]:
    """Returns one number per frame (per frame with a small box, for names with "small") of a split's first clips."""
    split = world.split(name)
    split = split.subset(range(min(clips, len(split))))
    rendered = world.render(split)
    model = create_model("alt-mini", pretrained="entity-world", corpus=corpus, classes=split.class_names, r=r).eval()
    objects = [entity.unit for entity in world.entities() if entity.category == "object" and entity.rendered]
    found: dict[str, list[float]] = defaultdict(list)
    for i, frames in enumerate(rendered.frames):
        planted = OBJECTS[split[i].object].name
        other = objects[(objects.index(planted) + 1 + i % (len(objects) - 1)) % len(objects)]
        explanation = explain(model, frames)
        gradient, wrong = (gradient_heat_map(model, frames, text_of(model, word)) for word in (planted, other))
        cosine, cosine_wrong = (text_heat_map(explanation, text_of(model, word)) for word in (planted, other))
        height, width = explanation.pictures.shape[1:3]
        for t, box in enumerate(rendered.boxes[i].tolist()):
            x0, y0, x1, y1 = box
            area = (x1 - x0) * (y1 - y0) / (height * width)
            peaks = {
                "cosine": cosine[t],
                "cosine of another": cosine_wrong[t],
                "gradient": gradient[t],
                "gradient of another": wrong[t],
            }
            found["box"].append(area)
            for key, heat in peaks.items():
                found[key].append(peak_inside(heat, (x0, y0, x1, y1), (height, width)))
            if area < SMALL:
                found["small box"].append(area)
                found["small gradient"].append(found["gradient"][-1])
            units = {entity.unit for entity in explanation.frames[t]}
            found["planted"].append(planted in units)
            found["wrong"].append(len(units & set(objects) - {planted}) / (len(objects) - 1))
    return found


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    """Returns a split's row: shares in per cent, and peaks also as multiples of the box's share."""
    mean = {key: float(np.mean(values)) for key, values in found.items()}
    small = f"{mean['small gradient'] / mean['small box']:.1f} x ({len(found['small box'])} frames)"
    peaks = [f"{100 * mean[key]:.0f} %: {mean[key] / mean['box']:.1f} x" for key in ("cosine", "gradient")]
    others = [f"{100 * mean[key]:.0f} %" for key in ("cosine of another", "gradient of another", "planted", "wrong")]
    return [f"`{name}`", f"{100 * mean['box']:.1f} %", *peaks, small, *others]


def compare_models(world: World, models: Mapping[str, Any], name: str, clips: int) -> list[list[str]]:
    """Returns a row per model: the box's share of the picture, and how often the peak of the class name is in it."""
    split = world.split(name)
    split = split.subset(range(min(clips, len(split))))
    rendered, encoder = world.render(split), create_text_encoder("vifi-mini", pretrained="entity-world")
    height, width = rendered.frames.shape[-2:]
    boxes = [[tuple(box) for box in clip] for clip in rendered.boxes.tolist()]
    area = np.mean([(x1 - x0) * (y1 - y0) / (height * width) for clip in boxes for x0, y0, x1, y1 in clip])
    rows = []
    for title, model in models.items():
        model.name_classes(split.class_names, encoder, "none")
        peaks = []
        for i, frames in enumerate(rendered.frames):
            heat = map_text(model, frames, split.class_names[split[i].label]).heat
            peaks += [peak_inside(part, box, (height, width)) for part, box in zip(heat, boxes[i], strict=True)]
        peak = float(np.mean(peaks))
        rows.append([f"`{name}`", title, f"{100 * area:.1f} %", f"{100 * peak:.0f} %: {peak / area:.1f} x"])
    return rows


def compare(world: World, runs: Sequence[Path], clips: int) -> str:
    """Returns the table of the small CLIP and of runs."""
    models = {"CLIP": create_model("clip-mean-mini", pretrained="entity-world", r=0).eval()}
    models |= {run.name: load_model(run).eval() for run in runs}
    rows = [row for name in SPLITS for row in compare_models(world, models, name, clips)]
    return to_markdown(["split", "model", "box", "peak of the class name in the box"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="clips per split (default: %(default)s)")
    parser.add_argument("--r", type=int, default=2, help="tokens to merge per block (default: %(default)s)")
    parser.add_argument("--model", type=Path, action="append", help="folder of a run to compare with the small CLIP")
    options = parser.parse_args()
    world = World("cpu")
    if options.model:
        print(compare(world, options.model, options.clips))
        return
    corpus = Corpus.from_entities(world.corpus_rows())
    header = ["split", "box", "cosine", "gradient", f"gradient, boxes < {SMALL:.0%}", "cosine of another"]
    header += ["gradient of another", "planted among entities", "another among them"]
    rows = [row(name, measure(world, corpus, name, options.clips, options.r)) for name in SPLITS]
    print(to_markdown(header, rows))


if __name__ == "__main__":
    main()
