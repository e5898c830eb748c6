"""The style of all plots, written as files that are the same for the same data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alt.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drawing"]

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # an SVG then names this one and "sans-serif", not ten fonts per word
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text as text: outlines of letters are four fifths of the file
    "svg.hashsalt": "alt-kernels",  # otherwise ids differ from run to run
}


@contextmanager
def drawing(path: Path, size: tuple[float, float], widths: Sequence[float] = (1.0,)) -> Iterator[list[Axes]]:
    """Yields axes side by side, and writes what was drawn into them to ``path`` when the block ends.

    Args:
        path: the file; its ending says which format, for example .svg or .png (150 dots per inch).
        size: width and height of the whole figure in inches. widths: of the axes, relative to one another.

    Raises:
        OSError: the file could not be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")  # not of pyplot: no window, and no global state
        axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=list(widths))
        yield list(axes[0])
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with replacing(path, "the plot") as partial:
            kind = path.suffix.removeprefix(".")
            figure.savefig(partial, format=kind, metadata=metadata, dpi=150, facecolor="white")
