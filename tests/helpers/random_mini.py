"""A miniature model of random weights, and the same model written to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avd.miniature import architecture as mini
from avd.models.settings import Settings
from avd.models.wan.model import VideoModel

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left", "and", "is", "still")


@pytest.fixture(scope="session")
def model() -> VideoModel:
    """`wan-mini` before any training, with whitening that is not the identity."""
    torch.manual_seed(0)
    vae = mini.build_vae()
    vae.register_to_config(
        latents_mean=[0.1 * i for i in range(mini.LATENT_CHANNELS)],
        latents_std=[1.0 + 0.1 * i for i in range(mini.LATENT_CHANNELS)],
    )
    tokenizer = mini.build_tokenizer(WORDS)
    settings = Settings(frames=17, height=48, width=48, fps=8, guidance=mini.GUIDANCE, shift=mini.SHIFT)
    return VideoModel(
        mini.build_transformer().eval(), vae, mini.build_text_encoder(len(tokenizer)), tokenizer, settings
    )


@pytest.fixture(scope="session")
def folder(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mini"
    model.save(path)
    return path
