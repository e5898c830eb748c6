"""``alt entityworld clips`` writes what the other commands read; progress without a terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from alt.cli import build_app
from alt.commands.progress import progress_bar
from alt.data.clips import ClipFiles, read_clip
from alt.entityworld.world import World


def clips(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["entityworld", "clips", *map(str, arguments)])


@pytest.mark.parametrize("form", ["frames", "npz"])
def test_clips_are_those_of_the_world(form: str, tmp_path: Path) -> None:
    result = clips(tmp_path / "out", "--world", "tiny", "--split", "seen-train", "--limit", 5, "--form", form)
    assert result.exit_code == 0, result.output
    world = World("tiny")
    split = world.split("seen-train")
    files = ClipFiles(tmp_path / "out" / "list.txt", tmp_path / "out" / "labels.csv")
    assert files.class_names == split.class_names
    assert files.labels.tolist() == split.labels[:5].tolist()
    for index, frames in enumerate(world.render(split[:5]).frames):
        assert torch.equal(files.video(index).read_all(), frames)
    *_, evaluate, predict = result.stdout.splitlines()  # what to do next names files that are there
    words = evaluate.split()
    assert Path(words[words.index("--data") + 1]).is_file()
    assert Path(words[words.index("--labels") + 1]).is_file()
    assert len(read_clip(predict.split()[3])) == world.config.frames


def test_clips_that_are_there_are_kept(tmp_path: Path) -> None:
    assert clips(tmp_path, "--world", "tiny", "--limit", 1).exit_code == 0
    before = (tmp_path / "list.txt").read_text()
    result = clips(tmp_path, "--world", "tiny", "--limit", 2)
    assert result.exit_code == 2
    assert "already holds a list of clips" in result.stderr
    assert (tmp_path / "list.txt").read_text() == before


def test_progress_without_a_terminal_is_ten_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "alt"), progress_bar("clips", 1000) as progress:
        for done in range(8, 1001, 8):
            progress(done, 1000)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert lines[0] == "104 of 1000 clips"
    assert lines[-1] == "1000 of 1000 clips"
