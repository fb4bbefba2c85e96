"""Host memory while a run starts: what each process of one, two and four holds at most, beside what it keeps.

Every process opens a folder with a random transformer, makes all networks of a full distillation (teacher, student,
fake score, average) as a run does, and records the most memory that is its own (RssAnon) every millisecond. The bar: at
most 1.3 times its own shards and one largest tensor. Real processes of gloo, on the CPU.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch.distributed.tensor import DTensor

from avd.config import load_recipe
from avd.distillation.roles import Roles
from avd.distillation.starts import Starts
from avd.engine.ranks import process_group
from avd.methods.method import Method
from avd.models.family import load_model
from avd.models.wan.model import VideoModel

_MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # in the processes that are measured
    options = parser.parse_args()
    if options.folder is not None:
        measure(options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", options.layers, options.width)
        for count in options.processes:
            start(count, Path(folder) / "model")


def make_model(folder: Path, layers: int, width: int) -> None:
    """The shipped miniature with a larger transformer of random weights."""
    mini = load_model("wan-mini")
    assert isinstance(mini, VideoModel)
    heads = width // 64
    config = {**mini.transformer.config, "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 64}
    transformer = WanTransformer3DModel.from_config({**config, "ffn_dim": 4 * width})
    VideoModel(transformer, mini.vae, mini.text_encoder, mini.tokenizer, mini.settings).save(folder)


def start(count: int, folder: Path) -> None:
    """Run `measure` in `count` processes, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--folder", str(folder)],
            env={
                **os.environ,
                "WORLD_SIZE": str(count),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(count)
    ]
    for process in processes:
        if process.wait():
            raise SystemExit(process.returncode)


def measure(folder: str) -> None:
    recipe = load_recipe("avd", [f"model={folder}", "compute.device=cpu"])
    method, model = Method.of(recipe), load_model(folder)
    with process_group(recipe.compute) as ranks:
        ranks.barrier()
        with watched() as peak:
            roles = Roles(Starts.alike(model, method), recipe, method, ranks)
        networks = (roles.teacher, roles.student.network, roles.auxiliary("fake_score"), roles.average.network)
        own = sum(local(p).nbytes for network in networks for p in network.parameters())  # type: ignore[attr-defined]
        largest = max(4 * torch.Size(shape).numel() for shape in model.weights().shapes.values())
        ratio = peak[0] / (own + largest)
        line = f"{peak[0] / _MB:.0f} MB at most, {own / _MB:.0f} MB of shards and {largest / _MB:.0f} MB of one tensor"
        for rank in range(ranks.size):
            ranks.barrier()
            if rank == ranks.rank:
                print(f"process {rank} of {ranks.size}: {line}: {ratio:.2f} times", flush=True)


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most bytes of this process's own that a block adds, in a list of one number."""
    before, peak, done = own_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], own_bytes() - before)
            time.sleep(0.001)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], own_bytes() - before)


def own_bytes() -> int:
    """RssAnon: what no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    main()
