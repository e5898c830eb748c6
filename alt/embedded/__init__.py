"""The embedded benchmark: EntityWorld, a small CLIP trained on it, and the methods of the papers compared on it.

python -m alt.embedded.mini_clip_training            # the small CLIP; its weights ship with the package
alt entityworld                                      # the grid of methods, orderings and tables
"""

from __future__ import annotations
