"""Section `tune`: the search over launch configurations for the shapes that people run, and what it found.

The configurations go into ``alt_kernels/triton/configs`` of this checkout, so that `bench` uses them, and into the
result, from which ``python -m gpu --apply tune.json`` takes them up elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from alt_kernels.triton import launch_configs
from tools import tune as tuner
from tools.tune import Problem, axes_of

from . import clock, entrants
from .inputs import TAU, corpus, layer, merging, packed, random, sets_of, token_sizes
from .session import Budget, Record, Session, number, table

LEAST = 6.0  # seconds in which a search with a filled cache gets to a second axis


def run(session: Session, budget: Budget) -> Record:
    name = launch_configs.device_name()
    timer = timer_of(session)
    found: list[tuner.Search] = []
    broken: list[str] = []
    builders = list(problems(session))
    for place, (what, build) in enumerate(builders):
        if not budget.has(0 if session.dry else LEAST, what):
            continue
        share = budget.left() / (len(builders) - place)
        try:
            problem = build()
            found.append(tuner.search(problem, timer, seconds=share, sweeps=1 if session.dry else tuner.SWEEPS))
        except Exception as error:
            broken.append(f"{what}: {entrants.reason(error)}")
        clock.release(session.device)
    entries = tuner.entries(found)
    if not session.dry:  # the interpreter's times say nothing
        for stem, listed in entries.items():
            tuner.store(stem, name, listed)
    budget.left_out += [f"the rest of {_title(f)}" for f in found if f.stopped]
    rows = [
        [
            _title(f),
            number(1e6 * f.before),
            number(1e6 * f.after),
            f"{len(f.tried)}",
            f"{len(f.failures)}",
            " ".join(f"{k}={v}" for k, v in f.use.items() if v != f.default[k]) or "none",
        ]
        for f in found
    ]
    heads = ["kernel", "default us", "tuned us", "timed", "dropped", "changes"]
    return {
        "gpu": name,
        "configs": entries,
        "searches": [f._asdict() for f in found],
        "failed": broken,
        "table": table(heads, rows),
    }


def _title(found: tuner.Search) -> str:
    return f"{found.stem} {' '.join(f'{k}={v}' for k, v in found.when.items())}"


def timer_of(session: Session) -> tuner.Timer:
    rounds, seconds = (2, 0.0) if session.dry else (11, 2.0)

    def timer(calls: Mapping[str, Sequence[Callable[[], Any]]]) -> Mapping[str, Sequence[float]]:
        timed = clock.interleave(calls, session.device, rounds=rounds, seconds=seconds)
        return {name: found.seconds for name, found in timed.items()}

    return timer


def problems(session: Session) -> Iterator[tuple[str, Callable[[], Problem]]]:
    """The entries that ViT-B/16 and ViT-L/14 look up in bfloat16, through the kernels' launchers.

    What is predicted to miss its target, or to have the most time to gain in a tower, comes first.
    """
    if session.dry:  # under the interpreter a call takes a tenth of a second; a test builds the others
        yield "merge_layer_norm", lambda: merge_layer_norm(session)
        return
    yield "proportional_attention, 197 keys", lambda: attention(session, 197)
    yield "cosine_gumbel_assign", lambda: assignment(session)
    yield "bipartite_soft_matching, keys", lambda: matching_from_keys(session)
    yield "bipartite_soft_matching, keys of 16 images", lambda: matching_from_keys(session, 16)
    yield "proportional_attention_backward, 197 keys", lambda: attention_backward(session, 197)
    yield "merge_layer_norm", lambda: merge_layer_norm(session)
    yield "cosine_gumbel_assign_backward", lambda: assignment_backward(session)
    yield "proportional_attention, 125 keys", lambda: attention(session, 125)
    yield "proportional_attention, 173 keys", lambda: attention(session, 173)
    yield "merge_layer_norm_backward", lambda: merge_layer_norm_backward(session)
    yield "proportional_attention_backward, 125 keys", lambda: attention_backward(session, 125)
    yield "proportional_attention_backward, 173 keys", lambda: attention_backward(session, 173)
    yield "weighted_merge", lambda: weighted_merge(session)
    yield "bipartite_soft_matching", lambda: matching(session)


def _launcher(stem: str, name: str) -> Callable[..., Any]:
    import importlib

    return getattr(importlib.import_module(f"alt_kernels.triton.{stem}"), name)


def _problem(stem: str, when: dict[str, int], calls: list[Callable[[], Any]], *prefixes: str) -> Problem:
    return Problem(stem, when, calls, axes_of(stem, when, prefixes or ("",)))


def _calls(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Callable[[], Any]]:
    return [lambda a=a: function(*a) for a in arguments]


def merge_layer_norm(session: Session) -> Problem:
    m = merging(session)
    launch = _launcher("merge_layer_norm", "merge_layer_norm")
    arguments = [
        (x, y, s, *plan, m.weight, m.bias, 1e-5) for x, y, s, plan in zip(m.x, m.y, m.size, m.plans, strict=True)
    ]
    when = {"channels": 1 << (m.shape.channels - 1).bit_length()}
    return _problem("merge_layer_norm", _listed("merge_layer_norm", when), _calls(launch, arguments))


def merge_layer_norm_backward(session: Session) -> Problem:
    m = merging(session)
    forward, launch = (_launcher("merge_layer_norm", f"merge_layer_norm{end}") for end in ("", "_backward"))
    arguments = []
    for x, y, size, plan in zip(m.x, m.y, m.size, m.plans, strict=True):
        merged, normed, merged_size, mean, rstd = forward(x, y, size, *plan, m.weight, m.bias, 1e-5)
        grads = (torch.randn_like(merged), torch.randn_like(normed))
        arguments.append((*grads, merged, mean, rstd, m.weight, True, size, merged_size, *plan))
    when = {"channels": 1 << (m.shape.channels - 1).bit_length()}
    return _problem("merge_layer_norm_backward", when, _calls(launch, arguments))


def weighted_merge(session: Session) -> Problem:
    m = merging(session)
    launch = _launcher("weighted_merge", "weighted_merge")
    arguments = [(x, s, *plan) for x, s, plan in zip(m.x, m.size, m.plans, strict=True)]
    return _problem("weighted_merge", {"channels": 1 << (m.shape.channels - 1).bit_length()}, _calls(launch, arguments))


def matching(session: Session) -> Problem:
    shape = layer(session)
    sizes = (shape.batch, shape.tokens, shape.head_dim)
    metric = random(session, 1, sets_of(session, *sizes), *sizes)
    launch = _launcher("bipartite_soft_matching", "bipartite_matching")
    when = _matching_when(shape, metric[0].element_size())
    return _problem("bipartite_soft_matching", when, _calls(launch, [(m, shape.r, 1) for m in metric]))


def matching_from_keys(session: Session, batch: int | None = None) -> Problem:
    """Sums over heads are float32, whatever the keys are."""
    shape = layer(session)
    shape = shape._replace(batch=batch or shape.batch)
    keys = [k for _, k, _ in packed(session, 2, _sets(session, shape), shape)]
    launch = _launcher("bipartite_soft_matching", "bipartite_matching_from_keys")
    when = _matching_when(shape, 4)
    return _problem("bipartite_soft_matching", when, _calls(launch, [(k, shape.r, 1) for k in keys]))


def _matching_when(shape: Any, itemsize: int) -> dict[str, int]:
    return _launcher("bipartite_soft_matching", "bucket")(shape.tokens, shape.head_dim, itemsize, shape.batch)


def attention(session: Session, tokens: int) -> Problem:
    shape = layer(session)
    shape = shape._replace(tokens=min(tokens, shape.tokens) if session.dry else tokens)
    count = _sets(session, shape)
    heads, size = packed(session, 8, count, shape), token_sizes(session, count, shape)
    launch = _launcher("proportional_attention", "proportional_attention")
    when = _attention_when(shape, heads[0][0].element_size())
    scale = shape.head_dim**-0.5
    return _problem(
        "proportional_attention", when, _calls(launch, [(*qkv, s, scale) for qkv, s in zip(heads, size, strict=True)])
    )


def attention_backward(session: Session, tokens: int) -> Problem:
    shape = layer(session)._replace(tokens=tokens)
    count = _sets(session, shape)
    heads, size = packed(session, 8, count, shape), token_sizes(session, count, shape)
    scale = shape.head_dim**-0.5
    forward = _launcher("proportional_attention", "proportional_attention")
    launch = _launcher("proportional_attention_backward", "proportional_attention_backward")
    arguments = []
    for qkv, s in zip(heads, size, strict=True):
        out, normalizer = forward(*qkv, s, scale)
        arguments.append((torch.randn_like(out), *qkv, s, out, normalizer, scale))
    when = _attention_when(shape, heads[0][0].element_size())
    return _problem("proportional_attention_backward", when, _calls(launch, arguments), "key_", "query_")


def _attention_when(shape: Any, itemsize: int) -> dict[str, int]:
    bucket = _launcher("proportional_attention", "bucket")
    return _listed("proportional_attention", {"depth": 64, "bytes": itemsize, "keys": bucket(shape.tokens)})


def _sets(session: Session, shape: Any) -> int:
    return sets_of(session, shape.batch, shape.tokens, shape.channels)


def assignment(session: Session) -> Problem:
    shape = corpus(session, False)
    count = sets_of(session, shape.rows, shape.channels)
    x = random(session, 10, count, shape.rows, shape.channels, dtype=shape.dtype)
    e = random(session, 12, count, shape.entities, shape.channels, dtype=shape.dtype)
    seed, tau = (torch.tensor(value, device=session.device) for value in (5, TAU))
    launch = _launcher("cosine_gumbel_assign", "gumbel_assignment")
    arguments = [(a, b, tau, None, seed, True) for a, b in zip(x, e, strict=True)]
    return _problem("cosine_gumbel_assign", {"depth": 512, "bits": 16}, _calls(launch, arguments), "hard_")


def assignment_backward(session: Session) -> Problem:
    shape = corpus(session, False)
    count = sets_of(session, shape.rows, shape.channels)
    x, grad = (random(session, n, count, shape.rows, shape.channels, dtype=shape.dtype) for n in (10, 11))
    e = random(session, 12, count, shape.entities, shape.channels, dtype=shape.dtype)
    seed, tau = (torch.tensor(value, device=session.device) for value in (5, TAU))
    arguments = []
    for a, b, g in zip(x, e, grad, strict=True):
        saved = torch.ops.alt_kernels.gumbel_assignment(a, b, tau, None, seed, True)[1:]
        arguments.append((g, a, b, tau, None, seed, *saved, True, False))
    launch = _launcher("cosine_gumbel_assign_backward", "gumbel_assignment_backward")
    stem = "cosine_gumbel_assign_backward"
    return _problem(stem, {"depth": 512, "bits": 16}, _calls(launch, arguments), "delta_", "rows_")


def _listed(stem: str, when: dict[str, int]) -> dict[str, int]:
    """The sizes of the default's entry that would be used: what is tuned takes its place."""
    default = launch_configs.load(stem)["default"]
    use = launch_configs.nearest(default, when)
    return dict(next(entry["when"] for entry in default if entry["use"] is use))
