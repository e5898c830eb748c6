"""A video of ten minutes takes the memory of the frames asked for; of 500 mutated files each damaged one is named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

from alt.data.sampling import sample_test
from alt.measure.peak_memory import call_fresh_process, can_measure_peak
from tests.fuzz.kinds import KINDS

from .encoded import encode, numbers

pytestmark = pytest.mark.slow

MIB = 1 << 20

READ = """
import json, sys, torch
from alt.data.clips import open_video
from alt.measure.peak_memory import measure_peak, return_freed_memory
return_freed_memory()
short, long, indices, out = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
kept = []
def read(path, wanted):
    with open_video(path) as video:
        kept[:] = [video.read(wanted)]
read(short, [0, 5])
peak = measure_peak(lambda: read(long, indices))
torch.save(kept[0], out)
print(json.dumps(peak.bytes))
"""

CHECK = """
import json, resource, sys
from pathlib import Path
from alt.data.check import check_clips
from alt.data.clips import Entry
valid, *files = sorted(Path(sys.argv[1]).iterdir(), key=lambda path: (not path.name.startswith("valid"), path.name))
list(check_clips([Entry(path, 0) for path in [valid, *files[:4]]]))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = list(check_clips([Entry(path, 0) for path in files]))
print(json.dumps([peak() - before, [[str(path), frames, problem] for path, frames, problem in found]]))
"""


@pytest.mark.skipif(not can_measure_peak(), reason="no high-water mark of memory here")
def test_ten_minutes_take_the_memory_of_eight_frames(tmp_path: Path) -> None:
    count = 10 * 60 * 25
    options = {"preset": "ultrafast", "g": "250", "bf": "2"}
    short = encode(tmp_path / "short.mp4", "libx264", 12, options)
    long = encode(tmp_path / "long.mp4", "libx264", count, options)
    indices = sample_test(count, 8).tolist()
    arguments = [str(short), str(long), json.dumps(indices), str(tmp_path / "frames.pt")]
    taken = call_fresh_process(["-c", READ, *arguments])
    frames = torch.load(tmp_path / "frames.pt", weights_only=True)
    assert numbers(frames) == indices
    whole = count * frames[0].numel()
    print(f"{taken / MIB:.1f} MiB for 8 of {count} frames, which are {whole / MIB:.0f} MiB")
    assert whole > 200 * MIB
    assert taken < 16 * MIB  # a list of the packets' times, one group of pictures in the decoder, eight frames


def test_five_hundred_mutated_files(tmp_path: Path) -> None:
    """No crash, no hang, less than 50 MB of memory; a third decodes in part; every damaged file is named."""
    import av

    kind = KINDS["videos"]
    (tmp_path / "made").mkdir()
    (tmp_path / "files").mkdir()
    made = kind.make(tmp_path / "made")
    for name, data in made.items():
        (tmp_path / "files" / f"valid-{name}").write_bytes(data)
    for number in range(500):
        rng = random.Random(f"mutated {number}")
        name = rng.choice(sorted(made))
        (tmp_path / "files" / f"{number:03d}-{name}").write_bytes(kind.change(made[name], rng))
    grown, found = call_fresh_process(["-c", CHECK, str(tmp_path / "files")], timeout=900)
    assert len(found) == 500 + len(made) - 1
    assert grown < 50 * MIB
    mutated = [(path, frames, problem) for path, frames, problem in found if "valid-" not in path]
    partly = [path for path, frames, problem in mutated if problem is not None and frames > 0]
    unharmed = [(path, frames) for path, frames, problem in mutated if problem is None]
    print(f"{grown / MIB:.1f} MiB; of 500: {len(partly)} in part, {len(unharmed)} whole")
    assert len(partly) + len(unharmed) >= 500 / 3
    assert len(partly) > 50
    for path, frames in unharmed:  # what is not named decodes to its end, also by FFmpeg alone
        with av.open(path, metadata_errors="replace") as file:
            assert sum(1 for _ in file.decode(video=0)) == frames, path
