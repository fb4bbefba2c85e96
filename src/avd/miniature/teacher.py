"""Train the miniature teacher: a Wan transformer and its text encoder, together, by flow matching on cached latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from avd.config import TeacherRecipe
from avd.engine.loop import UpdateResult
from avd.engine.optimizers import trapezoid
from avd.engine.preview import write_preview
from avd.engine.randomness import derive_seed, generator_for
from avd.engine.stopping import Between, one_part
from avd.files import atomic_folder
from avd.flow import add_noise, velocity_of
from avd.miniature import architecture as mini
from avd.miniature.muon import Muon
from avd.miniature.object_maps import map_channels, object_maps
from avd.miniature.training import NetworkTraining
from avd.models.family import load_model
from avd.models.settings import Settings
from avd.models.wan.codec import AutoencoderKLWan
from avd.models.wan.model import VideoModel, encode_prompts
from avd.models.wan.network import WanVelocity
from avd.models.weights import check_fits
from avd.sampling.teacher import sample_teacher
from avd.types import Conditions, UserError
from avd.world import Scene, World, vocabulary


def open_start(name: str) -> VideoModel:
    """A model whose weights a teacher may start from. Raises UserError for one of other sizes than the miniature's."""
    model = load_model(name)
    remedy = "start from wan-mini or a teacher that `avd train teacher` wrote"
    if not isinstance(model, VideoModel):
        raise UserError(f"{name} is not a model of the miniature's family: {remedy}")
    with torch.device("meta"):
        expected = (mini.build_transformer(), mini.build_text_encoder(len(mini.build_tokenizer(vocabulary()))))
    try:
        for network, found in zip(expected, (model.transformer, model.text_encoder), strict=True):
            check_fits(network, {key: tuple(value.shape) for key, value in found.state_dict().items()}, exactly=True)
    except ValueError as error:
        raise UserError(f"{name} does not have the miniature's sizes ({error}): {remedy}") from error
    return model


_READ_AFTER = 2
"""The block whose output object maps are read from."""
_MAPS_SCALE = 5.0
"""Brings object maps, most of which is empty, to a mean square near 1."""


class _Networks(nn.Module):
    """What is trained together, so that one EMA holds it: the model, and a head that reads object maps, which no model
    keeps."""

    def __init__(self, velocity: WanVelocity, text_encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.velocity, self.text_encoder = velocity, text_encoder
        width = velocity.transformer.config.num_attention_heads * velocity.transformer.config.attention_head_dim
        self.maps = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256), nn.SiLU(), nn.Linear(256, channels))

    def forward(self, x_BCFHW: Tensor, sigma_B: Tensor, prompt: Conditions) -> tuple[Tensor, Tensor]:
        """Velocity (B, C, F, H, W), and object maps (B, tokens, channels)."""
        features: list[Tensor] = []
        block = self.velocity.transformer.blocks[_READ_AFTER]
        handle = block.register_forward_hook(lambda module, inputs, output: features.append(output))
        try:
            velocity = self.velocity(x_BCFHW, sigma_B, prompt)
        finally:
            handle.remove()
        return velocity, self.maps(features[0])

    def optimizers(self, recipe: TeacherRecipe) -> dict[str, torch.optim.Optimizer]:
        """By their names in a checkpoint. With `matrix_rate`, Muon has the matrices of the transformer's blocks, and
        AdamW the rest."""
        rate = recipe.matrix_rate
        blocks = [p for p in self.velocity.transformer.blocks.parameters() if p.ndim == 2] if rate else []
        taken = {id(p) for p in blocks}
        matrices = [p for p in self.parameters() if p.ndim >= 2 and id(p) not in taken]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        found: dict[str, torch.optim.Optimizer] = {"optimizer": torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99))}
        if rate:
            found["muon"] = Muon(blocks, rate, weight_decay=recipe.weight_decay)
        return found


