"""Cases of the derivative of proportional attention for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.proportional_attention import width
from alt_kernels.triton.proportional_attention_backward import STEM, _backward_keys, _backward_queries

from ..aot_case import AotCase, add_case, list_configs
from .proportional_attention import LAUNCHES, aot_name

WIDE_FLOAT32 = (
    "float32 multiplies without matrix instructions, with whole rows of 256 in registers; no tower has such heads"
)
WIDE_HALF = "on sm_80, 2 registers: the sums of dK and dV for 64 keys of 256; no tower has such heads"


def _aot() -> list[AotCase]:
    cases: dict[str, AotCase] = {}
    integers = ("queries", "keys", "heads")
    for depth, dtype, keys, sized in LAUNCHES:
        for tuned, targets in list_configs(STEM, depth=width(depth), bytes=4 if dtype == "fp32" else 2, keys=keys):
            whole_head = bool(tuned["whole_head"]) and keys <= tuned["key_cols"]
            for side in ("key",) if whole_head else ("query", "key"):
                over_keys = side == "key"
                halves = ("grad", "q", "k", "v", "dq", *(("dk", "dv") if over_keys else ("out",)))
                signature = {f"{name}_ptr": f"*{dtype}" for name in halves}
                signature |= {f"{name}_ptr": "*fp32" for name in ("lse", "delta")}
                signature["size_ptr"] = "*fp32" if sized else f"*{dtype}"
                signature |= dict.fromkeys(integers, "i32")
                signature |= {f"{name}_{axis}": "i32" for name in ("gqkv" if over_keys else "gqkvo") for axis in "bhn"}
                signature |= {"scale": "fp32", "scale_log2": "fp32"}
                rows, cols = tuned[f"{side}_rows"], tuned[f"{side}_cols"]
                constants = {
                    "HAS_SIZE": sized, "D": depth, "BD": width(depth), "BM": rows, "BN": cols,
                    "PRECISION": "ieee" if dtype == "fp32" else "tf32",
                } | ({"WHOLE_HEAD": whole_head} if over_keys else {})  # fmt: skip
                kernel = _backward_keys if over_keys else _backward_queries
                what = "whole head" if whole_head else "keys" if over_keys else "queries"
                warps, stages = tuned[f"{side}_num_warps"], tuned[f"{side}_num_stages"]
                name = aot_name(f"backward {what} {rows}x{cols}", depth, dtype, sized, warps, stages)
                wide = width(depth) > 128
                reason = WIDE_FLOAT32 if wide and dtype == "fp32" else WIDE_HALF if wide and over_keys else ""
                half = dtype != "fp32"
                add_case(
                    cases, AotCase(name, kernel, signature, constants, warps, stages, half, reason, targets=targets)
                )
    return list(cases.values())


AOT: list[AotCase] = _aot()
