"""Processes that belong together, without torchrun between them and the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def start_two(module: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """`python -m module` as ranks 0 and 1 of two, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
