"""Every host names learned positions and learned tokens as parameters without weight decay."""

from __future__ import annotations

import pytest

import alt
from alt.hosts import find_tower

from .all_families import FAMILIES
from .families import Family

# By the names that their packages give them; open_clip's are tested with the groups of the optimiser.
LEARNED = (
    *("pos_embed", "cls_token", "class_token", "reg_token", "dist_token", "distillation_token", "mask_token"),
    *("position_embedding", "positional_embedding", "register_tokens", "rope.freqs"),
)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_positions_and_tokens_do_not_decay(family: Family) -> None:
    model = family.make()
    host, tower = find_tower(model)
    expected = {name for name, p in tower.named_parameters() if p.ndim > 1 and any(word in name for word in LEARNED)}
    for patched in (False, True):
        if patched:
            alt.patch_clip(model, r=2)
        kept = {id(parameter) for parameter in host.no_decay(tower)}
        assert {name for name, p in tower.named_parameters() if p.ndim > 1 and id(p) in kept} == expected
