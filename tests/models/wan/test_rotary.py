"""Strided rotary positions on a tiny Wan transformer."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from avd.models.wan.network import WanVelocity
from avd.models.wan.rotary import StridedRotary
from avd.types import Conditions

CHANNELS, TEXT = 4, 16


@pytest.fixture
def stock() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def inputs(frames: int = 5) -> tuple[Tensor, Tensor, Conditions]:
    return (
        torch.randn(2, CHANNELS, frames, 4, 6),
        torch.tensor([0.9, 0.3]),
        Conditions({"embedding": torch.randn(2, 7, TEXT)}),
    )


class TableRecorder:
    """Keeps the rotary tables that the first block's self-attention is given."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.tables: list[tuple[Tensor, Tensor]] = []
        transformer.blocks[0].attn1.register_forward_pre_hook(self._keep)

    def _keep(self, module: torch.nn.Module, args: tuple[object, ...]) -> None:
        table = args[-1]
        assert isinstance(table, tuple)
        self.tables.append(table)


def test_stride_one_is_stock_diffusers_bit_for_bit(stock: WanTransformer3DModel) -> None:
    x, sigma, prompt = inputs()
    wrapped = WanVelocity(copy.deepcopy(stock))
    with torch.no_grad():
        expected = stock(x, sigma * 1000, prompt["embedding"], return_dict=False)[0]
        assert torch.equal(wrapped(x, sigma, prompt), expected)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_strided_table_is_rows_of_the_full_rate_table(stock: WanTransformer3DModel, stride: int, frames: int) -> None:
    strided = StridedRotary(stock.rope)
    strided.frame_stride = stride
    x = torch.randn(2, CHANNELS, (frames - 1) * stride + 1, 4, 6)
    tokens = 2 * 3  # of a frame, with patches of 2 x 2
    for full, thin in zip(stock.rope(x), strided(x[:, :, ::stride]), strict=True):
        positions = full.unflatten(1, (-1, tokens))[:, [stride * i for i in range(frames)]]
        assert torch.equal(thin, positions.flatten(1, 2))


@pytest.mark.parametrize("frame_stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2])
def test_a_half_resolution_table_is_every_second_row_and_column_of_patches(side: int, frame_stride: int) -> None:
    rope = WanRotaryPosEmbed(12, (1, side, side), 32)
    strided = StridedRotary(rope)
    strided.frame_stride, strided.space_stride = frame_stride, 2
    x = torch.randn(2, CHANNELS, 5, 4 * side, 8 * side)
    given = zip(rope(x), strided(x[:, :, ::frame_stride, ::2, ::2]), strict=True)
    for full, thin in given:
        assert torch.equal(thin, full.unflatten(1, (5, 4, 8))[:, ::frame_stride, ::2, ::2].flatten(1, 3))


def test_attention_knows_differences_of_positions_alone() -> None:
    """So the constant by which the centres of larger patches lie further on changes nothing."""
    rope = WanRotaryPosEmbed(12, (1, 1, 1), 32)
    cos, sin = (table.unflatten(1, (1, 1, 16))[0, 0, 0, :, 0] for table in rope(torch.empty(1, 1, 1, 1, 16)))

    def scores(positions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(6, 12, generator=generator) for _ in range(2))

        def turn(x: Tensor) -> Tensor:
            even, odd = x[:, 0::2], x[:, 1::2]
            c, s = cos[positions, 0::2], sin[positions, 1::2]
            return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(1)

        return turn(q) @ turn(k).T

    torch.testing.assert_close(scores(2 * torch.arange(6)), scores(2 * torch.arange(6) + 3), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores(2 * torch.arange(6)), scores(torch.arange(6)), atol=0.1)


def test_a_half_rate_call_attends_at_positions_0_2_4(stock: WanTransformer3DModel) -> None:
    x, sigma, prompt = inputs()
    network, recorder = WanVelocity(stock), TableRecorder(stock)
    with torch.no_grad():
        network(x, sigma, prompt)
        network(x[:, :, ::2], sigma, prompt, frame_stride=2)
    for full, half in zip(*recorder.tables, strict=True):
        assert torch.equal(half.unflatten(1, (3, -1)), full.unflatten(1, (5, -1))[:, [0, 2, 4]])


def test_the_stride_matters_and_lasts_one_call(stock: WanTransformer3DModel) -> None:
    x, sigma, prompt = inputs(3)
    network = WanVelocity(stock)
    with torch.no_grad():
        before = network(x, sigma, prompt)
        strided = network(x, sigma, prompt, frame_stride=2)
        assert not torch.allclose(before, strided, atol=1e-6)
        assert torch.equal(network(x, sigma, prompt), before)


def test_a_call_that_fails_leaves_full_rate_behind(stock: WanTransformer3DModel) -> None:
    x, sigma, _ = inputs(3)
    network = WanVelocity(stock)
    with pytest.raises(RuntimeError):
        network(x, sigma, Conditions({"embedding": torch.randn(2, 7, TEXT + 1)}), frame_stride=2)
    with pytest.raises(RuntimeError):
        network(x, sigma, Conditions({"embedding": torch.randn(2, 7, TEXT + 1)}), space_stride=2)
    assert stock.rope.frame_stride == stock.rope.space_stride == 1


def test_the_state_dict_does_not_change(stock: WanTransformer3DModel) -> None:
    keys = list(stock.state_dict())
    wrapped = WanVelocity(stock)
    assert list(stock.state_dict()) == keys
    assert list(wrapped.state_dict()) == [f"transformer.{key}" for key in keys]


def test_wrapping_twice_is_wrapping_once(stock: WanTransformer3DModel) -> None:
    WanVelocity(stock)
    WanVelocity(stock)
    assert not isinstance(stock.rope.rope, StridedRotary)


def test_gradient_checkpointing_gives_the_same_gradient_at_half_rate(stock: WanTransformer3DModel) -> None:
    """The blocks are run again in the backward pass, when the stride is back at 1."""
    x, sigma, prompt = inputs(3)
    gradients = []
    for checkpointing in (False, True):
        network = WanVelocity(copy.deepcopy(stock)).train()
        if checkpointing:
            network.transformer.enable_gradient_checkpointing()
        network(x, sigma, prompt, frame_stride=2).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
