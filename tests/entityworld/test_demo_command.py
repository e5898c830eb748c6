"""``alt demo`` end to end on a small tower, and its errors."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

open_clip = pytest.importorskip("open_clip")
from rich.console import Console  # noqa: E402
from typer.testing import CliRunner, Result  # noqa: E402

import alt  # noqa: E402
from alt.cli import build_app  # noqa: E402
from alt.commands.options import parse_sweep  # noqa: E402
from alt.entityworld.demo.demo_tower import load_tower  # noqa: E402
from alt.entityworld.demo.demo_tradeoff import run_tradeoff, tradeoff_table  # noqa: E402
from alt.entityworld.demo.photo_measurements import Row  # noqa: E402
from alt.entityworld.demo.photo_report import notes, paper_gflops, result_table  # noqa: E402
from alt.entityworld.demo.photos import BUILT_IN, find_photos, load_photos  # noqa: E402
from alt.errors import UserError  # noqa: E402
from alt.evaluate.tradeoff import TradeoffRow  # noqa: E402
from alt.visualize import region_map  # noqa: E402

MODEL = "alt-test-tower"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session", autouse=True)
def small_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A tower of 3 blocks and 65 tokens under a name that open_clip knows."""
    path = tmp_path_factory.mktemp("configs") / f"{MODEL}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two pictures of different shape; one has the name of the other with another ending."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (90, 70), dtype=np.uint8)).save(folder / "a.jpg")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def demo(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["demo", *map(str, arguments)])


def quick(photographs: Path, out: Path, *more: object) -> Result:
    return demo("--model", MODEL, "--images", photographs, "--out", out, "--repeats", 1, "--no-tradeoff", *more)


