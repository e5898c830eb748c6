"""Peak memory of one assignment, forward and backward, beyond what was held before the call.

A script for a fresh process, one entrant at a time; prints one line of JSON. `alt.measure.peak_memory` says how it is
measured. Inputs (x, entities, incoming gradient) are held by then, outputs are not. A small call first brings in the
libraries' own buffers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rivals
import shapes

from alt.measure import measure_peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entrant", choices=["ours", "rival"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--entities-gradient", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    from alt_kernels import cosine_gumbel_assign

    def gradients(x: Tensor, entities: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        if options.entrant == "ours":
            output = cosine_gumbel_assign(x, entities, tau=0.05).output
        else:
            output = rivals.assign(x, entities, 0.05)
        leaves = (x, entities) if options.entities_gradient else (x,)
        return output, *torch.autograd.grad(output, leaves, grad)

    def inputs(rows: int, count: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        x, entities, grad = (torch.randn(n, channels, generator=generator, device=device) for n in (rows, count, rows))
        return x.requires_grad_(), entities.requires_grad_(options.entities_gradient), grad

    gradients(*inputs(64, 128, 64))
    shape = shapes.LARGE_CORPUS
    large = inputs(shape.rows, shape.entities, shape.channels)
    peak = measure_peak(lambda: gradients(*large), device)
    print(json.dumps({"extra_bytes": peak.bytes, "how": peak.how}))


if __name__ == "__main__":
    main()
