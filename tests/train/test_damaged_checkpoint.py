"""A checkpoint with any changed byte is refused in one sentence, before anything in it is used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alt.errors import UserError
from alt.train.checkpoint import AtomicCheckpointIO, read_checkpoint

CHECKPOINT = {"alt": {"config": {"seed": 1}}, "state_dict": {f"w{i}": torch.randn(64, 9) for i in range(4)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_whole_checkpoint_is_read(path: Path) -> None:
    said: list[str] = []
    for found in (read_checkpoint(path, said.append), AtomicCheckpointIO().load_checkpoint(path, weights_only=True)):
        assert found["alt"] == CHECKPOINT["alt"]
        assert torch.equal(found["state_dict"]["w3"], CHECKPOINT["state_dict"]["w3"])
    assert said == []


def flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.choice([draw.randrange(len(data)), len(data) - draw.randrange(1, 120)]) :]


def swap(data: bytearray, draw: random.Random) -> None:
    while True:
        i, j = draw.randrange(len(data)), draw.randrange(len(data))
        if data[i] != data[j]:
            data[i], data[j] = data[j], data[i]
            return


def erase(data: bytearray, draw: random.Random) -> None:
    """Zeros in a header of the zip file: of a member, of the directory, or the last one."""
    starts = [i for i in range(len(data)) if data[i : i + 4] in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06")]
    start = draw.choice(starts)
    data[start : start + draw.choice([4, 22, 32])] = bytes(draw.choice([4, 22, 32]))


def grow(data: bytearray, draw: random.Random) -> None:
    place = draw.choice([0, draw.randrange(len(data)), len(data)])
    data[place:place] = draw.randbytes(draw.randrange(1, 99))


@pytest.mark.parametrize("change", [flip, truncate, swap, erase, grow])
def test_damage_is_one_sentence(path: Path, change: Callable[[bytearray, random.Random], None]) -> None:
    """Kind: files that a disk, a copy or a kill has changed. Of 60 changes 28 were trained on, with other weights."""
    whole = path.read_bytes()
    for seed in range(40 if change is flip else 20):
        data = bytearray(whole)
        change(data, random.Random(seed))
        assert data != whole
        path.write_bytes(data)
        for read in (read_checkpoint, AtomicCheckpointIO().load_checkpoint):
            with pytest.raises(UserError, match=r"is damaged or not a checkpoint: ") as caught:
                read(path)
            assert "\n" not in str(caught.value), seed


def test_a_checkpoint_without_a_digest_is_read_with_a_line_and_its_checksums(path: Path) -> None:
    torch.save(CHECKPOINT, path)
    said: list[str] = []
    assert torch.equal(read_checkpoint(path, said.append)["state_dict"]["w0"], CHECKPOINT["state_dict"]["w0"])
    assert len(said) == 1
    assert "without a digest" in said[0]
    data = bytearray(path.read_bytes())
    data[data.index(CHECKPOINT["state_dict"]["w2"].numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"the checksum of .* is wrong"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": 1}, {"alt": 3}, {"alt": {"config": "x"}}, [1], 5])
def test_a_file_of_another_program_is_one_sentence(path: Path, content: object) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match="not a checkpoint of a training run"):
        read_checkpoint(path)
