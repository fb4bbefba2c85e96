"""Several processes train as one does: torchrun and gloo, on the CPU."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avd.engine.checkpoint import list_checkpoints
from avd.engine.ranks import SINGLE_PROCESS, Ranks, clips_per_rank
from avd.models.devices import pick_device
from avd.types import UserError
from helpers.distill_run import distill, small_recipe
from helpers.processes import start_ranks
from helpers.tiny import tiny_model

UPDATES = 4
AVD = ("distribution_matching", "temporal", "regression")
RUNS = {
    "full": (),
    "adapters": ("roles=adapters", "adapters.rank=4"),
    "parts": ("compute.microbatch=1", "training.batch=4", "rollout.shared=false", "compute.checkpointing=full"),
    "replicated": ("compute.shard=1",),
    "context": ("compute.context=2", "name=tall"),
    "adversarial": ("objective.adversarial.weight=0.5", "discriminator.updates=2", "compute.checkpointing=full"),
    "consistency": (
        *(f"objective.{name}.weight=0" for name in AVD),
        *("objective.consistency.weight=1", "rollout.half_rate_stages=0"),
    ),
    "through_input": (
        *(f"objective.{name}.weight=0" for name in AVD),
        *("objective.fisher.weight=1", "fake_score.updates=1", "fake_score.ida=0.9", "compute.checkpointing=full"),
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def torchrun(*runs: str) -> subprocess.Popen[str]:
    """Two processes, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen([*command, "-m", "helpers.ranks_run", *runs], stderr=subprocess.PIPE, text=True)


def two_processes(*runs: str) -> list[subprocess.Popen[str]]:
    return start_ranks(2, "helpers.ranks_run", *runs)


def run_to_the_end(*runs: str) -> None:
    for process in two_processes(*runs):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind in two processes."""
    folder = tmp_path_factory.mktemp("together")
    run_to_the_end(*(f"{folder / name} {UPDATES} {' '.join(overrides)}" for name, overrides in RUNS.items()))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, overrides in RUNS.items():
        alone = [o for o in overrides if not o.startswith(("compute.shard", "compute.context"))]
        distill(folder / name, UPDATES, recipe=small_recipe(*alone))
    return folder


ROUNDING = 1e-6
"""What a metric may differ by that is 0 in exact arithmetic, as the unguided part of the first gradient is, where the
fake score still equals the teacher."""


def weights(run: Path) -> Tensor:
    tensors = load_file(run / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


@pytest.mark.parametrize("kind", RUNS)
def test_two_processes_train_as_one(kind: str, together: Path, alone: Path) -> None:
    """Losses agree to 1e-4, and the weights to a thousandth of how far training has moved them."""
    for found, expected in zip(lines(together / kind), lines(alone / kind), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=ROUNDING)
    start = tiny_model().transformer.state_dict()
    moved = weights(alone / kind) - torch.cat([start[name].flatten() for name in sorted(start)])
    assert (weights(together / kind) - weights(alone / kind)).norm() < 1e-3 * moved.norm()


@pytest.mark.parametrize("kind", ["full", "adapters"])
def test_each_process_saves_its_own_part(kind: str, together: Path) -> None:
    newest = list_checkpoints(together / kind / "checkpoints")[-1]
    parts = [load_file(newest / f"tensors-{rank:05d}-of-00002.safetensors") for rank in range(2)]
    sizes = [sum(tensor.numel() for tensor in part.values()) for part in parts]
    assert 0.4 < sizes[0] / sum(sizes) < 0.6


def test_copies_are_saved_once(together: Path) -> None:
    newest = list_checkpoints(together / "replicated" / "checkpoints")[-1]
    assert not load_file(newest / "tensors-00001-of-00002.safetensors")


@pytest.mark.parametrize("kind", ["full", "adapters", "adversarial", "consistency"])
def test_what_two_processes_saved_one_resumes_with(kind: str, together: Path, alone: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", small_recipe(*RUNS[kind])
    shutil.copytree(together / kind, run)
    for newer in list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(newer)
    distill(run, UPDATES, resume=True, recipe=recipe)
    for found, expected in zip(lines(run), lines(alone / kind), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=ROUNDING)


def test_what_one_process_saved_two_resume_with(alone: Path, tmp_path: Path) -> None:
    for kind in ("full", "adapters"):
        shutil.copytree(alone / kind, tmp_path / kind)
    more = UPDATES + 2
    run_to_the_end(*(f"{tmp_path / kind} {more} {' '.join(RUNS[kind])}" for kind in ("full", "adapters")))
    for kind in ("full", "adapters"):
        expected = tmp_path / f"{kind}-alone"
        shutil.copytree(alone / kind, expected)
        distill(expected, more, resume=True, recipe=small_recipe(*RUNS[kind]))
        for found, wanted in zip(lines(tmp_path / kind), lines(expected), strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, abs=ROUNDING)


def wait_for_updates(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.01)


def test_killed_with_signal_9_and_resumed_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    processes = two_processes(f"{killed} 1000000")
    wait_for_updates(killed, 3, processes[0])
    time.sleep(random.uniform(0, 0.6))
    for process in processes:
        process.kill()
        process.wait()
    updates = len((killed / "metrics.jsonl").read_text().splitlines()) + 1
    run_to_the_end(f"{killed} {updates}", f"{straight} {updates}")
    assert torch.equal(weights(killed), weights(straight))
    assert lines(killed) == lines(straight)


def test_asked_to_end_two_processes_save_and_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(f"{run} 1000000 training.checkpoint_every=0")
    wait_for_updates(run, 2, process)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode != 0
    (newest,) = list_checkpoints(run / "checkpoints")
    assert newest.name == f"step-{len(lines(run)):07d}"


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    compute = small_recipe().compute
    assert Ranks(1, 2).samples(6) == range(3, 6) and clips_per_rank(compute, 6, 2) == 3
    with pytest.raises(UserError, match=r"training.batch is 5, over 2 processes"):
        clips_per_rank(compute, 5, 2)
    shared = small_recipe("compute.context=2").compute
    assert clips_per_rank(shared, 5, 2) == 5
    with pytest.raises(UserError, match=r"training.batch is 5, over 2 groups of processes"):
        clips_per_rank(shared, 5, 4)


@pytest.mark.parametrize("key", ["shard", "context"])
@pytest.mark.parametrize(("size", "processes"), [(1, "1 process"), (3, "3 processes")])
def test_a_group_of_ranks_needs_its_processes(key: str, size: int, processes: str) -> None:
    with pytest.raises(UserError, match=rf"compute.{key} is 2, with {processes}"):
        clips_per_rank(small_recipe(f"compute.{key}=2").compute, 6, size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert pick_device("auto") == torch.device("cpu") == SINGLE_PROCESS.device
    with pytest.raises(UserError, match="finds 0 GPUs"):
        pick_device("cuda")
