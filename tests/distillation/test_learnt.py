"""What a run has learnt is what its student does: exported in either format, and read again.

The change of a velocity is looked at in float64, where the smallest is not lost among roundings of the arithmetic: what
is lost here, weights on disk or in memory have lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avd.distillation.data import RunData
from avd.distillation.task import DistillTask
from avd.engine.ranks import Ranks, process_group
from avd.models.backbone import Backbone
from avd.models.family import load_model
from avd.models.wan.network import WanVelocity
from avd.types import Conditions
from helpers.distill_run import small_recipe
from helpers.tiny import LATENT_SHAPE, tiny_model, tiny_source

RECIPE = (
    "roles=adapters",
    "adapters.rank=4",
    "adapters.alpha=4",
    "objective.distribution_matching.weight=0",
    "objective.temporal.weight=0",
    "rollout.half_rate_stages=0",
    "student.optimizer.warmup=0",
)
UPDATES = 20


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def ranks(request: pytest.FixtureRequest) -> Iterator[tuple[Ranks, str]]:
    with process_group(small_recipe(f"compute.dtype={request.param}").compute) as found:
        yield found, request.param


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are numbers of bfloat16, as those of published ones are."""
    path, model = tmp_path_factory.mktemp("base"), tiny_model()
    model.transformer.bfloat16().float()
    model.save(path)
    return path


def velocity(network: Backbone) -> Tensor:
    """On fixed inputs, in float64."""
    network.transformer.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *LATENT_SHAPE, generator=generator).double()
    prompts = Conditions({"embedding": torch.randn(4, 7, 64, generator=generator).double()})
    network.compute_dtype = torch.float64
    with torch.no_grad():
        return network(x, torch.tensor([1.0, 0.9, 0.757, 0.522]), prompts)


def velocity_of(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """A model's, read again in some precision."""
    return velocity(load_model(str(folder), dtype=dtype).velocity())


def with_adapter(base: Path, adapter: dict[str, Tensor]) -> WanVelocity:
    """The base as it is stored, with an adapter added in float64: what the run has learnt."""
    transformer = load_model(str(base)).velocity().transformer.double()
    for name, down in adapter.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            transformer.get_submodule(layer).weight.data += adapter[f"{layer}.lora_B.weight"].double() @ down.double()
    return WanVelocity(transformer)


def kept(found: Tensor, learnt: Tensor) -> float:
    """The share of a learnt change that a change is, along it."""
    return float((found * learnt).sum() / learnt.square().sum())


@pytest.mark.parametrize("rate", [2e-6, 2e-5, 2e-4])
def test_a_student_does_what_was_learnt(rate: float, base: Path, ranks: tuple[Ranks, str], tmp_path: Path) -> None:
    place, dtype = ranks
    recipe = small_recipe(*RECIPE, f"compute.dtype={dtype}", f"student.optimizer.learning_rate={rate}")
    model = load_model(str(base), dtype=getattr(torch, dtype))
    task = DistillTask(recipe, model, RunData.encode(model, tiny_source(model)), None, place)
    for n in range(UPDATES):
        task.update(n)
    start = velocity_of(base)
    learnt = velocity(with_adapter(base, dict(task.roles.adapter_stream()))) - start
    for merge in (True, False):
        adapters = recipe.adapters.model_copy(update={"merge": merge})
        task.recipe = recipe.model_copy(update={"adapters": adapters})
        task.export(tmp_path / str(merge))
        student = tmp_path / str(merge) / "student"
        assert kept(velocity_of(student) - start, learnt) == pytest.approx(1, abs=0.01)
    coarse = velocity_of(student, torch.bfloat16) - velocity_of(base, torch.bfloat16)
    assert kept(coarse, learnt) == pytest.approx(1, abs=0.01)  # a change of the base as it is rounded
