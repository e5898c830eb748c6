"""r in its three forms, inflection, and clipping that is never silent."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from towers import TOKENS, images, images_for, tower

import alt
from alt.patch.schedule import check_reduction, choose_reduction, make_schedule, tilt


def test_r_16_on_vit_b_16_runs_out_in_the_last_block():
    schedule = make_schedule(16, 0.0, 12, 197, num_protected=1)
    assert schedule.removed == (16,) * 11 + (10,)
    assert schedule.tokens == (181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11)
    assert schedule.clipped == (11,)


@pytest.mark.parametrize(
    ("r", "blocks", "tokens", "left"),
    [(0, 12, 197, 197), (4, 12, 197, 149), (8, 12, 197, 101), (13, 12, 197, 41), (8, 24, 257, 65)],
)
def test_tokens_left_as_the_paper_has_them(r, blocks, tokens, left):
    schedule = make_schedule(r, 0.0, blocks, tokens, num_protected=1)
    assert schedule.tokens[-1] == left
    assert schedule.clipped == ()
    assert schedule.removed == (r,) * blocks


@pytest.mark.parametrize(
    ("r", "inflection", "blocks", "expected"),
    [
        (8, 0.0, 4, (8, 8, 8, 8)),
        (8, 1.0, 5, (0, 4, 8, 12, 16)),
        (8, -1.0, 5, (16, 12, 8, 4, 0)),
        (8, 0.5, 4, (4, 6, 9, 12)),  # 4, 6.67, 9.33, 12
        (5, 0.5, 3, (2, 5, 8)),  # from int(2.5)
        (7, 1.0, 1, (7,)),
        (3, -1.0, 2, (6, 0)),
    ],
)
def test_inflection_table(r, inflection, blocks, expected):
    assert tilt(r, inflection, blocks) == expected
    assert make_schedule(r, inflection, blocks, 1000, num_protected=1).removed == expected


@pytest.mark.parametrize(
    ("share", "tokens", "removed"),
    [
        (0.0, 197, (0, 0)),
        (0.5, 17, (8, 4)),
        (0.25, 17, (4, 3)),
        (0.29, 101, (29, 20)),
        (0.3, 11, (3, 2)),
        (0.1, 31, (3, 2)),
    ],
)
def test_share_of_unprotected_tokens_rounded_down(share, tokens, removed):
    schedule = make_schedule(share, 0.0, 2, tokens, num_protected=1)
    assert schedule.removed == removed
    assert schedule.clipped == ()


@given(
    st.one_of(st.integers(0, 40), st.floats(0, 0.5), st.lists(st.integers(0, 40), min_size=5, max_size=5)),
    st.integers(1, 300),
)
def test_schedules_are_possible_and_say_where_they_clip(r, tokens):
    checked = check_reduction(r, 0.0, 5)
    schedule = make_schedule(checked, 0.0, 5, tokens, num_protected=1)
    count = tokens
    for i, (removed, left) in enumerate(zip(schedule.removed, schedule.tokens, strict=True)):
        limit = (count - 1) // 2
        if isinstance(checked, float):
            assert removed <= Fraction(checked) * (count - 1) + Fraction(1, 10**8)
            assert not schedule.clipped
        else:
            asked = checked if isinstance(checked, int) else checked[i]
            assert removed == min(asked, limit)
            assert (i in schedule.clipped) == (asked > limit)
        assert 0 <= removed <= limit
        count -= removed
        assert left == count


BAD = [
    (True, 0.0, TypeError, "r must be an int, a list of ints or a float share, got bool"),
    ("8", 0.0, TypeError, "got str"),
    (np.array([2.5, 2, 2]), 0.0, TypeError, r"r\[0\] must be an int, got float"),
    (torch.ones(3, 2, dtype=torch.int64), 0.0, TypeError, r"r\[0\] must be an int, got list"),
    (np.bool_(True), 0.0, TypeError, "r must be an int, a list of ints or a float share, got bool"),
    ((8, -1), 0.0, ValueError, r"is ToMe's pair of r and inflection: write r=8, inflection=-1.0 here"),
    ((8, 0.5), 0.0, ValueError, r"write r=8, inflection=0.5 here"),
    (-1, 0.0, ValueError, "at least 0, got -1"),
    ([2, 2], 0.0, ValueError, "3 for this tower, got 2 entries"),
    ([2, 2, 2, 2], 0.0, ValueError, "got 4 entries"),
    ([2, -2, 2], 0.0, ValueError, r"r\[1\] must be at least 0, got -2"),
    ([2, 2.0, 2], 0.0, TypeError, r"r\[1\] must be an int, got float"),
    ([2, True, 2], 0.0, TypeError, r"r\[1\] must be an int, got bool"),
    (0.6, 0.0, ValueError, r"\[0, 0.5\], got 0.6"),
    (-0.1, 0.0, ValueError, r"\[0, 0.5\], got -0.1"),
    (float("nan"), 0.0, ValueError, "got nan"),
    (2, 1.5, ValueError, r"inflection must lie in \[-1, 1\], got 1.5"),
    (2, float("nan"), ValueError, "inflection"),
    (2, "1", TypeError, "inflection must be a number"),
    (2, True, TypeError, "inflection must be a number"),
    ([2, 2, 2], 0.5, ValueError, "inflection tilts one int r"),
    (0.25, 0.5, ValueError, "inflection tilts one int r"),
]


@pytest.mark.parametrize(("r", "inflection", "error", "message"), BAD, ids=[f"{r}-{i}" for r, i, *_ in BAD])
def test_bad_r_is_one_sentence_and_leaves_the_model_alone(r, inflection, error, message):
    visual = tower()
    with pytest.raises(error, match=message):
        alt.patch_clip(visual, r, inflection=inflection)
    assert type(visual).__name__ == "VisionTransformer"
    handle = alt.patch_clip(visual, 2, inflection=0.0)
    if inflection == 0.0:
        with pytest.raises(error, match=message):
            handle.r = r
        assert handle.r == 2


def test_forms_of_r():
    visual = tower()
    forms = (
        (numpy.int64(3), 3),
        (numpy.array(3), 3),
        (torch.tensor(3), 3),
        ([1, 0, 2], (1, 0, 2)),
        ((1, 0, 2), (1, 0, 2)),
        (numpy.array([1, 0, 2]), (1, 0, 2)),
        (torch.tensor([1, 0, 2]), (1, 0, 2)),
        (range(3), (0, 1, 2)),
        (0.25, 0.25),
        (numpy.float64(0.25), 0.25),
        (numpy.float32(0.25), 0.25),
    )
    for r, seen in forms:
        with alt.patch_clip(visual, r) as handle:
            assert handle.r == seen
            assert visual(images_for(visual)).isfinite().all()


def test_one_layer_towers():
    visual = tower(layers=1)
    with alt.patch_clip(visual, 3, inflection=1.0) as handle:
        assert handle.schedule() == ((3,), (14,), ())
        visual(images_for(visual))


def test_r_may_be_set():
    visual = tower(pool_type="none")
    handle = alt.patch_clip(visual, 2)
    for r, left in ((2, 11), (0, 17), ([4, 0, 1], 12), (0.5, 3), (3, 8)):
        handle.r = r
        assert (
            visual(images_for(visual)).shape[1]
            == left
            == handle.schedule().tokens[-1]
            == handle.schedule(17).tokens[-1]
        )


def test_clipping_warns_once_and_names_the_blocks():
    visual = tower()
    with pytest.warns(UserWarning, match="r=6 is more than blocks 1, 2 can lose at 17 input tokens") as record:
        handle = alt.patch_clip(visual, 6)
    assert len(record) == 1
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visual(images_for(visual))
        visual(images_for(visual))
        handle.schedule()
        handle.r = 4
        handle.r = 0.5
    with pytest.warns(UserWarning, match=r"block 0 can lose") as record:
        handle.r = [9, 0, 0]
    assert len(record) == 1
    assert record[0].filename == __file__


def test_another_token_count_warns_at_its_first_forward():
    visual = tower(patch_dropout=0.5).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alt.patch_clip(visual, 4)  # 17 tokens: 13, 9, 5
    batch = images()
    with pytest.warns(UserWarning, match="r=4 is more than blocks 1, 2 can lose at 9 input tokens") as record:
        visual(batch)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visual(batch)
        visual.eval()(batch)


def test_strict_raises_before_touching_the_model():
    visual = tower()
    with pytest.raises(ValueError, match="r=6 is more than blocks 1, 2 can lose at 17 input tokens"):
        alt.patch_clip(visual, 6, strict=True)
    assert type(visual).__name__ == "VisionTransformer"
    handle = alt.patch_clip(visual, 4, strict=True)
    with pytest.raises(ValueError, match="r=6"):
        handle.r = 6
    assert handle.r == 4
    visual(images_for(visual))
    dropped = tower(patch_dropout=0.5).train()
    alt.patch_clip(dropped, 4, strict=True)
    with pytest.raises(ValueError, match="at 9 input tokens"):
        dropped(images())


def test_a_list_that_no_longer_fits_raises():
    visual = tower()
    handle = alt.patch_clip(visual, [2, 2, 2])
    visual.prune_intermediate_layers([1])
    with pytest.raises(ValueError, match="3 entries but the tower now has 2 blocks"):
        visual(images())
    handle.r = [2, 2]
    assert visual(images()).isfinite().all()


@pytest.mark.parametrize(("tokens", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (True, TypeError)])
def test_schedule_checks_its_argument(tokens, error):
    handle = alt.patch_clip(tower(), 2)
    with pytest.raises(error, match="num_tokens"):
        handle.schedule(tokens)
    assert handle.schedule(1) == ((0, 0, 0), (1, 1, 1), (0, 1, 2))
    assert handle.schedule(TOKENS) == handle.schedule()


def test_repr_says_what_it_does():
    visual = tower()
    handle = alt.patch_clip(visual, 3)
    assert repr(handle) == "PatchHandle(r=3, prop_attn=True, 17 -> 8 tokens over 3 blocks)"
    handle.remove()
    assert repr(handle) == "PatchHandle(removed)"
    assert torch.is_tensor(visual(images()))


@pytest.mark.parametrize(
    ("blocks", "tokens", "r"),
    [
        (12, 197, 8),
        (12, 128, 8),
        (12, 127, 7),
        (24, 257, 8),
        (12, 50, 3),
        (12, 65, 4),
        (3, TOKENS, 4),
        (12, 5, 0),
        (0, 9, 8),
    ],
)
def test_the_default_leaves_a_quarter_of_the_tokens(blocks, tokens, r):
    assert choose_reduction(0.0, blocks, tokens, num_protected=1) == r


@given(st.integers(1, 30), st.integers(1, 600), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
def test_the_default_never_clips_and_is_the_largest(blocks, tokens, inflection):
    r = choose_reduction(inflection, blocks, tokens, num_protected=1)
    chosen = make_schedule(r, inflection, blocks, tokens, num_protected=1)
    assert not chosen.clipped
    assert r == 0 or 4 * chosen.tokens[-1] >= tokens
    if r < 8:
        more = make_schedule(r + 1, inflection, blocks, tokens, num_protected=1)
        assert more.clipped or 4 * more.tokens[-1] < tokens


def test_the_default_names_itself_where_it_is_not_8():
    visual = tower()
    with pytest.warns(UserWarning, match="r=None means r=4 for this tower.* of its 17 tokens") as caught:
        handle = alt.patch_model(visual)
    assert [warning.filename for warning in caught] == [__file__]
    assert handle.r == 4
    handle.r = 2
    with pytest.warns(UserWarning, match="r=None means r=4") as caught:
        handle.r = None
    assert [warning.filename for warning in caught] == [__file__]
    assert handle.r == 4
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with alt.patch_model(tower(image_size=96)) as handle:
            assert handle.r == 8


def test_r_of_the_model_names_the_handle():
    visual = tower()
    visual.q = 1  # other attributes are the host's own affair
    with alt.patch_model(visual, 2) as handle:
        with pytest.raises(AttributeError, match=r"set it at the handle: alt.get_handle\(model\).r = 4"):
            visual.r = 4
        assert not hasattr(visual, "r")
        assert handle.r == 2
