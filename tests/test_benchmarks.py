"""What benchmarks/cycles.py re-enacts: its counts against what is known, and its calls on a real network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from avd.config import load_recipe
from avd.methods.method import Method
from helpers.tiny import LATENT_SHAPE, tiny_model


@pytest.fixture(scope="module")
def cycles() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "cycles.py"
    spec = importlib.util.spec_from_file_location("cycles", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cycles"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
