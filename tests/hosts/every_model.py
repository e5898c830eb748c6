"""Every model of open_clip, and of every family of timm, transformers and torchvision: patched exactly, or refused.

``python -m tests.hosts.every_model`` writes the counts into docs/hosts.md. A model is built at full size on the meta
device, and patched or refused there. What is patched must merge one token per block, and its cost must shrink as its
tokens do. It is built again with two layers and a small width: at r = 0 it must equal itself, at r > 0 the plain
reference.
"""

from __future__ import annotations

import collections
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import open_clip
import timm
import torch
import torchvision
import transformers as hf
from timm.models._registry import _model_to_module
from timm.models.vision_transformer import VisionTransformer
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import alt
from tests.patch.compare import flat, images, max_difference, randomised

from .all_families import FAMILIES as TESTED
from .families import PATCH, SIDE, WIDTH, Family, timm_blocks
from .plain_merging import PlainBlock, run_blocks
from .rotary_families import (
    PAIRS,
    axial,
    centred_places,
    dinov3_frequencies,
    eva_blocks,
    grid,
    mixed_frequencies,
    powers,
    shape,
)
from .supported_table import PAGE, replace_part
from .torch_families import multihead_block

BEGIN, END = "<!-- every:begin -->\n", "<!-- every:end -->"
REMOVED = (5, 3)
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
EXACT = "exact"
NO_HOST = "no host"
UNTESTED = "patched, not tested"
NOT_BUILT = "not built from its default configuration"


class Verdict(NamedTuple):
    """package, name: of the model. kind: its class. outcome: EXACT, NO_HOST, NOT_BUILT or the reason of a refusal."""

    package: str
    name: str
    kind: str
    outcome: str


def judge(package: str, name: str, full: Callable[[], Any], check: Callable[[], str]) -> Verdict:
    """Builds a model on the meta device and patches it. Whatever is neither patched nor refused as promised raises."""
    with torch.device("meta"):
        model = full()
    before = [type(module) for module in model.modules()]
    try:
        handle = alt.patch_model(model, 1)
    except TypeError as error:
        sentence = str(error)
        assert "\n" not in sentence, (name, sentence)
        assert [type(module) for module in model.modules()] == before, name
        return Verdict(package, name, type(model).__name__, reason_of(sentence))
    assert set(handle.schedule().removed) == {1}, name
    check_cost(model, handle, name)
    handle.remove()
    assert [type(module) for module in model.modules()] == before, name
    return Verdict(package, name, type(handle.tower).__name__, check())


COUNTED: set[str] = set()
"""Structures of towers whose cost was looked at."""


def check_cost(model: Any, handle: Any, name: str) -> None:
    """The projections and the MLP cost as many tokens as they see, attention the square of it."""
    after = handle.schedule().tokens
    first = after[0] + 1
    structure = f"{first} {handle.tower}"
    if structure in COUNTED:
        return
    COUNTED.add(structure)
    merged = alt.count_macs(model, frames=1).by_component
    handle.r = 0
    native = alt.count_macs(model, frames=1).by_component
    handle.r = 1
    before = [first, *after[:-1]]
    shares = {
        "mlp": Fraction(sum(after), first * len(after)),
        "attention_projections": Fraction(sum(before), first * len(after)),
        "attention": Fraction(sum(n * n for n in before), first**2 * len(after)),
    }
    for part, share in shares.items():
        assert native[part] > 0, (name, part)
        assert merged[part] == share * native[part], (name, part)


def reason_of(sentence: str) -> str:
    if "; pass its " in sentence:
        return "a model inside it is to be passed"
    return sentence.split(": ", 1)[1].rsplit("; ", 1)[0] if "cannot merge tokens" in sentence else NO_HOST


def check(tower: Any, family: Family, batch: torch.Tensor) -> None:
    """Compares at r = 0 with the model itself, and at r > 0 with the plain reference, in float64."""
    expected = family.run(tower, batch)
    x, places = family.embed(tower, batch), family.places(tower, batch)
    grids, _ = run_blocks(family.blocks(tower), x, REMOVED, family.protected, places)
    merged = family.finish(tower, grids[-1])
    scale = max(1.0, *(part.abs().max().item() for part in flat([expected, merged])))
    with alt.patch_model(tower, 0) as handle:
        assert max_difference(family.run(tower, batch), expected) < 1e-12 * scale
        handle.r = REMOVED
        assert max_difference(family.run(tower, batch), merged) < family.tolerance * scale


def once(seen: set[str], made: Any, family: Callable[[Any], Family], size: int) -> str:
    """Checks a small model, unless one of the same structure and options was checked."""
    tower = randomised(made.double()).eval()
    options = {name: value for name, value in tower.__dict__.items() if isinstance(value, (str, int, float, bool))}
    structure = f"{tower} {sorted(options.items())}"
    if structure not in seen:
        check(tower, family(tower), images(2, size=(size, size)))
        seen.add(structure)
    return EXACT


