"""What a configuration's `evaluation` says is what happens: on EntityWorld and on list files, protocol by protocol."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

pytest.importorskip("torchmetrics")

import alt
from alt.cli import build_app
from alt.data.few_shot import few_shot_indices
from alt.entityworld.mini_clip import load_mini_clip, save_mini_clip
from alt.entityworld.world import World, write_to_disk
from alt.errors import UserError
from alt.evaluate.class_texts import open_class_texts
from alt.evaluate.execute import Evaluated, Placement, execute
from alt.files import read_tensors
from alt.models.registry import create_text_encoder
from alt.models.text import TextSource
from alt.models.weights import load_model, save_model
from alt.train.build import RandomTextEncoder
from alt.train.config import load_config
from tests.patch.compare import randomised

TINY = ["data.preset=tiny", "model.templates=none", "data.batch_size=8", "trainer.progress=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on the tiny world's seen classes, and beside it that world as list files: train, test and new classes."""
    root = tmp_path_factory.mktemp("execute")
    world = World("tiny")
    classes = list(world.split("seen-test").class_names)
    corpus = alt.Corpus.from_entities([tuple(entity)[:3] for entity in world.entities()])
    model = alt.create_model("alt-mini", pretrained="entity-world", classes=classes, corpus=corpus, strategy="frozen")
    save_model(model, root / "model.safetensors")
    for name, split in (("seen", "seen-test"), ("new", "transfer-b-1")):
        listed = write_to_disk(world, world.split(split), root / name, "npy")
        listed.rename(root / name / "test1.txt")
    (root / "seen" / "train.txt").write_text((root / "seen" / "test1.txt").read_text())
    return root


def path(folder: Path) -> Path:
    return folder / "model.safetensors"


def run(folder: Path, *overrides: str, source: str = "entity-world-cpu", **options: Any) -> Evaluated:
    return execute(load_config(source, [*TINY, *overrides]), path(folder), **options)


def lists_of(folder: Path) -> list[str]:
    return ["data.kind=frames", f"data.root={folder / 'seen'}", "data.train_list=train.txt", "data.val_list=test1.txt",
            "data.size=24", "data.resize=24"]  # fmt: skip


def test_supervised_on_the_world_and_on_the_same_clips_from_disk(folder: Path) -> None:
    world, disk = run(folder), run(folder, *lists_of(folder))
    assert world.protocol == "supervised"
    assert world.results[0].top1 == disk.results[0].top1 == world.top1.mean > 20
    assert world.results[0].confusion == disk.results[0].confusion
    assert run(folder, "data.limit=5").results[0].videos == 5


def test_views_frames_and_r_are_those_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Size, Any]] = []
    from alt.models.video_model import VideoModel

    forward = VideoModel.forward

    def watch(self: VideoModel, clips: torch.Tensor, **options: Any) -> Any:
        seen.append((clips.shape, self.r))
        return forward(self, clips, **options)

    monkeypatch.setattr(VideoModel, "forward", watch)
    found = run(folder, *lists_of(folder), "evaluation={frames: 3, crops: 3, clips: 2}", "data.limit=1", r=1)
    assert sum(shape[0] for shape, _ in seen if shape[1:] == (3, 3, 24, 24)) >= 6
    assert {r for _, r in seen} == {1}
    setting = found.results[0].setting
    assert (setting["frames"], setting["crops"], setting["clips"], setting["r"]) == (3, 3, 2, 1)
    model = alt.create_model("mit-mini", pretrained="entity-world", classes=list(load_model(path(folder)).classes))
    save_model(model, folder / "mit.safetensors")  # it has learned positions of its frames
    with pytest.raises(UserError, match=r"frames: .* has weights for 4 frames, got 3"):
        execute(load_config("entity-world-cpu", [*TINY, "evaluation.frames=3"]), folder / "mit.safetensors")


@pytest.mark.parametrize("place", ["world", "lists"])
def test_linear_probe(folder: Path, place: str) -> None:
    where = lists_of(folder) if place == "lists" else []
    probe = ["evaluation.protocol=linear-probe", "optim.lr=1e-2", "schedule={epochs: 20, warmup_epochs: 1}"]
    found = run(folder, *where, *probe)
    assert found.protocol == "linear probe"
    assert found.top1.mean > 30
    setting = found.results[0].setting
    assert setting["epochs"] == 20  # the schedule of the configuration
    assert setting["lr"] == pytest.approx(1e-1)
    asked: list[int] = []
    done: list[int] = []

    @contextlib.contextmanager
    def bar(what: str, total: int) -> Iterator[Any]:
        asked.append(total)
        yield lambda count, of: done.append(count)

    few = run(folder, *where, *probe, "data.shots=1", where=Placement(progress=bar))
    assert few.top1.mean <= found.top1.mean
    assert done == sorted(set(done)), "videos done grow over both sets"
    assert done[-1] == asked[0] > few.results[0].videos  # the training clips count as well
    with pytest.raises(UserError, match="expected a single view for a linear probe, got 1x3"):
        run(folder, *where, *probe, "evaluation.clips=3")
    trained = load_config("alt-b16-ucf-linear-probe-split1")
    assert run(folder, *where, *probe, trained=trained).protocol == "linear-probe"  # probed before: only tested


