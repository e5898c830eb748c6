"""EntityWorld's small CLIP: open_clip's own ``CLIP`` class with small numbers, and a word tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from alt.data.seeds import seeded
from alt.files import describe_error, parse_json, read_tensors
from alt.validation import Count, checked

__all__ = [
    "ANY_WORDS",
    "SHIPPED",
    "MiniClip",
    "MiniClipConfig",
    "WordTokenizer",
    "build_mini_clip",
    "load_mini_clip",
    "save_mini_clip",
    "words_of",
]

ANY_WORDS = "entity-world-any-words"
"""The name of the shipped weights with a tokenizer that takes any words (:class:`WordTokenizer`)."""

SHIPPED = Path(__file__).parent / "weights" / "mini_clip.safetensors"
"""Weights of the "cpu" size, trained on EntityWorld. ``load_mini_clip().about`` records the training."""


@checked
class MiniClipConfig:
    """Sizes of the two towers. The defaults are the CPU's; ``preset("gpu")`` is the larger one.

    Args:
        image_size, patch_size: pixels. width, layers, head_width: of the ViT. embed_dim: d, the joint space.
        text_width, text_heads, text_layers: of the text transformer. context_length: ids of a text, both ends counted.
    """

    image_size: Count = 24
    patch_size: Count = 4
    width: Count = 64
    layers: Count = 4
    head_width: Count = 16
    embed_dim: Count = 48
    text_width: Count = 64
    text_heads: Count = 4
    text_layers: Count = 2
    context_length: Count = 16

    @model_validator(mode="after")
    def _sizes_fit(self) -> MiniClipConfig:
        pairs = (
            ("image_size", "patch_size", self.image_size, self.patch_size),
            ("width", "head_width", self.width, self.head_width),
            ("text_width", "text_heads", self.text_width, self.text_heads),
        )
        for name, divisor, value, by in pairs:
            if value % by:
                raise ValueError(f"{name}: expected a multiple of {divisor} = {by}, got {value}")
        if self.context_length < 3:
            raise ValueError(f"context_length: expected at least 3 (start, a word, end), got {self.context_length}")
        return self

    @classmethod
    def preset(cls, name: str, **changes: int) -> MiniClipConfig:
        """``cpu`` (24 px, width 64, 4 layers, d = 48), ``gpu`` (64 px, width 192, 8 layers, d = 128) or ``tiny``."""
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        return replace(PRESETS[name], **changes)


PRESETS: dict[str, MiniClipConfig] = {
    "cpu": MiniClipConfig(),
    "gpu": MiniClipConfig(
        image_size=64,
        patch_size=8,
        width=192,
        layers=8,
        head_width=32,
        embed_dim=128,
        text_width=128,
        text_heads=4,
        text_layers=4,
    ),
    "tiny": MiniClipConfig(width=32, layers=2, embed_dim=16, text_width=32, text_heads=2, text_layers=1),
}


class WordTokenizer:
    """Turns words into the ids that open_clip's text tower expects: start, words, end, padding.

    A word is a run of lower-case letters and digits; everything else separates words. Id 0 pads and id 1 starts a text.
    The end has the largest id, because open_clip's tower reads its result there (``pool_type="argmax"``).

    Args:
        vocabulary: the words, distinct. context_length: ids of a text, both ends counted.
        any_words: takes texts with unknown words, or too many: the known words, cut to leave room, are followed by four
            that a hash of the whole text picks. So texts stay apart, and their embeddings mean little. A warning counts
            the unknown words, each once. False: such texts are refused.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int = 16, *, any_words: bool = False) -> None:
        words = list(vocabulary)
        if not words or any(words_of(word) != [word] for word in words):
            wrong = next((word for word in words if words_of(word) != [word]), None)
            raise ValueError(f"vocabulary: expected single lower-case words, at least one, got {wrong!r}")
        if len(set(words)) != len(words):
            raise ValueError("vocabulary: expected distinct words")
        self.vocabulary = words
        self.context_length = context_length
        self.any_words = any_words
        self._told: set[str] = set()
        self.vocab_size = len(words) + 3
        self.end = len(words) + 2
        self._ids = {word: number + 2 for number, word in enumerate(words)}

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Returns int64 ids ``[n, context_length]``.

        Raises:
            ValueError: unknown words, or a text that is too long, without ``any_words``: the small text tower knows
                nothing about such words, and texts are not cut.
        """
        length = self.context_length if context_length is None else context_length
        texts = [texts] if isinstance(texts, str) else list(texts)
        split = [words_of(text) for text in texts]
        self._check_words(split, texts)
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, words in enumerate(split):
            if len(words) + 2 > length or not self._ids.keys() >= set(words):
                if not self.any_words:
                    raise ValueError(
                        f"texts: at most {length - 2} words fit the context, got {len(words)} in {texts[row]!r}"
                    )
                words = self._pick_known(words, length - 2)
            ids[row, : len(words) + 2] = torch.tensor([1, *(self._ids[word] for word in words), self.end])
        return ids

    def _check_words(self, split: Sequence[Sequence[str]], texts: Sequence[str]) -> None:
        """Refuses unknown words, or warns of those that no earlier warning counted."""
        unknown = {
            word: text for words, text in zip(split, texts, strict=True) for word in words if word not in self._ids
        }
        new = [word for word in unknown if word not in self._told]
        if not new:
            return
        lacks = f"texts: the vocabulary of {len(self._ids)} words has no {new[0]!r} (in {unknown[new[0]]!r})"
        more = f", and lacks {len(new) - 1} more of their words" if len(new) > 1 else ""
        if not self.any_words:
            raise ValueError(f"{lacks}{more}; the weights {ANY_WORDS!r} take any words")
        self._told.update(new)
        warnings.warn(f"{lacks}{more}; known words that a hash picks stand for them", UserWarning, stacklevel=3)

    def _pick_known(self, words: Sequence[str], room: int) -> list[str]:
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        numbers = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") % len(self.vocabulary) for i in range(4)]
        known = [word for word in words if word in self._ids][: max(0, room - 4)]
        return [*known, *(self.vocabulary[number] for number in numbers)][:room]

    def decode(self, ids: Tensor) -> list[str]:
        """Returns the words of ids ``[n, length]`` joined by spaces, without start, end and padding."""
        rows = ids.reshape(-1, ids.shape[-1]).tolist()
        return [" ".join(self.vocabulary[i - 2] for i in row if 2 <= i < self.end) for row in rows]


def words_of(text: str) -> list[str]:
    """Returns the lower-case words of a text; everything that is not a letter or digit separates."""
    return re.findall(r"[a-z0-9]+", text.lower())


@dataclass(frozen=True)
class MiniClip:
    """The content of a small CLIP's file: the model, its tokenizer, its sizes, and a record of its training."""

    clip: Any  # open_clip.CLIP
    tokenizer: WordTokenizer
    config: MiniClipConfig
    about: dict[str, Any]


