"""The old name of :mod:`alt.entityworld.world`, for one release."""

import warnings

from alt.entityworld.world import *  # noqa: F403

warnings.warn("alt.data.entity_world is now alt.entityworld.world", DeprecationWarning, stacklevel=2)
