"""Sprites as signed distances: negative inside, about one unit of distance per unit of length at the border.

Coordinates are those of the sprite, with its radius as the unit, x to the right and y downward. Only additions,
products, roots, minima and absolute values are used. They round alike in any batch, so a picture does not depend on
its neighbours. (A vectorised sine, for example, differs between the body and the tail of a loop.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y)


def _disc(x: Tensor, y: Tensor, radius: float = 1.0, cx: float = 0.0, cy: float = 0.0) -> Tensor:
    return _length(x - cx, y - cy) - radius


def _box(x: Tensor, y: Tensor, half_x: float, half_y: float, cx: float = 0.0, cy: float = 0.0) -> Tensor:
    return torch.maximum((x - cx).abs() - half_x, (y - cy).abs() - half_y)


def _capsule(x: Tensor, y: Tensor, half: float, radius: float, cx: float = 0.0, cy: float = 0.0) -> Tensor:
    """A horizontal bar with round ends."""
    along = ((x - cx).abs() - half).clamp_min(0.0)
    return _length(along, y - cy) - radius


def _union(*shapes: Tensor) -> Tensor:
    found = shapes[0]
    for shape in shapes[1:]:
        found = torch.minimum(found, shape)
    return found


def _without(shape: Tensor, hole: Tensor) -> Tensor:
    return torch.maximum(shape, -hole)


SHAPES: dict[str, Distance] = {
    "disc": lambda x, y: _disc(x, y, 0.92),
    "ring": lambda x, y: _without(_disc(x, y, 1.0), _disc(x, y, 0.48)),
    "square": lambda x, y: _box(x, y, 0.82, 0.82),
    "diamond": lambda x, y: (x.abs() * 1.25 + y.abs() - 1.05) * 0.65,
    "triangle": lambda x, y: torch.maximum(y - 0.75, (x.abs() * 1.9 - y - 0.98) * 0.47),
    "plus": lambda x, y: _union(_box(x, y, 1.0, 0.34), _box(x, y, 0.34, 1.0)),
    "cup": lambda x, y: _without(_box(x, y, 0.9, 0.9), _box(x, y, 0.42, 0.9, 0.0, -0.5)),
    "tee": lambda x, y: _union(_box(x, y, 0.95, 0.36, 0.0, -0.62), _box(x, y, 0.28, 0.95)),
    "crescent": lambda x, y: _without(_disc(x, y, 1.0), _disc(x, y, 0.78, 0.5, -0.3)),
    "bar": lambda x, y: _box(x, y, 1.25, 0.36),
    "hourglass": lambda x, y: torch.maximum((x.abs() - y.abs() - 0.14) * 0.7, y.abs() - 0.92),
    "frame": lambda x, y: _without(_box(x, y, 0.95, 0.95), _box(x, y, 0.46, 0.46)),
    "star": lambda x, y: (torch.sqrt(x.abs() + 0.02) + torch.sqrt(y.abs() + 0.02) - 1.2) * 0.55,
    "dumbbell": lambda x, y: _union(_disc(x, y, 0.55, -0.7), _disc(x, y, 0.55, 0.7), _box(x, y, 0.7, 0.2)),
    "hat": lambda x, y: _union(
        torch.maximum(_disc(x, y, 0.75, 0.0, 0.15), y - 0.2), _capsule(x, y, 0.85, 0.24, 0.0, 0.4)
    ),
    "chevron": lambda x, y: (torch.maximum((x.abs() * 1.0 - y - 0.75), -(x.abs() - y - 0.0)) * 0.7).maximum(
        x.abs() - 1.0
    ),
}

SKIN, CLOTH, DARK = (0.96, 0.74, 0.60), (0.20, 0.30, 0.62), (0.22, 0.14, 0.10)
LIGHT, LIPS, SHIRT = (0.92, 0.92, 0.88), (0.78, 0.10, 0.22), (0.30, 0.62, 0.50)


def _hand(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    fingers = _union(*(_capsule(x, y, 0.45, 0.17, 0.45, cy) for cy in (-0.6, 0.0, 0.6)))
    return _union(_box(x, y, 0.45, 0.8, -0.4), fingers), _box(x, y, 0.22, 1.2, -0.95)


def _foot(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    shoe = _union(_capsule(x, y, 0.65, 0.42, 0.0, 0.35), _box(x, y, 0.38, 0.75, -0.6, -0.2))
    return shoe, _box(x, y, 1.4, 0.2, 0.0, 0.68)


def _head(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    eyes = _union(_disc(x, y, 0.17, 0.0, -0.38), _disc(x, y, 0.17, 0.0, 0.38))
    return _disc(x, y, 1.0), _union(x + 0.35, eyes)


def _arm(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _capsule(x, y, 2.4, 0.42, -1.7), 0.45 - x


def _knee(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    upper, lower = _box(x, y, 1.1, 0.4, -0.4, 0.0), _box(x, y, 0.4, 1.5, 0.45, 0.9)
    return _union(upper, lower), _disc(x, y, 0.4, 0.55, 0.0)


def _mouth(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (_length(x * 1.5, y) - 1.0) * 0.7, _box(x, y, 0.22, 0.75)


def _elbow(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first, second = _box(x, y, 1.2, 0.34, -0.5, 0.55), _box(x, y, 0.34, 1.2, 0.4, -0.3)
    return _union(first, second), -0.55 - y


def _shoulder(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    stripes = ((y * 2.0 - (y * 2.0).round()).abs() - 0.25) * 0.5
    return torch.maximum(_disc(x, y, 1.3, -0.4), -x - 0.9), stripes


# name -> (distances of the whole and of its second colour's region, first colour, second colour); +x is towards the
# object.
Colour = tuple[float, float, float]
PARTS: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], Colour, Colour]] = {
    "hand": (_hand, SKIN, CLOTH),
    "foot": (_foot, DARK, LIGHT),
    "head": (_head, SKIN, DARK),
    "arm": (_arm, CLOTH, SKIN),
    "knee": (_knee, CLOTH, SKIN),
    "mouth": (_mouth, LIPS, LIGHT),
    "elbow": (_elbow, SHIRT, SKIN),
    "shoulder": (_shoulder, SHIRT, LIGHT),
}


def halves_apart(distance: Distance, x: Tensor, y: Tensor, gap: Tensor) -> Tensor:
    """Cuts the shape along x = 0 and moves each half outward by ``gap`` (0: the whole shape)."""
    side = torch.where(x < 0, -1.0, 1.0)
    inner = x - side * gap
    cut = torch.where(gap > 0, -side * inner, torch.full_like(x, -1e3))
    return torch.maximum(distance(inner, y), cut)