def build_mini_clip(config: MiniClipConfig, vocab_size: int, *, seed: int | None = None) -> Any:
    """Builds an ``open_clip.CLIP`` with random weights, which can be patched and counted like any other.

    Args:
        config: sizes. vocab_size: of the tokenizer. seed: of the weights; None: torch's global generator is used.
    """
    import open_clip

    vision = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.layers,
        "head_width": config.head_width,
    }
    text = {
        "context_length": config.context_length,
        "vocab_size": vocab_size,
        "width": config.text_width,
        "heads": config.text_heads,
        "layers": config.text_layers,
    }
    if seed is None:
        return open_clip.CLIP(embed_dim=config.embed_dim, vision_cfg=vision, text_cfg=text)
    with seeded(seed):
        return open_clip.CLIP(embed_dim=config.embed_dim, vision_cfg=vision, text_cfg=text)


def load_mini_clip(pretrained: str | os.PathLike[str] | None = "entity-world") -> MiniClip:
    """Loads a small CLIP by name.

    Args:
        pretrained: "entity-world", the weights that ship with the package; :data:`ANY_WORDS`, the same with a tokenizer
            that takes any words; the path of a file that :func:`save_mini_clip` wrote; None: the shipped sizes and
            vocabulary with random weights.

    Raises:
        ValueError: there is no such file, or :func:`save_mini_clip` did not write it.
    """
    path = SHIPPED if pretrained in (None, "entity-world", ANY_WORDS) else Path(os.fspath(pretrained))
    if not path.is_file():
        raise ValueError(f"pretrained: expected 'entity-world' or a file of a small CLIP, found no {path}")
    try:
        tensors, metadata = read_tensors(path)
        about = parse_json(metadata.get("mini_clip", "null"), str(path))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"pretrained: {path} is no file of a small CLIP ({reason})") from None
    if not isinstance(about, dict) or not {"config", "vocabulary"} <= about.keys():
        raise ValueError(f"pretrained: {path} is no file of a small CLIP (it names neither sizes nor vocabulary)")
    state = {} if pretrained is None else {name: tensor.float() for name, tensor in tensors.items()}
    try:
        config = MiniClipConfig(**about.pop("config"))
        if max(config.layers, config.text_layers) > len(tensors):
            raise ValueError(f"it has {len(tensors)} tensors, fewer than the layers that it names")
        tokenizer = WordTokenizer(about.pop("vocabulary"), config.context_length, any_words=pretrained == ANY_WORDS)
        with torch.device("meta"):
            own = build_mini_clip(config, tokenizer.vocab_size).state_dict()
        if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in tensors.items()}:
            raise ValueError("its tensors are not those of the sizes that it names")
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"pretrained: {path} is no file of a small CLIP ({describe_error(error)})") from None
    clip = build_mini_clip(config, tokenizer.vocab_size)
    if state:
        clip.load_state_dict(state)
    clip.tokenizer = tokenizer  # keeps the vocabulary if only the CLIP is passed on
    return MiniClip(clip, tokenizer, config, about)


def save_mini_clip(mini: MiniClip, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Path:
    """Writes one safetensors file: weights in ``dtype``, and sizes, vocabulary and ``about`` as JSON metadata."""
    from safetensors.torch import save

    from alt.files import replacing

    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in mini.clip.state_dict().items()}
    about = {"config": asdict(mini.config), "vocabulary": mini.tokenizer.vocabulary, **mini.about}
    data = save(state, {"mini_clip": json.dumps(about)})
    with replacing(path, "the small CLIP") as file:
        file.write_bytes(data)
    return Path(path)
