"""Writes a data set of the world as files, in the formats of real clips."""

from __future__ import annotations

from pathlib import Path

from alt.data.clips import write_clips

from .world import Split, World


def write_to_disk(
    world: World, split: str | Split, folder: str | Path, form: str = "frames", frames: int | None = None
) -> Path:
    """Renders a split into ``folder``: clips (``form``: frames, npy, npz or pt), ``list.txt`` and ``labels.csv``.

    Returns the list's path; ``alt.data.clips.ClipFiles(list, labels)`` reads the same clips back, bit for bit.
    """
    chosen = world.split(split) if isinstance(split, str) else split
    clips = world.render(chosen, frames=frames).frames
    return write_clips(folder, clips, chosen.labels, chosen.class_names, form)
