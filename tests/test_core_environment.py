"""What the core needs: an environment that holds torch, NumPy and the wheel, and nothing of the extras.

The environment links the packages of this one that torch and NumPy require, by their metadata, and no others. So
nothing is downloaded, and an import of anything else fails as it would for a user.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .test_build import ROOT, build, call, install, sdist, unpacked  # noqa: F401  fixtures

OPERATIONS = """
import torch
import alt, alt_kernels as ak

x = torch.randn(2, 33, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
plan = ak.bipartite_soft_matching(x.detach(), 6)
merged, size = ak.weighted_merge(x, plan)
assert merged.shape == (2, 27, 16) and float(size.sum()) == 66
assert ak.unmerge(merged, plan).shape == x.shape
assert int(ak.source_map([plan]).max()) == 26
ak.merge_layer_norm(x, x, plan, None, torch.ones(16), torch.zeros(16))
heads = merged.unflatten(-1, (2, 8)).transpose(1, 2)
out = ak.proportional_attention(heads, heads, heads, size)
chosen = ak.cosine_gumbel_assign(merged, torch.randn(5, 16), tau=0.5, seed=torch.tensor(1))
(out.sum() + chosen.output.sum()).backward()
assert x.grad.isfinite().all() and x.grad.any()
assert callable(alt.patch_clip) and callable(alt.count_macs)
"""

ABSENT = """
import importlib.util
for name in ("open_clip", "torchvision", "lightning", "typer", "yaml", "safetensors", "matplotlib", "PIL", "xformers"):
    assert importlib.util.find_spec(name) is None, name
"""

PATCHING = """
import open_clip, torch, alt
from open_clip.transformer import VisionTransformer

torch.manual_seed(0)
tower = VisionTransformer(32, 8, 32, 2, 2, 4.0, output_dim=12).eval()
images = torch.randn(1, 3, 32, 32)
with torch.no_grad():
    before = tower(images)
    handle = alt.patch_clip(tower, r=3)
    assert not torch.equal(tower(images), before)
    assert alt.count_macs(tower).native > 0
    handle.remove()
    assert torch.equal(tower(images), before)
"""


def requirements(names: Iterable[str]) -> set[str]:
    """Returns the distributions that ``names`` require here, themselves included, extras left out."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def link(names: Iterable[str], folder: Path) -> None:
    """Link into ``folder`` the top-level files and folders of installed distributions."""
    folder.mkdir()
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


@pytest.fixture
def wheel(unpacked: Path, tmp_path: Path) -> Path:  # noqa: F811
    return build("wheel", unpacked, tmp_path / "dist", AK_BUILD_EXT="0")[0]


def environment(wheel: Path, folder: Path, packages: set[str]) -> Path:
    """Returns the Python of a new environment with the wheel and ``packages``."""
    python = install(wheel, folder)
    (beside,) = folder.glob("lib/python*/site-packages/torch_of_the_tests.pth")
    link(packages, folder / "packages")
    beside.write_text(f"{folder / 'packages'}\n")
    return python


@pytest.mark.slow
def test_operations_run_with_torch_and_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    python = environment(wheel, tmp_path / "env", requirements(["torch", "numpy"]))
    call(python, "-c", ABSENT + OPERATIONS, cwd=tmp_path)
    assert "alt-kernels[models]" in call(
        python, "-c", "import sys, alt.cli\ntry: alt.cli.main()\nexcept SystemExit as error: print(error)", cwd=tmp_path
    )


@pytest.mark.slow
def test_patching_needs_open_clip_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    python = environment(wheel, tmp_path / "env", requirements(["torch", "numpy", "open_clip_torch"]))
    assert "lightning" not in requirements(["open_clip_torch"])
    call(python, "-c", PATCHING, cwd=tmp_path)


def test_metadata_requires_torch_and_numpy_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} == {"torch", "numpy"}
