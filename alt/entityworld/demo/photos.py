"""Photographs for the demonstration: those in scikit-image's wheel, or a folder of the user's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from alt.data.picture_videos import read_picture
from alt.data.video import ClipError
from alt.errors import UserError, one_line

__all__ = ["BUILT_IN", "ENDINGS", "Photo", "find_photos", "load_photos"]

BUILT_IN = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
"""Files in the ``data`` folder of scikit-image's wheel; nothing is downloaded."""

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Photo(NamedTuple):
    """A photograph and the unique name of its results."""

    name: str
    image: Image.Image


def find_photos(folder: Path | None) -> list[Path]:
    """Returns the paths of the photographs, sorted by name; ``None`` stands for the built-in ones."""
    if folder is None:
        spec = importlib.util.find_spec("skimage")
        if spec is None or spec.origin is None:
            raise UserError(
                "The demo's photographs come with scikit-image, which is not installed; install "
                "'alt-kernels[models]' or name a folder of your own with --images."
            )
        data = Path(spec.origin).parent / "data"
        return [data / name for name in BUILT_IN]
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"--images: the folder '{folder}' {what}.")
    seen = (p for p in folder.iterdir() if not p.name.startswith("."))  # a Mac's "._name" is no picture
    paths = sorted(p for p in seen if p.is_file() and p.suffix.lower() in ENDINGS)
    if not paths:
        raise UserError(f"--images: the folder '{folder}' has no image files ({' '.join(ENDINGS)}).")
    return paths


def load_photos(paths: list[Path]) -> list[Photo]:
    """Reads every file as RGB."""
    stems = [path.stem for path in paths]
    photos = []
    for path, stem in zip(paths, stems, strict=True):
        try:
            image = Image.fromarray(read_picture(path, "the image", FORMATS))
        except ClipError as error:
            raise UserError(f"The image '{path}' cannot be read ({one_line(error)}).") from None
        photos.append(Photo(stem if stems.count(stem) == 1 else path.name.replace(".", "_"), image))
    return photos
