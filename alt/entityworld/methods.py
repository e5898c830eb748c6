"""The rows of the comparison: which model, how it is trained, and how many steps that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .fine_tuning import FineTuning

__all__ = ["GROUPS", "METHODS", "Budget", "Method", "Plan"]


@dataclass(frozen=True)
class Method:
    """A row: a name of ``alt.create_model`` (or "mlp"), r, and options of its configuration.

    corpus: a category, "all", or None.
    training: "tokens": all but the frozen tower, on tokens that the tower made once; "clips": by the strategy of
        ``options``, everything without one; "bags": both towers, without labels, by MAXI's loss over bags of texts;
        "labels": the same clips by cross-entropy with the matched names as labels.
    wrong: share of wrong names added to the dictionary of "bags" and "labels".
    few_shot: whether it is trained further on K shots. templates: of the class names, None: those of the cache.
    """

    name: str
    model: str = "alt-mini"
    r: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    corpus: str | None = "all"
    training: Literal["tokens", "clips", "bags", "labels"] = "tokens"
    wrong: float = 0.0
    few_shot: bool = True
    templates: str | None = None

    @property
    def trained(self) -> bool:
        """Returns True if the method has something to train: CLIP-Mean has not while the tower is frozen."""
        return self.training != "tokens" or self.model != "clip-mean-mini"


@dataclass(frozen=True)
class Budget:
    """Training on cached tokens: steps of AdamW on the seen classes and on K shots; learning rate, batch, decay."""

    steps: int = 1500
    few_shot_steps: int = 100
    batch_size: int = 32
    lr: float = 3e-3
    few_shot_lr: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class Plan:
    """How much every cell of the comparison is trained.

    tokens: on cached tokens. clips: of whole models on the seen classes, then ``few_shot`` on K shots. bags: without
    labels. shots: the K. probe_steps: of the linear probe.
    """

    tokens: Budget = field(default_factory=Budget)
    clips: FineTuning = field(default_factory=lambda: FineTuning(500, 8, lr=1e-4, new_multiplier=30.0, warmup=0.05))
    few_shot: FineTuning = field(default_factory=lambda: FineTuning(30, 8, lr=1e-4, new_multiplier=10.0))
    bags: FineTuning = field(default_factory=lambda: FineTuning(120, 32, lr=3e-5, warmup=0.05))
    shots: tuple[int, ...] = (2, 4, 8, 16)
    probe_steps: int = 200

    @classmethod
    def tiny(cls) -> Plan:
        """Returns a plan of a few steps, to see that everything runs."""
        few = FineTuning(steps=2, batch_size=4)
        return cls(Budget(steps=20, few_shot_steps=5), few, few, few, (2,), 3)

    def with_steps(self, steps: int | None) -> Plan:
        """Returns the plan with ``steps`` on the seen classes for every kind of training; None changes nothing."""
        if steps is None:
            return self
        tokens = dataclasses.replace(self.tokens, steps=steps)
        clips, bags = (dataclasses.replace(part, steps=steps) for part in (self.clips, self.bags))
        return dataclasses.replace(self, tokens=tokens, clips=clips, bags=bags)


def _adapter(name: str, r: int = 2, corpus: str | None = "all", **options: Any) -> Method:
    return Method(name, r=r, options=options, corpus=corpus)


def _tuned(name: str, model: str, r: int = 0, few_shot: bool = True, **options: Any) -> Method:
    corpus = "all" if model == "alt-mini" else None
    return Method(name, model, r, options, corpus, "clips", few_shot=few_shot)


def _unlabelled(name: str, wrong: float = 0.0, training: Literal["bags", "labels"] = "bags") -> Method:
    return Method(name, "maxi-mini", 0, {}, None, training, wrong, few_shot=False, templates="photo")


_GROUPS: dict[str, tuple[Method, ...]] = {
    "systems": (
        _tuned("tuned CLIP-Mean", "clip-mean-mini"),
        _tuned("tuned X-CLIP", "xclip-mini"),
        _tuned("tuned ALT", "alt-mini", 2),
        _tuned("tuned ViFi-CLIP", "vifi-mini"),
        _tuned("tuned CLIP-One", "clip-one-mini"),
        _tuned("tuned CLIP-Joint", "clip-joint-mini"),
        _tuned("tuned X-CLIP no prompts", "xclip-mini", prompt_layers=0),
        _tuned("tuned CLIP-Mean no texts", "clip-mean-mini", few_shot=False, head="linear"),
    ),
    "unlabelled": (
        Method("CLIP-Mean photo prompt", "clip-mean-mini", 0, corpus=None, templates="photo"),  # nothing trained
        _unlabelled("MAXI"),
        _unlabelled("MAXI 50 % wrong names", 0.5),
        _unlabelled("MAXI 100 % wrong names", 1.0),
        _unlabelled("pseudo-labels", training="labels"),
    ),
    "merging": tuple(
        _tuned(f"tuned {name} r={r}", model, r, few_shot=False)
        for name, model in (("X-CLIP", "xclip-mini"), ("ViFi-CLIP", "vifi-mini"))
        for r in (2, 4)
    ),
    "strategies": tuple(
        _tuned(f"ALT strategy {strategy}", "alt-mini", 2, few_shot=False, strategy=strategy)
        for strategy in ("frozen", "s", "sm", "stm")
    ),
    "adapters": (
        Method("CLIP-Mean", "clip-mean-mini", 0, corpus=None),  # nothing trained
        Method("MIT", "mit-mini", 0, corpus=None),
        _adapter("ALT r=2", 2),
        Method("MLP", "mlp", 0, corpus=None),
        _adapter("ALT no conv", convolution=False),
        _adapter("ALT literal init", init="literal"),
        _adapter("ALT r=0", 0),
        _adapter("ALT r=4", 4),
        _adapter("ALT r=6", 6),
        _adapter("ALT r=0 cls", 0, align_tokens="cls"),
        _adapter("ALT cls only", align_tokens="cls"),
        _adapter("ALT random queries", queries="random", corpus=None),
        _adapter("ALT no SA", self_attention=False),
        _adapter("ALT no SA no conv", self_attention=False, convolution=False),
        _adapter("ALT scale 1", sim_scale=1.0),
        _adapter("ALT scale 10", sim_scale=10.0),
        _adapter("ALT scale 100", sim_scale=100.0),
        _adapter("ALT objects", corpus="object"),
        _adapter("ALT body parts", corpus="body_part"),
        _adapter("ALT scenes", corpus="scene"),
        _adapter("ALT motions", corpus="motion"),
    ),
}

METHODS: dict[str, Method] = {method.name: method for group in _GROUPS.values() for method in group}
"""Name -> method. "ALT r=2" is the model as it comes with its tower frozen, "tuned ALT" the same with all trained."""

GROUPS: dict[str, tuple[str, ...]] = {name: tuple(method.name for method in group) for name, group in _GROUPS.items()}
"""Name of a group -> its methods, in the order in which they are run."""
