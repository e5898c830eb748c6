"""Captions of clips: kept in a file, and made by BLIP where ``transformers`` is installed (MAXI, section 3.2).

The file has one clip per line, ``{"clip": "videos/a.mp4", "captions": ["a woman covers her face"]}``. It may be written
by hand or by any other program. BLIP's captions are appended to it as they are made, so a killed run loses none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alt.errors import one_line

from .kept_lines import KeptLines

__all__ = ["FRAMES", "BlipCaptioner", "Captions"]

FRAMES = 8
"""Frames of a clip that are captioned, in equal distances (of the paper)."""


class Captions:
    """The captions in a file.

    Args:
        path: a .jsonl file, which need not be there yet. model: whose captions are added; None: none are.

    Raises:
        ValueError: the file cannot be read, or another model made its captions.
    """

    def __init__(self, path: str | os.PathLike[str], model: str | None = None) -> None:
        self.model = model
        self._kept = KeptLines(path, "captions")
        self._found: dict[str, list[str]] = {}
        for clip, captions, maker in self._kept.read(_parse_row):
            if model is not None and maker not in (None, model):
                raise ValueError(f"captions: {path} has captions by {maker}, and {model} is to make the others")
            self._found[clip] = captions

    def find(self, clip: str) -> list[str] | None:
        """Returns the captions of a clip, None if the file has none."""
        return self._found.get(clip)

    def add(self, clip: str, captions: Sequence[str]) -> None:
        """Keeps the captions of a clip that the file has none of."""
        self._kept.append({"clip": clip, "captions": list(captions), "model": self.model})
        self._found[clip] = list(captions)


def _parse_row(row: Any) -> tuple[str, list[str], str | None]:
    captions = row["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise TypeError("captions must be a list of texts")
    return str(row["clip"]), captions, row.get("model")


class BlipCaptioner:
    """BLIP by ``transformers``.

    Args:
        name: a folder, or a name on the Hub; the paper's ViT-L is ``Salesforce/blip-image-captioning-large``.
        device: of the model.

    Raises:
        ValueError: ``transformers`` is not installed, or there is no BLIP of that name.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import BlipForConditionalGeneration, BlipProcessor
        except ImportError:
            raise ValueError(
                "caption-model: BLIP needs transformers; pip install 'alt-kernels[transformers]'"
            ) from None
        try:
            self._read: Any = BlipProcessor.from_pretrained(name)
            model: Any = BlipForConditionalGeneration.from_pretrained(name)
        except Exception as error:  # of the hub, of its files and of the disk
            raise ValueError(f"caption-model: the BLIP {name!r} cannot be loaded ({one_line(error)})") from None
        self._model, self._device = model.to(device).eval(), device

    @torch.no_grad()
    def caption(self, frames: Tensor) -> list[str]:
        """Returns one caption for each frame of uint8 ``[F, 3, H, W]``, equal ones once."""
        inputs = self._read(images=list(frames), return_tensors="pt").to(self._device)
        ids = self._model.generate(**inputs, max_new_tokens=30)
        texts = self._read.batch_decode(ids, skip_special_tokens=True)
        return list(dict.fromkeys(text.strip() for text in texts if text.strip()))
