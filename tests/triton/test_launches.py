"""Launches without a GPU: the real launcher up to its start, and launchers on fakes of a GPU.

Each runs in a process of its own, since the interpreter that this one uses replaces the launcher.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tools import aot

ROOT = Path(__file__).resolve().parents[2]


def launches(what: str, timeout: int = 600) -> object:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tests" / "triton" / "launches.py"), what]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_recompiles_as_tokens_merge_away_or_the_seed_changes() -> None:
    """Keys of Triton's cache over the schedule of ViT-B/16 at r = 8, then over other N, r and seeds."""
    found = launches("count")
    assert isinstance(found, dict)
    assert found["wrong"] == []
    assert found["again"] == found["first"]
    # Attention has a tile for each bucket of keys, the assignment one for hard and one for soft, and a preparation for
    # each direction.
    assert max(found["first"].values()) == 4
    assert sum(found["first"].values()) <= 30


def test_launchers_keep_to_the_device_and_never_wait_for_it() -> None:
    """A tensor on the CPU among a kernel's arguments, or ``.item()`` raises on fakes of a GPU; every kernel ran."""
    every = {case.kernel.__name__ for stem in aot.modules() for case in aot.cases(stem)}
    assert set(launches("fake")) == every  # type: ignore[call-overload]


@pytest.mark.parametrize("metric", ["keys", "projection"])
def test_the_patched_trunk_keeps_to_the_device_and_never_waits_for_it(metric: str) -> None:
    """The same of what `alt` does around the kernels, forward: autograd itself would want a GPU."""
    transformer = pytest.importorskip("open_clip.transformer")
    alt = pytest.importorskip("alt")
    with FakeTensorMode(), torch.device("cuda"):
        fakes = transformer.VisionTransformer(32, 4, 32, 2, 2, 4.0, output_dim=16)
        alt.patch_clip(fakes, r=5, metric=metric)
        with torch.no_grad():
            output = fakes(torch.empty(2, 3, 32, 32))
    assert output.device.type == "cuda"
    assert output.shape == (2, 16)


@pytest.mark.slow
def test_real_launches_compile() -> None:
    """ViT-B/16's launches in bfloat16 with the divisibility that their arguments have; shared memory of sm_90."""
    found = launches("compile", timeout=1800)
    assert isinstance(found, dict)
    assert found["wrong"] == []
    assert len(found["keys"]) > 10
