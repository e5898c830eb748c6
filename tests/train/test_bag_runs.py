"""MAXI's runs: clips without labels are matched, kept in a file and trained with, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import alt
from alt.data.clips import ClipFiles, write_clips
from alt.errors import UserError
from alt.models import registry
from alt.train import fit, load_config
from alt.train.bag_file import BagFile, ClipBag, read_bags, write_bags
from alt.train.config import TrainConfig
from alt.train.data import ClipData
from alt.train.matching import PromptIds, make_bags, name_clips, open_bags, read_dictionary

from . import jobs

SMALL = [
    *(
        "data.preset=tiny",
        "data.batch_size=8",
        "data.limit=20",
        "trainer.validate_every=0",
        "trainer.checkpoint_every=1",
    ),
    *("schedule={steps: 4, warmup_steps: 1}", "trainer.threads=1", "bags.share=0.8"),
]


def load(*changes: str) -> TrainConfig:
    return load_config("entity-world-maxi", [*SMALL, *changes])


def quiet(line: str) -> None:
    pass


class StopAt(Callback):
    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maxi")
    fit(load(), folder, say=quiet)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(alt.load_model(folder / "model.safetensors").named_parameters())


def test_a_run_matches_by_clip_and_trains_both_towers(finished: Path) -> None:
    bags = read_bags(finished / "bags.json")
    data = ClipData(load())
    before = alt.create_model("maxi-mini", pretrained="entity-world").eval()
    encoder = alt.create_text_encoder("maxi-mini", pretrained="entity-world")
    data.setup("fit")
    clips = torch.stack([data.train_set[i][0] for i in range(20)])  # this configuration changes no pixels
    with torch.no_grad():
        cosines = before(clips).embedding @ encoder.embed_classes(data.class_names, "none").T
    assert [bag.name for bag in bags.clips] == [data.class_names[i] for i in cosines.argmax(1).tolist()]
    after = weights(finished)
    moved = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
    assert any(name.startswith("text.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved)
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["alt"]["origin"]["the clips of seen-train"]["count"] == 16  # 0.8 of 20


def test_a_stopped_run_goes_on_to_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], registry.build_with_clip
    monkeypatch.setattr(registry, "build_with_clip", lambda *a, **k: built.append(a) or build(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        fit(load(), tmp_path, say=quiet, callbacks=[StopAt()])
    assert len(built) == 1  # the model that matches is trained
    kept = (tmp_path / "bags.json").read_bytes()
    (tmp_path / "bags.json").unlink()
    with pytest.raises(UserError, match=r"has no bags\.json any more, which its run began with; put it back"):
        fit(load(), tmp_path, resume=True, say=quiet)
    other = read_bags(finished / "bags.json")
    first = other.clips[0]._replace(texts=("cup",))
    write_bags(tmp_path / "bags.json", BagFile([first, *other.clips[1:]], other.names, other.about))
    with pytest.raises(UserError, match="other data: the bags of texts: not the same"):
        fit(load(), tmp_path, resume=True, say=quiet)
    (tmp_path / "bags.json").write_bytes(kept)
    fit(load(), tmp_path, resume=True, say=quiet)
    assert jobs.same(weights(tmp_path), weights(finished))


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(finished: Path, tmp_path: Path) -> None:
    """Bags of two texts and four draws, so that every process draws all of them, whatever its generator."""
    made = read_bags(finished / "bags.json")
    bags = BagFile([bag._replace(texts=(bag.name.split()[-1],)) for bag in made.clips], made.names, made.about)
    write_bags(tmp_path / "bags.json", bags)
    changes = [*SMALL, f"bags.file={tmp_path / 'bags.json'}", "bags.size=4", "bags.sigma=0.2", "data.batch_size=16"]
    arguments: Any = {"source": "entity-world-maxi", "base": changes}
    one = jobs.run(jobs.gradients, str(tmp_path / "one"), **arguments)
    first, second = jobs.together(2, jobs.gradients, str(tmp_path / "two"), **arguments)
    assert jobs.same(first, second)
    for name, value in one.items():
        assert (value - first[name]).abs().max() <= 1e-4 * value.abs().max().clamp_min(1e-4), name
    with pytest.raises(RuntimeError, match=r"bags\.file: several processes need it before they start; `alt bags"):
        jobs.together(2, jobs.gradients, str(tmp_path / "none"), source="entity-world-maxi", base=SMALL)


def test_clips_of_lists_need_no_labels(tmp_path: Path) -> None:
    video = torch.randint(256, (3, 4, 3, 24, 24), dtype=torch.uint8)
    listed = write_clips(tmp_path, video, [0, 1, 0], ["lifting cup", "pushing box"], "npy")
    paths = [line.split()[0] for line in listed.read_text().splitlines()]
    listed.write_text(f"{paths[0]}\n{paths[1]} 1\n{paths[2]} lifting cup\n")
    files = ClipFiles("list.txt", "labels.csv", tmp_path, labelled=False)
    assert [str(entry.path.relative_to(tmp_path)) for entry in files.entries] == paths
    assert files.labels.tolist() == [-1, -1, -1]
    lists = ["data.kind=frames", f"data.root={tmp_path}", "data.train_list=list.txt", "data.val_list=", "data.size=24"]
    config = load(*lists, "data.resize=24", f"bags.dictionary=[labels, {tmp_path / 'more.txt'}]")
    (tmp_path / "more.txt").write_text("spinning ball\nlifting cup\n")
    data = ClipData(config)
    assert name_clips(data) == paths
    assert read_dictionary(config.bags.dictionary, data.class_names) == ["lifting cup", "pushing box", "spinning ball"]
    bags = make_bags(config, data, quiet)
    assert [bag.clip for bag in bags.clips] == paths
    (tmp_path / "bags.json").write_text("{}")
    for text, says in (
        ("{}", "is not a file of bags: it has no list of clips"),
        (
            json.dumps({"format": 1, "clips": [{"clip": "a", "name": "b", "similarity": 0.5}]}),
            r"has no bag for clips/000000\.npy; `alt bags` makes one for these clips",
        ),
    ):
        (tmp_path / "bags.json").write_text(text)
        with pytest.raises(UserError, match=says):
            fit(load(*lists, f"bags.file={tmp_path / 'bags.json'}"), tmp_path / "run", say=quiet)
    write_bags(tmp_path / "bags.json", bags)
    with pytest.raises(
        UserError, match=r"was made with bags\.dictionary \['labels', .*'\], and this run has \['labels'\]"
    ):
        fit(load(*lists, f"bags.file={tmp_path / 'bags.json'}"), tmp_path / "run", say=quiet)


def test_files_are_read_as_written_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "bags.json"
    bags = BagFile(
        [ClipBag("a.mp4", "applying cream", 0.25, ("rub", "cover")), ClipBag("b.mp4", "x", 0.5)],
        {"applying cream": ("rub", "applying cream", "smear")},
        {"frames": 16},
    )
    write_bags(file, bags)
    found = read_bags(file)
    assert (list(found.clips), dict(found.names), found.about) == (list(bags.clips), dict(bags.names), bags.about)
    assert found.texts_of(found.clips[0]) == ["rub", "smear", "cover"]
    assert found.texts_of(found.clips[1]) == []
    good = json.loads(file.read_text())
    for change, says in (
        ({"format": 2}, "it has format 2, and this version reads 1"),
        ({"clips": []}, "it has no clips"),
        ({"names": {"x": "y"}}, "names, 'x': expected a list of texts, got 'y'"),
        ({"clips": [3]}, "clip 1: expected a group of fields, got int"),
        ({"clips": [{"clip": "a"}]}, "clip 1: expected a text as its name, got None"),
        ({"clips": [{"clip": "a", "name": "b", "similarity": True}]}, "clip 1: expected a number as its similarity"),
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=f"bags.json is not a file of bags: {says}"):
            read_bags(file)


def test_texts_that_the_tower_does_not_know_are_left_out_and_named(finished: Path, tmp_path: Path) -> None:
    made = read_bags(finished / "bags.json")
    bags = BagFile(made.clips, {made.clips[0].name: ["cup", "abseil", "lift"]}, made.about)
    write_bags(tmp_path / "bags.json", bags)
    config, lines = load(f"bags.file={tmp_path / 'bags.json'}", "bags.share=1"), list[str]()
    data = ClipData(config)
    encoder = alt.create_text_encoder("maxi-mini", pretrained="entity-world")
    found = open_bags(config, data, tmp_path, lines.append, resume=False).make_objective(encoder, lines.append)
    assert lines[-1] == "The text tower does not know 2 of the texts, which are left out: 'abseil' first."
    assert torch.equal(found.ids[0], encoder.tokenise([made.clips[0].name, "cup"]))
    write_bags(tmp_path / "bags.json", BagFile([made.clips[0]._replace(name="abseil"), *made.clips[1:]]))
    with pytest.raises(UserError, match=r"bags\.file: the text tower cannot read its names: .* no 'abseil'"):
        open_bags(config, ClipData(config), tmp_path, quiet, resume=False).make_objective(encoder, quiet)


def test_matches_are_labels_among_all_names_of_the_dictionary(finished: Path, tmp_path: Path) -> None:
    """The bags of a finished run serve; the names of clips that are filtered away are among the others."""
    config = load(f"bags.file={finished / 'bags.json'}", "bags.form=dictionary", "schedule.steps=2")
    data = ClipData(config)
    encoder = alt.create_text_encoder("maxi-mini", pretrained="entity-world")
    objective: Any = open_bags(config, data, tmp_path, quiet, resume=False).make_objective(encoder, quiet)
    assert torch.equal(objective.ids, encoder.tokenise(data.class_names))
    bags, matches = read_bags(finished / "bags.json"), objective.matches[:20].tolist()
    assert [data.class_names[i] for i in matches] == [bag.name for bag in bags.clips]
    assert len(data.class_names) > len(set(matches))
    (tmp_path / "names.txt").write_text("\n".join(data.class_names))
    write_bags(tmp_path / "own.json", BagFile(bags.clips, {}, {}))  # by hand: it does not say its dictionary
    config = load(
        *(f"bags.file={tmp_path / 'own.json'}", f"bags.dictionary=[{tmp_path / 'names.txt'}]"),
        *("bags.form=dictionary", "schedule.steps=2"),
    )
    fit(config, tmp_path / "run", say=quiet)
    (tmp_path / "names.txt").write_text("\n".join([*data.class_names, "abseiling"]))
    with pytest.raises(UserError, match="other data: the names of the dictionary: 10 before, 11 now"):
        fit(config, tmp_path / "run", resume=True, say=quiet)
    assert not jobs.same(weights(tmp_path / "run"), weights(finished))
    other = bags.clips[0]._replace(name="abseil")
    write_bags(tmp_path / "bags.json", BagFile([other, *bags.clips[1:]], {}, bags.about))
    with pytest.raises(UserError, match=r"matches clips with 'abseil', which bags\.dictionary does not have"):
        fit(load(f"bags.file={tmp_path / 'bags.json'}", "bags.form=dictionary"), tmp_path / "other", say=quiet)


def test_ids_of_prompts_are_those_of_the_tokenizer() -> None:
    encoder = alt.create_text_encoder("maxi-mini", pretrained="entity-world")
    prompts = {2: ["lifting cup", "cup"], 0: ["cup"]}
    ids = PromptIds(prompts, 4, encoder.tokenise)
    assert len(ids) == 4
    for number, texts in prompts.items():
        assert torch.equal(ids[number], encoder.tokenise(texts))
    assert ids[1].shape == (0, encoder.tokenise(["cup"]).shape[1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["model.name=alt-mini", "model.options.text=cached"],
            "which trains the text tower too, and alt-mini does not; name a",
        ),
        (["model.options.text=held"], "trains the text tower too"),
        (["trainer.strategy=fsdp"], "processes share no parameters; trainer.strategy must be ddp"),
        (["data.shots=2"], "so data.shots, clips per class, cannot be taken"),
        (["bags.dictionary=[]"], "bags.dictionary must be a list of at least one source of names"),
        (["bags.form=sums"], r"bags\.form must be one of sum, pairwise, .*; did you mean 'sum'"),
    ],
)
def test_settings_that_do_not_fit(changes: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load("model.options={}", *changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["bags.dictionary=[k401]"], "bags.dictionary: 'k401' is neither a file nor one of hmdb51, k400"),
        (["bags.dictionary=[k400]"], "bags.dictionary: texts: the vocabulary of .* words has no 'abseiling'"),
        (
            ["bags.file=none.json"],
            "bags.file: there is no file none.json; `alt bags entity-world-maxi bags.file=none.json`",
        ),
        (["bags.share=0.01"], "bags.share: 0.01 of 20 clips keeps none"),
    ],
)
def test_what_a_run_cannot_start_with(changes: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        fit(load(*changes), tmp_path, say=quiet)
