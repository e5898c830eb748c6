"""The towers of the CPU table, and the forms in which each of them can run: eager, compiled, exported.

Weights are random, because time does not depend on them, and the same in every run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import rival_tower
import runtimes
import torch
import torch._inductor.config
from rivals import compiled
from torch import Tensor, nn

import alt
from alt.patch.twin import share_weights

UNMERGED, OURS, PLAIN = "unmerged", "ours", "plain ToMe"
EAGER, COMPILED, FROZEN = "eager", "compiled", "compiled, frozen"
FORMS = (EAGER, COMPILED, FROZEN, *runtimes.RUNTIMES)


class Subject(NamedTuple):
    """A tower of the table.

    title: of its table. make: builds it in evaluation mode. pixels: height and width of its images.
    """

    title: str
    make: Callable[[], nn.Module]
    pixels: int


class Entrant(NamedTuple):
    """A row and a column of the table: who merges, how many tokens per block, and in which form."""

    who: str
    r: int
    form: str

    def __str__(self) -> str:
        return f"{row_name(self.who, self.r)}, {self.form}"


def row_name(who: str, r: int) -> str:
    return who if who == UNMERGED else f"{who}, r = {r}"


def file_name(name: str, who: str, r: int) -> str:
    """Returns the name of the exported file of the subject ``name``."""
    return f"{name}-{row_name(who, r)}".replace(", r = ", "-r").replace(" ", "-")


class Embedding(nn.Module):
    """A tower whose result is the embedding alone."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        result: Any = self.tower(images)
        return result if isinstance(result, Tensor) else result.pooler_output


class PlainMerging(nn.Module):
    """The same tower with token merging as commonly written, see `rival_tower`."""

    def __init__(self, tower: nn.Module, r: int) -> None:
        super().__init__()
        self.tower, self.r = tower, r

    def forward(self, images: Tensor) -> Tensor:
        return rival_tower.forward(self.tower, images, self.r)


def make_open_clip() -> nn.Module:
    import open_clip

    return open_clip.create_model("ViT-B-16", precision="fp32").visual


def make_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def make_transformers() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(patch_size=16))  # sdpa is its default


SUBJECTS = {
    "open_clip": Subject("CLIP B/16 of open_clip", make_open_clip, 224),
    "timm": Subject("CLIP B/16 of timm", lambda: make_timm("vit_base_patch16_clip_224"), 224),
    "transformers": Subject("CLIP B/16 of transformers", make_transformers, 224),
    "siglip": Subject("SigLIP B/16 of timm, 576 tokens", lambda: make_timm("vit_base_patch16_siglip_384"), 384),
}


def build(subject: Subject) -> nn.Module:
    """Returns the subject's tower with the weights of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return subject.make().eval()


def entrants(removed: tuple[int, ...], forms: tuple[str, ...] = FORMS) -> list[Entrant]:
    """Returns who runs: unmerged and ours in every form, and plain ToMe in the runtimes, where it merges."""
    found = [Entrant(UNMERGED, 0, form) for form in forms]
    for r in removed:
        found += [Entrant(OURS, r, form) for form in forms]
        found += [Entrant(PLAIN, r, form) for form in forms if r > 0 and form in runtimes.RUNTIMES]
    return found


def module_of(who: str, tower: nn.Module, r: int) -> nn.Module:
    """Returns images -> embedding of the tower, which keeps its classes; the weights are shared."""
    if who == PLAIN:
        return PlainMerging(tower, r).eval()
    twin = share_weights(tower)
    if who == OURS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # r = 16 runs out of tokens in the last block
            alt.patch_model(twin, r=r)
    return Embedding(twin).eval()


def _with_own_code(function: Any) -> Callable[..., Any]:
    """Returns the function with a copy of its code: graphs belong to code, are 8 at most, and are tried in turn."""
    return FunctionType(function.__code__.replace(), function.__globals__, closure=function.__closure__)


def start(entrant: Entrant, name: str, module: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Returns a call of ``module`` in the entrant's form on fixed images; ``name`` is that of the subject."""
    if entrant.form in runtimes.RUNTIMES:
        file = runtimes.export_once(file_name(name, entrant.who, entrant.r), module, images)
        return runtimes.RUNTIMES[entrant.form][1](file, images)
    run: Callable[[Tensor], Tensor] = module
    if entrant.form != EAGER:
        run = compiled(_with_own_code(lambda images: module(images)))

    def call() -> Tensor:
        with torch.no_grad() if entrant.form == FROZEN else torch.inference_mode():
            return run(images)

    if entrant.form != EAGER:  # the first call compiles; frozen weights are constants, packed for the products
        with torch._inductor.config.patch(freezing=entrant.form == FROZEN):
            call()
    return call
