"""The old name of :mod:`alt.entityworld`, for one release."""

import warnings

from alt.entityworld import *  # noqa: F403

warnings.warn("alt.embedded is now alt.entityworld", DeprecationWarning, stacklevel=2)
