"""Whole image towers: how much of the saving in operations arrives in time.

The share of the saving realised is (1 - t_r / t_0) / (1 - F_r / F_0), where t_0 is the fastest unmerged tower there
is here (open_clip's, as it comes or compiled) and F is counted by `alt.count_macs`. Weights are random: time does not
depend on them. Batches of 8 run as a CUDA graph, since launches would be all that is measured.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import rival_tower
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import clock, entrants
from .clock import Timed
from .session import Budget, Record, Session, number, table

MERGED = (8, 13)
BOUND = 2e-2  # 1 - cosine to the float32 tower: rounded keys may merge another of two pairs with nearly equal scores


class Vit(NamedTuple):
    name: str
    image: int
    patch: int
    width: int
    layers: int
    heads: int
    output: int


VITS = (Vit("ViT-B/16", 224, 16, 768, 12, 12, 512), Vit("ViT-L/14", 224, 14, 1024, 24, 16, 768))
TINY = (Vit("tiny", 32, 4, 32, 2, 2, 16),)


class Entrant(NamedTuple):
    """``r`` 0 is the unmerged tower; ``ours`` or a rival; ``seconds`` it takes to set up and time, about."""

    name: str
    r: int
    ours: bool
    build: Callable[[], Callable[[Tensor], Tensor]]
    seconds: float


def run(session: Session, budget: Budget) -> list[Record]:
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        budget.left_out.append(f"towers: open_clip cannot be imported ({error}); WHEELS=folder brings it along")
        return []
    rows = []
    for vit, batch, what in _plan(session):
        name = f"{vit.name}, batch {batch}, {what}"
        if not budget.has(0 if session.dry else 60, name):
            continue
        try:
            rows.append(contest(session, budget, vit, batch, what, name))
        except Exception as error:
            rows.append({"name": name, "error": entrants.reason(error)})
        clock.released()
        torch.compiler.reset()
    return rows


def _plan(session: Session) -> Iterator[tuple[Vit, int, str]]:
    """The headline first, so that it is there when time runs out."""
    if session.dry:
        yield from ((TINY[0], 2, what) for what in ("forward", "forward in a CUDA graph", "training step"))
        return
    base, large = VITS
    yield base, 256, "forward"
    yield base, 256, "training step"
    yield base, 8, "forward in a CUDA graph"
    yield large, 256, "forward"
    yield large, 8, "forward in a CUDA graph"


def build(vit: Vit, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """open_clip's tower with random weights, without the text tower that comes with a named model."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    with torch.device(device):
        tower = VisionTransformer(*(vit.image, vit.patch, vit.width, vit.layers, vit.heads, 4.0), output_dim=vit.output)
    return tower.to(device, dtype).eval()


