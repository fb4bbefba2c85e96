"""What the environment says of a launch: complete, absent, or refused in one line."""

from __future__ import annotations

import socket

import pytest

from avd.config import ComputeRecipe
from avd.engine.ranks import Launch, process_group, read_launch
from avd.types import UserError

PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


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
    ],
)
def test_a_launch_is_read(environment: dict[str, str], launch: Launch) -> None:
    assert read_launch(environment) == launch


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
    ],
)
def test_half_a_launch_is_refused_in_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match="torchrun") as caught:
        read_launch(environment)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


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
