"""`python -m gpu.pack`: all that a machine with a GPU would have to compile or fetch, made on one without.

A folder with the compiled libraries, the cache of Triton's kernels and launchers, wheels, and a manifest of what it
was made from. ``python -m gpu --pack FOLDER`` takes it into use there. The cache is bound to a release of Python and
of Triton, so it is made by an interpreter like the one there (``--python``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from . import prepare, session

ROOT = session.ROOT
COMPILED = (
    "ALT_GPU_COMPILED"  # set where graphs that `torch.compile` made came along, or are left of an earlier command
)
MANIFEST, CACHE, INDUCTOR = "manifest.json", "triton.tgz", "inductor.tgz"
WHEELS = ("open_clip_torch", "ftfy", "wcwidth", "xformers")
#: What the interpreter must have that fills the cache; versions are those of constraints.txt.
NEEDED = ("torch", "torchvision", "triton", "open_clip_torch", "numpy", "setuptools")
ARCHITECTURE = "9.0"
LARGEST = 64 * 2**20  # bytes that travel with a command
LARGEST_INDUCTOR = 16 * 2**20
KERNELS = ("alt_kernels", "csrc")
KINDS = (".py", ".json", ".h", ".cpp", ".cu", ".cuh")


class Packed(NamedTuple):
    """A pack in use: its folder, the place where it was unpacked, its manifest."""

    folder: Path
    place: Path
    manifest: dict[str, Any]

    def compiled_anew(self) -> list[str]:
        """Returns the names of our kernels that are in the cache and were not in the pack; PyTorch's do not count."""
        brought = set(self.manifest["kernels"])
        paths = sorted((self.place / "triton").glob("*/*.cubin"))
        return [p.stem for p in paths if p.parent.name not in brought and not p.name.startswith("triton_")]

    def sentence(self, anew: dict[str, list[str]]) -> str:
        """Returns a sentence: how many kernels the pack has, and how many each section compiled anew."""
        told = [f"{section} {len(names)}" for section, names in anew.items()]
        return f"pack: {len(self.manifest['kernels'])} kernels came along; compiled anew: {', '.join(told)}"

    def keep_inductor(self, out: Path) -> Path | None:
        """Write what `torch.compile` compiled to ``out``; in the folder of a pack it saves a later call that time.

        Returns None if it is too large to travel, or if nothing was compiled.
        """
        path = out / INDUCTOR
        if not any((self.place / "inductor").iterdir()):
            return None
        with tarfile.open(path, "w:gz") as archive:
            archive.add(self.place / "inductor", ".")
        if path.stat().st_size <= LARGEST_INDUCTOR:
            return path
        path.unlink()
        return None


def kernel_hash(root: Path | None = None) -> str:
    """Returns a hash of what the pack was compiled from: kernels, their configurations, csrc and its build."""
    root = root or ROOT
    paths = [p for f in KERNELS for p in sorted((root / f).rglob("*")) if p.suffix in KINDS and p.is_file()]
    digest = hashlib.sha256()
    for path in [*paths, *sorted(root.glob("setup.py"))]:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- use


