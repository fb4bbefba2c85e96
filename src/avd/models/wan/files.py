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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, UMT5EncoderModel

from avd.files import write_json
from avd.models.identity import Entry, entries_on_disk
from avd.models.weights import Weights, check_fits, in_diffusers_names
from avd.types import UserError

SHIPPED = {"wan-mini": Path(__file__).parents[2] / "assets" / "wan-mini"}
INDEX_FILE = "model_index.json"
ADAPTER_FILE = "adapter.json"
_PART_CLASSES = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}
_ENCODERS = ("vae", "text_encoder")


@dataclass(frozen=True)
class AdapterFolder:
    """A student kept as a LoRA: the model it is an adapter of, and that model's transformer if it came from a file."""

    folder: Path
    base: str
    transformer: str | None = None

    @classmethod
    def find(cls, name: str) -> AdapterFolder | None:
        """The adapter in the folder `name`; None if it is something else. Raises UserError if it is damaged."""
        path = Path(name) / ADAPTER_FILE
        if name in SHIPPED or not path.exists():
            return None
        try:
            return cls(Path(name), **json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} does not say what it is an adapter of ({error}): write the student again"
            ) from error

    def write(self) -> None:
        """Write `adapter.json`, with absolute paths, as the adapter may be used from elsewhere."""
        names = {"base": self.base, "transformer": self.transformer}
        whole = {k: str(Path(v).resolve()) if v is not None and Path(v).exists() else v for k, v in names.items()}
        write_json(self.folder / ADAPTER_FILE, whole)


class ModelFiles:
    """The files of one model. Raises UserError if there are none, or they are no text-to-video model of Wan's.

    `transformer` is a safetensors file to take the transformer's weights from. The folder's `transformer/config.json`
    says what it must be; the folder's own weights of it may be absent.
    """

    def __init__(self, name: str, transformer: str | None = None) -> None:
        self.name, self.transformer_name = name, transformer
        self.transformer_file = None if transformer is None else _single_file(transformer)
        with self._explained():
            folder = locate(name)
            assert folder is not None
            self.folder = folder
            self.index: dict[str, Any] = json.loads((self.folder / INDEX_FILE).read_text())
            self.skeletons = {part: _skeleton(self.folder / part, kind) for part, kind in _PART_CLASSES.items()}
            self._check_family()
            self._weights = {part: self._check_weights(part) for part in _PART_CLASSES}
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
        kept = set(WanTransformer3DModel._keep_in_fp32_modules)  # it would not, as `from_pretrained` does
        for name, parameter in network.named_parameters():
            if kept.intersection(name.split(".")):
                parameter.data = parameter.data.float()
        return network

    def entries(self) -> list[Entry]:
        """What the model's identity is made of."""
        with self._explained():
            pairs = [(self.skeletons[part], self._weights[part]) for part in _ENCODERS]
            return [entry for skeleton, weights in pairs for entry in entries_on_disk(skeleton, weights)]

    def complete(self, folder: Path) -> None:
        """Add VAE, text encoder and tokenizer to a saved pipeline that lacks them: byte for byte, and no pickles."""
        index = json.loads((folder / INDEX_FILE).read_text())
        for part in (*_ENCODERS, "tokenizer"):
            index[part] = self.index[part]
            shutil.copytree(
                self.folder / part,
                folder / part,
                ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5"),
                copy_function=shutil.copyfile,  # without modes: what is read-only there need not be so here
            )
        write_json(folder / INDEX_FILE, index, sort_keys=True)

    def _check_family(self) -> None:
        transformer, vae, text = (self.skeletons[part].config for part in ("transformer", "vae", "text_encoder"))
        if self.index.get("transformer_2", [None, None])[0] is not None:
            raise ValueError("it has two transformers, one for each range of noise levels: name a model of one")
        if transformer.image_dim is not None:
            raise ValueError("its transformer wants an image: name a text-to-video model")
        if transformer.in_channels != vae.z_dim:
            found = f"takes {transformer.in_channels} channels, and its VAE makes {vae.z_dim}"
            raise ValueError(f"its transformer {found}: name a text-to-video model")
        if transformer.text_dim != text.d_model:
            found = f"takes prompts of width {transformer.text_dim}, and its text encoder makes {text.d_model}"
            raise ValueError(f"its transformer {found}")

    def _check_weights(self, part: str) -> Weights:
        skeleton, file = self.skeletons[part], self.transformer_file if part == "transformer" else None
        weights = Weights.of_part(self.folder / part) if file is None else Weights([file])
        try:
            if file is None:
                check_fits(skeleton, weights.shapes)
            else:  # diffusers takes a file with one name too many for one that it must rename
                check_fits(skeleton, in_diffusers_names(weights.shapes), exactly=True)
        except ValueError as error:
            raise ValueError(f"{file or part}: {error}") from error
        return weights

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings(action="ignore"):  # of the libraries' own ways with one another
                yield
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{self.name} cannot be loaded as a Wan model: {reason}") from error


def _skeleton(folder: Path, kind: Any) -> Any:
    """A part's network without memory, from its config."""
    with torch.device("meta"):
        if kind is UMT5EncoderModel:
            return kind(AutoConfig.from_pretrained(folder))
        config = kind.load_config(folder)
        if config.get("_class_name") != kind.__name__:
            raise ValueError(f"{folder.name} is of class {config.get('_class_name')}, not {kind.__name__}")
        return kind.from_config(config)


def _single_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(f"there is no transformer {name}: name a file of safetensors")
    return path


def locate(name: str, *, fetch: bool = True) -> Path | None:
    """The folder of a shipped model, of a path, or of a hub id, which is fetched where the local cache lacks it.

    Of a hub id that is not to be fetched, None. Raises UserError for what is none of these, ValueError or OSError for
    what cannot be fetched.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).is_dir():
        if not (Path(name) / INDEX_FILE).exists():
            raise UserError(f"{name} is no diffusers folder: it has no {INDEX_FILE}")
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.exists():
        return _fetch(name) if fetch else None
    raise UserError(
        f"there is no model {name}: name a shipped one ({', '.join(SHIPPED)}), a diffusers folder or a hub id"
    )


def _fetch(hub_id: str) -> Path:
    try:
        folder = Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
        snapshot_download(hub_id, allow_patterns=["avd.json", "interpolator/*"])  # which diffusers knows nothing of
    except OSError as error:
        raise ValueError(
            "it is not whole in the local cache and cannot be fetched: check name and network, or name a folder"
        ) from error
    return folder
