"""The old name of :mod:`alt.entityworld.token_cache`, for one release."""

import warnings

from alt.entityworld.token_cache import *  # noqa: F403

warnings.warn("alt.embedded.cache is now alt.entityworld.token_cache", DeprecationWarning, stacklevel=2)
