"""Every shipped configuration has the numbers that the papers print, and differs from its neighbours where they say."""

from __future__ import annotations

import pytest

from alt.train.catalogue import names
from alt.train.config import load_config
from alt.validation import flatten

SHIPPED = [name for name in names() if not name.startswith("entity-world")]

# What the ALT paper says of every run; X-CLIP's recipe for augmentation and schedule, which it follows.
EVERYWHERE = {
    "optim.betas": [0.9, 0.98],
    "optim.eps": 1e-8,
    "optim.weight_decay": 1e-3,
    "optim.few_shot_scope": "adapter",
    "schedule.warmup_epochs": 5,
    "schedule.min_ratio": 0.01,
    "augmentation.crop_scales": [1.0, 0.875, 0.75, 0.66],
    "augmentation.color_jitter": 0.8,
    "augmentation.grayscale": 0.2,
    "augmentation.switch": 0.5,
    "data.size": 224,
    "data.resize": 256,
    "data.labels": "labels.csv",
    "data.stride": None,  # sparse
    "data.shots": None,
    "data.limit": None,
    "data.damaged": "replace",
    "model.pretrained": "openai",
    "model.texts": "clip",
    "evaluation.crops": 1,
    "evaluation.clips": 1,
    "evaluation.splits": [1],
    "evaluation.stride": None,
    "evaluation.subset": None,
    "evaluation.draws": None,
    "evaluation.class_draws": None,
    "evaluation.clip_share": 0,
    "task": "supervised",
}
MIXED = {"augmentation.mixup": 0.8, "augmentation.cutmix": 1.0, "augmentation.label_smoothing": 0.1}
ONE_HOT = {"augmentation.mixup": 0, "augmentation.cutmix": 0, "augmentation.label_smoothing": 0}
FULL = {"optim.lr": 8e-6, "optim.new_multiplier": 10, "optim.few_shot_multiplier": 1, "data.batch_size": 256,
        "schedule.epochs": 30, "evaluation.protocol": "supervised"}  # fmt: skip
FEW = {"schedule.epochs": 50, "data.batch_size": 64, "optim.few_shot_multiplier": 10,
       "evaluation.protocol": "few-shot"}  # fmt: skip
FEW_OF_XCLIP = {"optim.lr": 2e-6, "optim.few_shot_multiplier": 1}
OF_220 = {"evaluation.splits": [1], "evaluation.subset": 160, "evaluation.draws": 3,
          "evaluation.class_draws": "k600-160-of-220"}  # fmt: skip
ZERO = {"schedule.epochs": 10, "evaluation.protocol": "zero-shot"}
PROBE = {"optim.lr": 4e-4, "optim.new_multiplier": 1, "task": "linear-probe", "evaluation.protocol": "linear-probe"}
UNLABELLED = {"optim.lr": 5e-6, "schedule.epochs": 10, "task": "unlabelled", "evaluation.protocol": "zero-shot",
              "evaluation.splits": [1, 2, 3], "evaluation.clip_share": 0.2, "bags.dictionary": ["labels"],
              "bags.templates": "kinetics28", "bags.share": 0.9, "bags.size": 16, "bags.form": "sum",
              "bags.sigma": 0.02}  # fmt: skip
SCRATCH = {"optim.lr": 1e-4, "optim.new_multiplier": 1, "schedule.epochs": 100, "model.pretrained": None}
OURS = ("alt", "corpus", "decoder", "strategy", "reading", "tau", "components", "r0", "r4", "r8", "r13")
#: Rows of MAXI's ablations: the setting that each changes, and the share p of its table.
ROWS_OF_MAXI: dict[str, dict[str, object]] = {
    "names": {"bags.file": None, "bags.share": 1},
    "under": {"bags.dictionary": ["minikinetics"], "bags.share": 0.5},
    "over": {"bags.dictionary": ["labels", "datasets/verbs.txt"], "bags.share": 0.5},
    **{f"share{percent}": {"bags.share": percent / 100} for percent in (100, 50, 30)},
    **{form: {"bags.form": form, "bags.share": 1} for form in ("pairwise", "instance", "max")},
    "nce": {"bags.form": "one", "bags.share": 1},
    "ce": {"bags.form": "dictionary", "bags.share": 1},
    **{f"size{texts}": {"bags.size": texts, "bags.share": 1} for texts in (1, 4, 8)},
    **{f"cross{blocks}": {"model.options.cross_frame": blocks} for blocks in (2, 6)},
}
SETS = {"k400": "k400", "k600": "k600", "ssv2": "ssv2", "hmdb": "hmdb51", "ucf": "ucf101"}
#: MAXI's other sets, and their splits.
OTHERS = {"charades": [1], "mit": [1], "minissv2": [1], "uav": [1, 2]}
DENSE = {8: 8, 32: 2}  # frames -> how far they are apart in X-CLIP's rows of dense sampling


