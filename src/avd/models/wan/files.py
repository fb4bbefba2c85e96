"""A model's files: found, checked before anything is loaded, then loaded part by part.

A teacher is a diffusers folder, a hub id, or such a folder with the transformer's weights from a file of their own: the
original single-file form of Wan, or a fine-tune of it. Configs and headers of safetensors files tell whether the parts
fit each other, and who the model is; they are small. Weights are read when a part is asked for, one part at a time,
straight into the precision that is wanted. Nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, UMT5EncoderModel

from avd.files import write_json
from avd.models.experts import ExpertsWeights
from avd.models.folders import INDEX_FILE, ModelSource
from avd.models.identity import Entry, entries_on_disk
from avd.models.wan.configs import (
    check_parts,
    read_text_encoder,
    read_text_tokens,
    read_transformer,
    read_vae,
    settings_of,
)
from avd.models.weights import Renamed, WeightFiles, Weights, check_depth, check_fits
from avd.types import UserError

_PART_CLASSES = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
}
"""The second transformer is there in a student of two experts only."""
_ENCODERS = ("vae", "text_encoder")
_BLOCKS = {"transformer": "blocks.", "transformer_2": "blocks.", "text_encoder": "encoder.block."}
"""How the tensors of repeated blocks begin."""


class ModelFiles:
    """The files of one model. Raises UserError if they are no text-to-video model of Wan's.

    `settings` is how it is sampled. With a transformer from a file of its own, the folder's `transformer/config.json`
    says what it must be; the folder's own weights of it may be absent.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source, self.folder, self.index = source, source.folder, source.index
        self.transformer_file = None if source.transformer is None else _single_file(source.transformer)
        with self._explained():
            configs = {
                "transformer": read_transformer(self.folder),
                "vae": read_vae(self.folder),
                "text_encoder": read_text_encoder(self.folder),
            }
            read_text_tokens(self.folder)
            check_parts(source, **configs)
            self.settings = settings_of(source, configs["transformer"], configs["vae"])
            if self.settings.high_stages:
                configs["transformer_2"] = read_transformer(self.folder, "transformer_2")
                if self.transformer_file is not None:
                    raise UserError(f"{source.name} is a student of two experts: leave the transformer's file out")
            self._weights = {part: self._find_weights(part, config) for part, config in configs.items()}
            self.skeletons = _skeletons(self.folder, configs)
            for part in configs:
                self._check_weights(part)
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, subfolder="tokenizer")

    def load(self, part: str, dtype: torch.dtype) -> Any:
        """A part's network in `dtype`, but for what its class keeps in float32. No weight is in memory twice."""
        with self._explained():
            if part == "transformer" and self.transformer_file is not None:
                return self._load_single_file(self.transformer_file, dtype)
            kind = _PART_CLASSES[part]
            return kind.from_pretrained(self.folder, subfolder=part, dtype=dtype, use_safetensors=True)

    def _load_single_file(self, file: Path, dtype: torch.dtype) -> Any:
        network = WanTransformer3DModel.from_single_file(  # which asks the hub for nothing, given a local config
            str(file), config=str(self.folder), subfolder="transformer", dtype=dtype, local_files_only=True
        )
        float32_modules = set(WanTransformer3DModel._keep_in_fp32_modules)  # it would not, as `from_pretrained` does
        for name, parameter in network.named_parameters():
            if float32_modules.intersection(name.split(".")):
                parameter.data = parameter.data.float()
        return network

    @property
    def transformer_weights(self) -> Weights:
        """The transformer's, as they are stored, by diffusers' names; of two experts, both."""
        weights = self._weights["transformer"]
        if "transformer_2" in self._weights:
            return ExpertsWeights(weights, self._weights["transformer_2"])
        return weights if self.transformer_file is None else Renamed(weights, diffusers_names(weights.shapes))

    def entries(self) -> list[Entry]:
        """What the model's identity is made of."""
        with self._explained():
            pairs = [(self.skeletons[part], self._weights[part]) for part in _ENCODERS]
            return [entry for skeleton, weights in pairs for entry in entries_on_disk(skeleton, weights)]

    def complete(self, folder: Path) -> None:
        """Add VAE, text encoder and tokenizer to a saved pipeline that lacks them: byte for byte, and no pickles."""
        parts = (*_ENCODERS, "tokenizer")
        for part in parts:
            shutil.copytree(
                self.folder / part,
                folder / part,
                ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5"),
                copy_function=shutil.copyfile,  # without modes: what is read-only there need not be so here
            )
        add_to_index(folder, **{part: self.index[part] for part in parts})

    def _find_weights(self, part: str, config: Mapping[str, Any]) -> WeightFiles:
        """A part's weights by their headers, which tell how many blocks there are before any is built."""
        file = self.transformer_file if part == "transformer" else None
        weights = WeightFiles.of_part(self.folder / part) if file is None else WeightFiles([file])
        try:
            if part in _BLOCKS and file is None:
                check_depth(weights.shapes, _BLOCKS[part], config["num_layers"])
            elif part in _BLOCKS:
                check_depth(in_diffusers_names(weights.shapes), _BLOCKS[part], config["num_layers"])
        except ValueError as error:
            raise ValueError(f"{file or part}: {error}") from error
        return weights

    def _check_weights(self, part: str) -> None:
        skeleton, file = self.skeletons[part], self.transformer_file if part == "transformer" else None
        shapes = self._weights[part].shapes
        try:
            if file is None:
                check_fits(skeleton, shapes)
            else:  # diffusers takes a file with one name too many for one that it must rename
                check_fits(skeleton, in_diffusers_names(shapes), exactly=True)
        except ValueError as error:
            raise ValueError(f"{file or part}: {error}") from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings(action="ignore"):  # of the libraries' own ways with one another
                yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{self.source.name} cannot be loaded as a Wan model: {reason}") from error


def add_to_index(folder: Path, **parts: Any) -> None:
    """Name parts in the index of a saved pipeline, each by its library and class."""
    index = json.loads((folder / INDEX_FILE).read_text())
    write_json(folder / INDEX_FILE, {**index, **parts}, sort_keys=True)


def _skeletons(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each part's network without memory, from its config."""
    with torch.device("meta"):
        return {
            part: UMT5EncoderModel(AutoConfig.from_pretrained(folder / part))
            if part == "text_encoder"
            else _PART_CLASSES[part].from_config(dict(config))
            for part, config in configs.items()
        }


def _single_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"there is no transformer {name}: name a safetensors file")
    return path


def in_diffusers_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a Wan transformer's tensors, given in its original names or already in diffusers', in diffusers'."""
    return {name: shapes[there] for name, there in diffusers_names(shapes).items()}


def diffusers_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The name in a file of each of a Wan transformer's tensors, by its name in diffusers."""
    if "scale_shift_table" in shapes:
        return {name: name for name in shapes}
    hollow = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    origins = {id(tensor): name for name, tensor in hollow.items()}
    converted = convert_wan_transformer_to_diffusers(dict(hollow))
    return {name: origins[id(tensor)] for name, tensor in converted.items()}
