"""The latent-frame interpolator: shapes, exactness, locality, gradients, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avd.models.interpolator import FrameInterpolator, InterpolatorConfig, interpolate_linearly
from avd.types import UserError


def untrained(channels: int = 3) -> FrameInterpolator:
    return FrameInterpolator(InterpolatorConfig(channels, widths=(8, 16)))


def stirred(channels: int = 3) -> FrameInterpolator:
    """An interpolator whose residual is far from zero."""
    network = untrained(channels)
    nn.init.normal_(network.leave[-1].weight)
    return network.eval()


def stirred_in_space(channels: int = 3) -> FrameInterpolator:
    network = FrameInterpolator(InterpolatorConfig(channels, widths=(8, 16), space=True))
    nn.init.normal_(network.leave[-1].weight)
    return network.eval()


def linear(x_BCFHW: Tensor) -> Tensor:
    return (x_BCFHW[:, :, :-1] + x_BCFHW[:, :, 1:]) / 2


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (6, 6), (8, 3)])
def test_any_size_goes_in_and_known_frames_come_out_unchanged(frames: int, height: int, width: int) -> None:
    x = torch.randn(2, 3, frames, height, width)
    filled = stirred()(x)
    assert filled.shape == (2, 3, 2 * frames - 1, height, width)
    assert torch.equal(filled[:, :, ::2], x)
    assert filled.isfinite().all()


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4), (6, 5)])
def test_space_doubles_and_given_values_come_out_unchanged(frames: int, height: int, width: int) -> None:
    network, x = stirred_in_space(), torch.randn(2, 3, frames, height, width)
    doubled, both = network(x, frames=False, space=True), network(x, frames=True, space=True)
    assert doubled.shape == (2, 3, frames, 2 * height, 2 * width)
    assert both.shape == (2, 3, 2 * frames - 1, 2 * height, 2 * width)
    assert torch.equal(doubled[..., ::2, ::2], x) and torch.equal(both[:, :, ::2], doubled)
    assert torch.equal(both, network(doubled))  # space first, then frames


def test_untrained_space_is_linear_in_rows_and_columns() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    x = (2 * rows + 3 * columns).expand(1, 3, 3, 4, 5)
    network = FrameInterpolator(InterpolatorConfig(3, widths=(8, 16), space=True))
    filled = network(x, frames=False, space=True)
    finer, fine = torch.meshgrid(torch.arange(8.0) / 2, torch.arange(10.0) / 2, indexing="ij")
    expected = 2 * finer.clamp(max=3) + 3 * fine.clamp(max=4)  # past the last ones nothing is given
    torch.testing.assert_close(filled, expected.expand(1, 3, 3, 8, 10))
    assert torch.equal(filled, interpolate_linearly(x, frames=False, space=True))
    assert torch.equal(network(x, space=True), interpolate_linearly(x, space=True))


def test_gradients_pass_through_filled_space() -> None:
    network, x = stirred_in_space(), torch.randn(1, 3, 1, 4, 4, requires_grad=True)
    network(x, frames=False, space=True).square().sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0
    assert network.enter.weight.grad is not None and network.enter.weight.grad[:, -1].abs().sum() > 0


def test_a_network_of_frames_alone_refuses_space() -> None:
    with pytest.raises(UserError, match=r"frames alone.*avd train interpolator --space"):
        stirred()(torch.randn(1, 3, 3, 4, 4), space=True)


def test_default_widths_and_a_low_precision_input() -> None:
    network = FrameInterpolator(InterpolatorConfig(12))
    x = torch.randn(1, 12, 3, 6, 6, dtype=torch.bfloat16)
    filled = network(x)
    assert filled.dtype == torch.bfloat16
    assert torch.equal(filled[:, :, ::2], x)
    assert network.to(torch.bfloat16)(x.float()).dtype == torch.float32


def test_untrained_is_linear() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(untrained()(x)[:, :, 1::2], linear(x))
    assert not torch.allclose(stirred()(x)[:, :, 1::2], linear(x), atol=0.1)


def test_a_frame_reaches_its_neighbours_only() -> None:
    network, x = stirred(), torch.randn(1, 3, 5, 6, 6)
    changed = x.clone()
    changed[:, :, 2] += 1.0
    moved = (network(changed) != network(x)).flatten(3).any(-1).any(1)[0]
    assert moved.tolist() == [False, False, False, True, True, True, False, False, False]


def test_all_pairs_at_once_equals_one_by_one() -> None:
    network, x = stirred(), torch.randn(2, 3, 4, 5, 6)
    filled = network(x)
    torch.testing.assert_close(network(x[:, :, :2])[:, :, 1], filled[:, :, 1])
    unrelated = torch.randn(2, 3, 1, 5, 6)  # stands first, so that the pair behind it is no first pair
    for j in range(1, 3):
        alone = network(torch.cat([unrelated, x[:, :, j : j + 2]], 2))[:, :, 3]
        torch.testing.assert_close(alone, filled[:, :, 2 * j + 1])


def test_a_sample_does_not_depend_on_its_batch_or_the_mode() -> None:
    network, x = stirred(), torch.randn(3, 3, 3, 6, 6)
    torch.testing.assert_close(network(x[1:2]), network(x)[1:2])
    assert torch.equal(network.train()(x), network.eval()(x))


def test_the_first_pair_is_known_to_be_the_first() -> None:
    x = torch.randn(1, 3, 2, 6, 6)
    twice = stirred()(torch.cat([x, x], 2))  # pairs (a, b), (b, a), (a, b)
    assert not torch.allclose(twice[:, :, 1], twice[:, :, 5], atol=1e-3)


def test_gradients_pass_through_a_frozen_network_to_its_input() -> None:
    network = stirred().requires_grad_(False)
    x = torch.randn(1, 3, 3, 6, 6, requires_grad=True)
    network(x)[:, :, 1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, 0].abs().min() > 0 and x.grad[:, :, 1].abs().min() > 0
    assert (x.grad[:, :, 2] == 0).all()


def test_saved_and_loaded_gives_the_same(tmp_path: Path) -> None:
    network, x = stirred(), torch.randn(1, 3, 3, 6, 6)
    network.save(tmp_path / "interpolator")
    loaded = FrameInterpolator.load(tmp_path / "interpolator")
    assert loaded.config == network.config
    assert torch.equal(loaded(x), network(x))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "interpolator").iterdir()) == ["config.json", "model.safetensors"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no interpolator at .*nowhere"):
        FrameInterpolator.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", json.dumps({"channels": 3}).encode()),
        ("config.json", json.dumps({"channels": 3, "widths": [12]}).encode()),
        ("config.json", json.dumps({"channels": 3, "widths": [8, 16], "depth": 2}).encode()),
        ("config.json", json.dumps({"channels": 4, "widths": [8, 16]}).encode()),
        ("config.json", json.dumps({"channels": 3, "widths": [8, 16], "space": "both"}).encode()),
        ("config.json", json.dumps({"channels": 3, "widths": [8, 16], "space": True}).encode()),
        ("model.safetensors", b"cut short"),
        ("model.safetensors", None),
    ],
)
def test_damage_is_reported_in_one_line(tmp_path: Path, file: str, content: bytes | None) -> None:
    untrained().save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(.+\): copy or train it again") as error:
        FrameInterpolator.load(tmp_path)
    assert "\n" not in str(error.value)


def test_wrong_channels_and_widths_are_reported() -> None:
    with pytest.raises(UserError, match="4 channels, the interpolator was trained on 3"):
        untrained()(torch.randn(1, 4, 3, 6, 6))
    with pytest.raises(UserError, match="widths"):
        InterpolatorConfig(3, widths=(32, 60))
