"""Pictures of what merging does: pure functions from plans and images to images."""

from __future__ import annotations

from .regions import draw_regions, merge_sheet, outline_regions, region_map

__all__ = ["draw_regions", "merge_sheet", "outline_regions", "region_map"]
