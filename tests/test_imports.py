"""Who may import whom, and that the packages import where an optional part is missing.

The table below is the project's map. A new room is added here first, with what it may see.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import alt_kernels

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("alt_kernels", "alt")

# room (longest prefix of a module's name wins) -> rooms it may import, besides itself.
KERNEL_BASE = {"alt_kernels.types", "alt_kernels.checks"}
BELOW_PATCH = {"alt_kernels", "alt.hosts", "alt.lazy"}
BELOW_MODELS = BELOW_PATCH | {"alt.patch", "alt.files", "alt.validation"}
BELOW_JOBS = BELOW_MODELS | {"alt.tables", "alt.paper", "alt.paper_tables", "alt.plots", "alt.models", "alt.data"}
BELOW_JOBS |= {"alt.xclip_tables", "alt.maxi_tables"}
BELOW_JOBS |= {"alt.cost", "alt.errors"}
BELOW_JOBS |= {"alt.measure"}
JOBS = {"alt.train", "alt.evaluate", "alt.visualize", "alt.entityworld", "alt.entityworld.demo"}
# The generated world and its small CLIP lie in the room of the comparison, but below models and jobs.
WORLD = {"alt.entityworld.world", "alt.entityworld.mini_clip"}
ROOMS: dict[str, set[str]] = {
    "alt_kernels.types": set(),
    "alt_kernels.checks": {"alt_kernels.types"},
    "alt_kernels.batching": set(),
    "alt_kernels.library": KERNEL_BASE | {"alt_kernels.batching"},
    "alt_kernels.autograd": {"alt_kernels.library"},
    "alt_kernels.reference": KERNEL_BASE,
    "alt_kernels.triton": KERNEL_BASE,
    "alt_kernels.ops": KERNEL_BASE
    | {"alt_kernels.autograd", "alt_kernels.batching", "alt_kernels.library"}
    | {"alt_kernels.reference", "alt_kernels.triton"},
    "alt_kernels": KERNEL_BASE | {"alt_kernels.library", "alt_kernels.ops"},
    "alt_kernels.testing": KERNEL_BASE
    | {"alt_kernels", "alt_kernels.library", "alt_kernels.ops", "alt_kernels.reference"},
    "alt.errors": set(),
    "alt.hosts": set(),
    "alt.lazy": set(),
    "alt.validation": set(),
    "alt.paper": set(),
    "alt.paper_tables": {"alt.paper"},
    "alt.xclip_tables": {"alt.paper_tables"},
    "alt.maxi_tables": {"alt.paper_tables"},
    "alt.plots": {"alt.files"},
    "alt.tables": set(),
    "alt.patch": BELOW_PATCH,
    "alt.cost": BELOW_MODELS,
    "alt.export": {"alt_kernels", "alt.lazy"},
    "alt.models": BELOW_MODELS | {"alt.errors", "alt.corpus", "alt.data", "alt.entityworld.mini_clip"},
    "alt.data": {"alt.errors", "alt.files"},
    "alt.measure": {"alt_kernels", "alt.lazy"},
    "alt.files": set(),
    "alt.corpus": {"alt.data", "alt.errors", "alt.files"},
    "alt.visualize": BELOW_JOBS | {"alt.evaluate"},
    "alt.evaluate": BELOW_JOBS | {"alt.train"},
    "alt.train": BELOW_JOBS | {"alt.corpus", "alt.entityworld.world"},
    "alt.entityworld.world": {"alt.data", "alt.entityworld.mini_clip", "alt.validation"},
    "alt.entityworld.mini_clip": {"alt.data", "alt.files", "alt.validation"},
    "alt.entityworld": BELOW_JOBS | WORLD | {"alt.evaluate", "alt.train", "alt.visualize", "alt.corpus"},
    "alt.entityworld.demo": BELOW_JOBS | WORLD | {"alt.visualize", "alt.evaluate", "alt.entityworld"},
    "alt.commands": BELOW_JOBS | JOBS | WORLD | {"alt.corpus"},
    "alt.cli": {"alt.commands"},
    "alt": BELOW_MODELS
    | {
        "alt.corpus",
        "alt.cost",
        "alt.evaluate",
        "alt.models",
        "alt.train",
    },  # re-exports; nothing inside alt imports it
    # Names that moved, kept for one release; nothing imports them.
    "alt.embedded": {"alt.entityworld"},
    "alt.data.entity_world": {"alt.entityworld.world"},
    "alt.models.mini_clip": {"alt.entityworld.mini_clip"},
}
# Rooms whose files stand alone: the contract of one op never imports another's.
SEPARATE = {"alt_kernels.ops"}
# Outside packages a room may name anywhere, and those it may only import inside a function.
TENSORS = {"torch", "numpy"}
OUTSIDE: dict[str, set[str]] = {room: TENSORS for room in ROOMS if room.startswith("alt_kernels")}
OUTSIDE["alt_kernels.triton"] = TENSORS | {"triton"}
OUTSIDE_LAZY = {"alt_kernels.ops": {"triton"}}
# Folders of the repository that a wheel does not have.
NOT_INSTALLED = {"tools", "benchmarks", "tests", "examples"}
# Slow or optional: at the top of a file only in the rooms that are about them, elsewhere inside a function.
HEAVY = {
    *("triton", "open_clip", "torchvision", "timm", "transformers"),
    *("lightning", "matplotlib", "skimage", "peft"),
}
HEAVY_ROOMS = {
    *("alt_kernels.triton", "alt.train", "alt.models", "alt.evaluate"),
    *("alt.visualize", "alt.corpus", "alt.data"),
}
# A host may name its package at the top; it is itself imported when a model of that package is met.
HOST_ROOM = "alt.hosts."


class Import(NamedTuple):
    module: str  # importing
    target: str  # imported, fully qualified, a module where it is one of ours
    line: int
    at_top: bool  # runs when the module is imported


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    candidates = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    best = max(candidates, key=len, default="")
    # A top-level module that no longer prefix claims is the package itself only if it *is* the package.
    return best if best not in PACKAGES or module == best else ""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(module: str, source: str, is_package: bool) -> list[Import]:
    """Every import statement of a file, those inside functions and ``if`` blocks included."""
    found: list[Import] = []
    package = module.split(".") if is_package else module.split(".")[:-1]

    def add(target: str, line: int, at_top: bool) -> None:
        found.append(Import(module, target, line, at_top))

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                add(inner if inner in MODULES else origin, node.lineno, at_top)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inside)

    visit(ast.parse(source), True)
    return found


def all_imports() -> list[Import]:
    return [
        found
        for module, path in MODULES.items()
        for found in imports_of(module, path.read_text(), path.name == "__init__.py")
    ]


def violation(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    room, top = room_of(found.module), found.target.split(".")[0]
    if top in PACKAGES:
        other = room_of(found.target)
        if other == room:
            alone = room in SEPARATE and room not in (found.module, found.target)
            return f"files of {room} do not import each other" if alone else None
        if other in ROOMS[room]:
            return None
        # Allowing a package allows its face (__init__) only; its submodules are rooms of their own.
        return f"{room} may import {sorted(ROOMS[room]) or 'nothing of ours'}"
    if top in sys.stdlib_module_names:
        return None
    if top in NOT_INSTALLED:
        return f"{top} is not installed with the packages"
    usable = OUTSIDE.get(room)
    if usable is not None and top not in usable | (set() if found.at_top else OUTSIDE_LAZY.get(room, set())):
        return f"{room} uses {sorted(usable)} only"
    if found.at_top and top in HEAVY and room not in HEAVY_ROOMS and not found.module.startswith(HOST_ROOM + top):
        return "only inside a function"
    return None


def violations(imports: list[Import]) -> list[str]:
    told = [(found, violation(found)) for found in imports if room_of(found.module)]
    return [f"{f.module}:{f.line} imports {f.target}: {wrong}" for f, wrong in told if wrong]


def test_a_contract_is_named_after_its_function() -> None:
    """``git ls-files '*<function>*'`` finds an op in every room."""
    stems = {path.stem for path in (ROOT / "alt_kernels" / "ops").glob("*.py")} - {"__init__"}
    assert stems <= set(alt_kernels.__all__)
    for room in ("alt_kernels/reference", "alt_kernels/triton", "csrc/cpu", "tests/ops", "tests/triton", "benchmarks"):
        found = [path.stem for path in (ROOT / room).iterdir()]
        shared = set() if room == "alt_kernels/reference" else {"unmerge"}  # the kernels of weighted_merge do it
        assert not [stem for stem in stems - shared if not any(stem in name for name in found)], room


def test_every_module_has_a_room() -> None:
    homeless = [m for m in MODULES if not room_of(m)]
    assert not homeless, f"add to ROOMS, with what they may import: {homeless}"


def test_rooms_are_layered() -> None:
    """The table itself has no cycle, so an import that obeys it cannot make one between rooms."""
    try:
        order = list(TopologicalSorter(ROOMS).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import each other in a circle: {error.args[1]}")
    assert set(order) == set(ROOMS), "a room names another that is not in the table"


def test_imports_obey_the_table() -> None:
    wrong = violations(all_imports())
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_import_cycles() -> None:
    """Between modules; imports inside functions and for type checkers count too."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in all_imports():
        if found.target in MODULES and found.target != found.module:
            graph[found.module].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("alt_kernels.types", "import alt", "nothing of ours"),
        ("alt_kernels.reference.weighted_merge", "from ..ops import weighted_merge", "may import"),
        ("alt_kernels.reference.weighted_merge", "def f():\n    import alt_kernels.triton.x", "may import"),
        ("alt_kernels.ops.weighted_merge", "from .bipartite_soft_matching import x", "each other"),
        ("alt_kernels.ops.weighted_merge", "import triton", "only"),
        ("alt_kernels.triton.weighted_merge", "def f():\n    from tools import aot", "not installed"),
        ("alt_kernels.checks", "import open_clip", "only"),
        ("alt_kernels.checks", "def f():\n    import timm", "only"),
        ("alt.patch.schedule", "import open_clip", "inside a function"),
        ("alt.patch.schedule", "from alt_kernels.ops.weighted_merge import weighted_merge", "may import"),
        ("alt.patch.schedule", "from alt import models", "may import"),
        ("alt.hosts.host", "import open_clip", "inside a function"),
        ("alt.hosts.open_clip.patched", "import timm", "inside a function"),
        ("alt.hosts.open_clip.patched", "from alt.patch.step import merge_step", "nothing of ours"),
        ("alt.data.clips", "import alt_kernels", "may import"),
        ("alt.models.alt", "from .. import cli", "may import"),
    ],
)
def test_the_rules_bite(module: str, source: str, word: str) -> None:
    found = imports_of(module, source, is_package=False)
    # names that do not exist yet resolve to their package, which is no smaller offence
    assert any(word in line for line in violations(found)), (found, violations(found))