def expected(name: str) -> dict[str, object]:
    """The papers' numbers for a configuration, by what its name says."""
    words = name.split("-")
    wanted: dict[str, object] = {**EVERYWHERE, **MIXED, **FULL, "augmentation.flip": 0 if "ssv2" in words else 0.5}
    unlabelled = words[0] == "maxi" and not words[-1][0].isdigit()
    ours, frames = words[0] in OURS, 32
    if words[-1] == "4x3":
        words.pop()
        wanted |= {"evaluation.crops": 3, "evaluation.clips": 4}
    sampled = [words.pop(), words.pop()] if words[-1] in ("dense", "sparse") else []
    if words[-1][:-1].isdigit() and words[-1][-1] == "f":
        frames = int(words.pop()[:-1])
    data = next(SETS.get(word, word) for word in reversed(words) if word in {**SETS, **OTHERS})
    for key, how in zip(("evaluation.stride", "data.stride"), sampled, strict=False):
        wanted[key] = DENSE[frames] if how == "dense" else None
    if "336" in words:
        wanted |= {"data.size": 336, "data.resize": 384}
    if "probe" in words:
        wanted |= {**PROBE, **ONE_HOT}
        last = words[-1].removeprefix("split")
        wanted["evaluation.splits"] = [int(last)] if last.isdigit() else [1, 2, 3]
    elif unlabelled:
        frames = 16
        wanted |= {**UNLABELLED, **ONE_HOT, **(OF_220 if "k600" in words else {})}
        wanted["evaluation.splits"] = OTHERS.get(data, wanted["evaluation.splits"])
    elif words[-2:] == ["zero", "shot"]:
        wanted |= ZERO
        if words[0] in ("alt", "xclip") and frames == 32 and "k600" not in words:  # the others report the first split
            wanted["evaluation.splits"] = [1, 2, 3]
        if "k600" in words:
            wanted |= OF_220
    elif words[-1].endswith("shot"):
        wanted |= {**FEW, **({} if ours else FEW_OF_XCLIP), "data.shots": int(words[-1].removesuffix("shot"))}
        if words[0] == "maxi":
            wanted |= {"augmentation.mixup": 0, "augmentation.cutmix": 0}
        if "ssv2" not in words:
            wanted |= {"data.train_list": "train1.txt", "data.val_list": "test1.txt"}
    elif words[0] == "alt":
        wanted["evaluation.clips"] = 3
    elif words[0] == "scratch":
        wanted |= SCRATCH
    wanted |= {"model.frames": frames, "evaluation.frames": frames, "evaluation.sets": [data]}
    # the training of a zero-shot model is K400's
    wanted["data.root"] = "datasets/k400" if words[-2:] == ["zero", "shot"] or unlabelled else f"datasets/{data}"
    if unlabelled:
        wanted |= {"evaluation.sets": [data if words[-1] == "shot" else "hmdb51"], **ROWS_OF_MAXI.get(words[1], {})}
    if words[0] == "alt":
        large = words[1] == "l14"
        wanted |= {"model.name": f"alt-{words[1]}", "model.r": 8, "model.options.layers": 6 if large else 4}
    elif not ours:
        wanted |= {"model.r": 0, "model.corpus": None}
    elif words[:2] != ["components", "none"]:
        wanted |= {"model.name": "alt-b16", "model.r": 8}
    if words[:2] == ["components", "align"]:
        wanted["model.r"] = 8 if words[2] == "merge" else 0
    if words[0] in ("r0", "r4", "r8", "r13"):
        wanted["model.r"] = int(words[0][1:])
    if words[0] == "strategy":
        wanted["model.options.strategy"] = "-".join(words[1:-1])  # -k400 (8f is gone)
    if words[0] == "tau":
        wanted["model.options.tau"] = float(words[1])
    bare_names = words[0] == "xclip" and not {"text", "templates"} & {*words}
    wanted["model.templates"] = "none" if bare_names else "photo" if words[0] in ("vifi", "maxi") else "alt16"
    return wanted


