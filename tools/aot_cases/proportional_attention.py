"""Cases of proportional attention for ahead-of-time compilation."""

from __future__ import annotations

from itertools import product

from alt_kernels.triton.proportional_attention import (
    BUCKETS,
    STEM,
    _forward_online,
    _forward_resident,
    _layout,
    key_tiles,
    width,
)

from ..aot_case import AotCase, add_case, list_configs

# Cases compiled ahead of time: the head dimensions of CLIP towers in bfloat16 and float32, float16 at 64; with sizes,
# and at 64 also without, as in the first block.
KEYS = (*BUCKETS, 512)
LAUNCHES = (
    *product((64, 80, 128, 256), ("bf16", "fp32"), KEYS, (True,)),
    *product((64,), ("fp16",), KEYS, (True,)),
    *product((64,), ("bf16",), KEYS, (False,)),
)
STRIDES = {f"{name}_{axis}": "i32" for name in "qkv" for axis in "bhn"}
TIGHT = "on sm_80, up to 30 registers with 256 keys: the logits of 64 queries fill half of them"
BOUNDED = "a register limit fits one more program: at most 104 bytes, addresses loaded again per tile of rows"


def aot_name(what: str, depth: int, dtype: str, sized: bool, warps: int, stages: int, registers: int = 0) -> str:
    bound = f" {registers} registers" if registers else ""
    return f"{what} D={depth} {dtype}{'' if sized else ' no sizes'} {warps} warps {stages} stages{bound}"


def _aot() -> list[AotCase]:
    cases: dict[str, AotCase] = {}
    for depth, dtype, keys, sized in LAUNCHES:
        for tuned, targets in list_configs(STEM, depth=width(depth), bytes=4 if dtype == "fp32" else 2, keys=keys):
            tiles = key_tiles(tuned, keys)
            integers = ("queries", "keys", "heads", *(("splits",) if tiles else ()))
            signature = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v", "out")}
            signature |= {"size_ptr": "*fp32" if sized else f"*{dtype}", "lse_ptr": "*fp32"}
            signature |= dict.fromkeys(integers, "i32") | STRIDES | {"scale": "fp32"}
            rows, warps, stages, limit = (tuned[name] for name in ("rows", "num_warps", "num_stages", "max_registers"))
            constants = {"HAS_SIZE": sized, "D": depth, "BD": width(depth), "BM": rows} | _layout(tuned, tiles)
            constants["PRECISION"] = "ieee" if dtype == "fp32" else "tf32"
            what = f"resident {rows}x{sum(tiles)}" if tiles else f"online {rows}x{tuned['cols']}"
            what = f"forward {what}{' two passes' if tiles and tuned['passes'] > 1 else ''}"
            name = aot_name(what, depth, dtype, sized, warps, stages, limit)
            kernel = _forward_resident if tiles else _forward_online
            reason = BOUNDED if limit else TIGHT if len(tiles) > 1 and not sized and not targets else ""
            half = dtype != "fp32"
            case = AotCase(name, kernel, signature, constants, warps, stages, half, reason, targets=targets)
            add_case(cases, case._replace(max_registers=limit))
    return list(cases.values())


AOT: list[AotCase] = _aot()
