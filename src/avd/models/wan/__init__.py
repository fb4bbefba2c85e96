"""The Wan family, through diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avd.models.family import Family, TextToVideo
from avd.models.folders import ModelSource, hub_id_of

if TYPE_CHECKING:
    import torch

    from avd.models.settings import Settings
    from avd.models.sizes import OtherParts, Sizes


def _load(source: ModelSource, dtype: torch.dtype, device: torch.device | None) -> TextToVideo:
    from avd.models.wan.model import load

    return load(source, dtype, device)


def _read_sizes(name: str, source: ModelSource | None, settings: Settings | None) -> Sizes:
    from avd.models.wan.sizes import known_sizes, sizes_of_folder

    return known_sizes(hub_id_of(name), settings) if source is None else sizes_of_folder(source)


def _read_settings(name: str, source: ModelSource | None) -> Settings:
    from avd.models.wan.sizes import known_settings, settings_of_folder

    return known_settings(hub_id_of(name)) if source is None else settings_of_folder(source)


def _read_parts(name: str, source: ModelSource | None) -> OtherParts:
    from avd.models.wan.parts import known_parts, parts_of_folder

    return known_parts(hub_id_of(name)) if source is None else parts_of_folder(source)


FAMILY = Family(
    name="wan",
    pipelines=("WanPipeline",),
    load=_load,
    read_sizes=_read_sizes,
    read_settings=_read_settings,
    read_parts=_read_parts,
    shipped={"wan-mini": Path(__file__).parents[2] / "assets" / "wan-mini"},
    hub_ids=(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    ),
)
