"""Pictures and words of what a model saw: merged regions, the entities they were aligned to, heat maps, one page.

Names are resolved on first use: the region pictures need no model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .explanation import AlignedEntity, ClassScore, Explanation, explain
    from .heat_maps import gradient_heat_map, paint, peak_inside, text_heat_map, text_of
    from .page import HeatRow, heat_rows, write_example_page, write_page, write_pictures
    from .regions import draw_regions, merge_sheet, outline_regions, region_map

_HOME = {
    "AlignedEntity": "explanation",
    "ClassScore": "explanation",
    "Explanation": "explanation",
    "HeatRow": "page",
    "draw_regions": "regions",
    "explain": "explanation",
    "gradient_heat_map": "heat_maps",
    "heat_rows": "page",
    "merge_sheet": "regions",
    "outline_regions": "regions",
    "paint": "heat_maps",
    "peak_inside": "heat_maps",
    "region_map": "regions",
    "text_heat_map": "heat_maps",
    "text_of": "heat_maps",
    "write_example_page": "page",
    "write_page": "page",
    "write_pictures": "page",
}

__all__ = [
    "AlignedEntity",
    "ClassScore",
    "Explanation",
    "HeatRow",
    "draw_regions",
    "explain",
    "gradient_heat_map",
    "heat_rows",
    "merge_sheet",
    "outline_regions",
    "paint",
    "peak_inside",
    "region_map",
    "text_heat_map",
    "text_of",
    "write_example_page",
    "write_page",
    "write_pictures",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
