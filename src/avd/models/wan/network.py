"""A Wan transformer as the rest of the project sees it: its velocity, and how its blocks compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ContextParallelConfig, WanTransformer3DModel
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from avd.flow import TIMESTEPS
from avd.models.backbone import Backbone, ShardUnit
from avd.models.wan.rotary import StridedRotary
from avd.types import Conditions


class WanVelocity(Backbone):
    """A Wan transformer as an `avd.types.Velocity`: noise levels in, float32 velocities out."""

    float32_names = frozenset(WanTransformer3DModel._keep_in_fp32_modules or ())
    """The names that diffusers keeps in float32 when it loads."""

    transformer: WanTransformer3DModel

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        if not isinstance(transformer.rope, StridedRotary):
            transformer.rope = StridedRotary(transformer.rope)
        super().__init__(transformer)

    def forward(
        self,
        x_BCFHW: Tensor,
        sigma_B: Tensor,
        conditions: Conditions,
        *,
        frame_stride: int = 1,
        space_stride: int = 1,
    ) -> Tensor:
        dtype = self.compute_dtype or self.transformer.dtype
        rope = self.transformer.rope
        rope.frame_stride, rope.space_stride = frame_stride, space_stride
        try:
            (velocity,) = self.transformer(
                x_BCFHW.to(dtype), sigma_B.float() * TIMESTEPS, conditions["embedding"].to(dtype), return_dict=False
            )
        finally:
            rope.frame_stride = rope.space_stride = 1
        return velocity.float().clone()  # a sharded module must not return a view

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.transformer.blocks

    @contextmanager
    def first_blocks(self, count: int) -> Iterator[None]:
        blocks = self.transformer.blocks
        self.transformer.blocks = blocks[:count]
        try:
            yield
        finally:
            self.transformer.blocks = blocks

    def shard_units(self) -> list[ShardUnit]:
        """The embedding of the noise level computes in float32 throughout: in bfloat16, neighbouring timesteps would
        be one. Tables of modulation and norms are left to the root: they are small, and a block's own."""
        transformer, embedder = self.transformer, self.transformer.condition_embedder
        around = (transformer.patch_embedding, embedder.time_proj, embedder.text_embedder, transformer.proj_out)
        return [ShardUnit((embedder.time_embedder,), float32=True), *super().shard_units(), ShardUnit(around)]

    def use_attention(self, backend: str | None) -> None:
        """One of diffusers' backends; None is its own choice."""
        if backend is not None:
            with attention_backend("native"):  # whose end restores what networks without a choice of their own use
                self.transformer.set_attention_backend(backend)

    def share_sequences(self, mesh: DeviceMesh) -> None:
        """By Ulysses (arXiv 2309.14509); the sum of the ranks' gradients is the gradient."""
        self.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=mesh.size(-1), mesh=mesh))

    def stream_blocks(self, device: torch.device) -> None:
        """By diffusers' group offloading, which on a GPU fetches the next block while one computes."""
        on_gpu = device.type == "cuda"
        self.transformer.enable_group_offload(
            device, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=on_gpu
        )


def hollow_transformer(config: Mapping[str, Any]) -> WanTransformer3DModel:
    """A transformer without memory, but for its rotary tables, which no file holds."""
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(dict(config))
    config = transformer.config
    transformer.rope = WanRotaryPosEmbed(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
    return transformer