def take(folder: Path) -> Packed:
    """Unpack a pack for this process and its children; where that was done before, what is there is used.

    Raises:
        ValueError: no pack, or one of other sources.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"PACK: expected a folder made by `make gpu-pack`, got {str(folder)!r}, which has no {MANIFEST}"
        )
    manifest = json.loads(path.read_text())
    if manifest["hash"] != kernel_hash():
        raise ValueError(
            f"PACK: {str(folder)!r} was made from other kernels, configurations or csrc (commit {manifest['commit']})"
            " than this checkout has; make it anew with `make gpu-pack`"
        )
    identity = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"alt-gpu-pack-{identity}"
    if not (place / MANIFEST).exists():
        for name, inside in ((CACHE, "triton"), (INDUCTOR, "inductor")):
            (place / inside).mkdir(parents=True, exist_ok=True)
            if (folder / name).exists():
                with tarfile.open(folder / name) as archive:
                    archive.extractall(place / inside, filter="data")
        move_groups(place / "triton", place / "triton")
        if wheels := sorted(folder.glob("*.whl")):
            prepare.unpack_wheels(wheels, place / "site")
        shutil.copy(path, place / MANIFEST)  # last: all of it is there
    for library in folder.glob("_C*.so"):
        there = ROOT / "alt_kernels" / library.name
        if not there.exists() or there.read_bytes() != library.read_bytes():
            shutil.copy(library, there)
    os.environ["TRITON_CACHE_DIR"] = str(place / "triton")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    if any((place / "inductor").glob("fxgraph/*")):
        os.environ[COMPILED] = "1"
    changed = "" if manifest["source"] == session.source_hash() else ", changed"
    os.environ.setdefault("COMMIT", manifest["commit"] + changed)
    if (place / "site").exists():
        prepare.use_folder(place / "site")
    return Packed(folder, place, manifest)


def misfit(manifest: dict[str, Any]) -> str:
    """Returns the reason why the packed kernels will not be found here, or an empty string."""
    import torch
    import triton

    here = {"python": python_release(), "triton": triton.__version__, "torch": torch.__version__.split("+")[0]}
    other = [f"{name} {manifest[name]}, here {value}" for name, value in here.items() if manifest[name] != value]
    if not other:
        return ""
    return f"the pack's kernels will be compiled anew, since they were compiled with {'; '.join(other)}"


def python_release() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def move_groups(cache: Path, to: Path) -> None:
    """Rewrite the absolute paths by which Triton lists a kernel's files, for a cache that lies in ``to``."""
    for path in cache.glob("*/__grp__*"):
        group = json.loads(path.read_text())["child_paths"]
        moved = {name: str(to / path.parent.name / Path(there).name) for name, there in group.items()}
        path.write_text(json.dumps({"child_paths": moved}))


# ------------------------------------------------------------------------------------------------------------ make


def say(begin: float, what: str) -> None:
    print(f"[{time.monotonic() - begin:4.0f} s] {what}", flush=True)


