"""The Wan family through diffusers: a folder of weights, seen as the rest of the project needs it."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from avd.flow import TIMESTEPS
from avd.models.codec import decode_video, encode_video
from avd.models.rotary import StridedRotary
from avd.types import UserError

# Loading and saving a miniature is quick, and progress is the command line's to show. What these libraries merely warn
# of, weights that are missing, is an error here.
for _logging in (diffusers_logging, transformers_logging):
    _logging.disable_progress_bar()
    _logging.set_verbosity_error()

SHIPPED = {"wan-mini": Path(__file__).parent.parent / "assets" / "wan-mini"}
SETTINGS_FILE = "avd.json"


@dataclass(frozen=True)
class Settings:
    """What a model folder does not say by itself: its clip geometry and how its teacher is sampled.

    Read from `avd.json` in the folder; the defaults are Wan2.1-T2V's.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: int = 16
    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    student_timesteps: tuple[float, ...] | None = None
    """Set for a distilled model: it is sampled with the few-step rollout at these timesteps."""
    half_rate_stages: int = 0


class WanVelocity(nn.Module):
    """A Wan transformer as an `avd.types.Velocity`: noise levels in, float32 velocities out."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        if not isinstance(transformer.rope, StridedRotary):
            transformer.rope = StridedRotary(transformer.rope)
        self.transformer = transformer
        self.compute_dtype: torch.dtype | None = None
        """Of its arithmetic; None is that of its weights."""

    def forward(self, x_BCFHW: Tensor, sigma_B: Tensor, prompt_BLD: Tensor, *, frame_stride: int = 1) -> Tensor:
        dtype = self.compute_dtype or self.transformer.dtype
        self.transformer.rope.frame_stride = frame_stride
        try:
            (velocity,) = self.transformer(
                x_BCFHW.to(dtype), sigma_B.float() * TIMESTEPS, prompt_BLD.to(dtype), return_dict=False
            )
        finally:
            self.transformer.rope.frame_stride = 1
        return velocity.float().clone()  # a sharded module must not return a view


def store_frozen(transformer: WanTransformer3DModel, dtype: torch.dtype) -> None:
    """Store the frozen weights in `dtype`, in place, but for those that diffusers keeps in float32 when it loads."""
    precise = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if not parameter.requires_grad and precise.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)


class VideoModel:
    """Transformer, VAE, text encoder and tokenizer of one model folder."""

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.transformer = transformer
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.settings = settings

    @classmethod
    def load(cls, name: str) -> VideoModel:
        """Load a shipped model by name, a diffusers folder, or a hub id, in float32.

        Raises UserError if there is no such model or the folder is not a Wan model.
        """
        folder = locate(name)
        try:
            with warnings.catch_warnings(action="ignore"):  # of the libraries' own ways with one another
                return cls(
                    _load_whole(WanTransformer3DModel, folder, "transformer"),
                    _load_whole(AutoencoderKLWan, folder, "vae"),
                    _load_whole(UMT5EncoderModel, folder, "text_encoder"),
                    AutoTokenizer.from_pretrained(folder, subfolder="tokenizer"),
                    read_settings(Path(folder)),
                    Path(folder) if Path(folder).is_dir() else None,
                )
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{name} cannot be loaded as a Wan model: {reason}") from error

    def velocity(self) -> WanVelocity:
        return WanVelocity(self.transformer)

    def fresh_velocity(self) -> WanVelocity:
        """A trainable copy of the transformer, for a student or a fake score that starts from this model."""
        return WanVelocity(copy.deepcopy(self.transformer))

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a clip of the model's geometry, or of `frames` frames."""
        s, config = self.settings, self.vae.config
        return (
            config.z_dim,
            ((frames or s.frames) - 1) // config.scale_factor_temporal + 1,
            s.height // config.scale_factor_spatial,
            s.width // config.scale_factor_spatial,
        )

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raise UserError unless the model can encode and denoise clips of this size."""
        time, space = self.vae.config.scale_factor_temporal, self.vae.config.scale_factor_spatial
        side = space * self.transformer.config.patch_size[1]
        if frames < 1 or (frames - 1) % time or min(height, width) < 1 or height % side or width % side:
            raise UserError(
                f"clips of {frames} frames of {height} x {width} do not fit the model: it takes {time} n + 1 frames, "
                f"and sides that are multiples of {side}"
            )

    @property
    def text_length(self) -> int:
        return min(self.tokenizer.model_max_length, 512)

    @property
    def identity(self) -> str:
        """Changes whenever latents or prompt embeddings made with this model would no longer fit it."""
        whitening = (self.vae.config.latents_mean, self.vae.config.latents_std)
        digest = hashlib.sha256(repr((self.text_length, whitening)).encode())
        for module in (self.vae, self.text_encoder):
            for name, tensor in sorted(module.state_dict().items()):
                sample = tensor.flatten()[:64].float().cpu().numpy().tobytes()
                digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample)
        return f"wan-{digest.hexdigest()[:16]}"

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, F, H, W, 3) to whitened latents (B, C, F', H', W')."""
        return encode_video(self.vae, frames)

    def decode_video(self, latents: Tensor) -> np.ndarray:
        """Whitened latents to uint8 (B, F, H, W, 3)."""
        return decode_video(self.vae, latents)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings (B, L, D); positions past a prompt's end are zero, as in diffusers' WanPipeline."""
        return encode_prompts(self.text_encoder, self.tokenizer, prompts, self.text_length)

    def half(self) -> VideoModel:
        """All weights in half precision, in place: for shipping, not for computing on a CPU."""
        for module in (self.transformer, self.vae, self.text_encoder):
            module.half()
        return self

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None, **settings: Any) -> None:
        """Write a diffusers folder, with `weights` in place of the transformer's own and changed `settings`."""
        transformer = self.transformer if weights is None else _with_weights(self.transformer, weights)
        pipeline = WanPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.settings.shift),
        )
        pipeline.save_pretrained(folder)
        _forget_paths(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps({**asdict(self.settings), **settings}, indent=2) + "\n")


