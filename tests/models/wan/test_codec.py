"""Pixels to latents and back: the parts that are exact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avd.models.wan.codec import decode_video, to_signed, to_uint8, unwhiten, whiten
from avd.models.wan.model import VideoModel


def test_every_pixel_value_comes_back() -> None:
    video = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 2, 8, 8, 3)
    signed = to_signed(video)
    assert signed.shape == (2, 3, 2, 8, 8) and signed.min() == -1 and signed.max() == 1
    np.testing.assert_array_equal(to_uint8(signed), video)


def test_channels_and_frames_keep_their_places() -> None:
    video = np.zeros((1, 4, 2, 2, 3), np.uint8)
    video[0, 3, 1, 0, 2] = 255
    assert to_signed(video)[0, 2, 3, 1, 0] == 1.0 and (to_signed(video) == 1.0).sum() == 1


def test_values_out_of_range_are_clipped_and_rounded() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 9.0]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    np.testing.assert_array_equal(to_uint8(values)[0, 0, 0, :, 0], [0, 0, 128, 255, 255, 255])


def test_whitening_uses_each_channels_own_statistics(model: VideoModel) -> None:
    z = torch.randn(2, 12, 3, 2, 2)
    x = whiten(model.vae, z)
    torch.testing.assert_close(unwhiten(model.vae, x), z)
    torch.testing.assert_close(x[:, 4], (z[:, 4] - 0.4) / 1.4)


def test_the_vae_is_given_and_gives_whitened_latents(model: VideoModel) -> None:
    video = np.random.default_rng(0).integers(0, 256, (1, 5, 16, 16, 3), dtype=np.uint8)
    latents = model.encode_video(video)
    assert latents.shape == (1, 12, 2, 2, 2)
    mode: Tensor = model.vae.encode(to_signed(video)).latent_dist.mode()
    torch.testing.assert_close(latents, whiten(model.vae, mode))
    decoded = decode_video(model.vae, torch.cat([latents, latents]))
    assert decoded.shape == (2, 5, 16, 16, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded[0], decoded[1])
    np.testing.assert_array_equal(decoded[:1], to_uint8(model.vae.decode(mode).sample))


def test_tiles_are_those_of_stock_diffusers(model: VideoModel) -> None:
    """A picture higher than one tile, which ends within the second."""
    latents = torch.randn(1, 12, 1, 40, 4, generator=torch.Generator().manual_seed(0))
    in_one_piece = model.decode_video(latents)
    model.decode_with(tiled=True, decoder=None)
    tiled = model.decode_video(latents)
    expected = to_uint8(model.vae.tiled_decode(unwhiten(model.vae, latents)).sample)
    np.testing.assert_array_equal(tiled, expected)
    assert tiled.shape == in_one_piece.shape and (tiled != in_one_piece).any()
    model.decode_with(tiled=False, decoder=None)
    np.testing.assert_array_equal(model.decode_video(latents), in_one_piece)
