"""Heads on a network's features: which blocks, what they begin as, and what they give."""

from __future__ import annotations

import pytest
import torch

from avd.methods.heads import FeatureHeads
from avd.objectives.term import Heads


def heads(depths: tuple[float, ...] = (0.5, 0.75, 1.0), layers: int = 8, seed: int = 0) -> FeatureHeads:
    found = FeatureHeads(Heads("discriminator", None, depths, 4, 2), 6, layers)  # type: ignore[arg-type]
    found.draw(torch.Generator().manual_seed(seed))
    return found


@pytest.mark.parametrize(("layers", "blocks"), [(30, (14, 22, 29)), (8, (3, 5, 7)), (2, (0, 1, 1)), (1, (0, 0, 0))])
def test_depths_are_shares_of_the_blocks(layers: int, blocks: tuple[int, ...]) -> None:
    assert heads(layers=layers).blocks == blocks


def test_a_head_gives_the_mean_of_its_own_tokens_logits() -> None:
    found = heads()
    assert all(p.isfinite().all() for p in found.parameters())
    torch.nn.init.normal_(found.heads[1][3].weight)
    features = [torch.randn(2, tokens, 6) for tokens in (3, 4, 5)]
    logits = found(features)
    assert logits.shape == (2, 3)
    assert not logits[:, 0].any() and not logits[:, 2].any()  # undecided, as they begin
    each = torch.stack([found.heads[1](features[1][:, i]) for i in range(4)]).mean(0)[:, 0]
    torch.testing.assert_close(logits[:, 1], each)


def test_weights_are_drawn_from_the_generator_alone() -> None:
    first, again, other = (torch.cat([p.flatten() for p in heads(seed=seed).parameters()]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
