"""`python benchmarks/measure_caches.py`: what the caches of frames and of features save. Prints two tables.

Loading: the first and the second epoch of 8 sparse frames of ten-second H.264 clips (340 x 256, 25 frames a second),
with augmentation (training) or the test crop (evaluation), and the same without a cache. One process loads, nothing is
trained. Encoding: the evaluation of an ALT with random weights on the same clips. Every entrant runs once per round, in
an order drawn anew, and a round begins with an empty cache. A row is the CPU time without a cache over that with one,
median over rounds with its interval: above 1 the cache is faster. The disk's own time is not in it, and what was just
written lies in memory. The clips are compared bit for bit first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from video_readers import FRAMES, RATE, draw_frames, encode

import alt
from alt.data import clip_identity
from alt.data.clip_views import ClipViews
from alt.data.clips import ClipFiles
from alt.data.frame_cache import FrameCache
from alt.evaluate.feature_cache import FeatureCache
from alt.evaluate.run import collect_logits
from alt.measure import interleave, paired_ratio
from alt.tables import to_markdown
from alt.train.config import load_config
from alt.train.data import ClipDataset, ClipTransform
from alt.train.sampler import SampleIndex

Epoch = Callable[[int], list[torch.Tensor]]


def read_training(clips: ClipFiles) -> Epoch:
    """Returns a function from the number of an epoch to its clips, as training reads them."""
    config = load_config("alt-b16-k400-8f")
    transform = ClipTransform(config.data.size, config.data.resize, config.augmentation)
    data = ClipDataset(clips, torch.arange(len(clips)), 8, transform, 0)
    return lambda epoch: [data[SampleIndex(number, epoch)][0] for number in range(len(clips))]


def read_tests(clips: ClipFiles) -> Epoch:
    """Returns a function from the number of an epoch to its clips, as evaluation reads them."""
    data = ClipViews(clips, 8, 224, resize=256)
    return lambda epoch: [data[number][0] for number in range(len(clips))]


def time_epochs(epoch: Epoch) -> list[float]:
    """Returns the CPU seconds of two epochs."""
    found = []
    for number in range(2):
        begin = time.process_time()
        epoch(number)
        found.append(time.process_time() - begin)
    return found


def write_list(folder: Path, clips: int, keyframes: int) -> Path:
    first = encode(folder / f"{keyframes}.mp4", draw_frames(), keyframes).read_bytes()
    names = [f"{keyframes}-{number}.mp4" for number in range(clips)]
    for name in names:
        (folder / name).write_bytes(first)
    path = folder / f"{keyframes}.txt"
    path.write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(names)))
    return path


def format_ratio(slow: list[float], fast: list[float]) -> str:
    found = paired_ratio(slow, fast)
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def compare_epochs(run: Callable[[bool], list[float]], clips: int, rounds: int) -> list[str]:
    """Returns the milliseconds per clip of an epoch without a cache, and the ratios of both epochs.

    ``run``: from whether there is a cache to the seconds of two epochs.
    """
    found = interleave({cached: partial(run, cached) for cached in (False, True)}, rounds=rounds)
    without, cached = np.array(found[False]), np.array(found[True])
    ratios = [format_ratio(without[:, epoch].tolist(), cached[:, epoch].tolist()) for epoch in (0, 1)]
    return [f"{np.median(without) / clips * 1e3:.0f}", *ratios]


def compare_loading(listed: Path, read: Callable[[ClipFiles], Epoch], whole: bool, rounds: int) -> list[str]:
    """Returns the seconds of an epoch without a cache, and the ratios of both epochs."""

    def run(cached: bool) -> list[float]:
        with tempfile.TemporaryDirectory(dir=listed.parent) as folder:
            cache = FrameCache(folder, 64, whole=whole) if cached else None
            return time_epochs(read(ClipFiles(listed, cache=cache)))

    with tempfile.TemporaryDirectory(dir=listed.parent) as folder:
        kept = read(ClipFiles(listed, cache=FrameCache(folder, 64, whole=whole)))
        for number in (0, 1, 0):
            pairs = zip(kept(number), read(ClipFiles(listed))(number), strict=True)
            assert all(torch.equal(ours, plain) for ours, plain in pairs)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    count = len(ClipFiles(listed))
    return [*compare_epochs(run, count, rounds), f"{size / count / 2**20:.1f}"]


def compare_encoding(listed: Path, rounds: int) -> list[str]:
    """Returns the seconds per clip of an evaluation, and the ratios of a first and a second one with a cache."""
    corpus, options = alt.Corpus.from_labels(["a", "b"]), {"frames": 8, "r": 8}
    torch.manual_seed(0)
    model = alt.create_model("alt-b16", pretrained=None, corpus=corpus, classes=["a", "b"], **options).eval()
    dataset: Any = ClipViews(ClipFiles(listed), 8, 224, resize=256)
    plain = collect_logits(model, dataset, batch_size=2).logits

    def run(cached: bool) -> list[float]:
        with tempfile.TemporaryDirectory(dir=listed.parent) as folder:
            features = FeatureCache(folder, 64) if cached else None

            def epoch(number: int) -> list[torch.Tensor]:
                logits = collect_logits(model, dataset, batch_size=2, features=features).logits
                assert torch.equal(logits, plain)
                return [logits]

            return time_epochs(epoch)

    return compare_epochs(run, len(dataset), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (9)")
    parser.add_argument("--clips", type=int, default=8, help="clips of an epoch (8)")
    parser.add_argument("--encode", action="store_true", help="also the cache of features: ALT B/16, minutes on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip_identity._SETTLED = -60.0  # the clips are new
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for keyframes in (RATE, FRAMES):
            listed = write_list(Path(folder), options.clips, keyframes)
            for name, read, whole in (("training", read_training, True), ("evaluation", read_tests, False)):
                cells = compare_loading(listed, read, whole, options.rounds)
                rows.append([f"{name}, a key frame every {keyframes} frames", *cells])
        print(to_markdown(["loading", "ms per clip without", "epoch 1", "epoch 2", "MiB kept per clip"], rows))
        if options.encode:
            cells = compare_encoding(write_list(Path(folder), 2, RATE), 6)
            print(to_markdown(["encoding", "ms per clip without", "first", "second"], [["ALT B/16, r = 8", *cells]]))


if __name__ == "__main__":
    main()
