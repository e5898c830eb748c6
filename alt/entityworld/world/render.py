"""Pictures of clips: background, distractors, body part, target, occluder, colour jitter, noise, in this order.

Every pixel is computed from the clip's own numbers by operations that round alike in any batch, so a clip has the same
bytes whatever is rendered beside it. Between devices a value may differ by one grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .counter import pixel_noise
from .paths import Scenery, lay_out
from .shapes import PARTS as PART_SHAPES
from .shapes import SHAPES, halves_apart
from .vocabulary import COLOURS, OBJECTS, PARTS, SCENES
from .world_config import MAX_DISTRACTORS, WorldConfig


class ClipTable(NamedTuple):
    """Clips as columns, numpy int64/float64 ``[B]``. A picture depends on these and on the world's configuration."""

    key: np.ndarray
    object: np.ndarray
    part: np.ndarray
    scene: np.ndarray
    motion: np.ndarray
    hue: np.ndarray  # of the data set's style
    scale: np.ndarray
    contrast: np.ndarray

    def rows(self, index: slice) -> ClipTable:
        return ClipTable(*(column[index] for column in self))


class Rendered(NamedTuple):
    """``frames`` uint8 ``[B, T, 3, H, W]``; ``boxes`` float32 ``[B, T, 4]`` (x0, y0, x1, y1) in pixels, end exclusive:
    the smallest box around every pixel that the target covers by a tenth or more (before an occluder; zeros where it is
    off the picture); ``object, part, scene, motion`` int64 ``[B]``."""

    frames: Tensor
    boxes: Tensor
    object: Tensor
    part: Tensor
    scene: Tensor
    motion: Tensor


def _triangle_wave(x: Tensor) -> Tensor:
    """Returns a wave of period 1 from 0 to 1 and back; exact, unlike a sine."""
    return ((x - x.round()).abs() * 2.0).clamp(0.0, 1.0)


def _step(x: Tensor, sharpness: float = 6.0) -> Tensor:
    return ((x - 0.5) * sharpness + 0.5).clamp(0.0, 1.0)


def _bricks(x: Tensor, y: Tensor) -> Tensor:
    row = torch.floor(y * 4.0)
    joint = torch.minimum(_triangle_wave(x * 2.5 + 0.5 * row), _triangle_wave(y * 4.0))
    return 1.0 - (joint * 5.0).clamp(0.0, 1.0)


def _speckle(x: Tensor, y: Tensor) -> Tensor:
    dots = torch.maximum(
        _triangle_wave(x * 5.0 + 0.5 * torch.floor(y * 5.0)) * _triangle_wave(y * 5.0),
        0.7 * _triangle_wave(x * 2.3 + 0.2) * _triangle_wave(y * 3.1 + 0.4),
    )
    return _step(dots, 3.0)


PATTERNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "checker": lambda x, y: (_step(_triangle_wave(x * 2.0)) - _step(_triangle_wave(y * 2.0))).abs(),
    "horizon": lambda x, y: _step(y + 0.06 * _triangle_wave(x * 1.5), 8.0),
    "columns": lambda x, y: _step(_triangle_wave(x * 3.0), 4.0),
    "bricks": _bricks,
    "spotlight": lambda x, y: (((x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5)) * 4.0).clamp(0.0, 1.0),
    "rows": lambda x, y: _step(_triangle_wave(y * 3.5), 4.0),
    "grid": lambda x, y: _step(torch.maximum(_triangle_wave(x * 3.0), _triangle_wave(y * 3.0)), 8.0),
    "speckle": _speckle,
    "dunes": lambda x, y: _step(_triangle_wave(x * 1.6 + y * 2.4), 3.0),
}
_STILL = {"horizon", "spotlight"}  # patterns that are shifted only a little, because their place defines them


