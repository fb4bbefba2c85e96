"""What the environment says of a launch: complete, absent, or refused in one line; and the GPU that follows from it."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from avd.models.devices import Launch, give_back_memory, matmul_precision, pick_device, read_launch
from avd.types import UserError

PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def without(*keys: str) -> dict[str, str]:
    return {key: value for key, value in PAIR.items() if key not in keys}


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        ({"RANK": "0"}, Launch()),
        ({"WORLD_SIZE": "1"}, Launch()),
        ({"RANK": "", "WORLD_SIZE": " "}, Launch()),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "3"}, Launch(local=3)),
        (PAIR, Launch(rank=1, size=2, local=1)),
        (PAIR | {"WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3"}, Launch(rank=11, size=16, local=3)),
        (PAIR | {"CUDA_VISIBLE_DEVICES": "5"}, Launch(1, 2, 1, shown_one_gpu=True)),
        (PAIR | {"CUDA_VISIBLE_DEVICES": "0,1"}, Launch(1, 2, 1)),
        (STEP, Launch(rank=11, size=16, local=3)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0"}, Launch(11, 16, 3, shown_one_gpu=True)),
        (STEP | PAIR, Launch(rank=1, size=2, local=1)),  # torchrun within a job step
        (STEP | {"SLURM_NTASKS": "1"}, Launch()),
        ({key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"}, Launch()),  # a batch script
    ],
)
def test_a_launch_is_read(environment: dict[str, str], launch: Launch) -> None:
    assert read_launch(environment, connects=True) == launch


@pytest.mark.parametrize("environment", [PAIR, STEP], ids=["torchrun", "srun"])
def test_processes_that_never_connect_need_no_place_to_meet(environment: dict[str, str]) -> None:
    alone = {key: value for key, value in environment.items() if not key.startswith("MASTER")}
    assert read_launch(alone) == read_launch(environment, connects=True)
    with pytest.raises(UserError, match="without MASTER_ADDR, MASTER_PORT"):
        read_launch(alone, connects=True)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "-1"}, "RANK is '-1': it must be an integer, at least 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': it must be an integer, at least 1"),
        ({"LOCAL_RANK": "0.5"}, "LOCAL_RANK is '0.5'"),
        ({"RANK": "1"}, "RANK is 1 and WORLD_SIZE is not set"),
        (PAIR | {"RANK": "2"}, "RANK is 2 and WORLD_SIZE is 2"),
        (without("RANK"), "WORLD_SIZE is 2 without RANK:"),
        (without("LOCAL_RANK"), "WORLD_SIZE is 2 without LOCAL_RANK:"),
        (without("MASTER_ADDR", "MASTER_PORT"), "WORLD_SIZE is 2 without MASTER_ADDR, MASTER_PORT:"),
        (PAIR | {"MASTER_ADDR": ""}, "WORLD_SIZE is 2 without MASTER_ADDR:"),
        (PAIR | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (PAIR | {"MASTER_PORT": "70000"}, "MASTER_PORT is '70000': it must be an integer, from 1 to 65535"),
        (STEP | {"MASTER_ADDR": ""}, "srun started 16 processes without MASTER_ADDR: export MASTER_ADDR"),
        (STEP | {"SLURM_LOCALID": ""}, "srun started 16 processes without SLURM_LOCALID:"),
        (STEP | {"SLURM_PROCID": "16"}, "SLURM_PROCID is 16 and SLURM_NTASKS is 16"),
        (STEP | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many'"),
    ],
)
def test_half_a_launch_is_refused_in_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match="torchrun") as caught:
        read_launch(environment, connects=True)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("gpus", "launch", "index"),
    [
        (8, Launch(local=3), 3),
        (1, Launch(11, 16, 3, shown_one_gpu=True), 0),
        (1, Launch(), 0),
        (1, Launch(11, 16, 3), None),
        (2, Launch(11, 16, 3), None),
    ],
)
def test_a_process_takes_its_own_gpu(
    gpus: int, launch: Launch, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if index is None:
        with pytest.raises(UserError, match=f"process 3 of this machine finds {gpus} GPUs: start one process per GPU"):
            pick_device("auto", launch)
    else:
        assert pick_device("auto", launch) == torch.device("cuda", index)


@pytest.mark.parametrize(
    ("device", "tf32", "precision"), [("cuda", True, "high"), ("cuda", False, "highest"), ("cpu", True, "highest")]
)
def test_tf32_is_for_a_gpu_that_is_asked_for_it(device: str, tf32: bool, precision: str) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with matmul_precision(torch.device(device), tf32=tf32):
        assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("device", "emptied"), [("cuda", 1), ("cpu", 0)])
def test_memory_that_only_a_cycle_keeps_is_given_back(
    device: str, emptied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(reference() is None))
    module = nn.Linear(2, 2)
    module.register_forward_hook(module.extra_repr)  # which holds its module, as hooks of libraries do
    reference = weakref.ref(module)
    del module
    give_back_memory(torch.device(device))
    assert reference() is None
    assert calls == [True] * emptied  # after it was freed: torch keeps what is in use
