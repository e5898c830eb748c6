"""Bounded search over launch configurations, independent of the clock and the GPU.

The search starts from the configuration in use. One axis after the other (a field, or fields that go together) is tried
at its other values, the nearest first. The fastest candidate of an interleaved contest replaces the incumbent if it is
faster by a margin above noise. Kernels of a sweep that no cache has are compiled at once, in threads. A candidate must
run (a tile that does not fit the shared memory raises at launch), must not spill registers where the incumbent does
not, and must give the incumbent's result. There are at most two sweeps, within the given time.
``benchmarks/gpu/tune.py`` provides the problems and the clock; ``make gpu SECTIONS=tune`` runs it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from torch import Tensor

from alt_kernels.triton import launch_configs

from .aot_driver import stopped_launches

Use = dict[str, int]
Call = Callable[[], Any]
#: Interleaved seconds of every entrant, round by round.
Timer = Callable[[Mapping[str, Sequence[Call]]], Mapping[str, Sequence[float]]]

MARGIN = 0.02  # faster by less is noise
SWEEPS = 2
MOST_THREADS = 12  # that compile; each takes some hundred megabytes
WARPS = (1, 2, 4, 8, 16)


class Problem(NamedTuple):
    """Problem to tune: the entry's sizes, and calls of the op on one set of inputs after the other."""

    stem: str
    when: Use
    calls: Sequence[Call]
    axes: Sequence[Sequence[Use]]  # each a list of changes to a configuration


class Search(NamedTuple):
    """Result of one problem: seconds per call before and after; ``tried`` holds ratios to the incumbent's time."""

    stem: str
    when: Use
    default: Use
    use: Use
    before: float
    after: float
    tried: list[tuple[Use, float]]
    failures: list[str]
    stopped: bool  # the time was up


def axis(name: str, *values: int) -> list[Use]:
    """Returns the changes of one field."""
    return [{name: value} for value in values]