def test_function_level_triton_is_allowed_in_a_contract() -> None:
    source = "def dispatch():\n    import triton\n    from ..triton import weighted_merge"
    assert not violations(imports_of("alt_kernels.ops.weighted_merge", source, is_package=False))


def test_csrc_rooms_do_not_include_one_another() -> None:
    wrong = []
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in {".h", ".hpp", ".cpp", ".cu", ".cuh"}:
            continue
        others = {"cpu", "cuda"} - {path.relative_to(ROOT / "csrc").parts[0]}
        for name in re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', path.read_text(), re.MULTILINE):
            foreign = set(Path(name).parts) & others and not name.startswith(("torch/", "ATen/", "c10/"))
            if foreign or name.startswith("ATen/"):  # ATen is not part of the stable ABI
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert not wrong, wrong


# --- fresh processes ---

PRELUDE = """
import sys, importlib.abc
BLOCKED = set({blocked!r})
IMPORTERS = []
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top == "triton" and name == "triton":
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            IMPORTERS.append(frame.f_globals["__name__"])
        if top in BLOCKED:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
        return None
sys.meta_path.insert(0, Watch())
import alt_kernels, alt
import torch
"""
USE = """
x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
plan = alt_kernels.bipartite_soft_matching(x, 3)
merged = alt_kernels.weighted_merge(x, plan)
assert merged.x.shape == (2, 6, 4)
torch.testing.assert_close((merged.x * merged.size[..., None]).sum(1), x.sum(1))
out = alt_kernels.proportional_attention(x[:, None], x[:, None], x[:, None])
assert out.shape == (2, 1, 9, 4)
assert alt_kernels.cosine_gumbel_assign(x, x[0], noise=None).index.dtype == torch.int64
assert callable(alt.patch_clip) and callable(alt.count_macs)
for name, (available, reason) in alt_kernels.backends().items():
    assert isinstance(available, bool) and reason, name
"""