def test_linear_probe_of_several_splits(folder: Path) -> None:
    seen = folder / "seen"
    lines = (seen / "test1.txt").read_text().splitlines()
    for split in (2, 3):
        (seen / f"train{split}.txt").write_text("\n".join(lines[split::2]) + "\n")
        (seen / f"test{split}.txt").write_text("\n".join(lines[: 5 * split]) + "\n")
    probe = ["evaluation={protocol: linear-probe, splits: [2, 3]}", "schedule={epochs: 2, warmup_epochs: 1}"]
    found = run(folder, *lists_of(folder), *probe)
    assert [(result.setting["split"], result.videos) for result in found.results] == [(2, 10), (3, 15)]
    assert found.top1.seeds == (2, 3)
    assert found.top1.mean == pytest.approx((found.results[0].top1 + found.results[1].top1) / 2)
    with pytest.raises(UserError, match=r"evaluation\.splits: expected one for clips of a generated world, got 2"):
        run(folder, *probe)


@pytest.mark.parametrize("place", ["world", "lists"])
def test_few_shot_trains_once_per_draw_from_the_checkpoint(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import alt.train.run as training

    runs: list[Any] = []
    fit = training.fit

    def watch(config: Any, *arguments: Any, **options: Any) -> Any:
        runs.append(config)
        return fit(config, *arguments, **options)

    monkeypatch.setattr(training, "fit", watch)
    where = lists_of(folder) if place == "lists" else []
    said: list[str] = []
    corpus = ["model.corpus=labels"] if place == "lists" else []
    overrides = [*corpus, "evaluation={protocol: few-shot, draws: 2}", "data.shots=2", "data.shots_seed=5",
                 "schedule={steps: 2, warmup_steps: 1}", "trainer.validate_every=0"]  # fmt: skip
    found = run(folder, *where, *overrides, say=said.append)
    assert found.protocol == "2-shot"
    assert found.top1.seeds == (5, 6)
    assert [result.setting["shots_seed"] for result in found.results] == [5, 6]
    assert [(c.data.shots, c.data.shots_seed) for c in runs] == [(2, 5), (2, 6)]
    assert all(c.model.init_from == str(folder / "model.safetensors") for c in runs)
    labels = World("tiny").split("seen-train").labels if place == "world" else None
    if labels is not None:
        assert said[0] == f"2-shot, draw 5: trains on {len(few_shot_indices(labels, 2, 5))} clips."
    tested = run(folder, *where, *overrides, trained=runs[0])
    assert tested.protocol == "2-shot, draw 5, few-shot"
    assert len(runs) == 2  # a run of `alt train` with shots is only tested
    with pytest.raises(UserError, match="expected the run's 2 clips per class of draw 5, got 4 of draw 5"):
        run(folder, *where, *overrides, "data.shots=4", trained=runs[0])
    merged = run(folder, *where, *overrides, "evaluation.draws=1", r=1)
    assert [result.setting["r"] for result in merged.results] == [1]  # after the training as well
    with pytest.raises(UserError, match=r"data\.shots must be the number"):
        run(folder, *where, "evaluation.protocol=few-shot")
    with pytest.raises(UserError, match=r"data\.shots: expected 999 samples"):
        run(folder, *where, "evaluation.protocol=few-shot", "data.shots=999")


def test_a_share_of_clips_weights(tmp_path: Path) -> None:
    """With all of CLIP's weights it is CLIP that is tested; a model that CLIP cannot be averaged with is refused."""
    before = alt.create_model("maxi-mini", pretrained="entity-world").eval()
    before.name_classes(["lifting cup"], create_text_encoder("maxi-mini", pretrained="entity-world"), "none")
    save_model(before, tmp_path / "before.safetensors")
    save_model(randomised(before, 0.2), tmp_path / "trained.safetensors")

    def test(name: str, share: float) -> dict[str, Any]:
        changes = [*TINY, "data.val_split=transfer-b-1", f"evaluation={{protocol: zero-shot, clip_share: {share}}}"]
        return execute(load_config("entity-world-maxi", changes), tmp_path / name).results[0].to_dict()

    clip, mean = test("before.safetensors", 0), test("trained.safetensors", 1)
    assert (clip["setting"].pop("clip_share"), mean["setting"].pop("clip_share")) == (0, 1)
    assert mean == clip
    assert test("trained.safetensors", 0)["per_class"] != clip["per_class"]
    save_model(alt.create_model("mit-mini", pretrained="entity-world", classes=["cup"]), tmp_path / "mit.safetensors")
    with pytest.raises(
        UserError, match=r"clip_share: the checkpoint is no maxi-mini: other: expected a model with the"
    ):
        test("mit.safetensors", 0.2)
    with pytest.raises(UserError, match=r"clip_share: expected 0 for few-shot, which trains first, got 0.2"):
        load_config("entity-world-maxi", ["evaluation={protocol: few-shot, clip_share: 0.2}"])


def test_zero_shot_on_new_classes(folder: Path) -> None:
    """A folder beside data.root, its own labels; or the world's unseen split; or random subsets of the new classes."""
    sets = ["evaluation={protocol: zero-shot, sets: [new, seen], splits: [1]}"]
    found = run(folder, *lists_of(folder), *sets)
    assert [result.setting["split"] for result in found.results] == ["new split 1", "seen split 1"]
    assert found.top1.values == tuple(result.top1 for result in found.results)
    assert set(found.results[0].per_class) == set(World("tiny").split("transfer-b-1").class_names)
    world = run(folder, "evaluation.protocol=zero-shot", "data.val_split=transfer-b-1")
    assert world.results[0].top1 == found.results[0].top1
    assert found.results[1].top1 == run(folder).results[0].top1  # its own classes, embedded again
    drawn = run(folder, *lists_of(folder), "evaluation={protocol: zero-shot, sets: [new], subset: 2, draws: 3}")
    assert [len(result.per_class) for result in drawn.results] == [2, 2, 2]
    assert drawn.top1.seeds == (0, 1, 2)
    listed = folder / "draws.csv"
    names = list(World("tiny").split("transfer-b-1").class_names)
    rows = [f"{name},{int(i < 2)},{int(i > 0)},1" for i, name in enumerate(names[:3])]
    listed.write_text("\n".join(["class,draw 1,draw 2,draw 3", *rows]) + "\n")
    file = f"evaluation={{protocol: zero-shot, sets: [new], class_draws: {listed}}}"
    by_file = run(folder, *lists_of(folder), file)
    assert [list(result.per_class) for result in by_file.results] == [names[:2], names[1:3], names[:3]]
    assert [result.setting["draw"] for result in by_file.results] == [1, 2, 3] == list(by_file.top1.seeds)
    for change, says in (
        ("evaluation.subset=2", "draws 2 or 3 classes, evaluation.subset says 2"),
        ("evaluation.draws=2", "has 3 draws, evaluation.draws says 2"),
        ("evaluation.sets=[seen]", "classes: expected 2 of the data set's 10, 2 of them"),
        (
            "evaluation.class_draws=k600-160-of-220",
            "expected 160 of the data set's .*, 160 of them are not among these: acting",
        ),
    ):
        with pytest.raises(UserError, match=says):
            run(folder, *lists_of(folder), file, change)
    with pytest.raises(UserError, match=r"evaluation\.subset: expected 2 to 0 classes"):
        run(folder, *lists_of(folder), "evaluation={protocol: zero-shot, sets: [seen], subset: 2}")
    with pytest.raises(UserError, match=r"evaluation\.subset: expected one data set with one split .*, got 2"):
        run(folder, *lists_of(folder), "evaluation={protocol: zero-shot, sets: [new, seen], subset: 2}")
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        run(folder, *lists_of(folder), "evaluation={protocol: zero-shot, sets: [none]}")


def test_new_classes_are_embedded_as_the_checkpoint_says(folder: Path, tmp_path: Path) -> None:
    """Encoder and templates of the model file win over the configuration; another tower is refused; format 1 loads."""
    zero = ["evaluation={protocol: zero-shot, sets: [new], splits: [1]}", *lists_of(folder)]
    right = run(folder, *zero).top1.mean
    other = run(folder, *zero, "model.templates=kinetics28", "model.pretrained=null", "model.texts=random")
    assert other.top1.mean == right > 30
    state, metadata = read_tensors(path(folder))
    header = json.loads(metadata["alt_model"])
    assert header["format"] == 2
    assert header["texts"]["pretrained"] == "entity-world"

    def edited(name: str, without: str = "", **changes: Any) -> Path:
        changed = {key: value for key, value in {**header, **changes}.items() if key != without}
        safetensors.torch.save_file(state, tmp_path / name, {"alt_model": json.dumps(changed)})
        return tmp_path / name

    def test_on(checkpoint: Path, *overrides: str, **options: Any) -> Evaluated:
        return execute(load_config("entity-world-cpu", [*TINY, *zero, *overrides]), checkpoint, **options)

    said: list[str] = []
    old = edited("old.safetensors", without="texts", format=1)
    assert test_on(old, "model.templates=none", say=said.append).top1.mean == right
    assert said[0].startswith("The checkpoint does not record how its class names were embedded: model.pretrained (ent")
    texts = header["texts"]
    foreign = edited("foreign.safetensors", texts={**texts, "sha256": "0" * 64})
    with pytest.raises(
        UserError, match=r"embedded by mini with the weights entity-world \(00000000\), and entity-world"
    ):
        test_on(foreign)
    # the name of a file in a checkpoint is not followed, the configuration names the file
    mini = load_mini_clip("entity-world")
    own = save_mini_clip(mini, tmp_path / "own.safetensors")
    named = edited("named.safetensors", texts={**texts, "pretrained": str(own)})
    assert test_on(named, f"model.pretrained={own}").top1.mean == right
    with pytest.raises(UserError, match=r"name the file with model\.pretrained"):
        test_on(named, "model.pretrained=null")
    model = load_model(path(folder))
    model.set_classes(
        model.classes, RandomTextEncoder(model.width).embed(model.classes), TextSource("random", None, "")
    )
    save_model(model, tmp_path / "random.safetensors")
    assert load_model(tmp_path / "random.safetensors").class_text_source == TextSource("random", None, "")
    assert test_on(tmp_path / "random.safetensors").top1.mean < right


def test_names_that_the_small_clip_does_not_know() -> None:
    """A checkpoint of the shipped weights refuses them, and tells which weights take them: the same ones."""
    model = alt.create_model("clip-mean-mini", pretrained="entity-world", classes=["lifting cup", "pushing box"])
    names, said = ["apply eye makeup", "lifting cup"], list[str]()
    with pytest.raises(
        UserError, match=r"of ucf101 cannot be embedded: .* no 'apply' .* 'entity-world-any-words' take"
    ):
        open_class_texts(model, load_config("entity-world-cpu").model, said.append).name_classes(model, names, "ucf101")
    section = load_config("entity-world-cpu", ["model.pretrained=entity-world-any-words"]).model
    known = model.head.embeddings[0].clone()
    with pytest.warns(UserWarning, match="no 'apply'"):
        open_class_texts(model, section, said.append).name_classes(model, names, "ucf101")
    assert model.class_text_source.pretrained == "entity-world-any-words"
    torch.testing.assert_close(model.head.embeddings[1], known)
    assert said == []


def test_sets_in_their_own_formats(folder: Path, tmp_path: Path) -> None:
    """The tiny world's new classes as UCF-101's files, and as Charades with two labels per clip."""
    world, new = World("tiny"), folder / "new"
    names = list(world.split("transfer-b-1").class_names)
    lines = [line.split() for line in (new / "test1.txt").read_text().splitlines()]
    camel = ["".join(word.title() for word in name.split()) for name in names]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(camel, 1)))
    clips = [(f"{camel[int(label)]}/{Path(clip).name}", int(label)) for clip, label in lines]
    for (target, _), (clip, _) in zip(clips, lines, strict=True):
        (tmp_path / "ucf" / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ucf" / target).symlink_to(new / clip)
    for split, part in ((1, clips[::2]), (2, clips[1::2]), (3, clips)):
        (lists / f"testlist{split:02d}.txt").write_text("".join(f"{clip}\n" for clip, _ in part))
    (lists / "Charades_v1_classes.txt").write_text("".join(f"c{i:03d} {name}\n" for i, name in enumerate(names)))
    rows = [f"{Path(clip).stem},c{label:03d} 0 1;c{(label + 1) % len(names):03d} 0 1" for clip, label in clips]
    (lists / "Charades_v1_test.csv").write_text("id,actions\n" + "\n".join(rows) + "\n")
    (tmp_path / "data.yaml").write_text(
        "ucf101: {format: ucf101, root: ucf, lists: lists}\ncharades: {format: charades, root: ucf, lists: lists}\n"
    )
    where = ["data.kind=frames", "data.root=datasets/k400", "data.size=24", "data.resize=24",
             f"data.sets={tmp_path / 'data.yaml'}"]  # fmt: skip
    found = run(folder, *where, "evaluation={protocol: zero-shot, sets: [ucf101], splits: [1, 2, 3]}")
    plain = run(folder, *lists_of(folder), "evaluation={protocol: zero-shot, sets: [new], splits: [1]}")
    assert found.results[2].top1 == plain.top1.mean
    first, second, third = (result.videos for result in found.results)
    assert first + second == third == len(clips)
    assert found.top1.mean == pytest.approx(sum(result.top1 for result in found.results) / 3)
    several = run(folder, *where, "evaluation={protocol: zero-shot, sets: [charades]}").results[0]
    assert several.top1 >= plain.top1.mean  # one of two labels is enough
    assert several.confusion == []
    known = [value for value in several.per_class.values() if value is not None]
    assert several.mean_average_precision == pytest.approx(sum(known) / len(known))
    with pytest.raises(UserError, match=r"data\.sets: .* has no data set 'hmdb51'; known are ucf101, charades\."):
        run(folder, *where, "evaluation={protocol: zero-shot, sets: [hmdb51]}")
    (tmp_path / "data.yaml").write_text("ucf101: {format: ucf, root: ucf}\n")
    with pytest.raises(UserError, match=r"data\.yaml: ucf101\.format must be .*, got 'ucf'"):
        run(folder, *where, "evaluation={protocol: zero-shot, sets: [ucf101]}")


def test_precision_holds_for_the_linear_probe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alt.models.video_model import VideoModel

    forward = VideoModel.forward
    half: list[bool] = []

    def watch(self: VideoModel, clips: torch.Tensor, **options: Any) -> Any:
        half.append(torch.is_autocast_enabled("cpu"))
        return forward(self, clips, **options)

    monkeypatch.setattr(VideoModel, "forward", watch)
    probe = ["evaluation.protocol=linear-probe", "schedule={epochs: 2, warmup_epochs: 1}", "data.shots=1"]
    found = run(folder, *probe, "data.limit=4", "schedule.steps=7", where=Placement(precision="bf16"))
    assert (found.results[0].setting["steps"], found.results[0].setting["warmup_steps"]) == (7, 4)  # 7 / 2 rounded
    assert half.count(True) >= 2  # training and test clips


def test_other_classes_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="the classes are not those of the checkpoint"):
        run(folder, "data.val_split=transfer-b-1")


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(build_app(), ["eval", *map(str, arguments)])


