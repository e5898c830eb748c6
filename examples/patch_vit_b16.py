"""Patch CLIP's ViT-B/16, embed the same pictures at several r, and print what is saved and what it costs.

python examples/patch_vit_b16.py                 # random weights: nothing is downloaded
python examples/patch_vit_b16.py --pretrained openai --images folder
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import open_clip
import torch
from PIL import Image

import alt


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="a ViT of open_clip")
    parser.add_argument("--pretrained", default=None, help="open_clip's tag of weights; without it they are random")
    parser.add_argument("--images", type=Path, help="a folder of pictures; without it noise")
    parser.add_argument("--r", type=int, nargs="+", default=[0, 8, 13], help="tokens that every block merges")
    options = parser.parse_args(arguments)

    model, _, preprocess = open_clip.create_model_and_transforms(options.model, pretrained=options.pretrained)
    model.eval()
    if options.images:
        files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in files])
    else:
        images = torch.randn(2, 3, *model.visual.image_size)

    embed = torch.inference_mode()(model.encode_image)
    plain = embed(images)
    print(f"{'r':>3} {'tokens':>7} {'GMACs per image':>16} {'ms per image':>13} {'cosine to unpatched':>20}")
    for r in options.r:
        with alt.patch_clip(model, r=r) as handle:
            start = time.perf_counter()
            merged = embed(images)
            milliseconds = 1e3 * (time.perf_counter() - start) / len(images)
            cosine = torch.cosine_similarity(merged, plain, dim=-1).mean()
            tokens = handle.schedule().tokens[-1]
            gmacs = alt.count_macs(model).native_g
        print(f"{r:>3} {tokens:>7} {gmacs:>16.2f} {milliseconds:>13.0f} {cosine:>20.4f}")


if __name__ == "__main__":
    main()
