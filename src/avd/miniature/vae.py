"""Train the miniature's video VAE on clips of the built-in world."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avd.config import VAERecipe
from avd.engine.loop import UpdateResult
from avd.engine.optimizers import warm_cosine
from avd.engine.randomness import derive_seed, generator_for
from avd.engine.stopping import Between, one_part
from avd.files import atomic_folder
from avd.miniature.architecture import build_vae
from avd.miniature.training import NetworkTraining
from avd.miniature.vae_init import initialise
from avd.models.wan.codec import AutoencoderKLWan, to_signed
from avd.types import UserError
from avd.world import World


class VAETask(NetworkTraining[AutoencoderKLWan]):
    """An `engine.loop.Task`. Raises UserError if clips of the world are shorter than `config.frames`."""

    def __init__(self, config: VAERecipe, world: World) -> None:
        if config.frames > world.frames:
            raise UserError(
                f"frames is {config.frames}: clips of the world have {world.frames}: choose at most that many"
            )
        self.config, self.world = config, world
        torch.manual_seed(derive_seed(config.seed, "vae", "weights"))
        vae = build_vae().train()
        initialise(vae, to_signed(np.stack([world.clip(i).video[:1] for i in range(64)])))
        optimizer = torch.optim.AdamW(vae.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=1e-4)
        super().__init__("vae", vae, {"optimizer": optimizer}, config.ema)

    def update(self, n: int, between: Between = one_part) -> UpdateResult:
        video = self._clips(n)
        posterior = self.network.encode(video).latent_dist
        decoded = self.network.decode(posterior.sample(generator_for(self.config.seed, "vae", "noise", n))).sample
        error = decoded - video
        brightness = error.mean(1, keepdim=True)
        luma, chroma = brightness.square().mean(), (error - brightness).square().mean()
        absolute, edges = error.abs().mean(), _edges(error)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        config = self.config
        loss = luma + config.chroma * chroma + config.sharpness * absolute + config.edges * edges + config.kl * kl
        norm = self.step(loss, n, config.learning_rate * warm_cosine(n, config.warmup, config.updates))
        metrics = {"luma": luma, "chroma": chroma, "absolute": absolute, "edges": edges, "kl": kl, "grad_norm": norm}
        return UpdateResult({name: value.item() for name, value in metrics.items()})

    @torch.no_grad()
    def validate(self, n: int) -> dict[str, float]:
        video = to_signed(np.stack([self.world.clip(i, "heldout").video for i in range(16)]))
        latents = self.ema.module.encode(video).latent_dist.mode()
        error = (self.ema.module.decode(latents).sample - video) / 2
        return {"heldout_psnr": -10 * math.log10(error.square().mean().item()), "latent_std": latents.std().item()}

    def sample(self, folder: Path, n: int) -> None:
        """The held-out metric tells enough; the finished VAE is looked at through what is encoded with it."""

    def export(self, folder: Path) -> None:
        """Measure the latents' mean and standard deviation, store them in the config, and save a diffusers folder."""
        vae = self.ema.module
        mean, std = measure_whitening(vae, self.world, clips=512)
        vae.register_to_config(latents_mean=mean, latents_std=std)
        with atomic_folder(folder / "vae") as writing:
            vae.save_pretrained(writing)

    def _clips(self, n: int) -> Tensor:
        """A batch of windows; every clip is seen once."""
        config = self.config
        full_length = n % 4 == 3
        count, frames = (config.batch // 2, self.world.frames) if full_length else (config.batch, config.frames)
        rng = np.random.default_rng(derive_seed(config.seed, "vae", "window", n))
        starts = rng.integers(0, self.world.frames - frames + 1, count)
        first = n * config.batch
        return to_signed(np.stack([self.world.clip(first + i).video[s : s + frames] for i, s in enumerate(starts)]))


@torch.no_grad()
def measure_whitening(vae: AutoencoderKLWan, world: World, clips: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over the first `clips` training clips."""
    latents = [
        vae.encode(to_signed(world.clip(i).video[None])).latent_dist.mode().transpose(0, 1).flatten(1)
        for i in range(clips)
    ]
    flat = torch.cat(latents, 1).double()
    return flat.mean(1).tolist(), flat.std(1).tolist()


def _edges(error: Tensor) -> Tensor:
    """Mean square of the error's spatial differences."""
    return error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
