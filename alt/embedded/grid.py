"""The old name of :mod:`alt.entityworld.method_grid`, for one release."""

import warnings

from alt.entityworld.method_grid import *  # noqa: F403

warnings.warn("alt.embedded.grid is now alt.entityworld.method_grid", DeprecationWarning, stacklevel=2)
