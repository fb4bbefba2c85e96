"""Muon against its definition, and against PyTorch's own, which iterates in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avd.miniature.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (3, 16, 40)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalized(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ vh.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.3) & (diagonal < 1.3)).all() and diagonal.mean() > 0.8
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-9


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalized(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))


def test_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 12), (12, 12), (8, 20))]
    ours, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    mine = Muon(ours, **settings)
    reference = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - first).norm()


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="trains matrices, and one parameter has the shape \\(3,\\)"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)
