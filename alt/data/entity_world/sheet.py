"""The old name of :mod:`alt.entityworld.world.sheet`, for one release."""

import warnings

from alt.entityworld.world.sheet import *  # noqa: F403

warnings.warn("alt.data.entity_world.sheet is now alt.entityworld.world.sheet", DeprecationWarning, stacklevel=2)

if __name__ == "__main__":
    from alt.entityworld.world.sheet import main

    main()
