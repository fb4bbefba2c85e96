"""A model family in one folder: a toy network on pooled pixels, with two named conditions.

A test puts this folder's parent on the path of `avd.models`; nothing else knows of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avd.models.family import Family, TextToVideo
from avd.models.folders import ModelSource

if TYPE_CHECKING:
    import torch

    from avd.models.settings import Settings
    from avd.models.sizes import Sizes


def _load(source: ModelSource, dtype: torch.dtype, device: torch.device | None) -> TextToVideo:
    from avd.models.fake_family.model import load

    return load(source, dtype, device)


def _read_sizes(name: str, source: ModelSource | None, settings: Settings | None) -> Sizes:
    from avd.models.fake_family.model import load

    assert source is not None
    return load(source).sizes


def _read_settings(name: str, source: ModelSource | None) -> Settings:
    from avd.models.fake_family.model import load

    assert source is not None
    return load(source).settings


FAMILY = Family(
    name="fake", pipelines=("FakePipeline",), load=_load, read_sizes=_read_sizes, read_settings=_read_settings
)
