"""Every protocol of the papers by its command: shipped configurations on sets with the real class names and formats.

The clips are a few random ones, and the model is small: its CLIP is EntityWorld's, with the tokenizer that takes any
words. So what is tested is who meets whom: clips, classes, splits, draws, views, and the cells of the papers' tables.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("torchmetrics")

import alt
from alt.cli import build_app
from alt.data.action_names import name_to_text, read_action_names
from alt.data.clips import ClipFiles
from alt.data.few_shot import few_shot_indices
from alt.data.new_classes import RENAMED, read_draws
from alt.entityworld.mini_clip import ANY_WORDS
from alt.models.weights import save_model
from alt.train.data_sets import read_named_set

pytestmark = pytest.mark.slow

SMALL = [f"model.pretrained={ANY_WORDS}", "model.templates=none", "model.frames=4", "model.r=2", "data.size=24",
         "data.resize=24", "data.batch_size=8", "data.workers=0", "evaluation.frames=null", "trainer.strategy=auto",
         "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.progress=false",
         "trainer.validate_every=0"]  # fmt: skip
ALT = ["model.name=alt-mini", "model.options.layers=1", "model.options.grad_checkpointing=false"]
SHORT = ["schedule={steps: 2, warmup_steps: 1}"]
HMDB, UCF, SSV2 = (read_action_names(name) for name in ("hmdb51", "ucf101", "ssv2"))
K400, K600 = sorted(read_action_names("k400")), sorted(read_action_names("k600"))


def links(root: Path, clips: list[Path]) -> Iterator[Any]:
    """Yields a function that puts one of the clips at a place below ``root``."""
    count = 0

    def put(place: str) -> str:
        nonlocal count
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(clips[count % len(clips)])
        count += 1
        return place

    while True:
        yield put


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets in their own formats, described by data.yaml, and a model of Kinetics-400's classes."""
    home = tmp_path_factory.mktemp("protocols")
    generator = np.random.default_rng(0)
    clips = [home / f"{i}.npy" for i in range(7)]
    for clip in clips:
        np.save(clip, generator.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8))
    for name in ("lists/ucf", "lists/hmdb", "lists/k400", "lists/k600", "lists/ssv2", "lists/charades"):
        (home / name).mkdir(parents=True)

    put = next(links(home / "ucf", clips))
    (home / "lists/ucf/classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(UCF, 1)))
    for split in (1, 2, 3):
        test = [put(f"{name}/v_{name}_g0{split}_c01.npy") for name in UCF]
        train = [f"{put(f'{name}/v_{name}_g1{split}_c01.npy')} {i}" for i, name in enumerate(UCF, 1)]
        (home / f"lists/ucf/testlist0{split}.txt").write_text("\n".join(test) + "\n")
        (home / f"lists/ucf/trainlist0{split}.txt").write_text("\n".join(train) + "\n")

    put = next(links(home / "hmdb", clips))
    for name in (name.replace(" ", "_") for name in HMDB):
        names = [Path(put(f"{name}/clip{i}.npy")).name for i in range(18)]
        for split in (1, 2, 3):  # another clip is tested in each
            rows = [f"{clip} {2 if i == split else 0 if i == 0 else 1} " for i, clip in enumerate(names)]
            (home / f"lists/hmdb/{name}_test_split{split}.txt").write_text("\n".join(rows) + "\n")

    for data, names in (("k400", K400), ("k600", K600)):
        put = next(links(home / data, clips))
        for part in ("train", "val"):
            with (home / f"lists/{data}/{part}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
                for i, name in enumerate(names):
                    put(f"{part}/{name.replace('/', '-')}/{part}-_{i}_000003_000013.npy")
                    writer.writerow([name, f"{part}-_{i}", 3, 13, part])

    put = next(links(home / "ssv2", clips))
    templates = [name.replace("something", "[something]") for name in SSV2]
    (home / "lists/ssv2/labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(SSV2)}))
    for part, first in (("train", 0), ("validation", 5000)):
        rows = [{"id": str(first + 2 * i + j), "template": name} for i, name in enumerate(templates) for j in range(2)]
        for row in rows:
            put(f"{row['id']}.npy")
        (home / f"lists/ssv2/{part}.json").write_text(json.dumps(rows))

    put = next(links(home / "charades", clips))
    classes = "".join(f"c{i:03d} {name}\n" for i, name in enumerate(HMDB))
    (home / "lists/charades/Charades_v1_classes.txt").write_text(classes)
    rows = [f"V{i},c{i % 51:03d} 0 1;c{(7 * i + 1) % 51:03d} 0 1" for i in range(60)]
    (home / "lists/charades/Charades_v1_test.csv").write_text("id,actions\n" + "\n".join(rows) + "\n")
    for i in range(60):
        put(f"V{i}.npy")

    (home / "data.yaml").write_text(
        "ucf101: {format: ucf101, root: ucf, lists: lists/ucf}\n"
        "hmdb51: {format: hmdb51, root: hmdb, lists: lists/hmdb}\n"
        "k400: {format: kinetics, root: k400, lists: lists/k400}\n"
        "k600: {format: kinetics, root: k600, lists: lists/k600}\n"
        "ssv2: {format: ssv2, root: ssv2, lists: lists/ssv2}\n"
        "minissv2: {format: ssv2, root: ssv2, lists: lists/ssv2, classes: minissv2}\n"
        "charades: {format: charades, root: charades, lists: lists/charades}\n"
    )
    model = alt.create_model("alt-mini", pretrained=ANY_WORDS, layers=1, corpus=torch.randn(9, 48), r=2, classes=K400)
    save_model(model, home / "model.safetensors")
    return home


def run(*command: str, changes: Iterable[str]) -> str:
    result = CliRunner().invoke(build_app(), [*command, *(word for change in changes for word in ("--set", change))])
    assert result.exit_code == 0, result.output
    return result.output


def evaluate(
    home: Path,
    name: str,
    *changes: str,
    trained: bool = False,
    model: Path | None = None,
    small: Sequence[str] = (*SMALL, *ALT),
) -> dict[str, Any]:
    """``alt eval`` with a shipped configuration, made small: what results.json holds."""
    out, model = home / "results" / name, model or home / "model.safetensors"
    settings = [*small, *(SHORT if trained else []), f"data.sets={home / 'data.yaml'}", *changes]
    run("eval", str(model), "--config", name, "--out", str(out), "--batch", "64", changes=settings)
    return dict(json.loads((out / "results.json").read_text()))


def test_fully_supervised(home: Path) -> None:
    found = evaluate(home, "alt-b16-k400-8f")
    assert (found["videos"], len(found["per_class"])) == (400, 400)
    setting = found["setting"]
    assert (setting["crops"], setting["clips"], setting["protocol"]) == (1, 3, "supervised")


@pytest.mark.parametrize("shots", [2, 4, 8, 16])
def test_few_shot_on_the_first_split(home: Path, shots: int) -> None:
    found = evaluate(home, f"alt-b16-hmdb-{shots}shot", "model.corpus=labels", trained=True)
    assert found["setting"]["shots"] == shots
    assert (found["videos"], sorted(found["per_class"])) == (51, sorted(HMDB))  # one per class of split 1


def test_few_shot_on_something_something(home: Path) -> None:
    found = evaluate(home, "alt-b16-ssv2-2shot", trained=True)
    assert (found["videos"], list(found["per_class"])) == (348, SSV2)


@pytest.mark.parametrize(
    ("data", "names"),
    [("hmdb", sorted(HMDB)), ("ucf", sorted(name_to_text(name) for name in UCF))],
)
def test_zero_shot_on_three_splits(home: Path, data: str, names: list[str]) -> None:
    found = evaluate(home, f"alt-b16-{data}-zero-shot")
    results = found["results"]
    assert [result["setting"]["split"].split()[-1] for result in results] == ["1", "2", "3"]
    assert all((result["videos"], sorted(result["per_class"])) == (len(names), names) for result in results)
    values = [result["top1"] for result in results]
    assert found["top1"]["mean"] == pytest.approx(statistics.mean(values))
    assert found["top1"]["std"] == pytest.approx(statistics.stdev(values))


def test_kinetics_600(home: Path) -> None:
    published = evaluate(home, "alt-b16-k600-zero-shot")["results"]
    drawn = read_draws("k600-160-of-220").draws
    assert [sorted(result["per_class"]) for result in published] == [sorted(draw) for draw in drawn]
    assert [(result["videos"], result["setting"]["draw"]) for result in published] == [(160, 1), (160, 2), (160, 3)]
    random = evaluate(home, "xclip-b16-k600-zero-shot", "evaluation.class_draws=null", "model.name=alt-mini")["results"]
    assert random[0]["setting"]["protocol"] == "160 of 220 classes"
    chosen = [set(result["per_class"]) for result in random]
    assert len({frozenset(names) for names in chosen}) == 3
    assert not set.union(*chosen) & ({*K400} | {*RENAMED})


MAXI = [*SMALL, "model.name=maxi-mini", "bags.file=null", "bags.templates=none", "bags.prompts=bare", "bags.size=2"]


@pytest.fixture(scope="module")
def maxi(home: Path) -> Path:
    """The folder of a run on K400's clips without labels, with the names that match them as its bags."""
    folder = home / "runs" / "maxi"
    run("train", "maxi-b16-k400", "--out", str(folder), changes=[*MAXI, *SHORT, f"data.sets={home / 'data.yaml'}"])
    return folder


def test_maxi_from_clips_without_labels(home: Path, maxi: Path) -> None:
    bags = json.loads((maxi / "bags.json").read_text())
    assert len(bags["clips"]) == 400
    assert {bag["name"] for bag in bags["clips"]} <= {*K400}
    found = evaluate(home, "maxi-b16-k400", model=maxi / "model.safetensors", small=MAXI)
    assert [result["setting"]["split"].split()[-1] for result in found["results"]] == ["1", "2", "3"]
    assert all(sorted(result["per_class"]) == sorted(HMDB) for result in found["results"])


def test_minissv2(home: Path, maxi: Path) -> None:
    """MAXI's 87 classes, of Something-Something's own lists."""
    found = evaluate(home, "maxi-b16-minissv2-zero-shot", model=maxi / "model.safetensors", small=MAXI)
    assert (found["videos"], list(found["per_class"])) == (174, read_action_names("minissv2"))


def test_several_labels_per_clip(home: Path, maxi: Path) -> None:
    found = evaluate(home, "maxi-b16-charades-zero-shot", model=maxi / "model.safetensors", small=MAXI)
    assert found["confusion"] == []
    known = [value for value in found["per_class"].values() if value is not None]
    assert found["mean_average_precision"] == pytest.approx(statistics.mean(known))


def test_a_published_few_shot_list(home: Path) -> None:
    """ViFi-CLIP's lists name SSv2's clips as if all were in one folder; the shots of the configuration are theirs."""
    lines = [f"{2 * i + j}.webm {i}" for i in range(len(SSV2)) for j in (1, 0)]
    (home / "lists/ssv2/train1_few_shot_2.txt").write_text("\n".join(lines) + "\n")
    found = evaluate(home, "alt-b16-ssv2-2shot", "data.train_list=train1_few_shot_2.txt", trained=True)
    assert (found["setting"]["shots"], found["videos"]) == (2, 348)


def test_linear_probe_is_an_average_over_splits(home: Path) -> None:
    schedule = "schedule={epochs: 2, warmup_epochs: 1, warmup_steps: null, steps: null}"
    found = evaluate(home, "alt-b16-ucf-linear-probe", schedule, "data.batch_size=64")
    assert [result["setting"]["split"] for result in found["results"]] == [1, 2, 3]
    assert found["top1"]["mean"] == pytest.approx(statistics.mean(result["top1"] for result in found["results"]))


def test_draws_as_files(home: Path) -> None:
    """``alt data draw``: a list that trains the same run, and draws that the configuration reads back."""

    def draw(name: str, *changes: str) -> list[str]:
        settings = [f"data.sets={home / 'data.yaml'}", *changes]
        command = ["data", "draw", name, "--out", str(home / "drawn" / name)]
        result = CliRunner().invoke(
            build_app(), [*command, *(word for change in settings for word in ("--set", change))]
        )
        assert result.exit_code == 0, result.output
        return sorted(path.name for path in (home / "drawn" / name).iterdir())

    assert draw("alt-b16-hmdb-2shot", "evaluation.draws=2") == ["2shot-0.txt", "2shot-1.txt", "labels.csv"]
    folder = home / "drawn" / "alt-b16-hmdb-2shot"
    first, second = (ClipFiles(folder / f"2shot-{i}.txt", folder / "labels.csv", home / "hmdb") for i in (0, 1))
    assert torch.bincount(first.labels).tolist() == [2] * 51
    pool = ClipFiles(read_named_set(home / "data.yaml", "datasets/hmdb51", "train1.txt"))
    chosen = few_shot_indices(pool.labels, 2, 0)
    assert [entry.path for entry in first.entries] == [pool.entries[i].path for i in chosen]
    assert [entry.path for entry in second.entries] != [entry.path for entry in first.entries]
    assert first.class_names == pool.class_names
    assert draw("alt-b16-k600-zero-shot") == ["draws.csv"]
    assert read_draws(home / "drawn" / "alt-b16-k600-zero-shot" / "draws.csv") == read_draws("k600-160-of-220")
    nothing = CliRunner().invoke(
        build_app(), ["data", "draw", "alt-b16-k400-8f", "--out", str(home / "drawn" / "none")]
    )
    assert nothing.exit_code == 1
    assert "alt-b16-k400-8f draws nothing at random: data.shots or evaluation.subset is expected." in nothing.output


def test_the_tables(home: Path) -> None:
    """The cells of what was evaluated are filled, and all others say that they were not run."""
    runs = sorted(path.parent for path in (home / "results").glob("*/results.json"))
    assert len(runs) > 7
    result = CliRunner().invoke(build_app(), ["table", *map(str, runs), "--out", str(home / "tables")])
    assert result.exit_code == 0, result.output
    with (home / "tables" / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    filled = {row["configuration"] for row in rows if row["ours"]}
    assert filled == {path.name for path in runs}
    row = next(row for row in rows if row["configuration"] == "alt-b16-k600-zero-shot")
    assert row["results"] == "3"
    charades = json.loads((home / "results/maxi-b16-charades-zero-shot/results.json").read_text())
    row = next(row for row in rows if row["configuration"] == "maxi-b16-charades-zero-shot")
    assert float(row["ours"]) == pytest.approx(charades["mean_average_precision"])
    text = (home / "tables" / "tables.md").read_text()
    assert text.count("not run") == sum(1 for row in rows if not row["ours"] and ":" not in row["configuration"])
    pictures = {path.name for run in runs for path in run.glob("*.png")}
    assert {"confusion.png", "per-class.png", "confusion-3.png", "per-class-3.png"} <= pictures
