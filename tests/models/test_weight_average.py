"""The mean of two models' weights: its ends, its middle, the class texts, and models that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import alt
from alt.models import average_weights
from tests.patch.compare import bit_equal, randomised

NAMES = ["lifting cup", "pushing ball"]


def models() -> tuple[Any, Any]:
    """A ViFi-CLIP and the same after a training."""
    before = alt.create_model("vifi-mini", pretrained="entity-world", classes=NAMES)
    trained = alt.create_model("vifi-mini", pretrained="entity-world", classes=NAMES)
    return before.eval(), randomised(trained, 0.05).eval()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_it_is_the_mean_and_its_ends_are_exact(share: float) -> None:
    before, trained = models()
    start = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    average_weights(trained, before, share)
    for name, parameter in trained.named_parameters():
        there = before.get_parameter(name)
        if share in (0, 1):
            assert bit_equal(parameter, there if share else start[name]), name
        torch.testing.assert_close(parameter, share * there + (1 - share) * start[name])


def test_class_texts_are_those_of_the_mean() -> None:
    before, trained = models()
    clips = torch.randn(2, 4, 3, 24, 24)
    other = trained(clips).logits
    average_weights(trained, before, 1.0)
    assert bit_equal(trained(clips).logits, before(clips).logits)
    assert not torch.equal(before(clips).logits, other)


def test_models_that_do_not_fit() -> None:
    before, trained = models()
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\], got 1.2"):
        average_weights(trained, before, 1.2)
    other = alt.create_model("mit-mini", pretrained="entity-world")
    with pytest.raises(ValueError, match=r"with the same parameters, got text.clip.* in one of the two alone"):
        average_weights(trained, other, 0.5)
    large = alt.create_model("vifi-b32")
    with pytest.raises(ValueError, match="other: expected a model with the same parameters, got "):
        average_weights(trained, large, 0.5)