def axes_of(stem: str, when: Use, prefixes: Sequence[str] = ("",)) -> list[list[Use]]:
    """Returns the axes to try for an op: tiles, warps and stages around those that were chosen on paper.

    ``prefixes``: the kernels of an assignment ("hard_", "rows_") or of attention's derivative ("key_", "query_").
    """
    if stem in ("weighted_merge", "merge_layer_norm"):
        return [axis("R", 1, 2, 4, 8, 16), axis("num_warps", *WARPS)]
    if stem == "merge_layer_norm_backward":
        return [axis("num_warps", *WARPS), axis("programs", 132, 264, 528, 1056, 2112)]
    if stem == "bipartite_soft_matching":  # BA holds an image where one program does it
        forms = [axis("parts", 1, 2, 4, 8), axis("BA", 64, 128)] if when["tokens"] > 512 else []
        if when["tokens"] <= 512 and when["images"] <= 32:
            layouts = [(0, when["tokens"] // 2, 64, 8), (4, 64, 32, 4), (4, 64, 32, 8), (8, 64, 16, 4), (2, 64, 64, 8)]
            forms.append([dict(zip(("parts", "BA", "BB", "num_warps"), layout, strict=True)) for layout in layouts])
        tiles = [axis("BB", 16, 32, 64, 128), axis("BC", 32, 64, 128)]
        return [*forms, *tiles, axis("num_warps", 4, 8), axis("num_stages", 1, 2, 3)]
    if stem == "proportional_attention":
        keys = when["keys"]
        tiles = [(64, 0, 0), (64, 32, 0), (128, 0, 0), (128, 16, 0), (128, 32, 0), (128, 32, 16), (128, 64, 0)]
        tiles += [(128, 64, 16), (128, 64, 32), (128, 128, 0), (256, 0, 0), (128, 128, 16), (256, 16, 0)]
        layouts = [  # the tightest, each in one pass and in two
            {"resident": 1, "cols": c, "more_cols": m, "last_cols": e, "passes": p}
            for c, m, e in tiles
            if keys <= c + m + e < keys + 64
            for p in ((1, 2) if m else (1,))
        ]
        layouts += [
            {"resident": 0, "cols": c, "more_cols": 0, "last_cols": 0, "passes": 1, "max_registers": 0}
            for c in (32, 64, 128)
        ]
        # Three or four programs of four warps, two of eight; how deep rows are fetched ahead costs registers as well.
        room = [{"max_registers": r, "num_stages": n} for r in (0, 128, 168) for n in (1, 2, 3)]
        shapes = [{"rows": r, "num_warps": w} for r, w in ((32, 4), (64, 4), (64, 8), (128, 4), (128, 8), (128, 16))]
        return [layouts, shapes, room]
    if stem == "proportional_attention_backward":
        found = []
        if when["keys"] <= 256:
            cols = max(64, _power(when["keys"]))
            shapes = [(r, w) for r in (16, 32, 64) for w in (4, 8, 16) if cols <= 32 * w]
            found.append([{"whole_head": 1, "key_cols": cols, "key_rows": r, "key_num_warps": w} for r, w in shapes])
        for side in prefixes:
            tiles = [axis(f"{side}rows", 16, 32, 64, 128), axis(f"{side}cols", 32, 64, 128)]
            found += [*tiles, axis(f"{side}num_warps", 4, 8, 16), axis(f"{side}num_stages", 1, 2, 3)]
        return found
    if stem in ("cosine_gumbel_assign", "cosine_gumbel_assign_backward"):
        found, width = [], max(16, _power(when["depth"]))
        for kernel in prefixes:
            names = [f"{kernel}{field}" for field in ("BM", "BK", "BD", "num_warps", "num_stages")]
            layouts = [(bm, bk, width, 8, n) for bm in (64, 128) for bk in (16, 32) for n in (2, 3)]  # rows stay
            layouts += [(bm, bk, 64, 8, 3) for bm in (64, 128) for bk in (64, 128)]  # rows are fetched for every tile
            found.append([dict(zip(names, layout, strict=True)) for layout in layouts])
            if kernel not in ("hard_", "delta_"):  # these have no sum over values
                found.append(axis(f"{kernel}DV", *sorted({min(n, width) for n in (128, 256, 512)})))
            found += [axis(f"{kernel}BM", 32, 64, 128), axis(f"{kernel}BK", 16, 32, 64, 128)]
            found += [axis(f"{kernel}num_warps", 4, 8, 16), axis(f"{kernel}num_stages", 2, 3, 4)]
            found.append(axis(f"{kernel}programs", 132, 264, 528))
        return found
    raise ValueError(f"stem: no axes are known for {stem!r}")


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


@contextlib.contextmanager
def record_launches() -> Iterator[list[Any]]:
    """Yields the list of compiled kernels launched inside, which know their spills; empty under the interpreter."""
    from triton.runtime.jit import JITFunction

    launched: list[Any] = []
    original = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = original(self, *args, **kwargs)
        launched.append(kernel)
        return kernel

    JITFunction.run = run  # type: ignore[method-assign]
    try:
        yield launched
    finally:
        JITFunction.run = original  # type: ignore[method-assign]


def count_spills(launched: Sequence[Any]) -> int:
    return sum(int(getattr(kernel, "n_spills", 0) or 0) for kernel in launched)


def flatten(value: Any) -> list[Tensor]:
    """Returns the tensors of a call's result."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in flatten(part)] if isinstance(value, (tuple, list)) else []


def agrees(got: Any, want: Any) -> bool:
    """True if floats agree to a few half-precision roundings of the largest, and 99 of 100 integers (ties differ)."""
    pairs = list(zip(flatten(got), flatten(want), strict=True))
    for left, right in pairs:
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        if left.is_floating_point():
            scale = right.double().abs().nan_to_num(posinf=0.0).amax() if right.numel() else 1.0
            close = (left.double() - right.double()).abs() <= 2.0**-5 * scale
            if not bool((close | (left == right)).all()):
                return False
        elif left.numel() and float((left == right).double().mean()) < 0.99:
            return False
    return bool(pairs)


def in_use(problem: Problem) -> Use:
    """Returns the configuration that launches of the problem take now."""
    entries = launch_configs.list_entries(launch_configs.load(problem.stem), launch_configs.device_name())
    return dict(launch_configs.nearest(entries, problem.when))


def first_sweep(problem: Problem) -> list[Use]:
    """Returns the start of a search: the configuration in use, then each that differs from it along one axis."""
    start = in_use(problem)
    return [start, *(use for changes in problem.axes for _, use in nearest_first(changes, start))]


def nearest_first(changes: Sequence[Use], start: Use) -> list[tuple[Use, Use]]:
    """Returns the changes of one axis with the configurations that they make of ``start``, the nearest first.

    Changes of fields that ``start`` has not, and those that change nothing, are left out.
    """

    def distance(change: Use) -> float:
        return sum(abs(math.log2(max(value, 0.5) / max(start[name], 0.5))) for name, value in change.items())

    fitting = [change for change in changes if change.keys() <= start.keys() and start | change != start]
    return [(change, start | change) for change in sorted(fitting, key=distance)]


def compile_together(problem: Problem, uses: Sequence[Use]) -> None:
    """Compile what a call launches under each configuration, in as many threads as there are cores.

    A configuration that does not compile is passed over here: it raises when it is run.
    """
    import triton
    from triton.runtime._async_compile import AsyncCompileMode

    if triton.knobs.runtime.interpret:
        return
    workers = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with (
        ThreadPoolExecutor(workers) as pool,
        AsyncCompileMode(pool, ignore_errors=True),
        stopped_launches(),
    ):
        for use in uses:
            with launch_configs.force_config(problem.stem, use), contextlib.suppress(Exception):
                problem.calls[0]()


def search(
    problem: Problem,
    timer: Timer,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sweeps: int = SWEEPS,
    prepare: Callable[[Problem, Sequence[Use]], None] = compile_together,
) -> Search:
    """The best configuration found for one problem within ``seconds``; the one in use where none is better.

    Args:
        prepare: is given the configurations that come next, before the first of them runs.
    """
    end = clock() + seconds
    stem = problem.stem
    default = in_use(problem)
    best, tried, failures = dict(default), [], []
    seen = {_key(default)}

    def run(use: Use) -> tuple[Any, int]:
        with launch_configs.force_config(stem, use), record_launches() as launched:
            return problem.calls[0](), count_spills(launched)

    def unseen(axes: Sequence[Sequence[Use]]) -> list[Use]:
        return [use for changes in axes for _, use in nearest_first(changes, best) if _key(use) not in seen]

    want, allowed = run(default)
    before = after = 0.0
    stopped = False

    def contest(candidates: dict[str, Use]) -> dict[str, list[float]]:
        calls = {name: [_with(stem, use, call) for call in problem.calls] for name, use in candidates.items()}
        return {name: list(found) for name, found in timer(calls).items()}

    for _ in range(sweeps):
        moved, prepared = False, None
        for number, changes in enumerate(problem.axes):
            if stopped := clock() >= end:
                break
            if prepared != best:  # at the start, and where the last axis found a better one
                prepare(problem, unseen(problem.axes[number:]))
                prepared = best
            candidates: dict[str, Use] = {}
            for change, use in nearest_first(changes, best):
                if _key(use) in seen:
                    continue
                seen.add(_key(use))
                try:
                    got, spills = run(use)
                except Exception as error:  # does not fit, does not compile
                    failures.append(f"{_text(change)}: {type(error).__name__}")
                    continue
                if spills > allowed:
                    failures.append(f"{_text(change)}: spills")
                elif not agrees(got, want):
                    failures.append(f"{_text(change)}: another result")
                else:
                    candidates[_text(change)] = use
                if stopped := clock() >= end:
                    break
            if not candidates:
                if stopped:
                    break
                continue
            times = contest({"incumbent": best, **candidates})
            base = times["incumbent"]
            ratios = {
                name: statistics.median(t / b for t, b in zip(times[name], base, strict=True)) for name in candidates
            }
            tried += [(candidates[name], ratio) for name, ratio in ratios.items()]
            before = before or statistics.median(base)
            name = min(ratios, key=lambda n: ratios[n])
            if ratios[name] < 1 - MARGIN:
                best, moved = candidates[name], True
        if stopped or not moved:
            break
    if best != default:  # once more, side by side: the sum of many small contests is not to be trusted
        times = contest({"default": default, "best": best})
        before, after = statistics.median(times["default"]), statistics.median(times["best"])
        if statistics.median(b / d for b, d in zip(times["best"], times["default"], strict=True)) >= 1 - MARGIN:
            best = dict(default)
    return Search(stem, problem.when, dict(default), best, before, after or before, tried, failures, stopped)


def _with(stem: str, use: Use, call: Call) -> Call:
    def run() -> Any:
        with launch_configs.force_config(stem, use):
            return call()

    return run


def _key(use: Use) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(use.items()))


def _text(change: Use) -> str:
    return " ".join(f"{name}={value}" for name, value in change.items())


def entries(found: Sequence[Search]) -> dict[str, list[dict[str, Any]]]:
    """Returns, by stem, the entries that differ from the default, as ``configs/<stem>.json`` lists them."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for result in found:
        if result.use != result.default:
            kept.setdefault(result.stem, []).append({"when": dict(result.when), "use": dict(result.use)})
    return kept


def store(stem: str, device: str, listed: Sequence[Mapping[str, Any]]) -> None:
    """Writes entries of a GPU to the op's file: those of the same sizes are replaced, the others stay.

    Raises:
        ValueError: ``device`` is "default", which is chosen by hand, or an entry is not as the file's others.
    """
    if device == "default":
        raise ValueError("device: expected the name of a GPU, got 'default', which is not tuned on one")
    path = launch_configs.CONFIGS / f"{stem}.json"
    before = path.read_text()
    devices = json.loads(before)
    sizes = [entry["when"] for entry in listed]
    kept = [entry for entry in devices.get(device, []) if entry["when"] not in sizes]
    devices[device] = [*kept, *listed]
    blocks = []
    for name, group in devices.items():
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in group)
        blocks.append(f"  {json.dumps(name)}: [\n{lines}\n  ]")
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    clear_caches()
    try:
        launch_configs.load(stem)
    except (ValueError, KeyError) as error:
        path.write_text(before)
        clear_caches()
        raise ValueError(f"listed: {error}") from error


def clear_caches() -> None:
    """Clears the caches, so that files and configurations are read again."""
    for function in (launch_configs.load, launch_configs._config):
        function.cache_clear()
