"""The cells of the comparison: one method with one seed each, kept as a file of its own, so that a run resumes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alt.cost import count_macs
from alt.errors import UserError
from alt.evaluate.speed_and_memory import peak_memory, throughput
from alt.files import read_json, replacing
from alt.models.video_model import VideoModel

from .method_grid import build, run_method
from .methods import Method, Plan
from .token_cache import TokenCache
from .whole_models import run_whole

__all__ = ["Run", "cell_file", "count_costs", "measure_speed", "run_cells"]

Run = dict[str, float]
"""The measures of one method with one seed, and the seed itself as "seed"."""


def run_cells(
    folder: Path,
    methods: Sequence[Method],
    cache: TokenCache,
    *,
    seeds: Sequence[int],
    plan: Plan,
    say: Callable[[str], None] = lambda line: None,
    done: Callable[[dict[str, list[Run]]], None] = lambda results: None,
) -> dict[str, list[Run]]:
    """Runs every method with every seed, method by method, and returns method -> its runs by seed.

    Cells that ``folder`` has are not run again. Several processes may fill one folder.

    Args:
        folder: gets one JSON file per cell.
        say: receives a line per finished run. done: called with all results so far after every run.

    Raises:
        UserError: a cell of the folder was run with another plan or world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    setting = json.loads(json.dumps({"world": asdict(cache.world.config), "plan": asdict(plan)}))
    results: dict[str, list[Run]] = {}
    last_r = None
    for method in methods:
        if last_r is not None and method.training == "tokens" and method.r != last_r:
            cache.forget(last_r)  # the tokens of one r at a time
        last_r = method.r if method.training == "tokens" else last_r
        for seed in seeds:
            path = cell_file(folder, method.name, seed)
            if path.exists():
                run = _read_cell(path, setting)
                say(f"{method.name}, seed {seed}: kept")
            else:
                run = _run_cell(method, cache, seed, plan)
                _write_cell(path, method.name, setting, run)
                say(f"{method.name}, seed {seed}: {run['seen']:.1f} % in {run['seconds']:.0f} s")
            results.setdefault(method.name, []).append(run)
            done(results)
    return results


def _run_cell(method: Method, cache: TokenCache, seed: int, plan: Plan) -> Run:
    start = time.perf_counter()
    costs = count_costs(build(method, cache, seed))
    run = run_method if method.training == "tokens" else run_whole
    found = run(method, cache, seed=seed, plan=plan)
    return {"seed": seed, **found, **costs, "seconds": time.perf_counter() - start}


def count_costs(model: VideoModel) -> dict[str, float]:
    """Returns multiply-accumulates of one clip (G), and all and trained parameters (M); a text tower counts."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return {
        "gmacs": count_macs(model).native_g,
        "parameters": sum(size for size, _ in sizes) / 1e6,
        "trained parameters": trained / 1e6,
    }


def cell_file(folder: Path, method: str, seed: int) -> Path:
    """Returns the path of a cell: "tuned X-CLIP r=2" with seed 3 is "tuned-x-clip-r-2.3.json"."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', method.lower()).strip('-')}.{seed}.json"


def _write_cell(path: Path, method: str, setting: dict[str, Any], run: Run) -> None:
    with replacing(path, "a cell of the comparison") as file:
        text = json.dumps({"method": method, "setting": setting, "run": run}, indent=1)
        file.write_text(text + "\n", encoding="utf-8")


def _read_cell(path: Path, setting: dict[str, Any]) -> Run:
    cell = read_json(path)
    if not isinstance(cell, dict) or not {"method", "setting", "run"} <= cell.keys():
        raise UserError(f"{path} is no cell of a comparison; take another folder.")
    if cell["setting"] != setting:
        other = _first_difference(cell["setting"], setting)
        raise UserError(f"{path} was run with {other}; take another folder, or the same settings.")
    run: Run = cell["run"]
    return run


def _first_difference(old: Any, new: Any, name: str = "") -> str:
    """Returns the first setting that differs: "plan.tokens.steps 20 instead of 1500"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    return f"{name} {old} instead of {new}"


def measure_speed(path: Path, methods: Sequence[Method], cache: TokenCache) -> dict[str, dict[str, float | None]]:
    """Measures all methods in one run, and keeps the result in ``path``, which is read instead if it has them all.

    Returns:
        method -> the counts of :func:`count_costs`; "frames/s" of one thread in evaluation mode, the median over
        interleaved rounds; "peak bytes" of one forward pass of eight clips beyond the weights. Training changes none.
    """
    names = [method.name for method in methods]
    if not path.exists() or not set(names) <= read_json(path).keys():
        models = {method.name: build(method, cache, 0) for method in methods}
        frames, memory = (throughput(models), peak_memory(models)) if models else ({}, {})
        found = {
            name: {**count_costs(model), "frames/s": frames[name], "peak bytes": memory[name]}
            for name, model in models.items()
        }
        with replacing(path, "the speed of the methods") as file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    kept = read_json(path)
    return {name: kept[name] for name in names}
