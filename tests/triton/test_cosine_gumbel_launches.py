"""Plans of the assignment's launches: the split of rows and entities, and the tiles. Nothing is launched here."""

from __future__ import annotations

import pytest

from alt_kernels.triton import cosine_gumbel_assign_shared as shared
from alt_kernels.triton import launch_configs

STEMS = {
    "cosine_gumbel_assign": ("hard", "soft"),
    "cosine_gumbel_assign_backward": ("delta", "rows", "entities", "values"),
}


def test_a_launch_covers_every_row_once_and_no_split_is_empty() -> None:
    for rows, height, programs, across, count in (
        (25_856, 128, 132, 1, 913),
        (25_856, 64, 132, 1, 100_000),
        (1, 64, 132, 2, 1),
        (70, 16, 6, 2, 150),
        (9000, 64, 132, 4, 33),
    ):
        use = {"BM": height, "BK": 32, "programs": programs}
        at = 0
        for above, part, tiles, splits, share in shared.row_plan(rows, use, across, count):
            assert above == at
            assert tiles == -(-part // height)
            assert share % 32 == 0
            assert (splits - 1) * share < count <= splits * share
            at += part
        assert at == rows
    plan = shared.row_plan(25_856, {"BM": 64, "BK": 32, "programs": 132}, 1, 913)
    assert [(part.tiles, part.splits > 1) for part in plan] == [(396, False), (8, True)]


@pytest.mark.parametrize(
    ("length", "tile", "others", "programs"),
    [(913, 32, 8, 132), (100_000, 32, 70, 132), (913, 64, 1, 132), (25_856, 32, 8, 132), (33, 32, 200, 132)],
)
def test_no_other_split_takes_fewer_turns(length: int, tile: int, others: int, programs: int) -> None:
    tiles = -(-length // tile)

    def turns(splits: int) -> int:
        return -(-splits * others // programs) * (-(-tiles // splits) + shared.SETUP)

    splits, share = shared.split_plan(length, tile, others, programs)
    assert turns(splits) == min(map(turns, range(1, min(tiles, max(1, 32 * programs // others)) + 1)))
    assert share == -(-tiles // splits) * tile


@pytest.mark.parametrize("depth", [16, 100, 384, 512, 640, 768, 1024, 4096])
def test_rows_that_cannot_stay_come_in_short_steps(depth: int) -> None:
    """Steps as wide as those of rows that stay would not fit, several stages of them, the memory of any GPU."""
    for stem, prefixes in STEMS.items():
        for entries in launch_configs.load(stem).values():
            for entry in entries:
                for prefix in prefixes:
                    step = shared.kernel_fields(entry["use"], prefix, depth)["BD"]
                    assert step >= depth or step <= 64


def test_a_noise_tensor_takes_a_stage() -> None:
    use = {"BM": 16, "num_stages": 3}
    assert shared.with_noise(use, shared.TENSOR) == {"BM": 16, "num_stages": 2}
    assert shared.with_noise(use, shared.SEED) == use
    assert shared.with_noise({"num_stages": 1}, shared.TENSOR) == {"num_stages": 1}
