"""`python -m gpu.precompile kernels towers tune`: fill Triton's cache for a GPU that is not here.

The benchmark's cases, the towers and the first sweep of the tuner run at their real shapes, and every launch stops
before it starts (`dry_launch.py`). TRITON_CACHE_DIR says where the compiled kernels go. The small C modules by which
Triton launches kernels are compiled as well. The last line is JSON: how many kernels were found in the cache, how
many compiled, and what failed. Without a GPU the same command counts what a filled cache lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHOICES = ("kernels", "towers", "tune")


class Count:
    """Counts compilations by outcome and collects the C sources of the launchers that the kernels need."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}  # hash of a kernel -> its name
        self.compiled: dict[str, str] = {}
        self.failed: list[str] = []
        self.launchers: set[str] = set()

    def __call__(self, *, src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        """Record one kernel; Triton calls this after every look into its cache."""
        from triton.backends.nvidia.driver import make_launcher

        key = metadata["hash"]
        if cache_hit and key not in self.compiled:
            self.found[key] = metadata["name"]
        elif not cache_hit:
            self.compiled[key] = metadata["name"]
        places = {(src.fn.arg_names.index(n),) if isinstance(n, str) else n: v for n, v in src.constants.items()}
        self.launchers.add(make_launcher(places, dict(src.signature), metadata.get("tensordesc_meta")))

    def report(self) -> dict[str, Any]:
        return {"found": len(self.found), "compiled": len(self.compiled), "failed": self.failed}


def session() -> Any:
    """Returns a session with the real shapes and two sets of inputs each."""
    import torch

    from .session import Session

    return Session(torch.device("cpu"), Path("unused"), 0.0, {})


def kernels() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields our entrant of every case of the benchmark, by name."""
    from . import cases

    here = session()
    for name, _, build in cases.all_cases(here):
        yield name, lambda build=build: build().entrants["ours"](0)


def towers() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields every tower that runs our kernels, by name."""
    import torch

    from . import towers

    here = session()
    for contest in towers.contests(here):
        base = towers.build(contest.vit, here.device, torch.bfloat16)
        images = torch.empty(contest.batch, 3, contest.vit.image, contest.vit.image, dtype=torch.bfloat16)
        for entrant in towers.entrants_of(here, base, contest):
            if entrant.ours and not entrant.compiled:
                yield f"{contest.name}: {entrant.name}", lambda e=entrant, i=images: e.build()(i)


def tune() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields the configurations of the tuner's first sweep: each one change away from the one in use."""
    from alt_kernels.triton import launch_configs
    from tools import tune as tuner

    from . import tune as section

    def run(problem: Any, use: Any) -> None:
        with launch_configs.force_config(problem.stem, use):
            problem.calls[0]()

    for name, build in section.problems(session()):
        problem = build()
        for use in tuner.first_sweep(problem):
            yield f"{name}: {use}", lambda p=problem, u=use: run(p, u)


def compile_launchers(sources: set[str]) -> int:
    """Put Triton's C modules into its cache, as it does before a first launch; returns how many were missing.

    They are linked against a stub of the driver's library, with its name and symbols.
    """
    from triton.backends.nvidia import driver
    from triton.runtime import build, cache

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    modules = [("cuda_utils", Path(driver.dirname, "driver.c").read_text())]
    modules += [("__triton_launcher", source) for source in sorted(sources)]
    built = 0
    with tempfile.TemporaryDirectory() as folder:
        stub, library = Path(folder, "stub.c"), "libcuda.so.1"
        symbols = {name for _, source in modules for name in re.findall(r"\bcu[A-Z]\w*(?=\()", source)}
        stub.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(symbols)))
        link = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(Path(folder, library)), str(stub)]
        subprocess.run(link, check=True)
        for name, source in modules:
            key = hashlib.sha256((source + build.platform_key()).encode()).hexdigest()
            place = cache.get_cache_manager(key)
            if place.get_file(name + suffix) is not None:
                continue
            path = Path(folder, f"{name}.c")
            path.write_text(source)
            module = build._build(name, str(path), folder, [folder], driver.include_dirs, [library], [])
            place.put(Path(module).read_bytes(), name + suffix, binary=True)
            built += 1
    return built


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu.precompile", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*CHOICES, []], help=f"of {' '.join(CHOICES)} (default: all)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th of the launches, from the I-th on")
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_STORE_BINARY_ONLY", "1")  # what runs; not the texts that led to it
    import torch
    import triton

    from .dry_launch import dry_run, gpus

    torch.set_num_threads(1)
    triton.knobs.compilation.listener = count = Count()
    begin = time.monotonic()
    for gpu in gpus():
        for what in options.what or CHOICES:
            with dry_run(gpu):
                for number, (name, run) in enumerate(globals()[what]()):
                    if number % parts != part:
                        continue
                    try:
                        run()
                    except Exception as error:
                        count.failed.append(f"{what}: {name}: {type(error).__name__}: {str(error)[:200]}")
            state = f"{gpu}: {what}: {count.report()}"[:300]
            print(state, f"{time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    launchers = compile_launchers(count.launchers)
    print(json.dumps(count.report() | {"launchers": len(count.launchers) + 1, "launchers_built": launchers}))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # after hundreds of compilations LLVM's own end of the process crashes now and then
