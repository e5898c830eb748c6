"""Peak memory of forward and backward of a training step of a video model, in a fresh process, beyond its weights.

Prints one line of JSON; `alt.measure.peak_memory` says how it is measured. A pass over one clip first brings in the
libraries' own buffers and the allocator's; the gradients are dropped again before the pass that counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_train
import rival_systems

from alt.measure import measure_peak, return_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entrant", choices=["ours", "rival"])
    parser.add_argument("system", choices=list(rival_systems.SYSTEMS))
    parser.add_argument("size", choices=list(bench_train.CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    return_freed_memory()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    model, x, labels, _ = bench_train.case(options.system, options.size, options.full)
    model, x, labels = model.to(device), x.to(device), labels.to(device)

    def run(clips: int) -> None:
        rival_systems.loss(model, x[:clips], labels[:clips], dense=options.entrant == "rival").backward()

    run(1)
    model.zero_grad(set_to_none=True)
    print(json.dumps(measure_peak(lambda: run(len(x)), device)._asdict()))


if __name__ == "__main__":
    main()