class TeacherTask(NetworkTraining[_Networks]):
    """An `engine.loop.Task`. `latents` are (N, C, F, H, W) of the first N training clips of `world`.

    The weights start at random, or at those of `start`, a miniature trained before on latents of the same VAE.
    """

    def __init__(
        self,
        config: TeacherRecipe,
        world: World,
        vae: AutoencoderKLWan,
        latents: Tensor,
        start: VideoModel | None = None,
    ) -> None:
        self.config, self.world, self.vae, self.latents = config, world, vae, latents
        torch.manual_seed(derive_seed(config.seed, "teacher", "weights"))
        self.tokenizer = mini.build_tokenizer(vocabulary())
        text_encoder = mini.build_text_encoder(len(self.tokenizer))
        channels = map_channels(config.level)
        networks = _Networks(WanVelocity(mini.build_transformer()), text_encoder, channels).train()
        if start is not None:
            networks.velocity.transformer.load_state_dict(start.transformer.state_dict())
            networks.text_encoder.load_state_dict(start.text_encoder.state_dict())
        super().__init__("networks", networks, networks.optimizers(config), config.ema)

    def update(self, n: int, between: Between = one_part) -> UpdateResult:
        config = self.config
        rng = np.random.default_rng(derive_seed(config.seed, "teacher", "data", n))
        indices = rng.integers(0, len(self.latents), config.batch)
        described = [self.world.describe(int(i), caption=n) for i in indices]
        prompts = ["" if rng.random() < config.caption_dropout else caption.text for _, caption in described]
        x0 = self.latents[torch.from_numpy(indices)].float()
        error_B, found = self._loss(self.network, x0, prompts, generator_for(config.seed, "teacher", "noise", n))
        loss, maps_loss = error_B.mean(), (found - self._maps([scene for scene, _ in described])).square().mean()
        norm = self.step(
            loss + config.object_maps * maps_loss,
            n,
            config.learning_rate * trapezoid(n, config.warmup, config.cooldown, config.updates),
        )
        return UpdateResult({"loss": loss.item(), "maps_loss": maps_loss.item(), "grad_norm": norm.item()})

    @torch.no_grad()
    def validate(self, n: int) -> dict[str, float]:
        """Loss of the averaged weights on held-out clips, with the same noise every time."""
        clips = [self.world.clip(i, "heldout") for i in range(128)]
        x0 = self._model().encode_video(np.stack([clip.video for clip in clips]))
        prompts = [clip.caption.text for clip in clips]
        generator = generator_for("teacher", "validation")
        error_B, found = self._loss(self.ema.module, x0, prompts, generator)
        maps_loss = (found - self._maps([clip.scene for clip in clips])).square().mean()
        return {"heldout_loss": error_B.mean().item(), "heldout_maps_loss": maps_loss.item()}

    @torch.no_grad()
    def sample(self, folder: Path, n: int) -> None:
        """Eight held-out captions, sampled with 25 steps."""
        model = self._model()
        captions = [self.world.describe(i, "heldout")[1].text for i in range(8)]
        noise = torch.randn(8, *model.latent_shape(), generator=generator_for("teacher", "preview"))
        latents = sample_teacher(
            model.velocity(),
            noise,
            model.encode_prompts(captions),
            model.encode_prompts([""]),
            steps=25,
            guidance=model.settings.guidance,
            shift=model.settings.shift,
        )
        write_preview(folder / f"update-{n:06d}.mp4", model.decode_video(latents), model.settings.fps)

    def export(self, folder: Path) -> None:
        with atomic_folder(folder / "teacher") as writing:
            self._model().save(writing)

    def _model(self) -> VideoModel:
        """The averaged weights with the rest of the miniature around them."""
        world = self.world
        settings = Settings(world.frames, world.size, world.size, world.fps, guidance=mini.GUIDANCE, shift=mini.SHIFT)
        ema = self.ema.module
        return VideoModel(ema.velocity.transformer, self.vae, ema.text_encoder, self.tokenizer, settings)

    def _maps(self, scenes: list[Scene]) -> Tensor:
        """What the head should read of them: (B, tokens, channels)."""
        frames, height, width = self.latents.shape[2:]
        grid = (frames, height // 2, width // 2)
        return _MAPS_SCALE * torch.from_numpy(np.stack([object_maps(each, self.config.level, grid) for each in scenes]))

    def _loss(
        self, networks: _Networks, x0: Tensor, prompts: list[str], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Flow matching: the mean square error of the velocity, per sample (B,); and the object maps it reads."""
        sigma = self._noise_levels(len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator)
        prompt = encode_prompts(networks.text_encoder, self.tokenizer, prompts, mini.TEXT_LENGTH)
        v, maps = networks(add_noise(x0, eps, sigma), sigma, prompt)
        return (v - velocity_of(x0, eps)).square().flatten(1).mean(1), maps

    def _noise_levels(self, count: int, generator: torch.Generator) -> Tensor:
        config = self.config
        normal = torch.sigmoid(config.sigma_mean + config.sigma_std * torch.randn(count, generator=generator))
        uniform = 1.0 - torch.rand(count, generator=generator)
        return torch.where(torch.rand(count, generator=generator) < config.sigma_uniform, uniform, normal)
