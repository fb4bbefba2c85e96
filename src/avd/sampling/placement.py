"""A model whose parts take turns in memory: prompts are encoded first, then the network runs, then clips are decoded.

A 14B model in bfloat16 is 11 GB of text encoder, 29 GB of network, and a VAE whose decoding takes about as much again
as the card of a workstation has. None needs another, so the text encoder is let go before the network is loaded, and
what does not fit beside what is computing waits in the host's memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from avd.models.backbone import Backbone
from avd.models.family import TextToVideo
from avd.models.identity import identity_of
from avd.models.settings import Settings
from avd.models.sizes import Sizes
from avd.models.weights import Weights
from avd.sampling.quantization import EightBit, check_quantization, quantize
from avd.sampling.samplers import SampledModel
from avd.types import Conditions, UserError

_Batch = TypeVar("_Batch")
Offload = Literal["none", "model", "blocks"]

# Rough bounds, in bytes; `avd plan --generate` counts what they stand for.
_CONTEXT = 2e9
"""For the device's context, and fragments."""
_WIDEST_ALIVE, _QUANTISED_ALIVE = 8, 5
"""For each output of the widest linear layer: activations in bfloat16, and what 8-bit products add."""
_DECODING_PER_PIXEL = 24e3
"""For each pixel of one frame, while the clip is decoded in float32."""
_ENCODED = 2e9
"""Bytes of encoded prompts that are held at once; past that the text encoder is read again for the next ones."""


@dataclass(frozen=True)
class Placement:
    """How a model's parts are computed, and where they wait. None is chosen by `fit_to` from the memory there is.

    `offload`: "model" has the network wait in the host's memory while clips are decoded, "blocks" has each of its
    blocks wait there whenever it is not computing.
    """

    offload: Offload | None = None
    tiling: bool | None = None
    """Decode in overlapping tiles of the picture."""
    weights: EightBit | None = None
    """Precision of the weights and inputs of the blocks' linear layers; None is the network's own."""
    attention: str | None = None
    compile: bool = False
    decoder: Path | None = None
    """A file with a tiny decoder, in place of the VAE's own."""
    tiling_fitted: bool = False
    """Whether `tiling` was chosen by the memory there was, and not asked for."""

    def check(self, model: TextToVideo) -> None:
        """Raise UserError for what the model, its device or the installed packages do not have."""
        if self.attention is not None:
            model.sizes.check_attention(self.attention, device=model.device, training=False)
        if self.weights is not None:
            check_quantization(self.weights, model.device)
        if self.compile and self.offload == "blocks":
            raise UserError("compiled blocks cannot wait in the host's memory: leave out --compile or --offload blocks")

    def fit_to(self, model: TextToVideo) -> Placement:
        """What is None chosen from the free memory of the model's GPU. On a CPU nothing has to wait."""
        if model.device.type != "cuda":
            return replace(self, offload=self.offload or "none", tiling=bool(self.tiling))
        free, _ = torch.cuda.mem_get_info(model.device)
        return self.fit_into(free, model.sizes, model.settings.height * model.settings.width)

    def fit_into(self, free: float, sizes: Sizes, pixels: int) -> Placement:
        """Likewise from `free` bytes, the network's sizes and the `pixels` of a frame."""
        quantised = self.weights is not None
        with torch.device("meta"):
            count = sizes.networks * sum(parameter.numel() for parameter in sizes.build().parameters())
        weights = (1 if quantised else 2) * count
        outputs = max(layer.rows * layer.outputs for layer in sizes.linear_layers())
        denoising = outputs * (_WIDEST_ALIVE + quantised * _QUANTISED_ALIVE)
        decoding = 0.0 if self.decoder is not None else _DECODING_PER_PIXEL * pixels
        offload, tiling, beside = self.offload, self.tiling, free - weights - _CONTEXT
        if offload is None:
            offload = "blocks" if beside < denoising else "model" if beside < decoding else "none"
        if tiling is None:
            tiling = (beside if offload == "none" else free - _CONTEXT) < decoding
        return replace(self, offload=offload, tiling=tiling, tiling_fitted=self.tiling is None)

    def __str__(self) -> str:
        words = [f"offload {self.offload}", "tiled decoding" if self.tiling else "decoding in one piece"]
        words += [] if self.weights is None else [f"{self.weights} weights"]
        words += [] if self.attention is None else [f"attention {self.attention}"]
        words += ["compiled blocks"] if self.compile else []
        return ", ".join(words + ([] if self.decoder is None else [f"decoder {self.decoder}"]))


