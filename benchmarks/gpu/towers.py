"""Whole image towers: how much of the saving in operations arrives in time.

The share of the saving realised is (1 - t_r / t_0) / (1 - F_r / F_0), where t_0 is the fastest unmerged tower there
is here (open_clip's, as it comes or compiled) and F is counted by `alt.count_macs`. Weights are random: time does not
depend on them. Batches of 8 run as a CUDA graph, since launches would be all that is measured.
"""

from __future__ import annotations

import copy
import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import rival_tower
import torch
from torch import Tensor, nn

from . import clock, entrants, pack
from .clock import Timed
from .session import Budget, Record, Session, number, say, table
from .tower_gates import MERGED, Step, embedding_gate, gradient_gate, loss_of

FORWARD, CAPTURED, TRAINING = "forward", "forward in a CUDA graph", "training step"


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
    """``r`` 0 is the unmerged tower; ``seconds`` it takes to set up and time, about; ``ours``: with our kernels."""

    name: str
    r: int
    build: Callable[[], Callable[[Tensor], Tensor]]
    seconds: float
    compiled: bool
    ours: bool


class Contest(NamedTuple):
    vit: Vit
    batch: int
    what: str

    @property
    def name(self) -> str:
        return f"{self.vit.name}, batch {self.batch}, {self.what}"

    @property
    def training(self) -> bool:
        return self.what == TRAINING


def run(session: Session, budget: Budget, rows: list[Record], keep: Callable[[], None]) -> None:
    """ViT-B/16 eager, the headline compiled, ViT-L/14 eager, then what else is compiled: each takes minutes."""
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        budget.left_out.append(f"towers: open_clip cannot be imported ({error}); WHEELS=folder brings it along")
        return
    places: dict[str, int] = {}
    for c, compiled in steps(session):
        # What a contest needs at least: its eager entrants, or two compiled ones, since one alone says nothing.
        needed = 2 * _compiling(c) + 10 if compiled else 6 + c.vit.layers / 2
        if not session.dry and not budget.has(needed, f"{c.name}{', compiled' if compiled else ''}"):
            continue
        place = places.setdefault(c.name, len(rows))
        if place == len(rows):
            rows.append({"name": c.name, "error": "not finished"})

        def so_far(row: Record, place: int = place) -> None:
            rows[place] = row
            keep()

        try:
            so_far(contest(session, budget, c, compiled, so_far))
        except Exception as error:
            if "error" in rows[place]:
                so_far({"name": c.name, "error": entrants.reason(error)})
            else:  # what was measured before stays
                rows[place]["absent"]["the rest"] = entrants.reason(error)
        say(f"  {c.name}: {_share(rows[place])}")
        clock.release(session.device)
        torch.compiler.reset()


def _share(row: Record) -> str:
    shares = (f"{n} {100 * f['saving_realised']:.0f} %" for n, f in row.get("entrants", {}).items() if f.get("r") == 8)
    return row.get("error") or "; ".join(shares) or "no share"


def contests(session: Session) -> list[Contest]:
    """The headline first."""
    if session.dry:
        return [Contest(TINY[0], 2, what) for what in (FORWARD, CAPTURED, TRAINING)]
    return [
        Contest(vit, *which)
        for vit in VITS
        for which in ((256, FORWARD), (8, CAPTURED), (training_batch(vit), TRAINING))
    ]


def training_batch(vit: Vit) -> int:
    """Returns the largest batch whose activations of a training step fit."""
    return 256 if vit.layers <= 12 else 64


def steps(session: Session) -> list[tuple[Contest, bool]]:
    """Contests in order, each with whether its compiled entrants take part, so that most is there when time is up."""
    listed = contests(session)
    if session.dry:
        return [(c, True) for c in listed]
    small = [c for c in listed if c.vit == VITS[0]]
    large = [c for c in listed if c.vit != VITS[0]]
    eager, compiled = ([(c, flag) for c in small] for flag in (False, True))
    return [*eager, compiled[0], *((c, False) for c in large), *compiled[1:], *((c, True) for c in large)]


