"""The exception of the demonstration's inputs, by the name its files use."""

from __future__ import annotations

from alt.errors import UserError as DemoError
from alt.errors import one_line

__all__ = ["DemoError", "one_line"]
