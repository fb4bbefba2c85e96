"""The fake family's network, its sizes, and the model around it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from avd.models.backbone import Backbone, ShardUnit
from avd.models.folders import ModelSource
from avd.models.identity import entries_in_memory, identity_of
from avd.models.settings import Settings, read_settings, write_settings
from avd.models.sizes import Linear, Sizes
from avd.models.streams import TensorStream
from avd.models.weights import MemoryWeights, Weights
from avd.types import Conditions, UserError

CHANNELS, WIDTH, LETTERS, LETTER_WIDTH, POOLED = 3, 8, 6, 4, 5
TIME, SIDE = 4, 8
LORA_FILE = "lora.safetensors"
CONDITIONS = {"embedding": (LETTERS, LETTER_WIDTH), "pooled": (POOLED,)}


class FakeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.query, self.key, self.value))
        x = x + functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.down(functional.silu(self.up(x)))


class FakeTransformer(nn.Module):
    """One token per latent pixel."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.level = nn.Linear(1, WIDTH)
        self.letters, self.pooled = nn.Linear(LETTER_WIDTH, WIDTH), nn.Linear(POOLED, WIDTH)
        self.layers = nn.ModuleList(FakeBlock() for _ in range(layers))

    def forward(
        self, x: Tensor, sigma_B: Tensor, letters: Tensor, pooled: Tensor, strides: tuple[int, int, int]
    ) -> Tensor:
        frames, height, width = x.shape[2:]
        about = self.level(sigma_B[:, None]).to(x.dtype) + self.letters(letters).mean(1) + self.pooled(pooled)
        rates = torch.arange(1, WIDTH + 1, device=x.device) / WIDTH
        axes = (stride * torch.arange(size, device=x.device) for size, stride in zip(x.shape[2:], strides, strict=True))
        position = torch.cartesian_prod(*axes).float() @ torch.tensor([1.0, 0.3, 0.1], device=x.device)
        place = torch.sin(position[:, None] * rates)
        hidden = self.enter(x.flatten(2).transpose(1, 2)) + about[:, None] + place.to(x.dtype)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.leave(hidden).transpose(1, 2).unflatten(2, (frames, height, width))


class FakeVelocity(Backbone):
    float32_names = frozenset({"level"})

    def forward(
        self,
        x_BCFHW: Tensor,
        sigma_B: Tensor,
        conditions: Conditions,
        *,
        frame_stride: int = 1,
        space_stride: int = 1,
    ) -> Tensor:
        dtype = self.compute_dtype or self.transformer.enter.weight.dtype
        c, strides = conditions.to(dtype), (frame_stride, space_stride, space_stride)
        return self.transformer(x_BCFHW.to(dtype), sigma_B.float(), c["embedding"], c["pooled"], strides).float()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.transformer.layers

    @contextmanager
    def first_blocks(self, count: int) -> Iterator[None]:
        layers = self.transformer.layers
        self.transformer.layers = layers[:count]
        try:
            yield
        finally:
            self.transformer.layers = layers

    def shard_units(self) -> list[ShardUnit]:
        return [ShardUnit((self.transformer.level,), float32=True), *super().shard_units()]


