"""Start a small Wan VAE where learning is fast: as a linear autoencoder of local averages.

Wan's VAE normalises every feature to unit length. From a usual random start that hides the muted colours of a clip
behind its brightness, and a small VAE spends its first thousand updates drawing grey averages. So it starts with

- whitened input: the first convolution decorrelates patches, and a quarter of its channels are the constant 1, against
  which the normalisation keeps every other channel's magnitude readable;
- delta-orthogonal convolutions (Xiao et al. 2018, arXiv 1806.05393) where a signal must pass;
- residual branches, attention and resampling that give 0, so that the parameter-free shortcuts carry the signal;
- a posterior of little noise (log variance -6).
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    patchify,
)
from torch import Tensor, nn

_LOG_VARIANCE = -6.0
_CONSTANT_SHARE = 0.25


@torch.no_grad()
def initialise(vae: AutoencoderKLWan, frames: Tensor) -> None:
    """Initialise a VAE with shortcuts (`is_residual`) and a patch size, in place, from the global random state.

    `frames` are single-frame videos (N, 3, 1, H, W) in [-1, 1] that look like the data.
    """
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.kaiming_normal_(module.conv1.weight, nonlinearity="linear")
            _zero(module.conv2)
            if isinstance(module.conv_shortcut, nn.Conv3d):
                _delta_orthogonal(module.conv_shortcut)
        elif isinstance(module, WanResample):
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d | nn.Conv3d):
                    _zero(conv)
            if hasattr(module, "time_conv"):  # one of two zero factors must be alive for the other to learn
                nn.init.kaiming_normal_(module.time_conv.weight, nonlinearity="linear")
        elif isinstance(module, WanAttentionBlock):
            _zero(module.proj)
    for conv in (
        vae.encoder.conv_in,
        vae.encoder.conv_out,
        vae.post_quant_conv,
        vae.decoder.conv_in,
        vae.decoder.conv_out,
    ):
        _delta_orthogonal(conv)
    mean = _whiten_input(vae.encoder.conv_in, patchify(frames, vae.config.patch_size))
    _constant_channels(vae.encoder.conv_in)
    _constant_channels(vae.decoder.conv_in)
    vae.decoder.conv_out.weight.mul_(0.1)
    vae.decoder.conv_out.bias.copy_(mean)
    channels = vae.config.z_dim
    _zero(vae.quant_conv)
    vae.quant_conv.weight[:channels, :channels, 0, 0, 0] = 2.0 * torch.eye(channels)
    vae.quant_conv.bias[channels:] = _LOG_VARIANCE


def _zero(conv: nn.Conv2d | nn.Conv3d) -> None:
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def _delta_orthogonal(conv: nn.Conv3d) -> None:
    """An orthogonal map at the kernel's centre (its newest frame, as convolutions are causal), 0 elsewhere."""
    _zero(conv)
    orthogonal = torch.empty(conv.weight.shape[:2])
    nn.init.orthogonal_(orthogonal)
    _, _, time, height, width = conv.weight.shape
    conv.weight[:, :, time - 1, height // 2, width // 2] = orthogonal


def _whiten_input(conv: nn.Conv3d, patches: Tensor) -> Tensor:
    """Let `conv`, a delta kernel, take in whitened patches; returns their mean per channel."""
    flat = patches.transpose(0, 1).flatten(1)
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat) + 1e-3 * torch.eye(len(flat)))
    tap = conv.weight[:, :, -1, 1, 1].clone() @ (vectors / values.sqrt()).T
    conv.weight[:, :, -1, 1, 1] = tap
    assert conv.bias is not None
    conv.bias.copy_(-(tap @ mean))
    return mean


def _constant_channels(conv: nn.Conv3d) -> None:
    first = round(conv.out_channels * (1 - _CONSTANT_SHARE))
    assert conv.bias is not None
    conv.weight[first:] = 0.0
    conv.bias[first:] = 1.0
