"""The smoke run of a configuration: two steps of the same training on a small model and generated clips."""

from __future__ import annotations

from dataclasses import replace

from alt.models.families import FAMILIES, parse_name
from alt.validation import flatten

from .config import TrainConfig


def shrink(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Returns the same run on the small model and the smallest EntityWorld for two steps, and the replaced settings.

    Strategy, alignment, optimiser, augmentation, precision, accumulation and protocol are kept.
    """
    r, shots = config.model.r, config.data.shots
    family = parse_name(config.model.name)[0]
    holds_text = FAMILIES[family].config(**config.model.options).text != "cached"  # then a CLIP's ids are needed
    options = dict(config.model.options)
    if options.get("prompting") == "learned":
        options["prompt_vectors"] = 2  # the small text tower reads 16 tokens
    if "cross_frame" in options:
        options["cross_frame"] = min(options["cross_frame"], 4)  # and the image tower has four blocks
    model = replace(
        config.model,
        options=options,
        name=f"{family}-mini",
        pretrained="entity-world" if holds_text else None,
        texts="clip" if holds_text else "random",
        templates="none" if holds_text else config.model.templates,
        init_from=None,
        corpus=config.model.corpus if config.model.corpus in (None, "labels") else "world",
        frames=4,
        # The small tower has four blocks of 37 tokens at most; a list of another length would not fit it.
        r=4 if isinstance(r, tuple) else min(r, 4) if isinstance(r, int) else r,
    )
    data = replace(
        config.data,
        kind="entity_world",
        preset="tiny",
        train_split="seen-train",
        val_split="seen-test",
        batch_size=4,
        shots=None if shots is None else min(shots, 4),  # the smallest world has four clips per class
        limit=8,
        workers=0,
    )
    schedule = replace(config.schedule, steps=2, warmup_steps=1)
    trainer = replace(config.trainer, accelerator="cpu", devices=1, nodes=1, strategy="auto", checkpoint_every=None)
    # The small CLIP knows the words of EntityWorld alone.
    bags = replace(config.bags, file=None, dictionary=("labels",), templates="none", prompts="bare")
    small = replace(config, model=model, data=data, schedule=schedule, trainer=trainer, bags=bags)
    before, after = flatten(config), flatten(small)
    return small, [f"{key}: {before.get(key)} -> {after[key]}" for key in after if before.get(key) != after[key]]