@dataclass(frozen=True)
class FakeSizes(Sizes):
    adapter_targets: ClassVar[tuple[str, ...]] = ("query", "value")

    @property
    def width(self) -> int:
        return WIDTH

    def tokens(self, stride: int = 1, space_stride: int = 1) -> int:
        return self.frames(stride) * (self.latent_CFHW[2] // space_stride) * (self.latent_CFHW[3] // space_stride)

    def linear_layers(self, stride: int = 1, space_stride: int = 1) -> Iterator[Linear]:
        tokens, layers = self.tokens(stride, space_stride), self.layers
        yield Linear("enter", CHANNELS, WIDTH, tokens)
        yield Linear("leave", WIDTH, CHANNELS, tokens)
        yield Linear("level", 1, WIDTH, 1)
        yield Linear("letters", LETTER_WIDTH, WIDTH, self.conditions["embedding"][0])
        yield Linear("pooled", POOLED, WIDTH, 1)
        for name in ("query", "key", "value"):
            yield Linear(name, WIDTH, WIDTH, tokens, layers)
        yield Linear("up", WIDTH, 2 * WIDTH, tokens, layers)
        yield Linear("down", 2 * WIDTH, WIDTH, tokens, layers)

    def attention_flops(self, stride: int = 1, space_stride: int = 1) -> int:
        return 4 * self.tokens(stride, space_stride) ** 2 * WIDTH * self.layers

    def build(self) -> FakeVelocity:
        return FakeVelocity(FakeTransformer(self.layers))


class FakeModel:
    """See `avd.models.family.TextToVideo`. Latents are pooled pixels, prompts their letters."""

    def __init__(self, transformer: FakeTransformer, settings: Settings, source: ModelSource | None = None) -> None:
        self.transformer, self.settings, self.source = transformer, settings, source
        self.folder = None if source is None else source.settings_folder
        self.device = torch.device("cpu")

    @property
    def identity(self) -> str:
        return identity_of("fake", entries_in_memory(nn.Identity()), TIME, SIDE, CONDITIONS)

    @property
    def sizes(self) -> FakeSizes:
        return FakeSizes(self.latent_shape(), CONDITIONS, len(self.transformer.layers))

    def velocity(self, device: torch.device | None = None) -> FakeVelocity:
        return FakeVelocity(self.transformer)

    def hollow_velocity(self) -> FakeVelocity:
        with torch.device("meta"):
            return FakeVelocity(FakeTransformer(len(self.transformer.layers)))

    def weights(self) -> Weights:
        return MemoryWeights(self.transformer.state_dict())

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        s = self.settings
        return CHANNELS, ((frames or s.frames) - 1) // TIME + 1, s.height // SIDE, s.width // SIDE

    def check_clip(self, frames: int, height: int, width: int) -> None:
        if (frames - 1) % TIME or height % SIDE or width % SIDE:
            raise UserError(f"clips of {frames} frames of {height} x {width} do not fit the fake model")

    def encode_video(self, frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3)[:, :, ::TIME] / 255
        return (functional.avg_pool3d(pixels, (1, SIDE, SIDE)) - 0.5) / 0.25

    def decode_video(self, latents: Tensor) -> np.ndarray:
        pixels = (latents * 0.25 + 0.5).clamp(0, 1).repeat_interleave(SIDE, 3).repeat_interleave(SIDE, 4)
        pixels = pixels.repeat_interleave(TIME, 2)[:, :, TIME - 1 :]
        return (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()

    def decode_with(self, *, tiled: bool, decoder: Path | None) -> None:
        if decoder is not None:
            raise UserError("the fake family has one decoder: leave the other one out")

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        codes = torch.tensor([[float(ord(c)) / 128 for c in p[:LETTERS].ljust(LETTERS)] for p in prompts])
        embedding = torch.stack([codes * k for k in range(1, LETTER_WIDTH + 1)], -1)
        return Conditions({"embedding": embedding, "pooled": codes[:, :POOLED].clone()})

    def drop(self, *parts: str) -> None:
        """All parts are small."""

    def half(self) -> FakeModel:
        self.transformer.half()
        return self

    def save(self, folder: Path, weights: TensorStream | None = None, **settings: Any) -> None:
        (folder / "transformer").mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "FakePipeline"}))
        (folder / "transformer" / "config.json").write_text(json.dumps({"layers": len(self.transformer.layers)}))
        state = {k: v.contiguous() for k, v in weights or self.transformer.state_dict().items()}
        save_file(state, folder / "transformer" / "model.safetensors")
        write_settings(folder, replace(self.settings, **settings))

    def reload(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / "transformer" / "model.safetensors")

    def save_adapter(self, folder: Path, weights: TensorStream) -> None:
        save_file(dict(weights), folder / LORA_FILE)

    def read_adapter(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / LORA_FILE)

    def reload_adapter(self, folder: Path) -> dict[str, Tensor]:
        assert self.source is not None
        dtype = self.transformer.enter.weight.dtype
        weights = {name: tensor.to(dtype) for name, tensor in self.reload(self.source.folder).items()}
        return fused(weights, self.read_adapter(folder))


def fake_model() -> FakeModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FakeTransformer(layers=3)
    settings = Settings(frames=17, height=16, width=16, fps=8, steps=4, guidance=4.0, shift=2.0)
    return FakeModel(transformer, settings)


def load(source: ModelSource, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> FakeModel:
    config = json.loads((source.folder / "transformer" / "config.json").read_text())
    transformer = FakeTransformer(config["layers"])
    weights = load_file(source.folder / "transformer" / "model.safetensors")
    if source.adapter is not None:
        weights = fused(weights, load_file(source.adapter.folder / LORA_FILE))
    transformer.load_state_dict(weights)
    settings = read_settings(source.settings_folder)
    assert settings is not None
    return FakeModel(transformer.to(dtype), settings, source)


def fused(weights: dict[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the products of a LoRA's matrices added."""
    for name, up in lora.items():
        layer, _, matrix = name.partition(".lora_")
        if matrix.startswith("B"):
            weight = weights[f"{layer}.weight"]
            weight += (up @ lora[name.replace(".lora_B", ".lora_A")]).to(weight.dtype)
    return weights