def _with_weights(transformer: WanTransformer3DModel, weights: Mapping[str, Tensor]) -> WanTransformer3DModel:
    """A transformer of the same config that holds `weights`, without a copy of them."""
    with torch.device("meta"):
        other = WanTransformer3DModel.from_config(transformer.config)
    other.load_state_dict(weights, assign=True)
    return other


def encode_prompts(
    text_encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int
) -> Tensor:
    """Embeddings (B, `length`, D) with zeros past each prompt's end, of prompts tidied as diffusers tidies them."""
    tidy = [prompt_clean(prompt) for prompt in prompts]
    tokens = tokenizer(tidy, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask
    hidden = text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state
    return hidden * mask.unsqueeze(-1)


def _load_whole(kind: Any, folder: str, part: str) -> Any:
    """One network of a model folder, in float32. Raises ValueError if weights are missing; never reads a pickle."""
    network, found = kind.from_pretrained(
        folder, subfolder=part, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    if found["missing_keys"]:
        raise ValueError(f"{part} lacks weights, such as {min(found['missing_keys'])}")
    return network


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a folder that holds one, itself or in `vae/`. Raises UserError if there is none."""
    inner = folder / "vae"
    try:
        vae = AutoencoderKLWan.from_pretrained(inner if inner.is_dir() else folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no VAE: name a folder that `avd train vae` wrote") from error
    return vae.eval().requires_grad_(False)


def _forget_paths(folder: Path) -> None:
    """Take out of the saved configs the path that each part was loaded from: it means nothing elsewhere."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_settings(folder: Path) -> Settings:
    """Settings of a model folder; Wan2.1's where it has none."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return Settings()
    try:
        values = json.loads(path.read_text())
        if values.get("student_timesteps") is not None:
            values["student_timesteps"] = tuple(values["student_timesteps"])
        return Settings(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no settings file of avd ({error}): write the model folder again") from error


def locate(name: str) -> str:
    """A path, or a hub id left to diffusers to resolve."""
    if name in SHIPPED:
        return str(SHIPPED[name])
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").exists():
            raise UserError(f"{name} is no diffusers folder: it has no model_index.json")
        return name
    if name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.exists():
        return name
    raise UserError(
        f"there is no model {name}: name a shipped one ({', '.join(SHIPPED)}), a diffusers folder or a hub id"
    )
