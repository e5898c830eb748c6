"""Readers of several tokens weigh them by size: against sums written out per image."""

from __future__ import annotations

import plain_tome
import pytest
import torch
from towers import images_for, max_difference, tower

import alt

REMOVED = [4, 4, 3]


def pooled_by_hand(pooler, x, size):
    """Attentional pooling of one image as plain attention over every token repeated ``size`` times."""
    x = torch.cat([row.expand(int(count), -1) for row, count in zip(x, size, strict=True)])
    keys = plain_tome.layer_norm(pooler.ln_k, x)
    query = plain_tome.layer_norm(pooler.ln_q, pooler.query)
    attn = pooler.attn
    bias = attn.in_proj_bias.chunk(3)
    if attn.in_proj_weight is not None:
        weights = attn.in_proj_weight.chunk(3)
    else:
        weights = (attn.q_proj_weight, attn.k_proj_weight, attn.v_proj_weight)
    q, k, v = query @ weights[0].T + bias[0], keys @ weights[1].T + bias[1], keys @ weights[2].T + bias[2]
    d = q.shape[1] // attn.num_heads
    parts = []
    for h in range(attn.num_heads):
        head = slice(h * d, (h + 1) * d)
        parts.append((q[:, head] @ k[:, head].T * d**-0.5).softmax(1) @ v[:, head])
    return torch.cat(parts, 1) @ attn.out_proj.weight.T + attn.out_proj.bias


@pytest.fixture
def merged():
    """Builds a patched tower; returns its output and, per image, the merged tokens and sizes by plain loops."""

    def build(**options):
        visual = tower(output_tokens=True, **options)
        batch = images_for(visual)
        by_hand = [plain_tome.trunk(visual, image, REMOVED) for image in batch]
        assert max(max(size) for _, size in by_hand) >= 3
        alt.patch_clip(visual, REMOVED)
        return visual, visual(batch), by_hand

    return build


def check(output, expected):
    pooled, tokens = (torch.stack(column) for column in zip(*expected, strict=True))
    assert max_difference(output, [pooled, tokens]) < 1e-11


def test_tok(merged):
    visual, output, by_hand = merged()
    normed = [plain_tome.layer_norm(visual.ln_post, x) for x, _ in by_hand]
    check(output, [(x[0] @ visual.proj, x[1:]) for x in normed])
    assert output[1].shape[1] == 17 - sum(REMOVED) - 1  # merged tokens, not the grid


@pytest.mark.parametrize("after", [False, True])
def test_avg_is_the_mean_over_patches(merged, after):
    visual, output, by_hand = merged(pool_type="avg", final_ln_after_pool=after)
    expected = []
    for x, size in by_hand:
        if not after:
            x = plain_tome.layer_norm(visual.ln_post, x)
        pooled = sum(s * row for s, row in zip(size[1:], x[1:], strict=True)) / 16
        if after:
            pooled = plain_tome.layer_norm(visual.ln_post, pooled)
        expected.append((pooled @ visual.proj, x[1:]))
    check(output, expected)
    unweighted = torch.stack([x[1:].mean(0) for _, x in expected])
    weighted = torch.stack(
        [
            sum(s * r for s, r in zip(z[1:], x, strict=True)) / 16
            for (_, x), (_, z) in zip(expected, by_hand, strict=True)
        ]
    )
    assert max_difference(unweighted, weighted) > 1e-3  # the test can tell them apart


def test_attentional_pool_equals_plain_attention_over_repeated_tokens(merged):
    visual, output, by_hand = merged(attentional_pool=True, attn_pooler_queries=5)
    queries = [plain_tome.layer_norm(visual.ln_post, pooled_by_hand(visual.attn_pool, *z)) for z in by_hand]
    check(output, [(x[0] @ visual.proj, x[1:]) for x in queries])
    unsized = [pooled_by_hand(visual.attn_pool, x, [1] * len(x)) for x, _ in by_hand]
    sized = [pooled_by_hand(visual.attn_pool, *z) for z in by_hand]
    assert max_difference(unsized, sized) > 1e-3


@pytest.mark.parametrize("kind", ["parallel", "cascade"])
def test_two_attentional_pools(merged, kind):
    visual, output, by_hand = merged(attentional_pool=kind, attn_pooler_queries=5, output_dim=32)
    expected = []
    for x, size in by_hand:
        x = plain_tome.layer_norm(visual.ln_post, x)
        tokens = pooled_by_hand(visual.attn_pool, x, size)
        if kind == "parallel":
            pooled = pooled_by_hand(visual.attn_pool_contrastive, x, size)[0]
        else:
            pooled = pooled_by_hand(visual.attn_pool_contrastive, tokens, [1] * 5)[0]
        expected.append((pooled[None] @ visual.proj, tokens))
    check(output, expected)


def test_no_projection(merged):
    visual = tower(pool_type="avg")
    visual.proj = None
    batch = images_for(visual)
    expected = visual(batch)
    with alt.patch_clip(visual, 0):
        assert max_difference(visual(batch), expected) < 1e-12
    with alt.patch_clip(visual, 3):
        assert visual(batch).shape == expected.shape
        assert visual.forward_intermediates(batch)["image_features"].shape == expected.shape
