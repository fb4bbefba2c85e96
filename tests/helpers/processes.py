"""Processes that belong together, without torchrun between them and the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def start_ranks(size: int, module: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """`python -m module` as each of `size` ranks, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def end_of(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each, within five minutes."""
    ends = []
    for process in processes:
        _, errors = process.communicate(timeout=300)
        ends.append((process.returncode, errors))
    return ends
