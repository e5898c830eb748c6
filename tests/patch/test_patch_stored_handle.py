"""A handle that a module keeps as an attribute: copies, averages and pickles of the module control their own tower."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from towers import bit_equal, images, max_difference, tower

import alt


class Head(nn.Module):
    def __init__(self, handle):
        super().__init__()
        self.handle = handle
        self.classes = nn.Linear(32, 4).double()

    def forward(self, x):
        return self.classes(self.handle.encode(x)[0].mean(1))


class Video(nn.Module):
    """Keeps the handle in a child that is registered before or after the tower, so that either is copied first."""

    def __init__(self, tower_first, r=3):
        super().__init__()
        torch.manual_seed(0)
        visual = tower(layers=2)
        head = Head(alt.patch_clip(visual, r, trace_source=True))
        for name, module in [("visual", visual), ("head", head)][:: 1 if tower_first else -1]:
            self.add_module(name, module)

    def forward(self, x):
        return self.head(x)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "average": lambda model: AveragedModel(model).module,
}


@pytest.mark.parametrize("tower_first", [True, False])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_controls_its_own_tower(make, tower_first):
    model = Video(tower_first)
    expected = model(images(2))
    twin = make(model)
    assert twin.head.handle.tower is twin.visual
    assert not [name for name in twin.state_dict() if "handle" in name]
    assert bit_equal(twin(images(2)), expected)
    assert bit_equal(twin.head.handle.source, model.head.handle.source)
    twin.head.handle.r = 0
    assert model.head.handle.r == 3
    assert max_difference(twin(images(2)), expected) > 1e-3
    twin.head.handle.remove()
    assert bit_equal(model(images(2)), expected)


def test_an_average_runs_with_averaged_weights_and_the_same_merging():
    model, later = Video(True), Video(True)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    average.update_parameters(model)  # the first update copies
    average.update_parameters(later)
    by_hand = Video(True)
    with torch.no_grad():
        for mean, a, b in zip(by_hand.parameters(), model.parameters(), later.parameters(), strict=True):
            mean.copy_(0.75 * a + 0.25 * b)
    assert max_difference(average(images(2)), by_hand(images(2))) < 1e-12
    assert alt.get_handle(average).r == 3
    by_hand.load_state_dict(average.module.state_dict(), strict=True)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_handle_whose_patch_was_removed_stays_so(make):
    model = Video(True)
    model.head.handle.remove()
    alt.patch_clip(model.visual, 2)  # another patch, which the old handle does not control
    twin = make(model)
    assert repr(twin.head.handle) == "PatchHandle(removed)"
    assert alt.get_handle(twin).r == 2


def test_shallow_copies_share_their_blocks_and_each_may_be_restored():
    visual = tower()
    expected = visual(images(2))
    handle = alt.patch_clip(visual, 3)
    shallow = copy.copy(visual)
    alt.unpatch(shallow)
    handle.remove()
    assert type(visual) is type(shallow)
    assert bit_equal([visual(images(2)), shallow(images(2))], [expected, expected])
