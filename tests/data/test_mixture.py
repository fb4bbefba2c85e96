"""Several sources of clips as one."""

from __future__ import annotations

import pytest
import torch

from avd.data import LatentMixture, MemoryLatents
from avd.types import Conditions


def source(count: int, first: int) -> MemoryLatents:
    values = torch.arange(first, first + count, dtype=torch.float)
    conditions = Conditions({"embedding": values.view(-1, 1, 1).expand(count, 2, 3)})
    return MemoryLatents(values.view(-1, 1, 1, 1, 1).expand(count, 1, 2, 1, 1), conditions, [f"{v:g}" for v in values])


def test_clips_of_several_sources_stand_one_after_the_other() -> None:
    mixture = LatentMixture([source(3, 0), source(1, 3), source(2, 4)])
    assert len(mixture) == 6 and mixture.captions == ["0", "1", "2", "3", "4", "5"]
    for indices in ([5, 0, 3, 3, 1, 4], [2], []):
        assert mixture.latents(indices)[:, 0, 0, 0, 0].tolist() == indices
        assert mixture.prompts(indices)["embedding"][:, 1, 2].tolist() == indices
        assert mixture.latents(indices).shape == (len(indices), 1, 2, 1, 1)
    for index in (6, -1):
        with pytest.raises(IndexError):
            mixture.latents([index])