# --- open_clip ---


def open_clip_family(visual: Any) -> Family:
    def blocks(tower: Any) -> list[PlainBlock]:
        found = []
        for block in tower.transformer.resblocks:
            plain = multihead_block(block.attn, block.ln_1, block.ln_2, block.mlp)
            plain.gains = getattr(block.ls_1, "gamma", 1.0), getattr(block.ls_2, "gamma", 1.0)
            found.append(plain)
        return found

    def pooled(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tower._pool(tokens)[0] @ tower.proj  # the host's own pooling, which sees every patch

    def run(tower: Any, batch: torch.Tensor) -> torch.Tensor:
        output = tower(batch)
        return output[0] if tower.output_tokens else output

    return Family(lambda: visual, run, lambda m: m, lambda t, x: t._embeds(x), blocks, pooled)


def judge_open_clip() -> Iterator[Verdict]:
    seen: set[str] = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = {**config["vision_cfg"], "timm_model_pretrained": False}
        quick = config.get("quick_gelu", False)

        def full(width: int = config["embed_dim"], vision: Any = vision, quick: bool = quick) -> Any:
            return open_clip.CustomTextCLIP(width, vision, TEXT, quick_gelu=quick)

        def small(vision: Any = vision, quick: bool = quick) -> str:
            if "timm_model_name" in vision:
                return check_timm(vision["timm_model_name"], seen, vision.get("timm_pool", "avg"))
            sizes = {"layers": 2, "width": WIDTH, "head_width": WIDTH // 2, "patch_size": PATCH, "image_size": SIDE}
            made = open_clip.CustomTextCLIP(16, {**vision, **sizes}, TEXT, quick_gelu=quick).visual
            return once(seen, made, open_clip_family, SIDE)

        yield judge("open_clip", name, full, small)


# --- timm ---


def timm_family(tower: Any) -> Family:
    """How the tests read a tower of timm."""
    run, finish = (lambda m, x: [m(x), m.forward_features(x)]), (lambda m, g: [m.forward_head(m.norm(g)), m.norm(g)])
    if isinstance(tower, VisionTransformer):
        return Family(
            lambda: tower,
            run,
            lambda m: m,
            lambda t, x: t.norm_pre(t._pos_embed(t.patch_embed(x))),
            timm_blocks,
            finish,
            protected=tower.num_prefix_tokens,
        )
    frequencies, places = rotary_kind(tower)
    protected = tower.num_prefix_tokens

    def all_places(tower: Any, batch: torch.Tensor) -> torch.Tensor | None:
        return None if places is None else torch.cat([torch.zeros(protected, 2).double(), places(batch)])

    return Family(
        lambda: tower,
        run,
        lambda m: m,
        lambda t, x: t.norm_pre(t._pos_embed(t.patch_embed(x))[0]),
        lambda t: eva_blocks(t, frequencies),
        finish,
        protected=protected,
        places=all_places,
        tolerance=1e-5,  # timm keeps some tables of sines in float32
    )


def rotary_kind(tower: Any) -> tuple[Any, Any]:
    """Frequencies and places of a small Eva, from the options of its rotary embedding."""
    rope = tower.rope
    if rope is None:
        return None, None
    kind = type(rope).__name__
    if kind == "RotaryEmbeddingDinoV3" and rope.temperature == 100:
        return dinov3_frequencies, centred_places
    first = 1 if getattr(rope, "grid_indexing", "ij") == "xy" else 0  # x before y
    if kind == "RotaryEmbeddingMixed":
        return mixed_frequencies, lambda batch: grid(batch).roll(first, 1)
    assert kind == "RotaryEmbeddingCat", kind
    assert not rope.in_pixels
    frequencies = axial(powers(rope.temperature, PAIRS // 2))

    def places(batch: torch.Tensor) -> torch.Tensor:
        scale = 1 if rope.ref_feat_shape is None else torch.tensor(rope.ref_feat_shape) / shape(batch)
        return ((grid(batch) + rope.grid_offset) * scale).roll(first, 1)

    return (lambda tower, index: frequencies), places


def check_timm(name: str, seen: set[str], pool: str | None = None) -> str:
    """Builds a model of timm with two layers, as small as its stem allows, and checks it."""
    options: dict[str, Any] = {} if pool is None else {"global_pool": pool, "num_classes": 0}
    small = {"depth": 2, "embed_dim": WIDTH, "num_heads": 2, "img_size": SIDE, "patch_size": PATCH}
    if timm.is_model(name) and _model_to_module[name.split(".")[0]] == "eva":
        small["ref_feat_shape"] = 3
    if "sapiens2" in name:
        small["num_kv_heads"] = options["num_kv_heads"] = (1, 2)  # a list of one number per block
    try:
        made, size = timm.create_model(name, **{**options, **small}), SIDE
        made.eval()(images(1, torch.float32))
    except (TypeError, RuntimeError, AssertionError):  # a stem of its own fixes width and patches
        made, size = timm.create_model(name, **options, depth=2, img_size=64), 64
    return once(seen, made, timm_family, size)


PLAIN = ("vision_transformer", "deit", "eva", "vision_transformer_hybrid", "vitamin")
"""Modules of timm of which every model is asked; of the others the first."""


def judge_timm() -> Iterator[Verdict]:
    seen: set[str] = set()
    asked: set[str] = set()
    for name in timm.list_models():
        module = _model_to_module[name]
        if module in PLAIN or module not in asked:
            asked.add(module)
            yield judge("timm", name, lambda n=name: timm.create_model(n), lambda n=name: check_timm(n, seen))


# --- transformers and torchvision: what is patched is one of the families that tests/hosts/test_exact.py shows ---


def judge_transformers() -> Iterator[Verdict]:
    tasks = ("IMAGE_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "BACKBONE", "IMAGE", "VIDEO_CLASSIFICATION")
    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in tasks]
    kinds = {kind for table in tables for kind in table}
    names: dict[str, str] = {}
    for table in (modeling_auto.MODEL_MAPPING_NAMES, *tables):
        for kind, classes in table.items():
            for name in (classes,) if isinstance(classes, str) else classes:
                if kind in kinds:
                    names.setdefault(name, kind)
    for name, kind in sorted(names.items()):

        def full(name: str = name, kind: str = kind) -> Any:
            cls = getattr(hf, name)
            return cls((cls.config_class or CONFIG_MAPPING[kind])())

        try:
            with torch.device("meta"):
                full()
        except (AttributeError, ValueError, TypeError, ImportError):
            yield Verdict("transformers", name, name, NOT_BUILT)
        else:
            yield judge("transformers", name, full, lambda n=name: EXACT if n in TESTED else UNTESTED)


def judge_torchvision() -> Iterator[Verdict]:
    asked: set[str] = set()
    for name in torchvision.models.list_models(exclude=["quantized*", "regnet*"]):  # RegNet copies its weights
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ in asked:
            continue
        asked.add(builder.__module__)
        detects = any(part in builder.__module__ for part in (".detection", ".segmentation"))
        options = {"weights_backbone": None} if detects else {}
        yield judge("torchvision", name, lambda b=builder, o=options: b(weights=None, **o), lambda: EXACT)


JUDGES = {
    "open_clip": judge_open_clip,
    "timm": judge_timm,
    "transformers": judge_transformers,
    "torchvision": judge_torchvision,
}


@functools.cache
def judge_all(package: str) -> tuple[Verdict, ...]:
    """One verdict for each model of a package."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(JUDGES[package]())


def table(every: list[Verdict]) -> str:
    verdicts = [verdict for verdict in every if verdict.outcome != NOT_BUILT]
    lines = ["| package | models asked | patched and exact | refused with a reason | refused: no host |"]
    lines.append("| --- | --: | --: | --: | --: |")
    for package in dict.fromkeys(verdict.package for verdict in verdicts):
        found = [verdict.outcome for verdict in verdicts if verdict.package == package]
        exact, unknown = found.count(EXACT), found.count(NO_HOST)
        lines.append(f"| {package} | {len(found)} | {exact} | {len(found) - exact - unknown} | {unknown} |")
    lines += ["", "| refused because | models | of classes |", "| --- | --: | --- |"]
    reasons: dict[str, list[Verdict]] = collections.defaultdict(list)
    for verdict in verdicts:
        if verdict.outcome != EXACT:
            reasons[verdict.outcome].append(verdict)
    for reason, found in sorted(reasons.items(), key=lambda item: (item[0] == NO_HOST, -len(item[1]), item[0])):
        kinds = sorted({verdict.kind for verdict in found}, key=str.lower)
        shown = ", ".join(f"`{kind}`" for kind in (kinds if reason == NO_HOST else kinds[:5]))
        lines.append(f"| {reason} | {len(found)} | {shown}{', ...' if reason != NO_HOST and len(kinds) > 5 else ''} |")
    left_out = ", ".join(f"`{verdict.name}`" for verdict in every if verdict.outcome == NOT_BUILT)
    lines += ["", f"Not asked, because their default configuration or this machine cannot build them: {left_out}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    every = [verdict for package in JUDGES for verdict in judge_all(package)]
    PAGE.write_text(replace_part(PAGE.read_text(encoding="utf-8"), BEGIN, table(every), END), encoding="utf-8")
    for verdict in every:
        if verdict.outcome == UNTESTED:
            print(*verdict)
