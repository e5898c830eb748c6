"""The programs in examples/ run as they are, on small sizes, and print what they promise."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("open_clip")
pytest.importorskip("lightning")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_test_for_every_example() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {"patch_vit_b16", "train_small_alt"}


def test_patching(capsys: pytest.CaptureFixture[str]) -> None:
    example("patch_vit_b16").main(["--model", "ViT-S-32-alt", "--r", "0", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    (r0, tokens0, gmacs0, _, cosine0), (r2, tokens2, gmacs2, _, cosine2) = rows
    assert (r0, tokens0, r2, tokens2) == ("0", "50", "2", "26")  # 12 blocks
    assert float(gmacs2) < float(gmacs0)
    assert float(cosine0) == pytest.approx(1)
    assert float(cosine2) < 1


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.preset=tiny", "data.limit=16", "data.batch_size=8", "schedule.epochs=2", "trainer.progress=false"]
    example("train_small_alt").main(["--out", str(tmp_path), *small])
    printed = capsys.readouterr().out
    costs = [float(value) for value in re.findall(r"^r = \d: ([\d.]+) GMACs", printed, re.M)]
    assert len(costs) == 3
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[2]
    assert "<img" in (tmp_path / "clip.html").read_text()
