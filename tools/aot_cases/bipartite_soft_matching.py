"""Cases of bipartite soft matching for ahead-of-time compilation."""

from __future__ import annotations

from alt_kernels.triton.bipartite_soft_matching import (
    IMAGES,
    ONE_PROGRAM,
    RANK_OTHERS,
    RANK_ROWS,
    TOKENS,
    _blocks,
    _finish,
    _finish_image,
    _match_image,
    _match_tiles,
    _plan_tiles,
    _rank_tiles,
    bucket,
)

from ..aot_case import AotCase, add_case, list_configs

PLAN = dict.fromkeys(("indices_ptr", "offsets_ptr", "output_row_ptr"), "*i32")
KEYS = "on sm_100, up to 16 bytes: the sum over heads of a tile, and four more heads under way"
WIDE = "not on sm_90, up to 24 bytes: each row's best score, its place and its norm, held beside two tiles under way"
INTEGERS = dict.fromkeys(("tokens", "num_protected", "x_b", "x_n", "x_h"), "i32")


def _cases() -> list[AotCase]:
    """Returns the cases of every shipped configuration; keys with the heads and dimensions of ViT-B, ViT-L, ViT-H."""
    cases: dict[str, AotCase] = {}

    def add(dtype: str, tokens: int, channels: int, heads: int = 1) -> None:
        itemsize = 4 if heads > 1 or dtype == "fp32" else 2
        for images in IMAGES:
            sizes = bucket(tokens, channels, itemsize, images)
            for number, (tuned, targets) in enumerate(list_configs("bipartite_soft_matching", **sizes)):
                signature = {"x_ptr": f"*{dtype}", **INTEGERS}
                constants = {"HEADS": heads, **_blocks(tuned, channels)}
                name = f"{'' if heads == 1 else f', keys of {heads} heads'} N<={tokens} C={channels} {dtype}"
                name += f" #{number}" if number else ""
                if tuned["parts"] == 0:
                    kernel, name = _match_image, f"image{name}"
                    signature |= {**PLAN, "r": "i32"}
                    constants["BO"] = RANK_OTHERS
                else:
                    kernel, name = _match_tiles, f"tiles of {tuned['BA']}, {tuned['parts']} parts{name}"
                    signature |= {"scratch_ptr": "*fp32", "even": "i32", "share": "i32"}
                    add_joins(tokens, tuned["parts"])
                wide = tokens > ONE_PROGRAM or (dtype == "fp32" and channels > 64)
                launch, reason = (tuned["num_warps"], tuned["num_stages"]), KEYS if heads > 1 else WIDE if wide else ""
                add_case(cases, AotCase(name, kernel, signature, constants, *launch, True, reason, targets=targets))

    def add_joins(tokens: int, parts: int) -> None:
        signature = {"scratch_ptr": "*fp32", "r": "i32", "parts": "i32"}
        if tokens <= ONE_PROGRAM:
            constants = {"PARTS": parts, **_finish(tokens)}
            warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
            signature |= {**PLAN, "tokens": "i32", "num_protected": "i32"}
            case = AotCase(
                f"finish N<={tokens}, {parts} parts", _finish_image, signature, constants, warps, stages, False
            )
        else:
            signature |= {"target_ptr": "*fp32", "even": "i32"}
            case = AotCase(f"rank, {parts} parts", _rank_tiles, signature, {"PARTS": parts, **tile}, 4, 1, False)
        add_case(cases, case)

    tile = {"BA": RANK_ROWS, "BO": RANK_OTHERS}
    for tokens in TOKENS:
        for channels in (64, 128, 768):
            add("bf16", tokens, channels)
            add("fp32", tokens, channels)
        add("fp16", tokens, 64)
    add("bf16", TOKENS[0], 64, heads=12)
    add("fp16", TOKENS[1], 64, heads=16)
    add("bf16", TOKENS[0], 80, heads=16)
    signature = {"target_ptr": "*fp32", **PLAN, **dict.fromkeys(("tokens", "r", "num_protected", "even"), "i32")}
    add_case(cases, AotCase("plan", _plan_tiles, signature, tile, 4, 1, dots=False))
    return list(cases.values())


AOT = _cases()
