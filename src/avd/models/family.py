"""Model families: what is asked of a model to be a teacher and, with other weights, its student; and which one it is.

A family is a sub-package of `avd.models` with a module-level `FAMILY`, which says whose folders it takes and imports
the rest when one is opened. docs/adding-a-model.md says what a family holds.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import avd.models
from avd.models.folders import INDEX_FILE, AdapterFolder, ModelSource, hub_id_of, locate, read_object
from avd.models.settings import read_settings
from avd.types import Conditions, UserError

if TYPE_CHECKING:  # asking which families there are loads no torch
    import numpy as np
    import torch
    from torch import Tensor

    from avd.models.backbone import Backbone
    from avd.models.settings import Settings
    from avd.models.sizes import OtherParts, Sizes
    from avd.models.streams import TensorStream
    from avd.models.weights import Weights


class TextToVideo(Protocol):
    """Pixels and prompts in and out of what a network is trained on, and the network itself.

    Clips are uint8 (B, F, H, W, 3); latents are whitened, float (B, C, F', H', W'); prompts are encoded once, as
    `Conditions` of the same shapes for all. Everything past this protocol knows latents and conditions only.
    """

    settings: Settings
    """Clip geometry, and how the model is sampled, with the negative prompt that it is guided away from."""

    @property
    def folder(self) -> Path | None:
        """Where it was loaded from; an interpolator may lie there."""
        ...

    @property
    def source(self) -> ModelSource | None:
        """What it was opened as; None for a model made in memory, which nothing else can be an adapter of."""
        ...

    @property
    def identity(self) -> str:
        """`<family>-<hash>`, which changes whenever cached latents or conditions would no longer fit the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where clips and prompts are encoded and decoded. What the methods take and give is on the CPU."""
        ...

    @property
    def sizes(self) -> Sizes:
        """Sizes of the network, of one clip of the settings' size and of one prompt, without loading anything."""
        ...

    def velocity(self, device: torch.device | None = None) -> Backbone:
        """The network, on `device` if given."""
        ...

    def hollow_velocity(self) -> Backbone:
        """The network with all its parameters on the meta device, in float32: to be sharded, then filled."""
        ...

    def weights(self) -> Weights:
        """The network's weights as they are stored, by the names of its transformer, read as they are asked for."""
        ...

    def latent_shape(self, frames: int | None = None) -> tuple[int, int, int, int]:
        """(C, F', H', W') of a clip of the settings' size, or of `frames` frames."""
        ...

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raise UserError unless the model can encode and denoise clips of this size."""
        ...

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Clips to latents, without randomness."""
        ...

    def decode_video(self, latents: Tensor) -> np.ndarray:
        """Latents to clips."""
        ...

    def decode_with(self, *, tiled: bool, decoder: Path | None) -> None:
        """Decode from here on in overlapping tiles of the picture, which takes less memory, or with the tiny decoder in
        a file. Raises UserError where the family cannot, and for a file that holds none."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """The conditions of prompts, float32; those of "" are the null prompt."""
        ...

    def drop(self, *parts: str) -> None:
        """Forget parts (`text_encoder`, `vae`, `transformer`) until they are needed again."""
        ...

    def half(self) -> TextToVideo:
        """All weights in half precision, in place: for shipping."""
        ...

    def save(self, folder: Path, weights: TensorStream | None = None, **settings: Any) -> None:
        """Write a folder that loads again, and in the family's stock pipeline: with other weights, settings. With
        `high_stages`, where `Sizes.check_experts` allows it, the weights are those of `models.experts`."""
        ...

    def reload(self, folder: Path) -> dict[str, Tensor]:
        """The network's state dict as the family's stock library reads a folder that `save` wrote: no code of ours."""
        ...

    def save_adapter(self, folder: Path, weights: TensorStream) -> None:
        """Write a LoRA of this model, as `models.adapters.adapter_stream` gives it, for the stock pipeline."""
        ...

    def read_adapter(self, folder: Path) -> dict[str, Tensor]:
        """What `save_adapter` wrote. Raises UserError if it is damaged."""
        ...

    def reload_adapter(self, folder: Path) -> dict[str, Tensor]:
        """The network's state dict as the stock library reads this model and fuses what `save_adapter` wrote."""
        ...


Load = Callable[[ModelSource, "torch.dtype", "torch.device | None"], TextToVideo]
"""Opens a model whose network computes in a dtype, on a device. Raises UserError for files that do not fit."""


@dataclass(frozen=True)
class Family:
    """How the models of a family are known, and how they are opened. The functions import what they need."""

    name: str
    pipelines: tuple[str, ...]
    """What `_class_name` may be in a folder's `model_index.json`."""
    load: Load
    read_sizes: Callable[[str, ModelSource | None, Settings | None], Sizes]
    """Sizes of a folder, from its configs alone, or of one of `hub_ids`: with other settings, if given."""
    read_settings: Callable[[str, ModelSource | None], Settings]
    """Likewise, how it is sampled."""
    read_parts: Callable[[str, ModelSource | None], OtherParts] | None = None
    """Likewise, its text encoder and VAE; None: the family does not say."""
    shipped: Mapping[str, Path] = field(default_factory=dict)
    """Folders of models that come with the package, by name."""
    hub_ids: tuple[str, ...] = ()
    """Published models whose sizes are known without their files."""


def families() -> list[Family]:
    """All families there are, by name of their sub-package."""
    packages = sorted(info.name for info in pkgutil.iter_modules(avd.models.__path__) if info.ispkg)
    modules = (importlib.import_module(f"avd.models.{name}") for name in packages)
    return [module.FAMILY for module in modules if hasattr(module, "FAMILY")]


def open_model(name: str, *, transformer: str | None = None) -> TextToVideo:
    """`load_model` to use a model as it is: in bfloat16 on this process's GPU if there is one, else in float32 on the
    CPU."""
    import torch

    from avd.models.devices import pick_device, read_launch

    device = pick_device("auto", read_launch(os.environ))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_model(name, transformer=transformer, dtype=dtype, device=device)


def load_model(
    name: str,
    *,
    transformer: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> TextToVideo:
    """Open a shipped model by name, a diffusers folder, a student's folder, or a hub id.

    `transformer` is a safetensors file to take the transformer's weights from. `dtype` (None: float32) is that of
    transformer and text encoder, whatever they are stored in. Everything is checked now; weights are read later. Raises
    UserError if there is no such model, no family takes it, or its files are damaged or do not fit each other.
    """
    import torch

    known = families()
    adapter = None if name in _shipped(known) else AdapterFolder.find(name)
    if adapter is not None and transformer is not None:
        raise UserError(f"{name} is an adapter of a transformer of its own: leave the other one out")
    base, file = (name, transformer) if adapter is None else (adapter.base, adapter.transformer)
    folder = locate(base, _shipped(known))
    assert folder is not None
    source, family = _find_family(base, folder, known)
    source = ModelSource(base, folder, source.index, file, adapter)
    return family.load(source, dtype or torch.float32, device)


def open_local(name: str, *, transformer: str | None = None) -> TextToVideo | None:
    """`load_model` of what is on this machine; None for a hub id, as nothing is fetched."""
    shipped = _shipped(families())
    adapter = None if name in shipped else AdapterFolder.find(name)
    if locate(name if adapter is None else adapter.base, shipped, fetch=False) is None:
        return None
    return load_model(name, transformer=transformer)


def name_of(folder: Path) -> str:
    """What to call a model by its folder, to find it again: the name of a shipped one, else the path."""
    return next((name for name, path in _shipped(families()).items() if path == folder), str(folder))


@dataclass(frozen=True)
class ModelFacts:
    """What the config files of a model say: its sizes, and how it is sampled."""

    sizes: Sizes
    settings: Settings


def find_facts(name: str) -> ModelFacts | None:
    """Facts of a shipped model, a diffusers folder, a student's folder or a known hub id; of another hub id, None.

    Only config files are read, and none is fetched. Raises UserError if there is no such model or no family takes it.
    """
    found = _find_files(name)
    if found is None:
        return None
    own = None
    if found.source is None and found.adapter is not None:
        own = read_settings(found.adapter.folder)
    sizes = found.family.read_sizes(found.name, found.source, own)
    return ModelFacts(sizes, own or found.family.read_settings(found.name, found.source))


def read_parts(name: str) -> OtherParts:
    """What a model has beside its network, found as its facts are. Raises UserError if family or folder do not say."""
    found = _find_files(name)
    assert found is not None, "facts were read"
    if found.family.read_parts is None:
        raise UserError(f"{name} is of the family {found.family.name}, whose text encoder and VAE have no known size")
    return found.family.read_parts(found.name, found.source)


@dataclass(frozen=True)
class _Found:
    """A model's family and its files: None for those of a known hub id, whose configs the family knows by `name`."""

    family: Family
    name: str
    source: ModelSource | None
    adapter: AdapterFolder | None


def _find_files(name: str) -> _Found | None:
    """The family and files of a model, or of the one that it is an adapter of; None for a hub id that is not known."""
    known = families()
    adapter = None if name in _shipped(known) else AdapterFolder.find(name)
    base = name if adapter is None else adapter.base
    if not Path(base).is_dir():
        for family in known:
            if hub_id_of(base) in family.hub_ids:
                return _Found(family, base, None, adapter)
    folder = locate(base, _shipped(known), fetch=False)
    if folder is None:
        return None
    source, family = _find_family(name, folder, known)
    return _Found(family, name, ModelSource(name, folder, source.index, adapter=adapter), adapter)


def read_facts(name: str) -> ModelFacts:
    """`find_facts`. Raises UserError too if the model is not known here."""
    facts = find_facts(name)
    if facts is None:
        hub = ", ".join(hub_id for family in families() for hub_id in family.hub_ids)
        raise UserError(f"the sizes of {name} are not known here: name its folder, or one of {hub}")
    return facts


def read_sizes(name: str) -> Sizes:
    """The sizes of a model; see `read_facts`."""
    return read_facts(name).sizes


def _shipped(known: list[Family]) -> dict[str, Path]:
    return {name: folder for family in known for name, folder in family.shipped.items()}


def _find_family(name: str, folder: Path, known: list[Family]) -> tuple[ModelSource, Family]:
    """The family that takes a folder. Raises UserError naming what was found and which there are."""
    try:
        index = read_object(folder / INDEX_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be loaded: {error}: name a diffusers folder") from error
    found = index.get("_class_name")
    for family in known:
        if found in family.pipelines:
            return ModelSource(name, folder, index), family
    there_are = ", ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in known)
    raise UserError(f"{name} holds a pipeline of class {found!r}, which no family handles: known are {there_are}")
