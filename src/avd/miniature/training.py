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

    Optimizers, by their names in a checkpoint, are made with a learning rate of 1 or a multiple of it; each step names
    its own. Every rank has the full network and steps by the mean of all gradients.
    """

    def __init__(
        self,
        name: str,
        network: NetworkT,
        optimizers: Mapping[str, torch.optim.Optimizer],
        decay: float,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.name, self.network, self.optimizers, self.ranks = name, network, optimizers, ranks
        self._rates = {key: [group["lr"] for group in each.param_groups] for key, each in optimizers.items()}
        self.ema = EMA(network, decay)

    def step(self, loss: Tensor, n: int, learning_rate: float) -> Tensor:
        """Descend by the gradient of `loss`, clipped to a norm of 1, and average; the norm before clipping."""
        for key, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[key], strict=True):
                group["lr"] = rate * learning_rate
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.ema.update(self.network, n)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        tensors = pack_module(self.name, self.network) | pack_module("ema", self.ema.module)
        for key, optimizer in self.optimizers.items():
            tensors |= pack_optimizer(key, optimizer)
        return tensors

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        unpack_module(self.name, self.network, tensors)
        unpack_module("ema", self.ema.module, tensors)
        for key, optimizer in self.optimizers.items():
            unpack_optimizer(key, optimizer, tensors)
