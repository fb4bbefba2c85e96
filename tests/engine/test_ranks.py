"""The processes of a launch as they meet: where they cannot, and where two were given one GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from avd.config import ComputeRecipe
from avd.engine.ranks import process_group
from avd.types import UserError

PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_a_port_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for key, value in (PAIR | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}).items():
            monkeypatch.setenv(key, value)
        with (
            pytest.raises(UserError, match=rf"cannot meet at MASTER_ADDR 127.0.0.1, MASTER_PORT {port}") as caught,
            process_group(ComputeRecipe(device="cpu")),
        ):
            pass
        assert len(str(caught.value).splitlines()) == 1


def test_one_process_needs_no_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with process_group(ComputeRecipe(device="cpu", dtype="bfloat16")) as ranks:
        assert (ranks.rank, ranks.size) == (0, 1) and ranks.mesh is not None


SRUN = """
import os
from avd import ui
from avd.config import ComputeRecipe
from avd.engine import ranks
from avd.models.devices import read_launch
from avd.types import UserError

with ranks.process_group(ComputeRecipe(device="cpu")) as joined:
    launch = read_launch(os.environ)
    print(joined.rank, joined.size, joined.all_sum(ranks.torch.tensor([10.0 + joined.rank])).item(), ui.out.quiet)
    ranks._refuse_shared_gpu(f"node gpu-{joined.rank}", launch)
    try:
        ranks._refuse_shared_gpu("node gpu-0", launch)
    except UserError as error:
        print(error)
"""


def outputs_of_srun(script: str) -> list[list[str]]:
    """Lines that each of two processes shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=120)[0].splitlines() for process in processes]


def test_processes_that_srun_started_meet_and_refuse_to_share_a_gpu() -> None:
    for rank, (met, refusal) in enumerate(outputs_of_srun(SRUN)):
        assert met == f"{rank} 2 21.0 {rank == 1}"
        assert refusal.startswith("processes 0, 1 were given the same GPU: show each process its own")


ATTENDED = """
import time
from datetime import timedelta
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout
from avd.config import ComputeRecipe
from avd.engine.ranks import process_group
from avd.types import UserError

def fail():
    time.sleep(5)
    raise UserError("the disk is full")

with process_group(ComputeRecipe(device="cpu")) as ranks:
    ranks.barrier()
    _set_pg_timeout(timedelta(seconds=3), dist.group.WORLD)
    ranks.attend(lambda: print("worked"))
    try:
        ranks.attend(fail)
    except UserError as error:
        print(error)
"""


def test_the_first_rank_may_work_alone_for_longer_than_ranks_wait_for_each_other() -> None:
    assert outputs_of_srun(ATTENDED) == [["worked", "the disk is full"], ["the disk is full"]]


def test_groups_of_ranks_wait_as_long_as_the_recipe_says() -> None:
    """One rank in bfloat16 is a group of its own."""
    with process_group(ComputeRecipe(dtype="bfloat16", device="cpu", timeout_minutes=7)) as ranks:
        assert ranks.mesh is not None
        for group in (dist.group.WORLD, *ranks.mesh.get_all_groups()):
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=7)
