"""Peak memory of the forward and backward of one ALT training step, in a fresh process, beyond weights and inputs.

It prints one line of JSON and measures as `peak_memory.py` does. A pass over one clip first loads the libraries' and
the allocator's own buffers. Its gradients are dropped before the measured pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_train_alt
import peak_memory
import rival_alt

from alt.evaluate.measure import hand_memory_back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entrant", choices=["ours", "rival"])
    parser.add_argument("size", choices=list(bench_train_alt.CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    hand_memory_back()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    model, x, labels, _ = bench_train_alt.case(options.size, options.full)
    model, x, labels = model.to(device), x.to(device), labels.to(device)

    def run(clips: int) -> None:
        rival_alt.loss(model, x[:clips], labels[:clips], dense=options.entrant == "rival").backward()

    run(1)
    model.zero_grad(set_to_none=True)
    extra, how = peak_memory.peak_beyond_now(lambda: run(len(x)), device)
    print(json.dumps({"bytes": extra, "how": how}))


if __name__ == "__main__":
    main()
