"""The demonstration behind ``alt demo``: a patched CLIP image tower on photographs, measured and drawn."""
