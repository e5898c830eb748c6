"""Tiny open_clip models for the tests: image and text towers of a few hundred weights, and a word tokenizer."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor

WORDS = ["see", "the", "cup", "red", "ball", "a", "photo", "of", "action", "lifting"]
START, END = 14, 15  # the end token has the largest id: open_clip finds it by argmax


def tokenizer(texts: list[str], context_length: int = 8) -> Tensor:
    """Known words by their number, any other as word 11; start and end tokens, zeros after them."""
    ids = torch.zeros(len(texts), context_length, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        words = [1 + WORDS.index(word) if word in WORDS else 11 for word in text.split()]
        row[: len(words) + 2] = torch.tensor([START, *words, END])
    return ids


def text_clip(custom: bool = False, vocab_size: int = 16, context_length: int = 8) -> Any:
    """The same random weights at every call."""
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": context_length, "vocab_size": vocab_size, "width": 16, "heads": 2, "layers": 2}
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return kind(embed_dim=16, vision_cfg=vision, text_cfg=text)
