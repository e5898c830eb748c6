"""Configurations: what ships, how they are put together, and one sentence for whatever is wrong."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from alt.errors import UserError
from alt.train.catalogue import expand, names
from alt.train.config import TrainConfig, from_tree, load_config
from alt.train.folder import first_difference
from alt.train.smoke import shrink
from alt.validation import plain


def test_rows_of_the_tables_ship() -> None:
    shipped = set(names())
    for size in ("b16", "l14"):
        for data in ("k400", "k600", "ssv2"):
            assert {f"alt-{size}-{data}-{frames}f" for frames in (8, 16, 32)} <= shipped
        for data in ("hmdb", "ucf", "ssv2"):
            assert {f"alt-{size}-{data}-{shots}shot" for shots in (2, 4, 8, 16)} <= shipped
        assert {f"alt-{size}-{data}-zero-shot" for data in ("hmdb", "ucf", "k600")} <= shipped
    assert {f"alt-b16-{d}-linear-probe-split{n}" for d in ("hmdb", "ucf") for n in (1, 2, 3)} <= shipped
    assert {f"strategy-{s}-k400-8f" for s in ("full", "frozen", "s", "sm", "stm")} <= shipped
    assert {f"r{r}-k400-8f" for r in (0, 4, 8, 13)} <= shipped
    protocols, kinds = ("k400-8f", "hmdb-2shot", "ucf-zero-shot"), ("none", "body", "object", "scene", "motion", "all")
    assert {f"corpus-{kind}-{p}" for kind in kinds for p in protocols} <= shipped
    rows = ("none", "align", "align-merge", "align-merge-region")
    assert {f"components-{row}-{p}" for row in rows for p in protocols} <= shipped
    assert {"entity-world-cpu", "entity-world-gpu"} <= shipped


@pytest.mark.parametrize("name", names())
def test_every_shipped_configuration_is_valid(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config.about
    assert from_tree(yaml.safe_load(config.to_yaml())) == config  # what a run's folder keeps is the configuration
    small, replaced = shrink(config)
    assert small.data.kind == "entity_world"
    assert small.schedule.steps == 2
    assert any("data.preset" in line for line in replaced)
    kept = ("optim", "augmentation", "evaluation", "task", "seed")
    assert all(getattr(small, group) == getattr(config, group) for group in kept)
    options = dict(config.model.options)
    if options.get("prompting") == "learned":
        options["prompt_vectors"] = 2  # of the 16 tokens that the small text tower reads
    if "cross_frame" in options:
        options["cross_frame"] = min(options["cross_frame"], 4)  # all blocks of the small tower
    assert small.model.options == options
    assert small.trainer.accumulate == config.trainer.accumulate
    assert small.trainer.precision == config.trainer.precision


def test_hyperparameters_of_the_paper() -> None:
    full = load_config("alt-b16-k400-8f")
    assert (full.optim.lr, full.optim.new_multiplier, full.optim.betas) == (8e-6, 10, (0.9, 0.98))
    assert (full.optim.weight_decay, full.optim.eps, full.data.batch_size) == (1e-3, 1e-8, 256)
    assert full.schedule.length(100) == (3000, 500)
    assert (full.model.r, full.evaluation.clips, full.evaluation.crops) == (8, 3, 1)
    assert load_config("alt-l14-k600-32f").model.options["layers"] == 6
    few = load_config("alt-b16-ucf-4shot")
    assert few.optim.lr * few.optim.new_multiplier * few.optim.few_shot_multiplier == pytest.approx(8e-4)
    assert (few.data.batch_size, few.data.shots, few.schedule.epochs, few.model.frames) == (64, 4, 50, 32)
    assert few.model.init_from == "runs/alt-b16-k400-32f/model.safetensors"
    assert load_config("alt-b16-k600-zero-shot").evaluation.draws == 3
    assert load_config("alt-b16-hmdb-zero-shot").schedule.epochs == 10
    probe = load_config("alt-b16-hmdb-linear-probe-split2")
    assert (probe.optim.lr, probe.task, probe.augmentation.label_smoothing) == (4e-4, "linear-probe", 0)
    assert probe.evaluation.splits == (2,)
    maxi = load_config("maxi-b16-k400")
    assert (maxi.task, maxi.optim.lr, maxi.schedule.epochs, maxi.model.frames) == ("unlabelled", 5e-6, 10, 16)
    assert (maxi.augmentation.mixup, maxi.augmentation.cutmix, maxi.augmentation.label_smoothing) == (0, 0, 0)
    assert (maxi.bags.share, maxi.bags.size, maxi.bags.form, maxi.bags.sigma) == (0.9, 16, "sum", 0.02)
    assert (maxi.bags.templates, maxi.bags.prompts, maxi.model.templates) == ("kinetics28", "photo", "photo")
    few = load_config("maxi-b16-ssv2-4shot")
    assert few.model.init_from == "runs/maxi-b16-k400/model.safetensors"
    assert (few.task, few.optim.lr, few.schedule.epochs, few.model.frames) == ("supervised", 2e-6, 50, 32)
    # a base names a run that ships, with the weights of the same row
    started = {n: load_config(n).model.init_from for n in names()}
    for name, path in started.items():
        if path is not None:
            assert path.removeprefix("runs/").removesuffix("/model.safetensors") in names(), name


def test_overrides_come_last_and_numbers_are_numbers() -> None:
    changes = ["optim.lr=1e-5", "model.options.gumbel=off", "data.val_split=", "model.r=[1, 2]", "seed=3"]
    config = load_config("alt-b16-k400-8f", changes)
    assert config.optim.lr == 1e-5
    assert config.model.options["gumbel"] == "off"
    assert config.data.val_split is None
    assert config.model.r == (1, 2)
    assert config.seed == 3
    assert config.optim.new_multiplier == 10


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", r"optim\.lrr is not a setting; did you mean 'lr'\?"),
        ("optm.lr=1", r"optm is not a setting; did you mean 'optim'\?"),
        ("model.options.gumbell=off", r"model\.options\.gumbell is not a setting; did you mean 'gumbel'\?"),
        ("model.options.frames=4", r"model\.options\.frames is not set here but by model\.frames"),
        ("model.options.tau=hot", r"model\.options\.tau must be a number, got 'hot'"),
        ("optim.lr=fast", r"optim\.lr must be a number, got 'fast'"),
        ("optim.lr=-1", r"optim\.lr must be above 0, got -1"),
        ("optim.betas=[0.9]", r"optim\.betas must be two numbers"),
        ("data.batch_size=1.5", r"data\.batch_size must be a whole number, got 1\.5"),
        ("data.workers=true", r"data\.workers must be a whole number, got True"),
        ("data=7", "data must be a group of settings, got 7"),
        ("trainer.strategy=dpp", r"trainer\.strategy must be one of auto, ddp, fsdp, got 'dpp'; did you mean 'ddp'\?"),
        ("trainer.progress=off", r"trainer\.progress must be true or false, got 'off'"),
        ("schedule.warmup_epochs=30", r"warmup_epochs \(30\) must be below schedule\.epochs \(30\)"),
        ("augmentation.flip=2", r"augmentation\.flip must be between 0 and 1, got 2"),
        ("augmentation.crop_scales=[2]", r"crop_scales must be a list of numbers above 0 and up to 1"),
        ("model.r={a: 1}", r"model\.r must be a whole number or a number or a list of whole numbers, got"),
        ("seed=-1", "seed must be 0 or more"),
        ("model.name=alt-b17", "model.name: expected one of alt-b32"),
        ("model.options.tau=0", r"model\.options\.tau must be above 0, got 0"),
        ("evaluation.crops=2", "crops must be one of 1, 3, got 2"),
        ("optim.lr=.nan", r"optim\.lr must be"),
        ("seed", "wants KEY=VALUE"),
        ("seed=[1", "--set seed line 1 is not valid YAML"),
    ],
)
def test_one_sentence_for_a_wrong_setting(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        load_config("alt-b16-k400-8f", [override])
    assert "\n" not in str(told.value)
    assert str(told.value)[-1] in ".?"


def test_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: alt-b16-k400-8f\noptim: {lr: 2e-6}\n")
    (tmp_path / "more.yaml").write_text("base: mine.yaml\nseed: 4\n")
    config = load_config(tmp_path / "more.yaml")
    assert (config.name, config.seed, config.optim.lr, config.data.batch_size) == ("more", 4, 2e-6, 256)
    for text, sentence in (
        ("a: [", "is not valid YAML"),
        ("- 1", "must hold groups of settings"),
        ("base: alt-b16-k400-9f", "is not a shipped configuration; did you mean 'alt-b16-k400-8f'"),
        ("base: bad.yaml", "goes in a circle"),
        ("modle: {}", "modle is not a setting; did you mean 'model'"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=sentence):
            load_config(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'none.yaml'} cannot be read: No such file")):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="neither a YAML file nor a shipped configuration"):
        load_config("alt-b16-k400")


def test_a_family_is_the_product_of_its_axes() -> None:
    tree = {
        "family": "{a}-{b}",
        "seed": 1,
        "about": "{a} with {b}",
        "axes": {"a": {"x": {"seed": 2}, "y": {}}, "b": {1: {"data": {"size": 1}}, 2: None}},
    }
    members = expand(tree)
    assert list(members) == ["x-1", "x-2", "y-1", "y-2"]
    assert members["x-1"] == {"seed": 2, "about": "x with 1", "data": {"size": 1}}
    assert members["y-2"] == {"seed": 1, "about": "y with 2"}


def test_schedule_length() -> None:
    section = TrainConfig().schedule
    assert dataclasses.replace(section, steps=600).length(10) == (600, 100)  # the warm-up keeps its share
    assert dataclasses.replace(section, steps=600, warmup_steps=7).length(10) == (600, 7)
    assert dataclasses.replace(section, epochs=1, warmup_epochs=0, steps=1).length(10) == (1, 0)


def test_what_a_resumed_run_may_change() -> None:
    config = load_config("entity-world-cpu")
    assert first_difference(config, load_config("entity-world-cpu", ["trainer.devices=2", "data.workers=3"])) is None
    config.model.options["layers"] = 2
    changed = load_config("entity-world-cpu", ["model.options.layers=3"])
    assert first_difference(config, changed) == "model.options.layers was 2 and is now 3"
    assert plain(config)["model"]["options"]["layers"] == 2


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "it has more than 10000 values"),
        ("a: &a {b: *a}", "a group is part of itself"),
        ("a: &a {<<: *a}", "a group is part of itself"),
        ("a: " + "[" * 20_000, "more than 32 groups are nested"),
        ("a: " + "{b: " * 20_000, "more than 32 groups are nested"),
        ("seed: " + "9" * 5000, "seed must be a whole number, got '999"),
        ("seed: 0x" + "f" * 5000, "seed must be a whole number, got '0xf"),
        ("seed: 010", "seed must be a whole number, got '010'"),
        ("seed: 1:30", "seed must be a whole number, got '1:30'"),
        ("seed: !!int 9_x", "is not valid YAML: invalid literal"),
        ("seed: !!timestamp 9", "is not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("optim: {lr: 1.0}\noptim: {lr: 2.0}", "line 2 is not valid YAML: 'optim' is set twice"),
        ("optim: {lr: 1.0, lr: 2.0}", "'lr' is set twice"),
        ("? {a: 1}\n: 2", "found unhashable key"),
        ("a: \x00", "special characters are not allowed"),
        ("# " + "x" * (1 << 18), "a text of at most 256 KiB is expected"),
    ],
)
def test_hostile_yaml_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    """Kind: aliases that multiply, nesting, tags, long numbers, and what YAML 1.1 reads as numbers."""
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_anchors_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeffbase: entity-world-cpu\nseed: &n 7\ndata: {shots_seed: *n}\n")
    config = load_config(tmp_path / "a.yaml")
    assert (config.seed, config.data.shots_seed) == (7, 7)
