"""Which device to compute on."""

from __future__ import annotations

import torch

from avd.types import UserError


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device that "auto", "cpu" or "cuda" names, for the `local`-th process on this machine.

    "auto" is a GPU if there is any. Raises UserError if there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if local >= gpus:
        raise UserError(
            f"process {local} of this machine finds {gpus} GPUs: start one process per GPU, or set compute.device=cpu"
        )
    return torch.device("cuda", local)
