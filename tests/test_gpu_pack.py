"""`make gpu-pack` without its compilers: what a pack is refused for, how it is used, and that its kernels are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import __main__ as entry
from gpu import calls, dry_launch, pack, prepare, session

ROOT = Path(__file__).resolve().parents[1]


def packed(folder: Path, **manifest: Any) -> Path:
    """A pack of one kernel and a library, as `make` leaves it."""
    folder.mkdir()
    cache = folder / "cache"
    (cache / "KEY").mkdir(parents=True)
    (cache / "KEY" / "merge.cubin").write_bytes(b"code")
    names = {"merge.cubin": str(cache / "KEY" / "merge.cubin")}
    (cache / "KEY" / "__grp__merge.json").write_text(json.dumps({"child_paths": names}))
    pack.move_groups(cache, Path())
    with tarfile.open(folder / pack.CACHE, "w:gz") as archive:
        archive.add(cache, ".")
    (folder / "_C.abi3.so").write_bytes(b"library")
    versions = {"python": pack.python_release(), "torch": torch.__version__.split("+")[0], "triton": "3.6.0"}
    whole = {"commit": "abc1234567", "hash": pack.kernel_hash(), "source": session.source_hash(), "kernels": ["KEY"]}
    (folder / pack.MANIFEST).write_text(json.dumps(versions | whole | manifest))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout and a folder for what is unpacked, so that this one stays as it is."""
    (tmp_path / "checkout" / "alt_kernels").mkdir(parents=True)
    monkeypatch.setattr(pack, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(pack.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "COMMIT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def test_a_stale_pack_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = packed(tmp_path / "pack", hash="of other sources")
    assert entry.main(["kernels", "--device", "cpu", "--pack", str(folder)]) == 2
    assert capsys.readouterr().err.strip() == (
        f"PACK: {str(folder)!r} was made from other kernels, configurations or csrc (commit abc1234567) than this"
        " checkout has; make it anew with `make gpu-pack`"
    )
    assert entry.main(["kernels", "--device", "cpu", "--pack", str(tmp_path)]) == 2
    assert "expected a folder made by `make gpu-pack`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["alt_kernels/triton/configs/a.json", "alt_kernels/a.py", "csrc/cuda/a.cu", "setup.py"]
)
def test_the_hash_follows_what_is_compiled(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    before = pack.kernel_hash(tmp_path)
    (tmp_path / "README.md").write_text("1")
    assert pack.kernel_hash(tmp_path) == before, "made anew for nothing"
    path.write_text("2")
    assert pack.kernel_hash(tmp_path) != before


def test_a_pack_in_use(elsewhere: Path) -> None:
    """Its cache, whose files Triton lists by absolute path; its library; its commit; and what was not in it."""
    folder = packed(elsewhere / "pack", hash=pack.kernel_hash(elsewhere / "checkout"))
    found = pack.take(folder)
    cache = found.place / "triton"
    assert os.environ["TRITON_CACHE_DIR"] == str(cache)
    group = json.loads((cache / "KEY" / "__grp__merge.json").read_text())["child_paths"]
    assert Path(group["merge.cubin"]).read_bytes() == b"code"
    assert (elsewhere / "checkout" / "alt_kernels" / "_C.abi3.so").read_bytes() == b"library"
    assert os.environ["COMMIT"] == "abc1234567"
    assert found.compiled_anew() == []
    for key, name in (("NEW", "attention"), ("THEIRS", "triton_poi_fused_0")):
        (cache / key).mkdir()
        (cache / key / f"{name}.cubin").touch()
    assert pack.take(folder).compiled_anew() == ["attention"], "PyTorch's own count, or a second call unpacks anew"


def test_what_each_section_compiled_is_told(elsewhere: Path) -> None:
    """The tests' kernels are not in a pack; those of the benchmark have to be."""
    found = pack.take(packed(elsewhere / "pack", hash=pack.kernel_hash(elsewhere / "checkout")))
    anew = calls.CompiledAnew(found)
    anew("kernels")
    for key in ("NEW", "OTHER"):
        (found.place / "triton" / key).mkdir()
        (found.place / "triton" / key / "attention.cubin").touch()
    anew("agree")
    assert anew.by_section == {"kernels": [], "agree": ["attention", "attention"]}
    assert found.sentence(anew.by_section) == "pack: 1 kernels came along; compiled anew: kernels 0, agree 2"
    assert found.keep_inductor(elsewhere) is None
    (found.place / "inductor" / "code.py").touch()
    with tarfile.open(found.keep_inductor(elsewhere)) as archive:
        assert "./code.py" in archive.getnames()


def test_a_commit_is_claimed_only_for_its_sources(elsewhere: Path) -> None:
    folder = packed(elsewhere / "pack", hash=pack.kernel_hash(elsewhere / "checkout"), source="another")
    pack.take(folder)
    assert os.environ["COMMIT"] == "abc1234567, changed"


def test_another_python_is_told(tmp_path: Path) -> None:
    """The compiled kernels are not found there; the libraries serve every release."""
    manifest = json.loads((packed(tmp_path / "pack") / pack.MANIFEST).read_text())
    assert pack.misfit(manifest) == ""
    assert "compiled with python 3.7, here 3." in pack.misfit(manifest | {"python": "3.7"})


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"PACK_PYTHON: expected a Python like .*, got 'python3\.99'"):
        pack.interpreter("python3.99", tmp_path)


def test_wheels_come_last_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has goes first, in this process and in its children."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    prepare.use_folder(tmp_path)
    assert sys.path[-1] == str(tmp_path)
    assert os.environ["PYTHONPATH"].split(os.pathsep) == ["before", str(tmp_path)]


# ---------------------------------------------------------------------------------------------- launches of nothing

SMALL = """
import sys
import torch, triton
import alt_kernels as ak
from gpu import dry_launch, precompile

triton.knobs.compilation.listener = count = precompile.Count()
with dry_launch.dry_run():
    x = torch.randn(256, 197, 768, dtype=torch.bfloat16)
    plan = ak.bipartite_soft_matching(x[..., :64], 8)
    for _ in range(2):
        merged = ak.weighted_merge(x, plan, torch.ones(256, 197))
    assert merged.x.shape == (256, 189, 768)
print(len(count.found), len(count.compiled), precompile.compile_launchers(count.launchers))
"""


def test_a_kernel_is_found_wherever_the_cache_is_unpacked(tmp_path: Path) -> None:
    """The launchers' own keys at batch 256: compiled once, found in a copy at another place."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "TRITON_STORE_BINARY_ONLY": "1"}

    def run(cache: Path) -> list[int]:
        command = [sys.executable, "-c", SMALL]
        done = subprocess.run(
            command, cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return list(map(int, done.stdout.split()))

    made, moved = tmp_path / "made", tmp_path / "moved"
    assert run(made) == [0, 2, 3], "two kernels, their launchers and the driver's module"
    pack.move_groups(made, Path())
    made.rename(moved)
    pack.move_groups(moved, moved)
    assert run(moved) == [2, 0, 0]


TUNED = """
import torch, triton
from tools import tune as tuner
from gpu import dry_launch, precompile, tune

triton.knobs.compilation.listener = count = precompile.Count()
with dry_launch.dry_run():
    problem = tune.weighted_merge(precompile.session())
    before = len(count.compiled)  # the plans that it merges by
    tuner.compile_together(problem, tuner.first_sweep(problem)[:4] + [{"R": 3, "num_warps": 4}])
    together = len(count.compiled)
    for use in tuner.first_sweep(problem)[:4]:
        with tuner.launch_configs.force_config("weighted_merge", use):
            problem.calls[0]()
print(together - before, len(count.compiled) - together)
"""


def test_the_tuner_compiles_in_threads_what_it_runs_next(tmp_path: Path) -> None:
    """Four configurations at once, and one that no compiler takes; then each is found."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TUNED], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["4", "0"]


def test_a_pack_is_for_every_gpu_that_was_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After tuning on one, its launches take other kernels than those of its architecture."""
    from alt_kernels.triton import launch_configs

    tuned = [{"when": {"channels": 64}, "use": {"R": 1}}]
    lists = dict.fromkeys(("default", "sm_90", "NVIDIA H200, sm_90", "NVIDIA A100, sm_80"), tuned)
    (tmp_path / "op.json").write_text(json.dumps(lists))
    monkeypatch.setattr(launch_configs, "CONFIGS", tmp_path)
    assert dry_launch.gpus() == ["any GPU, sm_90", "NVIDIA H200, sm_90"]
    with dry_launch.dry_run("NVIDIA H200, sm_90"):
        assert launch_configs.device_name() == "NVIDIA H200, sm_90"


def test_nothing_is_computed_in_a_dry_run() -> None:
    """Shapes of what would fill a GPU, in no time; outside all is as before."""
    from alt_kernels.triton import launch_configs

    before = launch_configs.device_name
    with dry_launch.dry_run():
        a = torch.randn(30_000, 30_000, dtype=torch.bfloat16)
        b = (a @ a).float().softmax(-1)
        b[:, 0] += 1
        values, index = b[:5].topk(3)
        assert launch_configs.device_name() == "any GPU, sm_90"
    assert (b.shape, b.dtype, values.shape, index.dtype) == (a.shape, torch.float32, (5, 3), torch.int64)
    assert b.T.data_ptr() == b.data_ptr()
    assert launch_configs.device_name is before
    assert torch.equal(torch.ones(3) + 1, torch.full((3,), 2.0))
