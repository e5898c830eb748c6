"""The old name of :mod:`alt.entityworld.mini_clip_training`, for one release."""

import warnings

from alt.entityworld.mini_clip_training import *  # noqa: F403

warnings.warn(
    "alt.embedded.mini_clip_training is now alt.entityworld.mini_clip_training", DeprecationWarning, stacklevel=2
)

if __name__ == "__main__":
    from alt.entityworld.mini_clip_training import main

    main()