def fresh(
    code: str, blocked: tuple[str, ...] = (), root: Path = ROOT, prelude: str = PRELUDE, **environment: str
) -> str:
    """Run in a new interpreter that sees ``root``'s packages first; returns what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", prelude.format(blocked=blocked) + code],
        env={**os.environ, "PYTHONPATH": str(root), "ALT_KERNELS_DISABLE_CPP": "", **environment},
        cwd=root.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "blocked",
    [
        ("triton",),
        ("open_clip",),
        ("torchvision",),
        ("triton", "open_clip", "torchvision", "timm", "lightning"),
    ],
    ids="+".join,
)
def test_imports_and_works_without(blocked: tuple[str, ...]) -> None:
    fresh(USE, blocked)


def test_importing_is_light() -> None:
    """Nothing optional is loaded, and whoever loads Triton is torch itself, never a module of ours.

    (torch.utils.flop_counter, where the FLOP formulas are registered, imports Triton when it is there.)
    """
    code = """
heavy = {"open_clip", "torchvision", "timm", "transformers", "lightning", "matplotlib", "typer", "rich"}
print(sorted(heavy & set(sys.modules)))
print([name for name in IMPORTERS if not name.startswith("torch.")])
assert callable(alt.patch_clip)
print(sorted(heavy & set(sys.modules)))
"""
    assert fresh(code).split("\n")[:3] == ["[]", "[]", "[]"]


def test_alt_kernels_leaves_the_compiler_alone() -> None:
    """torch._dynamo and sympy take longer to import than torch itself, and no eager call needs them."""
    code = """
