"""`python benchmarks/video_readers.py`: 8 and 32 sparse frames of a video, by our reader and by others. Prints a table.

The clips are encoded here (H.264, 340 x 256, 10 s at 25 frames a second, with a key frame every second or only one at
the beginning). The entrants open the file and return the frames that the test sampling asks for:

  ours         alt.data.clips.open_video(path).read(indices)
  sequential   PyAV decodes from the beginning and keeps the frames asked for, on one thread
  decord       decord.VideoReader(path).get_batch(indices)
  torchcodec   torchcodec's VideoDecoder(path).get_frames_at(indices)

Those that are not installed are left out. Every entrant runs once per round, on one thread, and every row is the CPU
time of the others over ours, median over rounds with its interval: above 1 our reader is faster. All must return the
same pictures up to a rounding of the conversion of colours, or the run ends with an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alt.data.clips import open_video
from alt.data.sampling import sample_test
from alt.measure import interleave, paired_ratio, time_call
from alt.tables import to_markdown

HEIGHT, WIDTH, FRAMES, RATE = 256, 340, 250, 25
TOLERANCE = 6.0  # mean difference of two conversions of colours; another frame of these clips differs by more than 20

Reader = Callable[[Path, list[int]], Tensor]


def draw_frames() -> list[np.ndarray]:
    """Returns moving gratings with a little noise: neighbouring frames differ, as in a real video."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    noise = generator.normal(0, 4, (HEIGHT, WIDTH, 3)).astype(np.float32)
    pictures = []
    for number in range(FRAMES):
        waves = np.stack([np.sin((x * (1 + c) + y) / 37 + number / (2 + c)) for c in range(3)], -1)
        pictures.append((127 + 90 * waves + np.roll(noise, 7 * number, 1)).clip(0, 255).astype(np.uint8))
    return pictures


def encode(path: Path, pictures: list[np.ndarray], keyframes: int) -> Path:
    """Writes an H.264 file with a key frame every ``keyframes`` frames."""
    import av

    options = {"g": str(keyframes), "bf": "3", "preset": "veryfast"}
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def read_ours(path: Path, indices: list[int]) -> Tensor:
    with open_video(path) as video:
        return video.read(indices)


def read_sequentially(path: Path, indices: list[int]) -> Tensor:
    import av

    wanted, found = set(indices), []
    with av.open(str(path)) as file:
        file.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(file.decode(video=0)):
            if number in wanted:
                found.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            if number == indices[-1]:
                break
    return torch.stack(found)


def open_others() -> dict[str, Reader]:
    """Returns the readers of other packages that can be imported here."""
    found: dict[str, Reader] = {}
    try:
        import decord

        def read_decord(path: Path, indices: list[int]) -> Tensor:
            frames = decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()
            return torch.from_numpy(frames).permute(0, 3, 1, 2)

        found["decord"] = read_decord
    except (ImportError, OSError) as error:
        print(f"decord: left out ({str(error).splitlines()[0]})", file=sys.stderr)
    try:
        from torchcodec.decoders import VideoDecoder

        def read_torchcodec(path: Path, indices: list[int]) -> Tensor:
            return VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at(indices).data

        found["torchcodec"] = read_torchcodec
    except (ImportError, OSError, RuntimeError) as error:
        print(f"torchcodec: left out ({str(error).splitlines()[0]})", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (15)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    readers: dict[str, Reader] = {"ours": read_ours, "sequential": read_sequentially, **open_others()}
    rows, pictures = [], draw_frames()
    with tempfile.TemporaryDirectory() as folder:
        for keyframes in (RATE, FRAMES):
            path = encode(Path(folder) / f"{keyframes}.mp4", pictures, keyframes)
            for count in (8, 32):
                indices = sample_test(FRAMES, count).tolist()
                expected = read_ours(path, indices).float()
                for name in list(readers):
                    try:
                        difference = float((readers[name](path, indices).float() - expected).abs().mean())
                    except (RuntimeError, OSError) as error:
                        print(f"{name}: left out ({str(error).splitlines()[0]})", file=sys.stderr)
                        del readers[name]
                        continue
                    if difference > TOLERANCE:
                        sys.exit(f"{name} returns other frames: they differ by {difference:.1f} of 255 on average")
                calls = {name: partial(reader, path, indices) for name, reader in readers.items()}
                samples = interleave({name: partial(time_call, call) for name, call in calls.items()}, rounds=rounds)
                times = {name: [sample.cpu_seconds for sample in found] for name, found in samples.items()}
                ratios = {name: paired_ratio(times[name], times["ours"]) for name in readers if name != "ours"}
                cells = [f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})" for found in ratios.values()]
                rows.append([f"key frame every {keyframes} frames, {count} of {FRAMES}", *cells])
    print(to_markdown(["CPU time over ours", *(name for name in readers if name != "ours")], rows))


if __name__ == "__main__":
    main()
