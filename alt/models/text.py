"""The frozen text encoder: embeddings of corpus entities, and of class names in prompt templates."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.corpus import TextSource
from alt.errors import refuse_unordered
from alt.hosts import find_host

from .prompts import draw, ensemble, fill, templates_of

__all__ = ["TextEncoder", "TextSource", "fingerprint_text_tower"]

T = TypeVar("T")


class TextEncoder:
    """Embeds texts as unit rows in CLIP's joint space, in batches and without gradient.

    Args:
        clip: a model with a text tower that a host knows (open_clip's, transformers', OpenAI's), on any device.
        tokenizer: list of texts -> ids ``[n, context_length]``. If it has ``count(texts)``, numbers of tokens without
            a limit, texts that it cuts are found by it.
        batch_size: texts per pass of the tower.
        backbone, pretrained: names of the model and its weights, for :meth:`source`.
    """

    def __init__(
        self,
        clip: Any,
        tokenizer: Callable[[list[str]], Tensor],
        batch_size: int = 256,
        *,
        backbone: str = "",
        pretrained: str | None = None,
    ) -> None:
        if not has_text_tower(clip):
            raise TypeError(f"clip must be a model with a text tower, got {type(clip).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.clip = clip
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.backbone, self.pretrained = backbone, pretrained

    def fingerprint(self) -> str:
        """Returns the hash of the text tower, see :func:`fingerprint_text_tower`."""
        return fingerprint_text_tower(self.clip)

    def source(self, templates: str | Sequence[str] = ()) -> TextSource:
        """Returns the record of this encoder with the ``templates`` of class names."""
        chosen = templates_of(templates) if len(templates) else ()
        return TextSource(self.backbone, self.pretrained, self.fingerprint(), chosen)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns ``[n, d]`` float32 rows of length 1 on the tower's device.

        A warning tells of texts that are longer than the tower reads, which are cut, and of two texts with the same
        tokens, which get one row.

        Raises:
            TypeError: ``texts`` is a single str or a set, or an entry is not a str.
            ValueError: there is no text.
        """
        refuse_unordered(texts, "texts")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a sequence of str")
        if not texts:
            raise ValueError("texts must hold at least one text")
        ids = self.tokenise(texts)
        same = find_same(ids, texts)
        if same is not None:
            _warn(f"texts: {same[0]!r} and {same[1]!r} have the same tokens, and so one embedding")
        return self._embed_ids(ids)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Returns ids ``[n, length]``, and warns of texts that were cut to this length."""
        ids = torch.cat([self.tokenizer(list(texts[i : i + 1024])) for i in range(0, len(texts), 1024)])
        length = ids.shape[1]
        count = getattr(self.tokenizer, "count", None)
        if count is not None:
            self._warn_of_cuts(texts, count(texts), length)
            return ids
        try:
            padding = self.tokenizer([""])[0, -1]
            full = (ids[:, -1] != padding).nonzero()[:, 0].tolist()
            # Once more with room: a text that is as long as the tower reads was not cut.
            tokenise: Any = self.tokenizer
            longer = tokenise([texts[i] for i in full], context_length=8 * length) if full else ids[:0]
        except (TypeError, ValueError):  # a tokenizer of the caller's that takes no length, or raises by itself
            return ids
        counts = dict(zip(full, (longer != padding).sum(1).tolist(), strict=True))
        self._warn_of_cuts(texts, [counts.get(i, 0) for i in range(len(texts))], length)
        return ids

    def _warn_of_cuts(self, texts: Sequence[str], counts: Sequence[int], length: int) -> None:
        cut = [(text, count) for text, count in zip(texts, counts, strict=True) if count > length]
        if cut:
            text, count = cut[0]
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            _warn(
                f"texts: {len(cut)} of {len(texts)} have more than the {length} tokens that the tower reads, and are "
                f"cut: {shown!r} ({count}) first",
                stacklevel=5,
            )

    def _embed_ids(self, ids: Tensor, unit: bool = True) -> Tensor:
        device, host = next(self.clip.parameters()).device, find_host(self.clip)
        training = self.clip.training
        self.clip.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                parts = (host.encode_text(self.clip, part.to(device)).float() for part in ids.split(self.batch_size))
                rows = [F.normalize(part, dim=-1) if unit else part for part in parts]
        finally:
            self.clip.train(training)
        return torch.cat(rows)

    def embed_templates(
        self, names: Sequence[str], templates: str | Sequence[str] = "alt16", unit: bool = True
    ) -> Tensor:
        """Embeds every name in every template, ``[P, C, d]``, from which ``prompts.draw`` picks one per step.

        unit: rows of length 1; False: of the length that the tower gives them.

        Raises:
            TypeError: ``names`` is one str or a set.
            ValueError: two names are the same, or have the same tokens in a template, so that no text tells them apart.
        """
        ids = self.tokenise_classes(names, templates)
        return self._embed_ids(ids.flatten(0, 1), unit).unflatten(0, ids.shape[:2])

    def tokenise_classes(self, names: Sequence[str], templates: str | Sequence[str] = "alt16") -> Tensor:
        """Returns the ids of every name in every template, int64 ``[P, C, length]``; errors as in embed_templates."""
        chosen = templates_of(templates)
        refuse_unordered(names, "names")
        if isinstance(names, str):
            raise TypeError("names must be a sequence of str, got one str")
        texts = [text for template in chosen for text in fill(template, names)]
        if not texts:
            self.embed(texts)  # raises
        ids = self.tokenise(texts)
        for part in ids.split(len(names)):
            same = find_same(part, range(len(names)))
            if same is not None:
                first, second = (names[i] for i in same)
                raise ValueError(
                    f"names: {first!r} and {second!r} have the same tokens for the text tower, so it cannot tell the "
                    "two classes apart"
                )
        return ids.view(len(chosen), len(names), -1)

    def embed_classes(
        self,
        names: Sequence[str],
        templates: str | Sequence[str] = "alt16",
        mode: str = "ensemble",
        seed: int = 0,
        unit: bool = True,
    ) -> Tensor:
        """Returns class embeddings ``[C, d]``.

        Args:
            names: C class names.
            templates: ``alt16``, ``kinetics28``, ``none`` or a list, see :mod:`alt.models.prompts`.
            mode: ``ensemble``: normalised mean over templates; ``random``: one template, drawn by ``seed``.
            seed: of the draw. The same seed gives the same template.
            unit: rows of length 1, also before the mean over templates; False: of the length that the tower gives them.

        Raises:
            TypeError: ``names`` is one str or a set.
            ValueError: the mode or set is unknown, there are no names, or two of them have the same tokens.
        """
        if mode not in ("ensemble", "random"):
            raise ValueError(f"mode must be 'ensemble' or 'random', got {mode!r}")
        chosen = templates_of(templates)
        if mode == "random":
            chosen = (chosen[int(draw(torch.arange(len(chosen)), seed))],)
        stack = self.embed_templates(names, chosen, unit)
        if len(stack) == 1:
            return stack[0]
        return ensemble(stack, unit)


def fingerprint_text_tower(clip: nn.Module) -> str:
    """Returns the SHA-256 of the text tower: names, shapes and values of its tensors, and its activation.

    Of each tensor it takes some 1024 evenly spaced values as bfloat16, in milliseconds. Training changes it, and
    the precision of the weights does not. On the device "meta" it is "".
    """
    parts = find_host(clip).text_modules(clip)
    kinds = sorted({type(module).__name__ for _, module in parts if "gelu" in type(module).__name__.lower()})
    digest = hashlib.sha256(" ".join(kinds).encode())
    for owner, module in sorted(parts, key=lambda part: part[0]):
        for name, parameter in module.named_parameters(owner, recurse=False):
            if parameter.is_meta:
                return ""
            if parameter.dim() == 0:  # the scale of the cosines, which training changes
                continue
            digest.update(f"{name} {list(parameter.shape)}".encode())
            values = parameter.detach().reshape(-1)
            picked = values[:: max(1, len(values) // 1024)].to("cpu", torch.bfloat16)
            digest.update(picked.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def has_text_tower(clip: Any) -> bool:
    """Returns True for a model of a host, with a text tower."""
    try:
        return find_host(clip).has_text(clip)
    except (TypeError, AttributeError):
        return False


def find_same(ids: Tensor, texts: Sequence[T]) -> tuple[T, T] | None:
    """Returns the first two different texts with the same ids, or None. Numbers stand for texts that may be equal."""
    seen: dict[bytes, T] = {}
    for row, text in zip(ids.cpu().numpy(), texts, strict=True):
        earlier = seen.setdefault(row.tobytes(), text)
        if earlier != text:
            return earlier, text
    return None


def _warn(message: str, stacklevel: int = 4) -> None:
    warnings.warn(message, UserWarning, stacklevel=stacklevel)
