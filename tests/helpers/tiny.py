"""Models of random weights, small enough that a test may train them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from avd.data import MemoryLatents
from avd.distillation.data import RunData
from avd.miniature import architecture as mini
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.models.settings import Settings
from avd.models.wan.model import VideoModel

CHANNELS = 12
LATENT_SHAPE = (CHANNELS, 5, 2, 2)
COLOURS, SHAPES, MOTIONS = ("red", "blue"), ("square", "circle"), ("rises", "rests")


def tiny_model(seed: int = 0) -> VideoModel:
    """A Wan model of 17 frames of 16 x 16 and latents of `LATENT_SHAPE`, which are 5 tokens. 0.2 s to make."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=mini.TEXT_WIDTH,
            freq_dim=16,
            ffn_dim=48,
            num_layers=2,
            rope_max_seq_len=32,
        )
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.1] * CHANNELS,
            latents_std=[1.5] * CHANNELS,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_temporal=4,
            scale_factor_spatial=8,
        )
        tokenizer = mini.build_tokenizer(["a", *COLOURS, *SHAPES, *MOTIONS])
        text_encoder = mini.build_text_encoder(len(tokenizer))
    settings = Settings(frames=17, height=16, width=16, fps=8, steps=4, guidance=4.0, shift=2.0)
    return VideoModel(transformer, vae, text_encoder, tokenizer, settings)


def tiny_interpolator(seed: int = 0, *, space: bool = False) -> FrameInterpolator:
    """One that does more than its linear start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        interpolator = FrameInterpolator(InterpolatorConfig(CHANNELS, widths=(8, 16), space=space))
        torch.nn.init.normal_(interpolator.leave[-1].weight, std=0.05)
    return interpolator


def tiny_data(model: VideoModel) -> RunData:
    """`tiny_source`, as a run reads it."""
    return RunData.encode(model, tiny_source(model))


def tiny_source(model: VideoModel, count: int = 6, seed: int = 0, height: int = 2) -> MemoryLatents:
    """Random latents of `LATENT_SHAPE`, or higher, with captions of which the first 8 differ."""
    generator = torch.Generator().manual_seed(seed)
    channels, frames, _, width = LATENT_SHAPE
    latents = torch.randn(count, channels, frames, height, width, generator=generator)
    captions = [f"a {colour} {shape} {motion}" for motion in MOTIONS for shape in SHAPES for colour in COLOURS]
    captions = [captions[i % len(captions)] for i in range(count)]
    return MemoryLatents(latents, model.encode_prompts(captions), captions)
