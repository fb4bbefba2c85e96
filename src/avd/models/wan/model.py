"""The Wan family through diffusers: a folder of weights, seen as the rest of the project needs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from avd.files import write_json
from avd.models.backbone import Backbone
from avd.models.devices import give_back_memory
from avd.models.experts import HIGH, LOW, ExpertsBackbone, stream_of
from avd.models.folders import ModelSource
from avd.models.identity import entries_in_memory, identity_of
from avd.models.settings import Settings, write_settings
from avd.models.streams import TensorStream, stream, write_stream
from avd.models.wan.codec import decode_video, encode_video
from avd.models.wan.configs import check_clip, latent_shape
from avd.models.wan.files import ModelFiles, add_to_index
from avd.models.wan.known import TEXT_TOKENS
from avd.models.wan.lora import attach_saved, fused_weights, merged_with_saved, read_adapter, save_adapter
from avd.models.wan.network import WanVelocity, hollow_transformer
from avd.models.wan.schedulers import scheduler_of
from avd.models.wan.sizes import WanSizes, make_sizes
from avd.models.wan.tiny_decoder import TinyDecoder
from avd.models.weights import MemoryWeights, Weights
from avd.types import Conditions, UserError

# Loading and saving a miniature is quick, and progress is the command line's to show. What these libraries merely warn
# of, weights that are missing, is an error here.
for _logging in (diffusers_logging, transformers_logging):
    _logging.disable_progress_bar()
    _logging.set_verbosity_error()


_WEIGHTS = "diffusion_pytorch_model"


class VideoModel:
    """A text-to-video model of the Wan family: transformer, VAE, text encoder and tokenizer.

    Of a model with `files`, a part that is not given is read when it is first asked for, and `drop` lets it go again.
    So preparing a cache needs no transformer, training on one no VAE, and a prompt's encoder no longer than the prompt.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel | None,
        vae: AutoencoderKLWan | None,
        text_encoder: UMT5EncoderModel | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        files: ModelFiles | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        given = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
        self._parts: dict[str, Any] = {name: part for name, part in given.items() if part is not None}
        assert files is not None or len(self._parts) == len(given)
        for name in self._parts:
            _settle(name, self._parts[name])
        self._files, self._dtype = files, dtype
        self.source = None if files is None else files.source
        """What it was opened as."""
        self.device = device or torch.device("cpu")
        """Where VAE and text encoder compute, and a sampler's network; what they take and give is on the CPU."""
        self.folder = None if files is None else files.source.settings_folder
        """Where it was loaded from."""
        self._expand_timesteps = files is not None and bool(files.index.get("expand_timesteps"))
        self.tokenizer = tokenizer
        self.settings = settings
        self._tiled = False
        self._tiny: TinyDecoder | None = None
        """What decodes in the VAE's place; see `decode_with`."""

    @property
    def transformer(self) -> WanTransformer3DModel:
        return self._part("transformer")

    @property
    def vae(self) -> AutoencoderKLWan:
        return self._part("vae")

    @property
    def text_encoder(self) -> UMT5EncoderModel:
        return self._part("text_encoder")

    def drop(self, *parts: str) -> None:
        """Forget parts, by name, that can be read again, and give their memory back."""
        if self._files is not None and any([self._parts.pop(part, None) is not None for part in parts]):
            give_back_memory(self.device)

    def _part(self, name: str) -> Any:
        if name not in self._parts:
            assert self._files is not None
            precision = torch.float32 if name == "vae" else self._dtype
            self._parts[name] = _settle(name, self._files.load(name, precision))
            adapter = self._files.source.adapter
            if name == "transformer" and adapter is not None:
                attach_saved(self._parts[name], adapter.folder)
        return self._parts[name]

    def _placed(self, name: str) -> Any:
        return self._part(name).to(self.device)

    def _config(self, name: str) -> Any:
        """A part's config, without loading the part."""
        if self._files is None or name in self._parts:
            return self._parts[name].config
        return self._files.skeletons[name].config

    def velocity(self, device: torch.device | None = None) -> Backbone:
        """The transformer, moved to `device` if given; of two experts, both as one network."""
        network: Backbone = WanVelocity(self.transformer)
        if self.settings.boundary is not None:
            network = ExpertsBackbone(network, WanVelocity(self._part("transformer_2")), self.settings.boundary)
        return network if device is None else network.to(device)

    def hollow_velocity(self) -> Backbone:
        """The same without memory, in float32, to be sharded and filled with `weights`."""
        config = self._config("transformer")
        network: Backbone = WanVelocity(hollow_transformer(config))
        if self.settings.boundary is None:
            return network
        return ExpertsBackbone(network, WanVelocity(hollow_transformer(config)), self.settings.boundary)

    def weights(self) -> Weights:
        """The transformer's, as they are stored, a LoRA merged in float32, or both experts'; nothing is read yet."""
        if self._files is None:
            return MemoryWeights(self.transformer.state_dict())
        weights = self._files.transformer_weights
        adapter = self._files.source.adapter
        return weights if adapter is None else merged_with_saved(weights, adapter.folder)

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip of the model's geometry, or of `frames` frames."""
        s = self.settings
        return latent_shape(self._config("vae"), frames or s.frames, s.height, s.width)

    @property
    def sizes(self) -> WanSizes:
        sizes = make_sizes(dict(self._config("transformer")), self.latent_shape(), self.text_length)
        return replace(sizes, networks=2 if self.settings.high_stages else 1)

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raise UserError unless the model can encode and denoise clips of this size."""
        check_clip(self._config("transformer"), self._config("vae"), frames, height, width)

    @property
    def text_length(self) -> int:
        return min(self.tokenizer.model_max_length, TEXT_TOKENS)

    @property
    def identity(self) -> str:
        """Changes whenever latents or prompt embeddings made with this model would no longer fit it."""
        vae = self._config("vae")
        if self._files is None:
            entries = [*entries_in_memory(self.vae), *entries_in_memory(self.text_encoder)]
        else:
            entries = self._files.entries()
        return identity_of("wan", entries, self.text_length, (vae.latents_mean, vae.latents_std))

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) to whitened latents (B, C, F', H', W')."""
        return encode_video(self._placed("vae"), frames)

    def decode_with(self, *, tiled: bool, decoder: Path | None) -> None:
        self._tiled = tiled
        self._tiny = None if decoder is None else TinyDecoder.load(decoder, self._config("vae")).to(self.device)

    def decode_video(self, latents: Tensor) -> np.ndarray:
        """Whitened latents to uint8 (B, F, H, W, 3)."""
        if self._tiny is not None:
            return self._tiny.decode_video(latents)
        vae = self._placed("vae")
        vae.use_tiling = self._tiled
        return decode_video(vae, latents)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """ "embedding" (B, L, D); positions past a prompt's end are zero, as in diffusers' WanPipeline."""
        encoded = encode_prompts(self._placed("text_encoder"), self.tokenizer, prompts, self.text_length)
        return encoded.to("cpu", torch.float32)

    def half(self) -> VideoModel:
        """All weights in half precision, in place: for shipping, not for computing on a CPU."""
        for module in (self.transformer, self.vae, self.text_encoder):
            module.half()
        self._files = None  # which hold something else
        return self

    def save(self, folder: Path, weights: TensorStream | None = None, **settings: Any) -> None:
        """Write a diffusers folder, with `weights` in place of the transformer's own and changed `settings`.

        VAE, text encoder and tokenizer of a model with files are copied, in the precision they are stored in.
        Transformers of two experts have diffusers' names and its boundary, above which the first computes.
        """
        written = replace(self.settings, **settings)
        files = self._files
        if weights is None and written.high_stages:
            weights = stream(self.weights())
        pipeline = WanPipeline(
            tokenizer=self.tokenizer if files is None else None,
            text_encoder=self.text_encoder if files is None else None,
            vae=self.vae if files is None else None,
            transformer=self.transformer if weights is None else None,
            scheduler=scheduler_of(written),
            boundary_ratio=written.boundary,
            expand_timesteps=self._expand_timesteps,
        )
        pipeline.save_pretrained(folder)
        if weights is not None:
            transformer = hollow_transformer(self._config("transformer"))
            experts = {part: stream_of(part, weights) for part in (HIGH, LOW)} if written.high_stages else {}
            for part, tensors in (experts or {"transformer": weights}).items():
                transformer.save_config(folder / part)
                write_stream(folder / part, _WEIGHTS, tensors)
                add_to_index(folder, **{part: ["diffusers", type(transformer).__name__]})
        if files is not None:
            files.complete(folder)
        _forget_paths(folder)
        write_settings(folder, written)

    def reload(self, folder: Path) -> dict[str, Tensor]:
        pipeline = WanPipeline.from_pretrained(folder)
        if pipeline.transformer_2 is None:
            return dict(pipeline.transformer.state_dict())
        parts = {HIGH: pipeline.transformer, LOW: pipeline.transformer_2}
        return {f"{part}.{name}": tensor for part, each in parts.items() for name, tensor in each.state_dict().items()}

    def save_adapter(self, folder: Path, weights: TensorStream) -> None:
        save_adapter(folder, weights)

    def read_adapter(self, folder: Path) -> dict[str, Tensor]:
        return read_adapter(folder)

    def reload_adapter(self, folder: Path) -> dict[str, Tensor]:
        """Raises UserError if this model was made in memory: stock diffusers reads its base from files."""
        if self._files is None:
            raise UserError("a LoRA is read on a base in a folder, and this model was made in memory: save it first")
        return fused_weights(self._files.load("transformer", self._dtype), folder)


def load(source: ModelSource, dtype: torch.dtype, device: torch.device | None) -> VideoModel:
    """A model from its files, its parts unread. Raises UserError if they are damaged, do not fit each other, or are no
    text-to-video model of the Wan family."""
    files = ModelFiles(source)
    return VideoModel(None, None, None, files.tokenizer, files.settings, files, dtype, device)


def _settle(name: str, part: Any) -> Any:
    """A part as the rest of the project finds it: only the transformer is ever trained."""
    return part if name == "transformer" else part.eval().requires_grad_(False)


def encode_prompts(
    text_encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int
) -> Conditions:
    """ "embedding" (B, `length`, D), zero past each prompt's end, of prompts tidied as diffusers tidies them."""
    tidy = [prompt_clean(prompt) for prompt in prompts]
    tokens = tokenizer(tidy, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask.to(text_encoder.device)
    hidden = text_encoder(tokens.input_ids.to(text_encoder.device), attention_mask=mask).last_hidden_state
    return Conditions({"embedding": hidden * mask.unsqueeze(-1)})


def _forget_paths(folder: Path) -> None:
    """Take out of the saved configs the path that each part was loaded from: it means nothing elsewhere."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_json(path, config, sort_keys=True)
