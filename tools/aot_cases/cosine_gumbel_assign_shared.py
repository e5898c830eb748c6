"""Cases of the preparation of cosine-Gumbel assignment, and what all its cases share for ahead-of-time compilation."""

from __future__ import annotations

from typing import Any

import torch

from alt_kernels.triton.cosine_gumbel_assign_shared import (
    COPY_ALL,
    COPY_EXTREME,
    NONE,
    SEED,
    TENSOR,
    _prepare,
    kernel_fields,
    precision,
    with_noise,
)

from ..aot_case import AotCase, ShippedConfig, list_configs

# Reasons for which a case may spill.
FLOAT32 = "at most 80 bytes, off the path that is tuned; BK=16 has none, at twice the fetches of x"
REASONS = {
    "soft seed d=512 fp32": FLOAT32,
    "rows seed d=512 fp32": FLOAT32,
    "rows, split, seed d=512 fp32": FLOAT32,
    "entities seed d=512 fp32": FLOAT32.replace("BK", "BM"),
}
COMPARED = "a noise tensor serves to compare implementations, and its tile takes registers too: at most 128 bytes"
LONG = "rows of 768 in slices of the tiles chosen for 512: at most 72 bytes"
HALF = {"x_ptr", "given_x_ptr", "e_ptr", "source_ptr", "grad_ptr"}  # pointers to what the products read
#: Label, kind and channels of the cases compiled ahead of time: rows that are kept whole, and rows too long for it.
NOISES = (("seed", SEED, 512), ("tensor", TENSOR, 512), ("seed", SEED, 768))
NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def signature(kernel: Any, dtype: str, constants: dict[str, Any], **pointers: str) -> dict[str, str]:
    """Returns the types of a launch on inputs of ``dtype``, by default float32 pointers and int32."""
    types = {"seed_ptr": "*i64", "index_ptr": "*i64"} | dict.fromkeys(HALF, f"*{dtype}") | pointers
    names = [name for name in kernel.arg_names if name not in constants]
    return {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}


def aot_cases(
    kernel: Any, stem: str, prefix: str, label: str, dtype: str, depth: int,
    pointers: dict[str, str] | None = None, **rest: Any,
) -> list[AotCase]:  # fmt: skip
    """Returns the cases of one kernel at ``depth`` channels of ``dtype``, by every configuration of the file."""
    found: dict[tuple[tuple[str, int], ...], ShippedConfig] = {}
    for entry in list_configs(stem, depth=depth, bits=torch.finfo(NAMES[dtype]).bits):
        use = kernel_fields(entry.use, prefix, depth)
        known = found.get(key := tuple(use.items()))
        if known is None or known.targets:  # a case of all targets needs no other
            targets = entry.targets if known is None else tuple(sorted({*known.targets, *entry.targets}))
            found[key] = ShippedConfig(use, targets)
    return [
        _aot_case(kernel, f"{label} d={depth} {dtype}", entry, dtype, depth, pointers or {}, rest)
        for entry in found.values()
    ]


def _aot_case(
    kernel: Any, name: str, entry: ShippedConfig, dtype: str, depth: int, pointers: dict[str, str], rest: dict[str, Any]
) -> AotCase:
    use, targets = with_noise(entry.use, rest.get("NOISE", NONE)), entry.targets
    if rest.get("NOISE") == TENSOR:
        rest = {**rest, "noise_k": 1}  # of a contiguous noise tensor
    constants = {
        "D": depth,
        "PRECISION": precision(NAMES[dtype]),
        "BOUND": dtype == "fp16",
        "SPLIT": False,
        **use,
        **rest,
    }
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    types = signature(kernel, dtype, constants, **{"acc_ptr": f"*{dtype}", **pointers})
    if targets:
        name += f" for sm_{', sm_'.join(map(str, targets))}"
    return AotCase(
        name, kernel, types, constants, use["num_warps"], use["num_stages"], dtype != "fp32", _reason(name),
        unaligned=("noise_m",), targets=targets,
    )  # fmt: skip


def _reason(name: str) -> str:
    return COMPARED if " tensor " in name else LONG if " d=768 " in name else REASONS.get(name, "")


def _aot() -> list[AotCase]:
    cases = []
    for label, copy in (("", COPY_ALL), (" extreme rows", COPY_EXTREME)):
        small = {"D": 512, "COPY_X": copy, "RESCALE": True, "R": 8, "BC": 512}
        types = signature(_prepare, "bf16", small, x_copy_ptr="*bf16", e_copy_ptr="*bf16")
        cases.append(AotCase(f"prepare{label} d=512 bf16", _prepare, types, small, 4, 1, False))
    return cases


AOT = _aot()
