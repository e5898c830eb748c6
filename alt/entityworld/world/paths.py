"""Positions of target, part and distractors per frame, as a function of the clip's draws and the phase u in [0, 1].

A motion and its reversal are the same path, run forward or backward. Everything else that changes in time (distractors,
occluder, pixel noise) is a function of the phase too. So reversing the motion of a clip reverses its frames exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .counter import uniforms
from .vocabulary import MOTIONS
from .world_config import MAX_DISTRACTORS, WorldConfig

PATHS = sorted({m.path for m in MOTIONS})


class Scenery(NamedTuple):
    """Numpy float64 arrays, lengths in fractions of the canvas, angles as (cos, sin); ``[B, T, ...]`` unless noted."""

    target: np.ndarray  # centre (x, y)
    target_radius: np.ndarray
    target_turn: np.ndarray  # (cos, sin)
    target_gap: np.ndarray  # in units of the radius
    target_alpha: np.ndarray
    part: np.ndarray
    part_radius: np.ndarray  # [B]
    part_turn: np.ndarray
    distractors: np.ndarray  # [B, T, D, 2]
    distractor_object: np.ndarray  # [B, D] int
    distractor_alpha: np.ndarray  # [B, D], 0 where there is none
    distractor_radius: np.ndarray  # [B, D]
    distractor_turn: np.ndarray  # [B, D, 2]
    occluder: np.ndarray  # [B, 4]: horizontal position, half width (0: none), grey, slant
    gain: np.ndarray  # [B, 3] colour jitter
    texture_phase: np.ndarray  # [B, 3]: x, y, frequency
    hue: np.ndarray  # [B] turns


def phases(motion: np.ndarray, frames: int) -> np.ndarray:
    """Returns the phase number ``[B, T]`` of every frame: 0..T-1, or descending for motions that run backwards."""
    forward = np.arange(frames)
    backward = np.array([m.reverse for m in MOTIONS])[motion]
    return np.where(backward[:, None], forward[::-1], forward)


def _turn(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def lay_out(
    config: WorldConfig,
    keys: np.ndarray,
    objects: np.ndarray,
    motion: np.ndarray,
    scale: np.ndarray,
    hue: np.ndarray,
    u: np.ndarray,
) -> Scenery:
    """Returns the scenery of clips ``[B]`` at phases ``u [B, T]``."""
    n, frames = u.shape
    draw = uniforms(keys, 24, "layout")[:, :, None]  # [B, slots, 1]: broadcasts over frames
    radius = config.object_radius * scale * (0.92 + 0.16 * draw[:, 0, 0])
    part_radius = config.part_radius * scale * (0.92 + 0.16 * draw[:, 1, 0])
    half = config.amplitude / 2
    side = np.where(draw[:, 2] < 0.5, -1.0, 1.0)  # where the part is: left or above (-1), right or below (+1)
    jitter = (draw[:, 3] - 0.5) * 0.08  # of the middle of the path
    lane = 0.5 - side * (0.06 + 0.18 * draw[:, 4])  # across the path: away from the part, which needs the room
    centre = 0.5 + (draw[:, 5] - 0.5) * 0.12
    beat = np.cos(3.0 * np.pi * u)
    sweep = np.deg2rad(210.0 - 240.0 * u + (draw[:, 6] - 0.5) * 40.0)
    orbit = np.minimum(half, 0.29)
    whole = 2 * np.pi * (draw[:, 7] + u * np.where(draw[:, 8] < 0.5, -1.0, 1.0))
    zig = np.where(draw[:, 8] < 0.5, -1.0, 1.0)

    x, y = np.broadcast_to(centre, u.shape).copy(), np.broadcast_to(lane, u.shape).copy()
    angle = np.broadcast_to((draw[:, 9] - 0.5) * 0.5, u.shape).copy()
    size, gap, alpha = np.ones_like(u), np.zeros_like(u), np.ones_like(u)
    direction = np.zeros((n, frames, 2))  # from the object to the part
    direction[..., 1] = side
    pivot = np.stack(np.broadcast_arrays(0.5 + jitter, centre, u)[:2], -1)

    def of(path: str) -> np.ndarray:
        return np.array([m.path == path for m in MOTIONS])[motion]

    def put(path: str, **values: np.ndarray) -> None:
        rows = of(path)
        for name, value in values.items():
            arrays[name][rows] = np.broadcast_to(value, u.shape)[rows]

    arrays = {"x": x, "y": y, "angle": angle, "size": size, "gap": gap, "alpha": alpha}
    put("vertical", x=lane, y=0.5 + jitter + half * (1 - 2 * u))
    put("horizontal", x=0.5 + jitter + half * (2 * u - 1))
    put("orbit", x=0.5 + jitter + orbit * np.cos(sweep), y=centre - orbit * np.sin(sweep), angle=np.pi / 2 - sweep)
    put("split", gap=1.25 * u)
    put("shake", x=0.5 + jitter + 0.75 * half * beat)
    put("bounce", x=lane, y=0.5 + jitter + 0.75 * half * beat)
    put("rock", angle=1.0 * beat)
    put("pulse", size=1.0 + 0.4 * beat)
    put("circle", x=0.5 + jitter + orbit * np.cos(whole), y=centre + orbit * np.sin(whole))
    put("blink", alpha=np.where(np.floor(3.99 * u) % 2 > 0, 0.12, 1.0))
    put("zigzag", x=0.5 + jitter + zig * half * (2 * u - 1), y=centre + 0.5 * half * beat)
    for path in ("vertical", "bounce"):
        direction[of(path)] = np.stack(np.broadcast_arrays(side, 0.0 * u), -1)[of(path)]
    target = np.stack([x, y], -1)
    for path in ("orbit", "circle"):
        rows = of(path)
        inward = pivot[rows] - target[rows]
        direction[rows] = inward / np.linalg.norm(inward, axis=-1, keepdims=True)

    reach = radius[:, None] * np.minimum(size, 1.0) * 0.85 + part_radius[:, None] * 0.75
    part = target + direction * reach[..., None]
    inward = -direction
    more = uniforms(keys, 8 * MAX_DISTRACTORS, "distractors").reshape(n, MAX_DISTRACTORS, 8)
    low, high = config.distractors
    number = low + np.floor(draw[:, 10, 0] * (high - low + 1)).astype(int)
    present = np.arange(MAX_DISTRACTORS) < number[:, None]
    other = np.floor(more[..., 0] * (config.objects - 1)).astype(int)
    other += other >= objects[:, None]  # never another copy of the target
    start, end = 0.08 + 0.84 * more[..., 1:3], 0.08 + 0.84 * more[..., 3:5]
    moves = more[..., 5] < 0.5
    end = np.where(moves[..., None], end, start)
    way = start[:, None] + (end - start)[:, None] * u[:, :, None, None]
    occluded = draw[:, 11, 0] < config.occluder_rate
    occluder = np.stack(
        [
            0.1 + 0.8 * draw[:, 12, 0],
            np.where(occluded, 0.03 + 0.03 * draw[:, 13, 0], 0.0),
            0.15 + 0.5 * draw[:, 14, 0],
            (draw[:, 15, 0] - 0.5) * 0.6,
        ],
        -1,
    )
    jitters = draw[:, 16:20, 0]
    brightness = 1 + config.colour_jitter * (2 * jitters[:, :1] - 1)
    gain = brightness * (1 + 0.5 * config.colour_jitter * (2 * jitters[:, 1:] - 1))
    texture = np.stack([draw[:, 20, 0], draw[:, 21, 0], 0.85 + 0.3 * draw[:, 22, 0]], -1)
    return Scenery(
        target,
        radius[:, None] * size,
        _turn(angle),
        gap,
        alpha,
        part,
        part_radius,
        inward,
        way,
        other,
        np.where(present, config.distractor_alpha * (0.8 + 0.4 * more[..., 6]), 0.0),
        config.distractor_radius * (0.85 + 0.3 * more[..., 7]) * scale[:, None],
        _turn(2 * np.pi * more[..., 0] * 7),
        occluder,
        gain,
        texture,
        hue + 0.0 * draw[:, 23, 0],
    )
