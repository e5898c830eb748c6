"""Module paths of before, kept for one release."""

from __future__ import annotations

import importlib
import runpy
import sys

import pytest

MOVED = {
    "alt.embedded": ("alt.entityworld", "demo_run"),
    "alt.embedded.cache": ("alt.entityworld.token_cache", "TokenCache"),
    "alt.embedded.grid": ("alt.entityworld.method_grid", "METHODS"),
    "alt.embedded.mini_clip_training": ("alt.entityworld.mini_clip_training", "pretrain"),
    "alt.data.entity_world": ("alt.entityworld.world", "World"),
    "alt.models.mini_clip": ("alt.entityworld.mini_clip", "load_mini_clip"),
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_warns_and_gives_the_same_thing(old: str) -> None:
    new, name = MOVED[old]
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"is now {new.rpartition('.')[0] or new}"):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("command", ["alt.embedded.mini_clip_training", "alt.data.entity_world.sheet"])
def test_documented_commands_still_run(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m`` of an old path, in this process: its own would spend its time on the imports."""
    for package in ("alt.embedded", "alt.data.entity_world", command):  # as in a process that has not met them
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    assert ended.value.code in (0, None)
    assert "--" in capsys.readouterr().out