def test_the_command_takes_the_configuration_of_the_run(folder: Path, tmp_path: Path) -> None:
    model, run_folder = folder / "model.safetensors", tmp_path / "run"
    lost = command(model)
    assert lost.exit_code == 2
    assert "with --data or --config: there is no config.yaml" in lost.output
    for option, value, setting in (("--views", "1x1", "evaluation.crops"), ("--root", ".", "data.root"),
                                   ("--labels", "labels.csv", "data.labels")):  # fmt: skip
        unread = command(model, "--config", "entity-world-cpu", option, value)
        assert unread.exit_code == 2
        assert f"{option} goes with --data. Without it, change {setting}" in unread.output
    unknown = command(model, "--config", "entity-world-cpu", "--set", "evaluation.kind=few-shot")
    assert unknown.exit_code == 2  # as in alt train
    assert "evaluation.kind is not a setting" in unknown.output
    named = command(model, "--config", "entity-world-cpu", "--set", "data.preset=tiny", "--json", tmp_path / "a.json")
    assert named.exit_code == 0, named.output
    run_folder.mkdir()
    (run_folder / "model.safetensors").write_bytes(model.read_bytes())
    (run_folder / "config.yaml").write_text(load_config("entity-world-cpu", TINY).to_yaml())
    kept = command(run_folder, "--json", tmp_path / "b.json")
    assert kept.exit_code == 0, kept.output
    assert "supervised" in kept.output
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["confusion"] == second["confusion"]
    assert first["setting"]["protocol"] == "supervised"
    draws = command(run_folder, "--set", "evaluation={protocol: zero-shot, subset: 2, draws: 2}",
                    "--set", "data.val_split=transfer-b-1", "--out", tmp_path / "out")  # fmt: skip
    assert draws.exit_code == 0, draws.output
    assert "zero-shot, 2 draws of 2 classes: top-1 " in draws.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "results.json", *(f"{name}-{n}.{end}" for n in (1, 2) for name, end in
                          (("results", "csv"), ("per-class", "png"), ("confusion", "png")))}  # fmt: skip
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == 2
