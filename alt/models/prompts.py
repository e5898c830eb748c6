"""Prompt templates for class names: the two published lists, the bare name, and learned context vectors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt.hosts import find_host

__all__ = [
    "ALT16",
    "KINETICS28",
    "NONE",
    "PHOTO",
    "TEMPLATE_SETS",
    "LearnedPrompts",
    "check_room",
    "draw",
    "ensemble",
    "fill",
    "insert_vectors",
    "spread_ids",
    "templates_of",
    "token_embedding",
]

ALT16 = (
    "a photo of action {}",
    "a picture of action {}",
    "Human action of {}",
    "{}, an action",
    "{}, this is an action",
    "{}, a video of action",
    "Playing action of {}",
    "{}",
    "Playing a kind of action, {}",
    "Doing a kind of action, {}",
    "Look, the human is {}",
    "Can you recognize the action of {}",
    "Video classification of {}",
    "A video of {}",
    "The man is {}",
    "The woman is {}",
)
"""The 16 templates of X-CLIP (Ni et al. 2022) and ActionCLIP, which ALT's class texts use."""

KINETICS28 = tuple(
    f"{medium} {who}."
    for medium in ("a photo of", "a video of", "a example of", "a demonstration of")
    for who in (
        "{}",
        "a person {}",
        "a person using {}",
        "a person doing {}",
        "a person during {}",
        "a person performing {}",
        "a person practicing {}",
    )
)
"""The 28 templates that CLIP (Radford et al. 2021) uses for Kinetics, "a example" included."""

NONE = ("{}",)
"""The bare class name."""

PHOTO = ("a photo of a {}.",)
"""The one template of ViFi-CLIP and MAXI."""

TEMPLATE_SETS = {"alt16": ALT16, "kinetics28": KINETICS28, "none": NONE, "photo": PHOTO}


def templates_of(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the templates of a set (a key of ``TEMPLATE_SETS``), or a checked sequence of templates.

    Raises:
        ValueError: the name is unknown, there is no template, or a template does not have exactly one ``{}``.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise ValueError(f"templates must be one of {', '.join(TEMPLATE_SETS)} or a list, got {templates!r}")
        return TEMPLATE_SETS[templates]
    chosen = tuple(templates)
    if not chosen:
        raise ValueError("templates must hold at least one template")
    for template in chosen:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(f"a template has one {{}} for the class name, got {template!r}")
    return chosen


def fill(template: str, names: Sequence[str]) -> list[str]:
    """Returns the template with each name in place of its ``{}``. Braces in a name are kept."""
    before, after = template.split("{}")
    return [f"{before}{name}{after}" for name in names]


def ensemble(stack: Tensor, unit: bool = True) -> Tensor:
    """Returns one embedding per class ``[C, d]``: the mean over templates ``[P, C, d]``; ``unit``: of length 1."""
    mean = stack.mean(0)
    return F.normalize(mean, dim=-1) if unit else mean


def draw(stack: Tensor, seed: int) -> Tensor:
    """Draws one template of ``[P, C, d]`` by ``seed``, the same for all classes, and returns its ``[C, d]``.

    X-CLIP and ActionCLIP train with one random template per iteration and test with the ensemble. A seed gives the same
    template on every machine. In training, pass the step number.
    """
    generator = torch.Generator().manual_seed(seed)
    return stack[int(torch.randint(len(stack), (), generator=generator))]


class LearnedPrompts(nn.Module):
    """Class texts with learned context vectors in front of the name (CoOp, Zhou et al. 2022).

    ``forward() -> [C, d]`` returns unit embeddings of ``[start, v_1 .. v_n, name, end]`` by the frozen text tower, with
    gradient to v only. ``create_model(prompting="learned")`` trains such vectors inside a video model. By hand they
    replace the class embeddings of a cosine head::

        output = model(clips)
        logits = scale * F.normalize(output.embedding, dim=-1) @ prompts().T

    Args:
        clip: an open_clip model. Its ``encode_text`` is called; the model is not registered as a submodule.
        tokenizer: texts -> ids ``[n, context_length]``, start token first, zeros after the end token.
        names: C class names.
        length: number n of context vectors, shared by all classes.

    Raises:
        ValueError: there are no names, length is below 1, or a name does not fit behind the context.
    """

    def __init__(self, clip: Any, tokenizer: Any, names: Sequence[str], length: int = 16) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if not names:
            raise ValueError("names must hold at least one class name")
        self._clip = [clip]  # in a list, so not a submodule: its weights are neither saved nor optimised here
        weight = token_embedding(clip).weight
        self.vectors = nn.Parameter(torch.empty(length, weight.shape[1], device=weight.device))
        nn.init.normal_(self.vectors, std=0.02)
        ids = tokenizer(list(names))
        check_room(ids, length, names)
        self.register_buffer("ids", spread_ids(ids, length).to(weight.device), persistent=False)
        self.ids: Tensor

    def forward(self) -> Tensor:
        clip = self._clip[0]
        with _frozen(clip), insert_vectors(clip, self.vectors):
            embedded = find_host(clip).encode_text(clip, self.ids)
        return F.normalize(embedded.float(), dim=-1)


def check_room(ids: Tensor, length: int, names: Sequence[str]) -> None:
    """Raises ValueError if the texts of ids ``[C, context_length]`` do not fit behind ``length`` vectors."""
    long = (ids[:, ids.shape[1] - length :] != 0).any(1).nonzero()
    if len(long) or length >= ids.shape[1]:
        name = names[int(long[0])] if len(long) else names[0]
        raise ValueError(f"{name!r} does not fit behind {length} context vectors in {ids.shape[1]} tokens")


def spread_ids(ids: Tensor, length: int) -> Tensor:
    """Returns ids with room for ``length`` vectors behind the start token, which marks their places.

    Any id would do that the tower does not read as the end.
    """
    return torch.cat([ids[:, :1], ids[:, :1].expand(-1, length), ids[:, 1 : ids.shape[1] - length]], 1)


@contextmanager
def insert_vectors(clip: Any, vectors: Tensor) -> Any:
    """Puts vectors ``[n, w]`` at positions 1 .. n of every text that the tower embeds inside the block."""

    def put(_module: nn.Module, _args: Any, embedded: Tensor) -> Tensor:
        rows = vectors.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], rows, embedded[:, 1 + len(vectors) :]], 1)

    hook = token_embedding(clip).register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _frozen(clip: nn.Module) -> Any:
    """Trains none of the weights of ``clip`` inside the block."""
    trainable = [p for p in clip.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def token_embedding(clip: Any) -> Any:
    """Returns the module that turns the ids of a CLIP's texts into vectors."""
    return find_host(clip).token_embedding(clip)
