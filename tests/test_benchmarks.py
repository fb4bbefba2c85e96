"""What benchmarks count and measure, against what is known, and their calls on a real network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avd.config import load_recipe
from avd.methods.method import Method
from avd.sampling.samplers import ManySteps
from helpers.tiny import LATENT_SHAPE, tiny_model


def _benchmark(name: str) -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cycles() -> Any:
    return _benchmark("cycles")


@pytest.fixture(scope="module")
def frame_cosines() -> Any:
    return _benchmark("frame_cosines")


def test_codes_take_the_forwards_that_are_known_of_them(cycles: Any) -> None:
    """54 of the released code with checkpointing; 36.5 of rCM and 11.5 of SGMD without."""
    assert cycles.mean_forwards(cycles.released, checkpointing=True) == 54
    assert cycles.mean_forwards(cycles.rcm) == 36.5
    assert cycles.mean_forwards(cycles.sgmd) == 11.5


def test_our_own_cycles_are_those_that_the_method_declares(cycles: Any) -> None:
    for name in cycles.OURS:
        assert cycles.mean_forwards(cycles.recipe_cycle(name)) == Method.of(load_recipe(name)).forwards(cycles.STAGES)


def test_a_call_runs_the_network_and_leaves_no_gradient_behind(cycles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    student = model.velocity()
    network = cycles.Network(student, LATENT_SHAPE, (model.text_length, model.transformer.config.text_dim), 2)
    batches: list[int] = []
    handle = student.transformer.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    backwards: list[bool] = []
    weight = next(student.parameters())
    weight.register_hook(lambda gradient: backwards.append(True))
    network.play(cycles.Call(2))
    network.play(cycles.Call(1, clips=2))
    network.play(cycles.Call(1, "input"))
    assert batches == [2, 2, 4, 2] and not backwards
    network.play(cycles.Call(1, "weights"))
    handle.remove()
    assert backwards == [True] and all(p.grad is None for p in student.parameters())


def test_neighbouring_frames_that_are_equal_opposite_or_unrelated(frame_cosines: Any) -> None:
    still = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(2, 3, 5, 4, 4)
    turning = still * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).view(1, 1, 5, 1, 1)
    unrelated = torch.randn(2, 8, 5, 64, 64, generator=torch.Generator().manual_seed(1))
    found = [frame_cosines.neighbour_cosine(x).tolist() for x in (still, turning, unrelated)]
    assert found[0] == pytest.approx([1, 1]) and found[1] == pytest.approx([-1, -1])
    assert found[2] == pytest.approx([0, 0], abs=0.01)


def test_cosines_are_those_of_the_teachers_own_path(frame_cosines: Any) -> None:
    model = tiny_model()
    found = frame_cosines.measure(model, ["a red ball"], 3, 7)
    assert [sigma for sigma, _ in found["x"]] == sorted((sigma for sigma, _ in found["x"]), reverse=True)
    assert found["x"][0][0] == 1 and all(len(found[kind]) == 3 for kind in frame_cosines.KINDS)
    noise = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(7))
    assert found["x"][0][1] == pytest.approx(frame_cosines.neighbour_cosine(noise).item())
    settings = model.settings
    (last,) = ManySteps(model, 3, settings.guidance, "euler")(["a red ball"], torch.Generator().manual_seed(7)).split(1)
    assert found["x0"][-1][1] == pytest.approx(frame_cosines.neighbour_cosine(last).item(), abs=1e-5)
