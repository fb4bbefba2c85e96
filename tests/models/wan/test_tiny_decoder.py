"""The tiny decoder against the network as its authors describe it, all frames at once; and files that hold none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from avd.models.wan.tiny_decoder import TinyDecoder
from avd.types import UserError
from helpers.tiny import tiny_model

VAE = {"z_dim": 12, "scale_factor_temporal": 4, "scale_factor_spatial": 8}


def random_weights(frames: tuple[int, int, int] = (1, 2, 2), patch: int = 1, channels: int = 12) -> dict[str, Tensor]:
    """By the published names: widths 8, 6, 4, 4."""
    generator = torch.Generator().manual_seed(0)
    widths, found = (8, 6, 4, 4), {}

    def add(name: str, out: int, inside: int, side: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = torch.randn(out, inside, side, side, generator=generator) / (inside * side**2) ** 0.5
        if bias:
            found[f"{name}.bias"] = torch.randn(out, generator=generator) / 4

    add("decoder.1", widths[0], channels, 3)
    for stage, first in enumerate((3, 9, 15)):
        width = widths[stage]
        for block in range(first, first + 3):
            add(f"decoder.{block}.conv.0", width, 2 * width, 3)
            add(f"decoder.{block}.conv.2", width, width, 3)
            add(f"decoder.{block}.conv.4", width, width, 3)
        add(f"decoder.{first + 4}.conv", width * frames[stage], width, 1, bias=False)
        add(f"decoder.{first + 5}", widths[stage + 1], width, 3, bias=False)
    add("decoder.22", 3 * patch**2, widths[3], 3)
    found["encoder.0.weight"] = torch.zeros(1)
    return found


def decode_at_once(w: dict[str, Tensor], z_FCHW: Tensor, frames: tuple[int, int, int], patch: int) -> Tensor:
    """(T F - T + 1, 3, H, W): every layer over all frames, memory as a shift in time."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    x = F.relu(conv(3 * torch.tanh(z_FCHW / 3), "decoder.1"))
    for first in (3, 9, 15):
        for block in range(first, first + 3):
            before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            inside = conv(torch.cat([x, before], 1), f"decoder.{block}.conv.0")
            inside = conv(F.relu(inside), f"decoder.{block}.conv.2")
            x = F.relu(conv(F.relu(inside), f"decoder.{block}.conv.4") + x)
        x = F.interpolate(x, scale_factor=2)
        grown = conv(x, f"decoder.{first + 4}.conv")
        x = conv(grown.reshape(-1, x.shape[1], *x.shape[2:]), f"decoder.{first + 5}")
    x = F.pixel_shuffle(conv(F.relu(x), "decoder.22"), patch).clamp(0, 1)
    return x[int(np.prod(frames)) - 1 :]


def saved(folder: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.mark.parametrize(
    ("frames", "patch", "vae"),
    [((1, 2, 2), 1, VAE), ((1, 2, 2), 2, VAE | {"scale_factor_spatial": 16}), ((2, 2, 2), 1, VAE)],
    ids=["wan2.1", "wan2.2", "more frames than needed"],
)
def test_it_decodes_as_described(frames: tuple[int, int, int], patch: int, vae: dict[str, Any], tmp_path: Path) -> None:
    weights = random_weights(frames, patch)
    network = TinyDecoder.load(saved(tmp_path, weights), vae)
    latents = torch.randn(2, 12, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    video = network.decode_video(latents)
    assert video.shape == (2, 17, 16 * patch, 24 * patch, 3) and video.dtype == np.uint8 and video.std() > 5
    if frames[0] == 2:
        weights["decoder.7.conv.weight"] = weights["decoder.7.conv.weight"][8:]  # of its last frame
        frames = (1, 2, 2)
    for i in range(2):
        expected = decode_at_once(weights, latents[i].transpose(0, 1), frames, patch) * 255
        np.testing.assert_allclose(video[i], expected.permute(0, 2, 3, 1), atol=0.51)


def test_no_frame_waits_for_later_latents(tmp_path: Path) -> None:
    network = TinyDecoder.load(saved(tmp_path, random_weights()), VAE)
    latents = torch.randn(1, 12, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    changed = latents.clone()
    changed[:, :, 2] += 1
    before, after = network.decode_video(latents), network.decode_video(changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])  # 1 frame of the first latent frame, 4 of the second
    assert (before[:, 5] != after[:, 5]).any()
    taken = []

    def feed() -> Any:
        for frame in latents.unbind(2):
            taken.append(frame)
            yield frame

    stream = network.stream(feed())
    assert [len(taken) for _ in stream] == [1, *[2] * 4, *[3] * 4, *[4] * 4]


def test_a_model_decodes_with_it(tmp_path: Path) -> None:
    model = tiny_model()
    latents = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(1))
    own = model.decode_video(latents)
    file = saved(tmp_path, random_weights())
    model.decode_with(tiled=False, decoder=file)
    tiny = model.decode_video(latents)
    assert tiny.shape == own.shape and (tiny != own).any()
    np.testing.assert_array_equal(tiny, TinyDecoder.load(file, VAE).decode_video(latents))
    model.decode_with(tiled=False, decoder=None)
    np.testing.assert_array_equal(model.decode_video(latents), own)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"x": torch.zeros(1)}, "it lacks 'decoder.7.conv.weight'"),
        (
            random_weights(channels=16),
            "decodes 16 channels to 8 x 8 pixels, and the model's latents have 12",
        ),
        (random_weights(patch=2), "decodes 12 channels to 16 x 16 pixels"),
        (random_weights((1, 1, 2)), "it makes 2 frames of a latent frame, and the model has 4"),
        ({k: v for k, v in random_weights().items() if "15.conv.2" not in k}, "Error"),
    ],
)
def test_other_files_are_refused(weights: dict[str, Tensor], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny.safetensors is no tiny decoder of this model \(") as caught:
        TinyDecoder.load(saved(tmp_path, weights), VAE)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1
    (tmp_path / "none.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"none\.safetensors is no tiny decoder"):
        TinyDecoder.load(tmp_path / "none.safetensors", VAE)