def turn_hue(colours: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Turns colours ``[..., 3]`` about the grey axis by ``turns`` of a whole turn (broadcast against ``[...]``)."""
    angle = 2 * np.pi * turns[..., None]
    grey = colours.mean(-1, keepdims=True)
    axis = np.roll(colours, 1, -1) - np.roll(colours, -1, -1)  # cross product with (1, 1, 1), up to sign
    turned = grey + (colours - grey) * np.cos(angle) + axis * np.sin(angle) / np.sqrt(3.0)
    return np.clip(turned, 0.0, 1.0)


OBJECT_COLOURS = np.array([COLOURS[o.colour] for o in OBJECTS])
SCENE_COLOURS = np.array([s.colours for s in SCENES])
PART_COLOURS = np.array([PART_SHAPES[p.name][1:] for p in PARTS])


class _Canvas:
    """The frames of a chunk of clips, ``[B*T, 3, H, W]`` in [0, 1], and the sprites painted on them."""

    def __init__(self, rows: int, size: int, device: torch.device) -> None:
        steps = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (1.0 / size)
        self.x, self.y = steps[None, None, :], steps[None, :, None]
        self.size, self.device = size, device
        self.pixels = torch.empty(rows, 3, size, size, device=device)

    def put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)

    def index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.flatnonzero(rows)).to(self.device)

    def local(self, centre: np.ndarray, radius: np.ndarray, turn: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns pixel coordinates in the frame of a sprite, ``[R, H, W]``."""
        place, inverse, turned = self.put(centre), self.put(1.0 / radius), self.put(turn)
        dx, dy = self.x - place[:, :1, None], self.y - place[:, 1:, None]
        cos, sin = turned[:, :1, None], turned[:, 1:, None]
        scale = inverse[:, None, None]
        return (dx * cos + dy * sin) * scale, (dy * cos - dx * sin) * scale

    def cover(self, distance: Tensor, radius: np.ndarray) -> Tensor:
        """Returns the share of each pixel that lies inside, a ramp one pixel wide at the border."""
        return (0.5 - distance * self.put(radius * self.size)[:, None, None]).clamp(0.0, 1.0)

    def blend(self, rows: Tensor, cover: Tensor, colour: Tensor) -> None:
        """Blends a colour, ``[R, 3, 1, 1]`` or ``[R, 3, H, W]``, into the given rows."""
        under = self.pixels[rows]
        self.pixels[rows] = under + (colour - under) * cover[:, None]


def _background(canvas: _Canvas, table: ClipTable, scenery: Scenery, config: WorldConfig, frames: int) -> None:
    colours = turn_hue(SCENE_COLOURS[table.scene], table.hue[:, None])
    pictures = torch.empty(len(table.key), 3, canvas.size, canvas.size, device=canvas.device)
    for name in {SCENES[i].pattern for i in np.unique(table.scene)}:
        rows = np.array([s.pattern == name for s in SCENES])[table.scene]
        phase = canvas.put(scenery.texture_phase[rows] * ((0.1, 0.1, 1.0) if name in _STILL else (1.0, 1.0, 1.0)))
        x = canvas.x * phase[:, 2:, None] + phase[:, :1, None]
        y = canvas.y * phase[:, 2:, None] + phase[:, 1:2, None]
        x, y = torch.broadcast_tensors(x, y)
        pattern = PATTERNS[name](x, y)
        contrast = canvas.put(table.contrast[rows])[:, None, None] * config.texture
        mix = (0.5 + (pattern - 0.5) * 2.0 * contrast).clamp(0.0, 1.0)[:, None]
        first, second = (canvas.put(colours[rows, i])[:, :, None, None] for i in range(2))
        pictures[canvas.index(rows)] = first + (second - first) * mix
    canvas.pixels = pictures.repeat_interleave(frames, 0)


def _paint_object(
    canvas: _Canvas,
    objects: np.ndarray,
    hue: np.ndarray,
    centre: np.ndarray,
    radius: np.ndarray,
    turn: np.ndarray,
    gap: np.ndarray | None,
    alpha: np.ndarray,
    want_cover: bool = False,
) -> Tensor | None:
    """Paints one object on every row with alpha above 0; returns the cover ``[rows, H, W]`` if requested."""
    colours = turn_hue(OBJECT_COLOURS[objects], hue)
    kinds = np.array([o.shape for o in OBJECTS])[objects]
    whole = torch.zeros(len(objects), canvas.size, canvas.size, device=canvas.device) if want_cover else None
    for kind in np.unique(kinds):
        rows = (kinds == kind) & (alpha > 0)
        if not rows.any():
            continue
        x, y = canvas.local(centre[rows], radius[rows], turn[rows])
        if gap is None:
            distance = SHAPES[kind](x, y)
        else:
            distance = halves_apart(SHAPES[kind], x, y, canvas.put(gap[rows])[:, None, None])
        cover = canvas.cover(distance, radius[rows])
        edge = (1.0 + distance * 5.0).clamp(0.0, 1.0)[:, None]  # a darker rim, so that shapes are seen
        colour = canvas.put(colours[rows])[:, :, None, None] * (1.0 - 0.4 * edge)
        index = canvas.index(rows)
        canvas.blend(index, cover * canvas.put(alpha[rows])[:, None, None], colour)
        if whole is not None:
            whole[index] = cover
    return whole


def _paint_parts(canvas: _Canvas, parts: np.ndarray, centre: np.ndarray, radius: np.ndarray, turn: np.ndarray) -> None:
    for number in np.unique(parts):
        rows = parts == number
        x, y = canvas.local(centre[rows], radius[rows], turn[rows])
        outline, region = PART_SHAPES[PARTS[number].name][0](x, y)
        second = canvas.cover(region, radius[rows])[:, None]
        first_colour, second_colour = (canvas.put(PART_COLOURS[number, i])[None, :, None, None] for i in range(2))
        colour = first_colour + (second_colour - first_colour) * second
        canvas.blend(canvas.index(rows), canvas.cover(outline, radius[rows]), colour)


def _boxes(cover: Tensor) -> Tensor:
    """Returns boxes ``[R, 4]`` around pixels covered by a tenth or more, ``cover [R, H, W]``."""
    size = cover.shape[-1]
    sides = []
    for axis in (1, 2):  # any over y gives the extent in x
        hit = (cover >= 0.1).any(axis)
        place = torch.arange(size, device=cover.device)
        first = torch.where(hit, place, size).amin(1)
        last = torch.where(hit, place + 1, 0).amax(1)
        sides.append((torch.where(last > 0, first, 0), last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], -1).to(torch.float32)


def _render_chunk(config: WorldConfig, table: ClipTable, u: np.ndarray, phase: np.ndarray, device: torch.device):
    clips, frames = u.shape
    scenery = lay_out(config, table.key, table.object, table.motion, table.scale, table.hue, u)
    canvas = _Canvas(clips * frames, config.size, device)
    _background(canvas, table, scenery, config, frames)

    def per_frame(values: np.ndarray) -> np.ndarray:
        return values.repeat(frames, 0)

    def flat(values: np.ndarray) -> np.ndarray:
        return values.reshape(clips * frames, *values.shape[2:])

    hue = per_frame(scenery.hue)
    for d in range(MAX_DISTRACTORS):
        if (scenery.distractor_alpha[:, d] > 0).any():
            _paint_object(
                canvas,
                per_frame(scenery.distractor_object[:, d]),
                hue,
                flat(scenery.distractors[:, :, d]),
                per_frame(scenery.distractor_radius[:, d]),
                per_frame(scenery.distractor_turn[:, d]),
                None,
                per_frame(scenery.distractor_alpha[:, d]),
            )
    _paint_parts(
        canvas, per_frame(table.part), flat(scenery.part), per_frame(scenery.part_radius), flat(scenery.part_turn)
    )
    gap = flat(scenery.target_gap)
    cover = _paint_object(
        canvas,
        per_frame(table.object),
        hue,
        flat(scenery.target),
        flat(scenery.target_radius),
        flat(scenery.target_turn),
        gap,
        flat(scenery.target_alpha),
        want_cover=True,
    )
    assert cover is not None
    _paint_occluder(canvas, per_frame(scenery.occluder))
    pixels = canvas.pixels.view(clips, frames, 3, config.size, config.size)
    pixels = pixels * canvas.put(scenery.gain)[:, None, :, None, None]
    if config.noise > 0:
        keys = torch.from_numpy(table.key).to(device)
        numbers = torch.from_numpy(np.ascontiguousarray(phase)).to(device)
        # sqrt(6): the triangular noise then has the standard deviation that the configuration names
        pixels = pixels + pixel_noise(keys, numbers, pixels[0, 0].numel()).view_as(pixels) * (config.noise * 6**0.5)
    frames_out = (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return frames_out, _boxes(cover).view(clips, frames, 4)


def _paint_occluder(canvas: _Canvas, bars: np.ndarray) -> None:
    rows = bars[:, 1] > 0
    if not rows.any():
        return
    values = canvas.put(bars[rows])
    middle, half, grey, slant = (values[:, i, None, None] for i in range(4))
    distance = (canvas.x - middle - slant * (canvas.y - 0.5)).abs() - half
    cover = (0.5 - distance * float(canvas.size)).clamp(0.0, 1.0)
    canvas.blend(canvas.index(rows), cover, grey[:, None].expand(-1, 3, -1, -1))


def render_table(
    config: WorldConfig,
    table: ClipTable,
    u: np.ndarray,
    phase: np.ndarray,
    device: torch.device | str = "cpu",
    chunk: int | None = None,
) -> Rendered:
    """Renders clips at phases ``u [B, T]`` in [0, 1]; ``phase [B, T]`` int64 numbers the frames' noise."""
    device = torch.device(device)
    if chunk is None:  # small pieces stay in a CPU's cache; a GPU wants few launches
        budget = 2**18 if device.type == "cpu" else 2**24
        chunk = max(1, budget // (u.shape[1] * config.size**2))
    pieces = [
        _render_chunk(config, table.rows(slice(i, i + chunk)), u[i : i + chunk], phase[i : i + chunk], device)
        for i in range(0, len(table.key), chunk)
    ]
    if pieces:
        frames, boxes = (torch.cat(part) for part in zip(*pieces, strict=True))
    else:
        frames = torch.empty(0, u.shape[1], 3, config.size, config.size, dtype=torch.uint8, device=device)
        boxes = torch.empty(0, u.shape[1], 4, device=device)
    atoms = (torch.from_numpy(np.asarray(column, np.int64)).to(device) for column in table[1:5])
    return Rendered(frames, boxes, *atoms)
