"""Peak memory of one assignment, forward and backward, beyond what was resident before the call.

Run as a script in a fresh process, one entrant at a time; it prints one line of JSON. On a CPU it is the operating
system's high-water mark of resident memory (VmHWM), reset just before the call with /proc/self/clear_refs, minus the
resident size at that time. Inputs (x, entities, incoming gradient) are resident by then, outputs are not. All pages
count, whoever allocates them. A small call first loads the libraries' own buffers. On a GPU it is the allocator's peak
minus the memory held before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rivals
import shapes


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no field {field}")


def peak_beyond_now(run: Callable[[], object], device: torch.device) -> tuple[int, str]:
    """Returns the peak bytes of ``run()`` beyond those held before it, and the method of measurement."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before, "CUDA caching allocator, peak less start"
    Path("/proc/self/clear_refs").write_text("5\n")  # 5: reset the high-water mark to the current size
    before = resident("VmRSS")
    result = run()
    peak = resident("VmHWM")
    del result
    return peak - before, "VmHWM of a fresh process, reset before the call, less VmRSS then"


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
    extra, how = peak_beyond_now(lambda: gradients(*large), device)
    print(json.dumps({"extra_bytes": extra, "how": how}))


if __name__ == "__main__":
    main()