def run(command: list[str], **environment: str) -> str:
    """Run a command and return its standard output; a failure ends this program with the command's messages."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} ended with {done.returncode}:\n{done.stdout}{done.stderr}"[-3000:])
    return done.stdout


def interpreter(python: str, build: Path) -> str:
    """Returns ``python`` if it can fill the cache, else a virtual environment made from it under ``build``."""
    if shutil.which(python) is None:
        raise SystemExit(f"PACK_PYTHON: expected a Python like the GPU machine's, got {python!r}, which is not there")
    probe = "import torch, triton, open_clip, numpy; assert torch.version.cuda"
    if subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return python
    there = build / "pack-python"
    found = there / "bin" / "python"
    print(f"{python} has no torch with CUDA, Triton and open_clip: {there} gets them (minutes, 5 GB)", flush=True)
    if not found.exists():
        run([python, "-m", "venv", str(there)])
    run([str(found), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *NEEDED])
    return str(found)


def libraries(folder: Path, build: Path) -> list[str]:
    """Build both compiled libraries; one build serves every Python and PyTorch (stable ABI)."""
    environment = {"AK_BUILD_CUDA": "1", "AK_REQUIRE_EXT": "1", "TORCH_CUDA_ARCH_LIST": ARCHITECTURE}
    if home := prepare.cuda_home():
        environment["CUDA_HOME"] = home
    run([sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(build / "pack-libraries")], **environment)
    found = sorted((build / "pack-libraries" / "alt_kernels").glob("_C*.so"))
    for path in found:
        shutil.copy(path, folder)
    return [path.name for path in found]


def precompile(python: str, cache: Path, *what: str, jobs: int = 1) -> list[dict[str, Any]]:
    """Fill ``cache`` and return the counts of each process."""
    environment = {
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
        "OMP_NUM_THREADS": "1",
        "ALT_KERNELS_DISABLE_CPP": "1",
    }
    commands = [[python, "-m", "gpu.precompile", *what, "--part", f"{part}/{jobs}"] for part in range(jobs)]
    processes = [
        subprocess.Popen(c, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for c in commands
    ]
    found = []
    for process in processes:
        out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"precompile ended with {process.returncode}:\n{err.decode()}"[-3000:])
        found.append(json.loads(out.decode().splitlines()[-1]))
    return found


def make(folder: Path, python: str, build: Path) -> dict[str, Any]:
    """Build everything, then check that the benchmark and the towers find all of their kernels in the packed cache."""
    from alt.measure.machine import find_commit

    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != INDUCTOR:  # of an earlier call; its keys are of what was compiled
            path.unlink()
    build.mkdir(parents=True, exist_ok=True)
    state, digest = find_commit(), kernel_hash()
    manifest: dict[str, Any] = {
        "commit": state["commit"] + (", modified" if state["modified"] else ""),
        "hash": digest,
        "source": session.source_hash(),
    }
    say(begin, f"libraries for sm_{ARCHITECTURE.replace('.', '')}")
    manifest["libraries"] = libraries(folder, build)
    python = interpreter(python, build)
    versions = "import sys, json, torch, triton; print(json.dumps({'python': '.'.join(map(str, sys.version_info[:2])),"
    versions += " 'torch': torch.__version__.split('+')[0], 'triton': triton.__version__}))"
    manifest |= json.loads(run([python, "-c", versions]).splitlines()[-1])
    wanted = [f"{name}=={version}" if (version := pinned(name)) else name for name in WHEELS]
    say(begin, f"wheels: {', '.join(wanted)}")
    download = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), *wanted]
    run([python, *download])
    manifest["wheels"] = sorted(path.name for path in folder.glob("*.whl"))
    say(begin, f"kernels, by Python {manifest['python']} and Triton {manifest['triton']}")
    with tempfile.TemporaryDirectory() as temporary:
        cache, elsewhere = Path(temporary, "made"), Path(temporary, "unpacked")
        parts = precompile(python, cache, jobs=len(os.sched_getaffinity(0)))
        for part in parts:
            for what in part["failed"]:
                say(begin, f"  not compiled: {what[:150]}")
        manifest["kernels"] = sorted({path.parent.name for path in cache.glob("*/*.cubin")})
        move_groups(cache, Path())
        with tarfile.open(folder / CACHE, "w:gz") as archive:
            archive.add(cache, ".")
        with tarfile.open(folder / CACHE) as archive:
            archive.extractall(elsewhere, filter="data")
        move_groups(elsewhere, elsewhere)
        say(begin, f"{len(manifest['kernels'])} kernels packed; looked for from another place:")
        (proof,) = precompile(python, elsewhere, "kernels", "towers")
    if proof["compiled"] or proof["failed"] or proof["launchers_built"]:
        raise SystemExit(f"the pack lacks kernels of the benchmark or the towers: {proof}")
    say(begin, f"all {proof['found']} of the benchmark and the towers found, and {proof['launchers']} launchers")
    manifest |= {"proof": proof, "not_compiled": [what for part in parts for what in part["failed"]]}
    if kernel_hash() != digest:
        raise SystemExit("the sources changed while the pack was made; make it anew")
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > LARGEST:
        raise SystemExit(f"the pack has {size / 2**20:.0f} MiB, of which {LARGEST // 2**20} can travel")
    say(begin, f"{folder}: {size / 2**20:.1f} MiB")
    return manifest


def pinned(name: str) -> str | None:
    """Returns the release that constraints.txt names, or None."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        package, _, version = line.partition("#")[0].strip().partition("==")
        if package == name and version:
            return version
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-pack", description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3.12", help="an interpreter of the GPU machine's release")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-pack", help="the folder that travels")
    options = parser.parse_args(arguments)
    make(options.out.resolve(), options.python, ROOT / "build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
