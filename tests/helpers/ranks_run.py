"""Small distillation runs in as many processes as torchrun starts.

    torchrun --nproc-per-node 2 ranks_run.py RUN ...

A RUN is "FOLDER UPDATES [KEY=VALUE ...]"; a folder that is there is resumed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from avd.engine.ranks import process_group
from helpers.distill_run import distill, small_recipe, small_task

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it where sequences are shared
    dist.init_process_group("gloo")  # once: a second group in one process would find the addresses of the first
    for line in sys.argv[1:]:
        folder, updates, *overrides = line.split()
        recipe = small_recipe(*overrides)
        resume = Path(folder).exists()
        with process_group(recipe.compute) as ranks:
            ranks.barrier()  # before the first rank makes the folder
            distill(Path(folder), int(updates), resume=resume, task=small_task(recipe, ranks))