@pytest.mark.parametrize("name", SHIPPED)
def test_configurations_are_those_of_the_papers(name: str) -> None:
    values = flatten(load_config(name))
    wanted = expected(name)
    assert {key: values.get(key, "(default)") for key in wanted} == wanted


def test_rows_that_differ_in_one_part() -> None:
    """Ablations: the switch that the row names, and nothing else beside it."""

    def options(name: str) -> dict[str, object]:
        return load_config(name).model.options

    assert options("decoder-none-k400-8f") == {"self_attention": False, "convolution": False}
    assert options("decoder-attention-hmdb-2shot") == {"convolution": False}
    assert options("decoder-convolution-ucf-zero-shot") == {"self_attention": False}
    assert options("decoder-both-k400-8f") == {}
    assert load_config("decoder-none-hmdb-2shot").model.init_from == "runs/decoder-none-k400-32f/model.safetensors"
    assert options("components-align-k400-8f") == {"align_tokens": "cls"}
    assert load_config("components-align-k400-8f").model.r == 0
    assert load_config("components-none-k400-8f").model.name == "mit-b16"
    kinds = {"body": ("body_part",), "object": ("object",), "scene": ("scene",), "motion": ("motion",), "all": None}
    assert {row: load_config(f"corpus-{row}-k400-8f").model.corpus_categories for row in kinds} == kinds
    assert options("corpus-none-k400-8f") == {"queries": "random"}

    assert load_config("strategy-stm-k400-8f").model.options == {"strategy": "stm"}
    readings = {name for name in SHIPPED if name.startswith("reading-")}
    assert len(readings) == 13
    assert all(len(options(name)) == 1 for name in readings)


def test_parts_of_x_clip() -> None:
    """Its components, its row without text, and its encoder without pretrained weights."""
    parts = {
        "xclip-messages-b16-k400-8f": ("xclip-b16", {"layers": 0, "prompt_layers": 0}),
        "xclip-messages-mit-b16-k400-8f": ("xclip-b16", {"prompt_layers": 0}),
        "xclip-b16-k400-8f-4x3": ("xclip-b16", {}),
        "xclip-no-text-b16-hmdb-2shot-8f": ("xclip-b16", {"prompt_layers": 0, "head": "linear"}),
        "clip-mean-no-text-b16-k400-8f": ("clip-mean-b16", {"head": "linear"}),
        "scratch-xclip-b32-k400-8f": ("xclip-b32", {"prompt_layers": 0, "head": "linear"}),
        "scratch-mean-b32-k400-8f": ("clip-mean-b32", {"head": "linear"}),
    }
    assert {name: (load_config(name).model.name, load_config(name).model.options) for name in parts} == parts


@pytest.mark.parametrize("name", [name for name in SHIPPED if load_config(name).model.init_from])
def test_a_run_starts_from_the_same_model_on_kinetics(name: str) -> None:
    """The run that ``init_from`` names ships, and its tower, frames, r and options are those of the row."""
    config = load_config(name)
    there = load_config(str(config.model.init_from).removeprefix("runs/").removesuffix("/model.safetensors"))
    assert there.data.root == "datasets/k400"
    probed = {"head": "linear"} if config.task == "linear-probe" else {}
    assert config.model.options == {**there.model.options, **probed}
    fields = ("name", "r", "templates", "corpus_categories")
    if there.task != "unlabelled":  # MAXI sees 16 frames of unlabelled clips, and then 32 of labelled ones
        fields += ("frames",)
    for field in fields:
        assert getattr(config.model, field) == getattr(there.model, field), field