def contest(session: Session, budget: Budget, vit: Vit, batch: int, what: str, name: str) -> Record:
    import alt

    dtype = torch.float32 if session.dry else torch.bfloat16
    training = what == "training step"
    base = build(vit, session.device, dtype)
    generator = torch.Generator(session.device).manual_seed(6)
    images = [
        torch.randn(batch, 3, vit.image, vit.image, generator=generator, device=session.device).to(dtype)
        for _ in range(2)
    ]
    merging = copy.deepcopy(base)
    handle = alt.patch_clip(merging, r=0)
    tokens = (vit.image // vit.patch) ** 2 + 1
    macs, left = {}, {}
    for r in (0, *MERGED):
        handle.r = r
        macs[r], left[r] = alt.count_macs(merging, frames=batch).native, handle.schedule(tokens).tokens[-1]
    handle.remove()
    row: Record = {"name": name, "macs": macs, "tokens_left": left, "entrants": {}, "absent": {}}
    exact = build(vit, session.device, torch.float32)
    want = {r: _embed(exact, images[0][:2].float(), r) for r in (0, *MERGED)}
    calls: dict[str, list[Callable[[], object]]] = {}
    everyone = {e.name: e for e in _entrants(session, base, training)}
    for entrant in everyone.values():
        if not budget.has(0 if session.dry else entrant.seconds, f"{name}: {entrant.name}"):
            continue
        try:
            step = entrant.build()
            got = step(images[0])
            if not training:
                off = float(1 - F.cosine_similarity(got[:2].float(), want[entrant.r], dim=-1).min())
                if not off <= BOUND:
                    row["absent"][entrant.name] = f"1 - cosine to the definition {off:.2g}: not timed"
                    continue
                row["entrants"][entrant.name] = {"error": off}
            calls[entrant.name] = [(lambda s=step, x=x: s(x)) for x in images]
        except Exception as error:
            row["absent"][entrant.name] = entrants.reason(error)
            clock.released()
    times = _time(session, calls, captured=batch <= 8) if calls else {}
    summarize(row, {n: (everyone[n].r, t) for n, t in times.items()})
    return row


def _embed(tower: nn.Module, images: Tensor, r: int) -> Tensor:
    with torch.inference_mode():
        return rival_tower.forward(tower, images, r) if r else tower(images)


def _entrants(session: Session, base: nn.Module, training: bool) -> list[Entrant]:
    """Unmerged, ours and plain torch; eager and compiled."""
    import alt

    def tower() -> nn.Module:
        return copy.deepcopy(base).train(training)

    def patched(r: int) -> nn.Module:
        found = tower()
        alt.patch_clip(found, r=r)
        return found

    def plain(r: int, masked: bool) -> Callable[[Tensor], Tensor]:
        found = tower()
        return lambda images: rival_tower.forward(found, images, r, **({"masked": True} if masked else {}))

    def finished(make: Callable[[], Any], compiled: bool) -> Callable[[], Callable[[Tensor], Tensor]]:
        def made() -> Callable[[Tensor], Tensor]:
            forward = make()
            if compiled and not session.dry:
                forward = torch.compile(forward, dynamic=False)
            return _step(forward, training)

        return made

    slow = 60.0 if training else 35.0
    found = [
        Entrant("unmerged, eager", 0, False, finished(tower, False), 5),
        Entrant("unmerged, compiled", 0, False, finished(tower, True), slow),
    ]
    for r in MERGED:
        found.append(Entrant(f"ours r={r}, eager", r, True, finished(lambda r=r: patched(r), False), 5))
        found.append(Entrant(f"ours r={r}, compiled", r, True, finished(lambda r=r: patched(r), True), slow))
    r = MERGED[0]
    found.append(Entrant(f"plain torch r={r}, eager", r, False, finished(lambda: plain(r, False), False), 5))
    found.append(
        Entrant(f"plain torch + SDPA mask r={r}, compiled", r, False, finished(lambda: plain(r, True), True), slow)
    )
    return found


def _step(forward: Callable[[Tensor], Tensor], training: bool) -> Callable[[Tensor], Tensor]:
    if not training:

        def infer(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return forward(images)

        return infer

    # Only the towers' own parameters: closures over a module have none to list, so autograd finds them.
    def train(images: Tensor) -> Tensor:
        output = forward(images)
        output.float().square().mean().backward()
        return output.detach()

    return train


def _time(session: Session, calls: dict[str, list[Callable[[], object]]], captured: bool) -> dict[str, Timed]:
    """Batches that fill the GPU as they are launched, host time included; small ones as a CUDA graph."""
    rounds, seconds = (2, 0.0) if session.dry else (clock.ROUNDS, 15.0)
    if captured or session.device.type != "cuda":
        return clock.interleave(calls, session.device, rounds=rounds, seconds=seconds)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for run in calls.values():
        for call in run:
            call()
    for turn in range(rounds):
        for name, run in calls.items():
            found[name].append(clock.once(run[turn % len(run)], session.device))
    return {name: Timed(values, "host") for name, values in found.items()}


def summarize(row: Record, times: dict[str, tuple[int, Timed]]) -> None:
    """Milliseconds, speed-up over the fastest unmerged tower, share of the saving realised."""
    unmerged = {name: timed for name, (r, timed) in times.items() if r == 0}
    best = min(unmerged, key=lambda name: unmerged[name].median) if unmerged else None
    row["fastest_unmerged"] = best
    for name, (r, timed) in times.items():
        found = row["entrants"].setdefault(name, {})
        found |= {"r": r, "ms": 1e3 * timed.median, "how": timed.how}
        low, high = clock.spread(timed)
        found["quartiles_ms"] = [1e3 * low, 1e3 * high]
        if best is not None:
            found["speedup"] = clock.ratio(unmerged[best], timed)
            if r:
                saved = 1 - row["macs"][r] / row["macs"][0]
                pairs = zip(timed.seconds, unmerged[best].seconds, strict=True)
                found["saving_realised"] = statistics.median((1 - t / t0) / saved for t, t0 in pairs)


def lines(rows: list[Record]) -> list[str]:
    heads = ["tower, entrant", "ms", "speed-up", "FLOP ratio", "share of the saving", "how"]
    cells: list[list[str]] = []
    for row in rows:
        cells.append([row["name"] if "error" not in row else f"{row['name']}: {row['error']}", *[""] * 5])
        for name, found in row.get("entrants", {}).items():
            if "ms" not in found:
                continue
            ratio = row["macs"][0] / row["macs"][found["r"]]
            share = found.get("saving_realised")
            cells.append(
                [
                    f"    {name}",
                    number(found["ms"], 4),
                    number(found.get("speedup"), 4),
                    number(ratio, 4),
                    "-" if share is None else f"{100 * share:.0f} %",
                    found["how"],
                ]
            )
        cells += [[f"    {name}: {why}"[:80], *[""] * 5] for name, why in row.get("absent", {}).items()]
    return table(heads, cells) if rows else []
