"""Matching as a branch of a captured graph: in which order the streams wait, and that nothing is freed under it."""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import alt
from alt.patch import attention, beside
from tests.patch.towers import images_for, tower


class Stream:
    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order
        self.device = types.SimpleNamespace(index=0)

    def wait_stream(self, other: Stream) -> None:
        self.order.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the streams do while "a graph is captured"."""
    found: list[str] = []
    current, side = Stream("attention", found), Stream("matching", found)

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        found.append(f"on {stream.name}")
        yield
        found.append(f"off {stream.name}")

    monkeypatch.setattr(beside, "_is_capturing", lambda: True)
    monkeypatch.setattr(beside, "_side_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return found


def test_the_streams_wait_for_each_other(order: list[str]) -> None:
    finish = beside.start(lambda: order.append("matches") or 7)
    order.append("attends")
    assert finish() == 7
    assert order == [
        "matching waits for attention",
        *("on matching", "matches", "off matching"),
        "attends",
        "attention waits for matching",
    ]


def test_what_matching_reads_lives_until_its_result(order: list[str]) -> None:
    class Keys:
        pass

    keys = Keys()
    alive = weakref.ref(keys)
    finish = beside.start(lambda keys=keys: id(keys))
    del keys
    assert alive() is not None
    finish()
    del finish
    assert alive() is None


def test_outside_a_capture_no_stream_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    assert beside.start(lambda: 7)() == 7


def test_a_patched_tower_is_the_same_and_matches_before_it_attends(
    order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tower()
    batch = images_for(model)
    attend: Any = attention.proportional_attention

    def recorded(*args: Any, **options: Any) -> Any:
        order.append("attends")
        return attend(*args, **options)

    monkeypatch.setattr(attention, "proportional_attention", recorded)
    alt.patch_clip(model, r=3)
    found = model(batch)
    blocks = len(model.transformer.resblocks)
    assert order == blocks * [
        "matching waits for attention",
        *("on matching", "off matching", "attends"),
        "attention waits for matching",
    ]
    monkeypatch.setattr(beside, "_is_capturing", lambda: False)
    assert torch.equal(found, model(batch))