def test_demo_prints_a_row_for_every_r_and_keeps_pictures_and_results(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = quick(photographs, out, "--sweep", "4,0,30", "--picture-r", 8)
    assert result.exit_code == 0, result.output
    assert "random weights" in result.output
    assert "At r = 30 the tokens run out: blocks 2, 3 merge as many as there are pairs." in result.output
    assert "UserWarning" not in result.output
    assert sorted(p.name for p in out.iterdir()) == ["a_jpg_regions.png", "a_png_regions.png", "results.json"]

    kept = json.loads((out / "results.json").read_text())
    assert [row["r"] for row in kept["rows"]] == [0, 4, 30]
    assert [row["tokens"] for row in kept["rows"]] == [65, 53, 10]  # 65 - 3 * 4; 65 - 30 - 17 - 8
    zero, four, thirty = kept["rows"]
    assert zero["cosine"] == pytest.approx(1, abs=1e-6)
    assert zero["speedup"] == 1
    assert zero["realised"] is None
    assert zero["gmacs"] > four["gmacs"] > thirty["gmacs"]
    assert 0.5 < thirty["cosine"] < 1 - 1e-6
    assert thirty["clipped"] == [2, 3]
    assert kept["machine"]["threads"] == 1
    assert kept["machine"]["torch"] == torch.__version__
    with torch.random.fork_rng():
        visual = load_tower(MODEL, None, 0).visual
    for row in kept["rows"]:
        with alt.patch_clip(visual, r=min(row["r"], 4)):
            if row["r"] in (0, 4):
                assert alt.count_macs(visual).native_g == row["gmacs"]
    for name in kept["pictures"]:
        with Image.open(out / name) as picture:
            assert picture.width > 1600  # five panels: photograph, three blocks, outlines


def test_every_panel_shows_the_tokens_its_caption_counts(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def record(image, maps, captions, *, title):
        drawn.append((image, maps, captions, title))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr("alt.entityworld.demo.photo_demo.merge_sheet", record)
    assert quick(photographs, tmp_path / "out", "--sweep", "0", "--picture-r", 5).exit_code == 0
    tower = load_tower(MODEL, None, 0)
    photos = load_photos(find_photos(photographs))
    assert len(drawn) == len(photos) == 2
    for (image, maps, captions, title), photo in zip(drawn, photos, strict=True):
        assert np.array_equal(image, tower.picture(tower.preprocess(photo.image)))
        assert captions == ["after block 1: 60 tokens", "after block 2: 55 tokens", "after block 3: 50 tokens"]
        assert [len(np.unique(m)) + 1 for m in maps] == [60, 55, 50]  # the class token has no patch
        assert title.startswith(f"{photo.name}: merged regions")


def test_demo_leaves_threads_random_state_and_logging_alone(photographs: Path, tmp_path: Path, threads) -> None:
    threads(2)
    before = torch.get_rng_state()
    result = quick(photographs, tmp_path / "out", "--sweep", "4", "--precision", "bf16", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "bf16" in result.output
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("more", "rounds"), [((), 3), (("--repeats", 5), 5)])
def test_rounds_end_with_patience_unless_a_number_is_asked_for(
    more: tuple, rounds: int, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alt.entityworld.demo.photo_demo.PATIENCE", 0.0)
    result = demo(
        "--model", MODEL, "--images", photographs, "--out", tmp_path / "out", "--sweep", "0,4", "--no-tradeoff", *more
    )
    assert f"median of {rounds} interleaved rounds" in result.output
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [len(row["seconds"]) for row in rows] == [rounds, rounds]


def test_weights_come_from_the_seed_or_from_the_file_named(tmp_path: Path) -> None:
    first, again, other = (load_tower(MODEL, None, seed).visual for seed in (1, 1, 2))
    assert torch.equal(first.proj, again.proj)
    assert not torch.equal(first.proj, other.proj)
    whole = open_clip.create_model(MODEL)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    loaded = load_tower(MODEL, str(tmp_path / "weights.pt"), 0)
    assert torch.equal(loaded.visual.proj, whole.visual.proj)
    assert loaded.weights.startswith("pretrained")


def test_photographs_of_the_wheel_are_there() -> None:
    photos = load_photos(find_photos(None))
    assert [photo.name for photo in photos] == [name.rsplit(".", 1)[0] for name in BUILT_IN]
    assert all(photo.image.mode == "RGB" and min(photo.image.size) >= 300 for photo in photos)


def test_regions_have_the_geometry_of_the_photograph(tmp_path: Path) -> None:
    """Left third red, the rest blue: with no position embedding equal patches merge first, so no region mixes them."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, :36, 0] = 255
    image[:, 36:, 2] = 255
    tower = load_tower(MODEL, None, 0)
    with torch.no_grad():
        tower.visual.positional_embedding.zero_()
    x = tower.preprocess(Image.fromarray(image))
    seen = tower.picture(x)
    handle = alt.patch_clip(tower.visual, r=7, trace_source=True)
    tower.visual(x[None])
    assert len(handle.sources) == 3
    for block, source in enumerate(handle.sources):
        regions = region_map(source[0], tower.grid())
        assert len(np.unique(regions)) == 64 - 7 * (block + 1)
        red = seen[4::8, 4::8, 0] > 128  # the centre of every patch
        assert red[:, :3].all()
        assert not red[:, 3:].any()
        assert not set(regions[red]) & set(regions[~red])


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--model", "ViT-B-99"], 2, "--model: open_clip has no model 'ViT-B-99'"),
        (["--model", "vit_b_16"], 2, "did you mean 'ViT-B-16'?"),
        (["--model", "RN50"], 1, "--model: alt cannot patch RN50"),
        (["--pretrained", "nonsense"], 2, "--pretrained: open_clip has no weights 'nonsense'"),
        (["--images", "missing"], 1, "--images: the folder 'missing' does not exist."),
        (["--images", __file__], 1, "is not a folder."),
        (["--images", "{empty}"], 1, "has no image files"),
        (["--images", "{broken}"], 1, "broken.png' cannot be read"),
        (["--images", "{cut}"], 1, "cut.png' cannot be read"),
        (["--out", __file__], 1, "cannot be written (File exists)"),
        (["--pretrained", __file__], 1, "not a file of tensors"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], status: int, sentence: str, photographs: Path, tmp_path: Path
) -> None:
    for name in ("empty", "broken", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "broken.png").write_text("no picture")
    (tmp_path / "cut" / "cut.png").write_bytes((photographs / "a.png").read_bytes()[:2000])
    arguments = [a.format(**{n: tmp_path / n for n in ("empty", "broken", "cut")}) for a in arguments]
    rest = {"--model": MODEL, "--images": photographs, "--out": tmp_path / "out", "--repeats": 1}
    result = demo(*arguments, *(x for k, v in rest.items() if k not in arguments for x in (k, v)))
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("Error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--threads", "0"], ["--precision", "fp8"], ["--nothing"]])
def test_bad_options_have_exit_code_2(arguments: list[str]) -> None:
    result = demo(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_tag_decides_between_the_two_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(model: str, pretrained: str | None, **_: object) -> None:
        asked.append(model)
        raise RuntimeError("no network here.\nand a long story")

    monkeypatch.setattr(open_clip, "create_model", create)
    for model, tag in (
        ("ViT-B-16", "openai"),
        ("ViT-B-16-quickgelu", "openai"),
        ("ViT-B-16-quickgelu", "datacomp_xl_s13b_b90k"),
    ):
        with pytest.raises(UserError, match=r"could not be loaded \(no network here\); without"):
            load_tower(model, tag, 0)
    assert asked == ["ViT-B-16-quickgelu", "ViT-B-16-quickgelu", "ViT-B-16"]


def test_r_is_sorted_and_always_has_the_baseline() -> None:
    assert parse_sweep("8, 4,8") == [0, 4, 8]
    assert parse_sweep("0") == [0]


def test_table_shows_the_papers_numbers_within_80_columns() -> None:
    rows = [
        Row(r, 197 - 12 * r, 140.5078, 140.5, 1234.5, 1.234, 0.981 if r else None, 0.98765, (), (1.0,) * 9)
        for r in (0, 4, 8, 13)
    ]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result_table(rows, "ViT-B-16-quickgelu", "title"))
    lines = console.export_text().splitlines()
    assert "…" not in "".join(lines)
    for row, printed in zip(lines[-4:], ("141", "129", "110", "86"), strict=True):
        assert printed in row.split()
    assert paper_gflops("ViT-L-14-quickgelu", 8) == 415
    assert paper_gflops("ViT-L-14", 4) is None


def test_notes_own_up_to_a_busy_machine() -> None:
    steady = Row(0, 197, 140.5, 140.5, 300.0, 1.0, None, 1.0, (), (1.0,))
    assert not any("busy" in note for note in notes([steady], "ViT-B-16", False))
    assert any("busy" in note for note in notes([steady], "ViT-B-16", True))
    assert any("whole ALT model" in note for note in notes([steady], "ViT-B-16", False))
    assert not any("whole ALT model" in note for note in notes([steady], "ViT-B-32", False))


def test_interrupt_ends_the_demo_without_a_traceback(tmp_path: Path, photographs: Path) -> None:
    config = tmp_path / f"{MODEL}.json"
    config.write_text(json.dumps(CONFIG))
    arguments = ["demo", "--model", MODEL, "--images", photographs, "--out", tmp_path / "out", "--repeats", 10**6]
    code = (
        # A shell lets its background jobs, and so the tests in one, ignore SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, open_clip; from alt.cli import build_app\n"
        f"open_clip.add_model_config({str(config)!r}); build_app()({list(map(str, arguments))!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # printed once the tower is built
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert MODEL in line
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert err == "Interrupted.\n"


# ------------------------------------------------------------------------------------------------- the small ALT


def test_demo_goes_on_to_the_tradeoff_unless_told_not_to(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "alt.entityworld.demo.demo_tradeoff.run_tradeoff", lambda out, console, **more: asked.append((out, more))
    )
    arguments = ("--model", MODEL, "--images", photographs, "--out", tmp_path, "--repeats", 1, "--sweep", "0")
    assert demo(*arguments, "--tradeoff-seeds", 2, "--tradeoff-steps", 7).exit_code == 0
    assert asked == [(tmp_path, {"seeds": 2, "steps": 7, "threads": 1})]
    assert demo(*arguments, "--no-tradeoff").exit_code == 0
    assert len(asked) == 1


def test_tradeoff_table_fits_80_columns_and_shows_every_row() -> None:
    rows = [
        TradeoffRow("ALT", 0, 0.0, 0, 0.0338, 79.1, 0.4, 5, 1234.0, 4 * 2**20),
        TradeoffRow("ALT", 6, -1.0, 0, 0.0176, 66.0, None, 1),
    ]
    text = io.StringIO()
    Console(file=text, width=80).print(tradeoff_table(rows))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["constant", "no", "merging", "0", "33.80", "79.1", "±", "0.4", "1234", "4.0"] in lines
    assert ["decreasing", "off-the-shelf", "6", "17.60", "66.0"] in lines


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's CPU time from /proc")
def test_demo_shows_its_first_table_within_a_minute_and_ends_within_three(tmp_path: Path) -> None:
    """In CPU time, which a busy machine does not lengthen: at one thread it is the time of a calm one."""
    command = [sys.executable, "-u", "-m", "alt.cli", "demo", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        first = None
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if first is None and line.split()[:2] == ["0", "197"]:  # the table's first row: r and tokens
                first = cpu_seconds(process.pid)
        whole = cpu_seconds(process.pid)  # kept until somebody waits for it
    assert process.returncode == 0, "".join(lines)
    assert first is not None, "".join(lines)
    assert first < 60
    assert whole < 180


def cpu_seconds(process: int) -> float:
    """Returns the user and system time of a process and of its children that ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_demo_trains_the_small_alt(tmp_path: Path) -> None:
    text = io.StringIO()
    kept = run_tradeoff(tmp_path, Console(file=text, width=200), seeds=1, steps=30, measure=False)
    gmacs = {row["r"]: row["gmacs"] for row in kept["rows"]}
    assert gmacs[0] > gmacs[2] > gmacs[4] > gmacs[6]
    assert min(row["accuracy_mean"] for row in kept["rows"]) > 5 * kept["setting"]["chance"]
    assert json.loads((tmp_path / "tradeoff.json").read_text()) == kept
    assert "35 % fewer multiply-accumulates" in text.getvalue()
    page = (tmp_path / "example.html").read_text()
    assert "<img" in page
    assert "What is in the clip, and what its regions chose" in page
    assert "In 60 other clips the most probable class is right in" in page
