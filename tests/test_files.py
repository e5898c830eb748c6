"""What is written replaces no special file, and what is read executes nothing and stays within the limit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from alt.errors import printable, refuse_unordered
from alt.files import read_json, read_tensors, read_text, read_torch, replacing, require_file


def write(path: Path, text: str, fail: bool = False) -> None:
    with replacing(path, "the text") as partial:
        partial.write_text(text)
        if fail:
            raise RuntimeError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write(path, "one")
    with pytest.raises(RuntimeError):
        write(path, "half", fail=True)
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "link to a pipe"])
def test_no_special_file_is_replaced(tmp_path: Path, kind: str) -> None:
    """Kind: an output took the place of a device or of a pipe that another program reads."""
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / kind
    if kind != "pipe":
        path.symlink_to("/dev/null" if "device" in kind else tmp_path / "pipe")
    with pytest.raises(
        OSError, match=r"could not save the text to .*: it is a device or a pipe, and a file is expected"
    ):
        write(path, "x")
    assert not path.is_file()
    with pytest.raises(ValueError, match="a file is expected, this is a device or a pipe"):
        require_file(path)


def test_texts_lose_their_mark_and_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("\ufeffgrün", encoding="utf-8")
    assert read_text(tmp_path / "a") == "grün"
    monkeypatch.setenv("ALT_MAX_DECODED_MIB", "1")
    (tmp_path / "a").write_bytes(b"x" * ((1 << 16) + 1))
    with pytest.raises(ValueError, match="a text of at most 64 KiB is expected"):
        read_text(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none\0")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, '{"a": 1} x', "\udcff"])
def test_json_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json: not (valid JSON|a text in UTF-8) ") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


class _Opens:
    """A pickle that runs a command when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": _Opens(tmp_path / "written")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not a file of tensors"):
        read_torch(tmp_path / "a.pt")
    assert not (tmp_path / "written").exists()


def test_tensors_that_are_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


def test_control_characters_are_shown_not_sent() -> None:
    """Kind: names of files and arguments steer the terminal (title, colours, cleared screen, forged lines)."""
    text = "a\x1b]0;title\x07\x9b2J\r\n\u202e\u2028\ud800\x7f"
    shown = printable(text)
    assert shown == r"a\x1b]0;title\x07\x9b2J\r\n\u202e\u2028\ud800\x7f"
    assert printable("grün 猫 👩\u200d🔬") == "grün 猫 👩\u200d🔬"
    assert json.loads(f'"{printable("é")}"') == "é"


def test_a_set_has_no_order() -> None:
    for values in ({"a"}, frozenset("ab")):
        with pytest.raises(TypeError, match="classes: expected a list or another sequence, got a set"):
            refuse_unordered(values, "classes")
    refuse_unordered({"a": 1}.keys(), "classes")  # as they were put in
