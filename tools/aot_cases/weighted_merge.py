"""Cases of merge, unmerge and their derivatives for ahead-of-time compilation."""

from __future__ import annotations

import triton

from alt_kernels.triton.weighted_merge import _reduce_rows, _spread_rows

from ..aot_case import AotCase, list_configs

# (channels, dtype) of the cases compiled ahead of time: both towers in every dtype, and every width of the table.
WIDTHS = [(c, dtype) for c in (768, 1024) for dtype in ("bf16", "fp16", "fp32")] + [
    (c, "bf16") for c in (128, 256, 512, 2048, 4096, 8192, 16384)
]


def _cases() -> list[AotCase]:
    cases = []
    for channels, dtype in WIDTHS:
        width = triton.next_power_of_2(channels)
        plan = {"offsets_ptr": "*i32", "tokens": "i32", "rows": "i32", "x_b": "i32", "x_n": "i32"}
        ends = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "size_ptr": "*fp32"}
        to_rows = {**plan, **ends, "indices_ptr": "*i32", "out_size_ptr": "*fp32"}
        to_tokens = {**plan, **ends, "output_row_ptr": "*i32", "merged_size_ptr": "*fp32"}
        for tuned, targets in list_configs("weighted_merge", channels=width):
            for name, kernel, signature, mode, has_size in (
                ("merge", _reduce_rows, to_rows, {"MEAN": True}, True),
                ("unmerge backward", _reduce_rows, to_rows, {"MEAN": False}, False),
                ("merge backward", _spread_rows, to_tokens, {"SHARE": True}, True),
                ("unmerge", _spread_rows, to_tokens, {"SHARE": False}, False),
            ):
                if name.startswith("unmerge") and (channels, dtype) != (768, "bf16"):
                    continue  # the kernel of merge with less work
                constants = {"C": channels, "HAS_SIZE": has_size, "R": tuned["R"], "BC": width, **mode}
                what, warps = f"{name} C={channels} {dtype}", tuned["num_warps"]
                cases.append(AotCase(what, kernel, signature, constants, warps, 1, dots=False, targets=targets))
    return cases


AOT = _cases()
