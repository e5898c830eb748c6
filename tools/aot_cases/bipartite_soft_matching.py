"""Cases of bipartite soft matching for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.bipartite_soft_matching import (
    ONE_PROGRAM,
    RANK_OTHERS,
    RANK_ROWS,
    TOKENS,
    _blocks,
    _match_image,
    _match_tiles,
    _plan_tiles,
    _rank_tiles,
    _sizes,
)

from ..aot_case import AotCase, list_configs


def _cases() -> list[AotCase]:
    """Returns the cases of every shipped configuration; keys with the heads and dimensions of ViT-B, ViT-L, ViT-H."""
    plan = dict.fromkeys(("indices_ptr", "offsets_ptr", "output_row_ptr"), "*i32")
    integers = dict.fromkeys(("tokens", "num_protected", "x_b", "x_n"), "i32")
    cases = []

    def add(dtype: str, tokens: int, channels: int, heads: int = 1) -> None:
        sizes = _sizes(tokens, channels, 4 if heads > 1 or dtype == "fp32" else 2)
        for number, (tuned, targets) in enumerate(list_configs("bipartite_soft_matching", **sizes)):
            signature = {"x_ptr": f"*{dtype}", **integers}
            constants = _blocks(tuned, channels)
            name = f"N<={tokens} C={channels} {dtype}" + (f" #{number}" if number else "")
            if tokens <= ONE_PROGRAM:
                kernel, name = _match_image, f"image {name}" if heads == 1 else f"image, keys of {heads} heads {name}"
                signature |= {**plan, "r": "i32", "x_h": "i32"}
                constants |= {"HEADS": heads, "BO": RANK_OTHERS}
            else:
                kernel, name = _match_tiles, f"tiles {name}"
                signature |= {"best_ptr": "*fp32", "partner_ptr": "*i32", "even": "i32"}
            launch = tuned["num_warps"], tuned["num_stages"]
            cases.append(AotCase(name, kernel, signature, constants, *launch, dots=True, targets=targets))

    for tokens in TOKENS:
        for channels in (64, 128, 768):
            add("bf16", tokens, channels)
            add("fp32", tokens, channels)
        add("fp16", tokens, 64)
    add("bf16", TOKENS[0], 64, heads=12)
    add("fp16", TOKENS[1], 64, heads=16)
    add("bf16", TOKENS[0], 80, heads=16)
    tile = {"BA": RANK_ROWS, "BO": RANK_OTHERS}
    partner = {"partner_ptr": "*i32", "r": "i32", "even": "i32"}
    cases.append(AotCase("rank", _rank_tiles, {"best_ptr": "*fp32", **partner}, tile, 4, 1, dots=False))
    signature = {**partner, **plan, "tokens": "i32", "num_protected": "i32"}
    cases.append(AotCase("plan", _plan_tiles, signature, tile, 4, 1, dots=False))
    return cases


AOT = _cases()
