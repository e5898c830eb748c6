"""The old name of :mod:`alt.entityworld.mini_clip`, for one release."""

import warnings

from alt.entityworld.mini_clip import *  # noqa: F403

warnings.warn("alt.models.mini_clip is now alt.entityworld.mini_clip", DeprecationWarning, stacklevel=2)
