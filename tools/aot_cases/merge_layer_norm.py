"""Cases of residual sum + merge + LayerNorm for ahead-of-time compilation."""

from __future__ import annotations

import triton

from alt_kernels.triton.merge_layer_norm import SUM_CHANNELS, SUM_ROWS, _merge_norm, _merge_norm_backward, _sum_partials

from ..aot_case import AotCase, list_configs

WIDE = "wider than any ViT (6,144); two sums and two rows per program are more than its registers"

# (channels, dtype of the stream, of the branch, of weight and bias) of the cases compiled ahead of time: both towers
# in every dtype and under autocast (a float32 stream), and every width of the table.
WIDTHS = [(c, *dtypes) for c in (768, 1024) for dtypes in (("bf16",) * 3, ("fp16",) * 3, ("fp32",) * 3)]
WIDTHS += [(c, "fp32", "bf16", "fp32") for c in (768, 1024)]
WIDTHS += [(c, *("bf16",) * 3) for c in (128, 256, 512, 2048, 4096, 8192, 16384)]


def _forward_cases() -> list[AotCase]:
    cases = []
    for channels, stream, branch, parameter in WIDTHS:
        width = triton.next_power_of_2(channels)
        name = f"C={channels} {stream}" + (f" + {branch}" if branch != stream else "")
        signature = {
            **{
                "x_ptr": f"*{stream}",
                "residual_ptr": f"*{branch}",
                "out_ptr": f"*{stream}",
                "normed_ptr": f"*{stream}",
            },
            **{
                "weight_ptr": f"*{parameter}",
                "bias_ptr": f"*{parameter}",
                "indices_ptr": "*i32",
                "offsets_ptr": "*i32",
            },
            **dict.fromkeys(("size_ptr", "out_size_ptr", "mean_ptr", "rstd_ptr"), "*fp32"),
            **dict.fromkeys(("tokens", "rows", "x_b", "x_n", "y_b", "y_n"), "i32"),
            "eps": "fp32",
        }
        flags = {"HAS_SIZE": True, "HAS_WEIGHT": True, "HAS_BIAS": True}
        for tuned, targets in list_configs("merge_layer_norm", channels=width):
            constants = {"C": channels, "R": tuned["R"], "BC": width, **flags}
            what, warps = f"forward {name}", tuned["num_warps"]
            cases.append(AotCase(what, _merge_norm, signature, constants, warps, 1, dots=False, targets=targets))
    return cases


def _backward_cases() -> list[AotCase]:
    cases = []
    flags = {"HAS_WEIGHT": True, "HAS_BIAS": True}
    for channels, stream, branch, parameter in WIDTHS:
        width = triton.next_power_of_2(channels)
        name = f"C={channels} {stream}" + (f" + {branch}" if branch != stream else "")
        signature = {
            **dict.fromkeys(("grad_merged_ptr", "grad_normed_ptr", "merged_ptr", "grad_ptr"), f"*{stream}"),
            **{"weight_ptr": f"*{parameter}", "indices_ptr": "*i32", "offsets_ptr": "*i32"},
            **dict.fromkeys(("mean_ptr", "rstd_ptr", "size_ptr", "merged_size_ptr"), "*fp32"),
            **dict.fromkeys(("partial_weight_ptr", "partial_bias_ptr"), "*fp32"),
            **dict.fromkeys(("batch", "tokens", "rows", "programs"), "i32"),
        }
        for tuned, targets in list_configs("merge_layer_norm_backward", channels=width):
            constants = {"C": channels, "BC": width, "HAS_SIZE": True, **flags}
            cases.append(
                AotCase(
                    *(f"backward {name}", _merge_norm_backward, signature, constants, tuned["num_warps"], 1, False),
                    reason=WIDE if channels > 6144 else "",
                    targets=targets,
                )
            )
    pointers = ("partial_weight_ptr", "partial_bias_ptr", "grad_weight_ptr", "grad_bias_ptr")
    signature = {**dict.fromkeys(pointers, "*fp32"), "programs": "i32"}
    for channels in (768, 1024):
        constants = {"C": channels, "R": SUM_ROWS, "BC": SUM_CHANNELS, **flags}
        cases.append(AotCase(f"sum of dw, db C={channels}", _sum_partials, signature, constants, 4, 1, False))
    return cases


AOT = _forward_cases() + _backward_cases()
