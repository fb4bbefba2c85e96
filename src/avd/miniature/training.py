"""What the tasks of the miniature share: one network in training, its average and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from avd.engine.ema import EMA
from avd.engine.packing import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from avd.engine.ranks import SINGLE_PROCESS, Ranks

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class NetworkTraining(Generic[NetworkT]):
    """A base of `engine.loop.Task`: the optimizer's step and what a checkpoint holds. `name` is the network's there.

    The optimizer is made with a learning rate of 1; each step names its own. Every rank has the full network and steps
    by the mean of all gradients.
    """

    def __init__(
        self,
        name: str,
        network: NetworkT,
        optimizer: torch.optim.Optimizer,
        decay: float,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.name, self.network, self.optimizer, self.ranks = name, network, optimizer, ranks
        self.ema = EMA(network, decay)

    def step(self, loss: Tensor, n: int, learning_rate: float) -> Tensor:
        """Descend by the gradient of `loss`, clipped to a norm of 1, and average; the norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.network, n)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        return (
            pack_module(self.name, self.network)
            | pack_module("ema", self.ema.module)
            | pack_optimizer("optimizer", self.optimizer)
        )

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        unpack_module(self.name, self.network, tensors)
        unpack_module("ema", self.ema.module, tensors)
        unpack_optimizer("optimizer", self.optimizer, tensors)
