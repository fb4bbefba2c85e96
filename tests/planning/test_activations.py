"""Memory of a pass on fake tensors: lines through few measurements, and what each way of computing keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avd.models.family import read_sizes
from avd.models.wan.sizes import WanSizes
from avd.planning.activations import LiveBytes, MeasuredPass, PassMeter, run_fake
from helpers.planning_sizes import SIZES

LEARN = MeasuredPass(1, True, torch.float32, gpu=False)


@pytest.fixture(scope="module")
def deep() -> WanSizes:
    return replace(SIZES, layers=8)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_depth_and_clips_are_extended_exactly(deep: WanSizes, checkpointing: str) -> None:
    which = replace(LEARN, clips=4, checkpointing=checkpointing)
    expected, found = run_fake(deep, 8, which), PassMeter(deep)(which)
    assert found.saved == pytest.approx(expected.saved, rel=0.001)
    assert found.peak == pytest.approx(expected.peak, rel=0.02)


def test_without_gradient_nothing_is_kept(deep: WanSizes) -> None:
    found = PassMeter(deep)(replace(LEARN, gradient=False))
    assert found.peak == run_fake(deep, 8, replace(LEARN, gradient=False)).peak
    assert found.saved < 0.2 * found.peak


def test_checkpointing_keeps_less(deep: WanSizes) -> None:
    meter = PassMeter(deep)
    none, selective, full = (meter(replace(LEARN, checkpointing=c)).saved for c in ("none", "selective", "full"))
    assert full < selective < none
    assert selective == pytest.approx((none + full) / 2, rel=0.01)


def test_scores_are_kept_by_plain_attention_alone() -> None:
    """Each head's products of all tokens with all tokens and all text, in float32, at least once a block."""
    sizes = read_sizes("wan-mini")
    fused, plain = (run_fake(sizes, 4, replace(LEARN, attention=a)) for a in (None, "_native_math"))
    scores = 4 * 6 * sizes.tokens() * (sizes.tokens() + sizes.text_tokens) * 4
    assert plain.saved - fused.saved > 0.9 * scores


def test_a_gpu_keeps_less_of_its_norms() -> None:
    """The composed norm keeps one further tensor of its input's size; there are four in a block, one of them short."""
    sizes = read_sizes("wan-mini")
    cpu, gpu = (run_fake(sizes, 4, replace(LEARN, gpu=gpu)) for gpu in (False, True))
    normalised = 4 * (3 * sizes.tokens() + sizes.text_tokens) * 192 * 4
    assert cpu.saved - gpu.saved == pytest.approx(normalised, rel=0.2)


def test_live_bytes_follow_tensors_that_come_and_go() -> None:
    given = torch.zeros(100)
    with LiveBytes([given]) as live:
        view = given[:50]
        a = view + 1
        assert (live.now, live.peak) == (200, 200)
        b = torch.cat([a, a])
        del a
        assert (live.now, live.peak) == (400, 600)
        b.add_(1)
        c = b.view(2, 50)
        del b
        assert live.now == 400
        del c
    assert (live.now, live.peak) == (0, 600)