import sys, torch
before = set(sys.modules)
import alt_kernels
assert alt_kernels.unmerge(torch.ones(1, 2, 3), alt_kernels.bipartite_soft_matching(torch.ones(1, 2, 3), 0)).sum() == 6
print(sorted({"torch._dynamo", "torch._inductor", "torch.export", "sympy"} & (set(sys.modules) - before)))
"""
    assert fresh(code, prelude="").strip() == "[]"


def test_library_switched_off() -> None:
    code = USE + "print(*alt_kernels.backends()['cpp'])"
    printed = fresh(code, ALT_KERNELS_DISABLE_CPP="1")
    assert printed.startswith("False ")
    assert "ALT_KERNELS_DISABLE_CPP" in printed


def test_library_absent(tmp_path: Path) -> None:
    """The packages without the file, as a pure-Python install leaves them; results are the reference's."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("_C*", "__pycache__", "*.so"))
    code = """
print(alt_kernels.__file__)
print(*alt_kernels.backends()["cpp"])
try:
    alt_kernels.bipartite_soft_matching(torch.ones(1, 4, 2), 1, impl="cpp")
except RuntimeError as error:
    print(error)
"""
    listen = "told = []\nwarnings.showwarning = lambda message, *_: told.append(str(message))\n"
    code = "import warnings\n" + listen + USE + code + "print(len(told), told[0])"
    where, state, refusal, told = fresh(code, root=tmp_path).strip().split("\n")
    assert Path(where).is_relative_to(tmp_path)
    assert state.startswith("False ")
    assert "no compiled library" in state
    assert "pip install --force-reinstall --no-deps --no-cache-dir alt-kernels" in state
    assert told.startswith("1 alt_kernels on CPU tensors: no compiled library")
    assert "--no-cache-dir" in told
    assert refusal.startswith("impl: 'cpp' is not available")