class PlacedModel:
    """A model as a sampler and whoever decodes its clips need it, its parts placed as a `Placement` says.

    The placement must be resolved: see `Placement.fit_to`.
    """

    def __init__(self, model: TextToVideo, placement: Placement) -> None:
        assert placement.offload is not None and placement.tiling is not None
        self._model, self.placement = model, placement
        self._network: Backbone | None = None
        self._encoded: dict[tuple[str, ...], Conditions] = {}
        if placement.tiling or placement.decoder is not None:
            model.decode_with(tiled=placement.tiling, decoder=placement.decoder)

    @property
    def settings(self) -> Settings:
        return self._model.settings

    @property
    def folder(self) -> Path | None:
        return self._model.folder

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def sizes(self) -> Sizes:
        return self._model.sizes

    @property
    def identity(self) -> str:
        """The model's, changed by what changes the clips more than rounding does. Tiles that nobody asked for, whose
        seams are faint, are left out: free memory changes from one process to the next."""
        p = self.placement
        tiling = p.tiling and not p.tiling_fitted
        if p.weights is None and p.decoder is None and not tiling:
            return self._model.identity
        decoder = None if p.decoder is None else hashlib.sha256(p.decoder.read_bytes()).hexdigest()
        return identity_of("placed", (), self._model.identity, p.weights, decoder, tiling)

    @property
    def bytes_of_prompt(self) -> int:
        """An encoded prompt's, in float32."""
        return 4 * sum(math.prod(shape) for shape in self._model.sizes.conditions.values())

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        return self._model.latent_shape(frames)

    def encode_ahead(self, texts: Collection[tuple[str, ...]]) -> None:
        """Encode these lists of prompts, which replace those of the call before, and let the text encoder go."""
        self._encoded = {key: known for key, known in self._encoded.items() if key in texts}
        missing = sorted(set(texts) - self._encoded.keys())
        if missing:
            self._rest()
            self._encoded |= {key: self._model.encode_prompts(list(key)) for key in missing}
            self._model.drop("text_encoder")
            _free_cache(self.device)

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """Conditions of a list that was encoded ahead."""
        return self._encoded[tuple(prompts)]

    def velocity(self, device: torch.device | None = None) -> Backbone:
        """The network; with a `device`, ready to compute there."""
        if device is None:
            return self._model.velocity() if self._network is None else self._network
        if self._network is None:
            self._network = self._prepare(device)
        if self.placement.offload != "blocks":
            self._network.to(device)
        return self._network

    def weights(self) -> Weights:
        """The network's as they are stored, whatever they are computed in."""
        return self._model.weights()

    def decode_video(self, latents: Tensor) -> np.ndarray:
        """Whitened latents (B, C, F', H', W') to uint8 (B, F, H, W, 3)."""
        if self.placement.offload == "model":
            self._rest()
        return self._model.decode_video(latents)

    def _prepare(self, device: torch.device) -> Backbone:
        network, placement = self._model.velocity(), self.placement
        network.use_attention(placement.attention)
        if placement.weights is not None:
            quantize(network, placement.weights, torch.device("cpu") if placement.offload == "blocks" else device)
        if placement.offload == "blocks":
            network.stream_blocks(device)
        if placement.compile:
            network.compile_blocks()
        return network

    def _rest(self) -> None:
        """Have the network wait in the host's memory."""
        if self._network is not None and self.placement.offload != "blocks":
            self._network.to("cpu")
            _free_cache(self.device)


def encoded_first(
    model: SampledModel, batches: Sequence[tuple[_Batch, list[str]]], always: Sequence[str]
) -> Iterator[_Batch]:
    """Batches, given with their prompts, in order: of a `PlacedModel`, as many as fit in memory are encoded before the
    first of them is handed out. So are the prompts of `always`, which a sampler asks for with each batch.

    A prompt is encoded in the list it is given in, so what comes of it does not depend on the other batches.
    """
    if not isinstance(model, PlacedModel):
        yield from (batch for batch, _ in batches)
        return
    begin = 0
    while begin < len(batches):
        end, wanted = begin, {tuple(always)} if always else set()
        while end < len(batches):
            more = wanted | {tuple(batches[end][1])}
            if end > begin and sum(map(len, more)) * model.bytes_of_prompt > _ENCODED:
                break
            end, wanted = end + 1, more
        model.encode_ahead(wanted)
        yield from (batch for batch, _ in batches[begin:end])
        begin = end


def _free_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
