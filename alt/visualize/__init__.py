"""Pictures and words of what a model saw: merged regions, the entities they were aligned to, heat maps, one page.

Names are resolved on first use: the region pictures need no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alt.lazy import attach

if TYPE_CHECKING:
    from .explanation import AlignedEntity as AlignedEntity
    from .explanation import ClassScore as ClassScore
    from .explanation import Explanation as Explanation
    from .explanation import explain as explain
    from .heat_comparison import ComparedHeat as ComparedHeat
    from .heat_comparison import TextMap as TextMap
    from .heat_comparison import draw_heat_comparison as draw_heat_comparison
    from .heat_comparison import map_text as map_text
    from .heat_comparison import write_heat_comparison as write_heat_comparison
    from .heat_maps import gradient_heat_map as gradient_heat_map
    from .heat_maps import paint as paint
    from .heat_maps import peak_inside as peak_inside
    from .heat_maps import text_heat_map as text_heat_map
    from .heat_maps import text_of as text_of
    from .heat_row import HeatRow as HeatRow
    from .heat_row import heat_rows as heat_rows
    from .page import write_example_page as write_example_page
    from .page import write_page as write_page
    from .pictures import write_pictures as write_pictures
    from .regions import draw_regions as draw_regions
    from .regions import merge_sheet as merge_sheet
    from .regions import outline_regions as outline_regions
    from .regions import region_map as region_map
    from .tower_regions import show_regions as show_regions
    from .truth import Agreement as Agreement
    from .truth import Truth as Truth
    from .truth import measure_agreement as measure_agreement
    from .truth import share_in_clip as share_in_clip

__getattr__, __dir__, __all__ = attach(__name__)