def _compiling(c: Contest) -> float:
    """Seconds of `torch.compile` for a tower, about: every block is code of its own, since N differs.

    A seventh where an earlier run's graphs came along: the cache was seen to need three seconds for twenty.
    """
    return (4.5 if c.training else 2.5) * c.vit.layers / (7 if pack.COMPILED in os.environ else 1)


def build(vit: Vit, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """open_clip's tower with random weights, without the text tower that comes with a named model."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    with torch.device(device):
        tower = VisionTransformer(*(vit.image, vit.patch, vit.width, vit.layers, vit.heads, 4.0), output_dim=vit.output)
    return tower.to(device, dtype).eval()


def contest(session: Session, budget: Budget, c: Contest, compiled: bool, so_far: Callable[[Record], None]) -> Record:
    """Check and time the entrants, all of them in the same rounds; again with every compiled one that is ready.

    Args:
        compiled: with the compiled entrants, as many as there is time for. so_far: is given what has been measured.
    """
    dtype = torch.float32 if session.dry else torch.bfloat16
    base = build(c.vit, session.device, dtype)
    images = images_of(session, c, dtype)
    macs, left = _costs(base, c)
    row: Record = {"name": c.name, "macs": macs, "tokens_left": left, "entrants": {}, "absent": {}}
    exact = build(c.vit, session.device, torch.float32)
    gate = (gradient_gate if c.training else embedding_gate)(exact, copy.deepcopy(base), images[0])
    calls: dict[str, list[Callable[[], object]]] = {}
    errors: dict[str, float] = {}
    everyone = {e.name: e for e in entrants_of(session, base, c)}

    def timed(rounds: int) -> Record:
        failed: dict[str, Exception] = {}
        times = _time(session, calls, c.what == CAPTURED, rounds, failed) if calls else {}
        for name, error in failed.items():  # its own row, and no other's
            row["absent"][name] = f"while it was timed: {entrants.reason(error)}"
            del calls[name]
        found = row | {"entrants": {n: {"error": errors[n]} for n in calls}, "absent": dict(row["absent"])}
        summarize(found, {n: (everyone[n].r, t) for n, t in times.items()})
        return found

    for entrant in sorted(everyone.values(), key=lambda e: e.compiled):
        if entrant.compiled and not compiled:
            continue
        if entrant.compiled and not (session.dry or budget.has(entrant.seconds, f"{c.name}: {entrant.name}")):
            continue
        try:
            step = entrant.build()
            off, allowed = gate(step, entrant.r)
            if not off <= allowed:
                row["absent"][entrant.name] = f"off the definition by {off:.2g}, allowed {allowed:.2g}: not timed"
                continue
            errors[entrant.name] = off
            calls[entrant.name] = [(lambda s=step, x=x: s(x)) for x in images]
        except Exception as error:
            row["absent"][entrant.name] = entrants.reason(error)
            clock.release(session.device)
            continue
        if entrant.compiled and not session.dry:
            so_far(timed(7))
    return timed(2 if session.dry else clock.ROUNDS)


def images_of(session: Session, c: Contest, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(session.device).manual_seed(6)
    sizes = (c.batch, 3, c.vit.image, c.vit.image)
    return [torch.randn(*sizes, generator=generator, device=session.device).to(dtype) for _ in range(2)]


def _costs(base: nn.Module, c: Contest) -> tuple[dict[int, int], dict[int, int]]:
    """Multiply-accumulates and tokens left, by r."""
    import alt

    merging = copy.deepcopy(base).eval()
    tokens = (c.vit.image // c.vit.patch) ** 2 + 1
    macs, left = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # r = 13 runs out of tokens in 24 blocks: `tokens_left` shows it
        handle = alt.patch_clip(merging, r=0)
        for r in (0, *MERGED):
            handle.r = r
            macs[r], left[r] = alt.count_macs(merging, frames=c.batch).native, handle.schedule(tokens).tokens[-1]
    return macs, left


def entrants_of(session: Session, base: nn.Module, c: Contest) -> list[Entrant]:
    """Unmerged, ours and plain torch; eager, then compiled in the order of what they tell.

    Unmerged three times: open_clip's own; with PyTorch's fused attention on views of the packed projection, which
    copies nothing; and with our attention, whose gain would else be taken for merging's. The fastest is t_0.
    """
    import alt

    slow = _compiling(c)

    def tower() -> nn.Module:
        return copy.deepcopy(base).train(c.training)

    def host() -> tuple[nn.Module, Step]:
        found = tower()
        return found, found

    def patched(r: int, **options: Any) -> tuple[nn.Module, Step]:
        found = tower()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            alt.patch_clip(found, r=r, **options)
        return found, found

    def plain(r: int, masked: bool) -> tuple[nn.Module, Step]:
        found = tower()
        return found, lambda images: rival_tower.forward(found, images, r, masked=masked)

    def entrant(name: str, r: int, make: Callable[[], tuple[nn.Module, Step]], compiled: bool) -> Entrant:
        def made() -> Step:
            module, forward = make()
            if compiled and not session.dry:
                forward = torch.compile(forward, dynamic=False)
            return TrainingStep(forward, module) if c.training else _inferring(forward)

        ours = "ours" in name or "our " in name
        full = f"{name}, {'compiled' if compiled else 'eager'}"
        return Entrant(full, r, made, slow if compiled else 3, compiled, ours)

    first, second = MERGED
    fused, attention, mask = "unmerged, SDPA", "unmerged, our attention", f"plain torch + SDPA mask r={first}"
    return [
        entrant("unmerged", 0, host, False),
        entrant(fused, 0, lambda: plain(0, True), False),
        entrant(attention, 0, lambda: patched(0), False),
        entrant(f"ours r={first}", first, lambda: patched(first), False),
        entrant(f"ours r={second}", second, lambda: patched(second), False),
        entrant(f"ours r={first}, metric='projection'", first, lambda: patched(first, metric="projection"), False),
        entrant(f"plain torch r={first}", first, lambda: plain(first, False), False),
        entrant(fused, 0, lambda: plain(0, True), True),
        entrant(f"ours r={first}", first, lambda: patched(first), True),
        entrant(attention, 0, lambda: patched(0), True),
        entrant(f"ours r={second}", second, lambda: patched(second), True),
        entrant("unmerged", 0, host, True),
        entrant(mask, first, lambda: plain(first, True), True),
    ]


def call_of(session: Session, c: Contest, name: str) -> Callable[[], object]:
    """Returns an entrant of a contest as a call on one batch of images."""
    dtype = torch.float32 if session.dry else torch.bfloat16
    entrants_here = entrants_of(session, build(c.vit, session.device, dtype), c)
    step = next(e for e in entrants_here if e.name == name).build()
    images = images_of(session, c, dtype)[0]
    return lambda: step(images)


def _inferring(forward: Step) -> Step:
    def infer(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return forward(images)

    return infer


class TrainingStep:
    """Forward and backward into fresh gradients; a step that adds to those of the last one would be another one."""

    def __init__(self, forward: Step, module: nn.Module) -> None:
        self.forward = forward
        self.parameters = list(module.parameters())

    def __call__(self, images: Tensor) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        output = self.forward(images)
        loss_of(output).backward()
        return output.detach()


def _time(
    session: Session,
    calls: dict[str, list[Callable[[], object]]],
    captured: bool,
    most: int,
    failed: dict[str, Exception],
) -> dict[str, Timed]:
    """Batches that fill the GPU as they are launched, host time included; small ones as a CUDA graph."""
    if captured or session.device.type != "cuda":
        seconds = 0.0 if session.dry else 10.0
        limits = {"rounds": most, "seconds": seconds, "longest": float("inf")}
        return clock.interleave(calls, session.device, failed=failed, **limits)
    return clock.interleave_launched(calls, session.device, rounds=most, failed=failed)


def summarize(row: Record, times: dict[str, tuple[int, Timed]]) -> None:
    """Milliseconds, speed-up over the fastest unmerged tower, share of the saving realised."""
    unmerged = {name: timed for name, (r, timed) in times.items() if r == 0}
    best = min(unmerged, key=lambda name: unmerged[name].median) if unmerged else None
    row["fastest_unmerged"] = best
    for name, (r, timed) in times.items():
        found = row["entrants"].setdefault(name, {})
        found |= {"r": r, "ms": 1e3 * timed.median, "how": timed.how} | ({"why": timed.why} if timed.why else {})
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
