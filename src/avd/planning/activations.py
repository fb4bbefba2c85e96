"""Memory of one pass through a network, found by running the network's own code on tensors that hold no data.

Under torch's `FakeTensorMode` every operation yields tensors of the right sizes and computes nothing, autograd saves
what it would really save, and a backward frees it. Storages are counted as they come and go. Parameters, their
gradients and the inputs are not counted: they are the business of `planning.memory`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avd.config import AdaptersRecipe
from avd.models.adapters import add_adapters
from avd.models.backbone import Backbone, Recomputed
from avd.models.sizes import Sizes
from avd.types import Conditions

_DEPTHS = (2, 4)
"""Depths that are run. Beyond the second block every block adds the same; both are even for `selective`."""
_CLIPS = (1, 2)
"""Microbatches that are run. Every further clip adds the same."""


@dataclass(frozen=True)
class MeasuredPass:
    """One forward and, with `gradient`, its backward, of a microbatch of `clips`."""

    clips: int
    gradient: bool
    dtype: torch.dtype
    checkpointing: Recomputed = "none"
    adapters: AdaptersRecipe | None = None
    """Adapters that are on; with a gradient they alone are trained."""
    attention: str | None = None
    gpu: bool = True
    """Count as on a GPU, whose normalisations keep less than a CPU's."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes on top of weights, gradients and inputs."""

    saved: float
    """Alive between forward and backward."""
    peak: float


@dataclass
class PassMeter:
    """Measures passes through a model of given sizes; a pass that was measured before costs nothing."""

    sizes: Sizes
    _known: dict[str, PassMemory] = field(default_factory=dict)

    def __call__(self, which: MeasuredPass) -> PassMemory:
        key = repr(which)
        if key not in self._known:
            self._known[key] = self._measure(which)
        return self._known[key]

    def _measure(self, which: MeasuredPass) -> PassMemory:
        if which.clips > _CLIPS[1]:
            return _extend(_CLIPS, [self(replace(which, clips=clips)) for clips in _CLIPS], which.clips)
        layers = self.sizes.layers
        if not which.gradient:  # nothing is kept from block to block
            return run_fake(self.sizes, min(layers, _DEPTHS[0]), which)
        if layers <= _DEPTHS[1]:
            return run_fake(self.sizes, layers, which)
        return _extend(_DEPTHS, [run_fake(self.sizes, depth, which) for depth in _DEPTHS], layers)


def _extend(measured: tuple[int, int], found: Sequence[PassMemory], wanted: int) -> PassMemory:
    """The line through two measurements, at `wanted`."""
    (x, y), (a, b) = measured, found
    steps = (wanted - x) / (y - x)
    return PassMemory(a.saved + steps * (b.saved - a.saved), a.peak + steps * (b.peak - a.peak))


def run_fake(sizes: Sizes, layers: int, which: MeasuredPass) -> PassMemory:
    """`which` through a network of `layers` blocks, on fake tensors."""
    # What backends keep does not differ, but for the scores.
    attention = sdpa_kernel(SDPBackend.MATH) if sizes.keeps_scores(which.attention) else nullcontext()
    with FakeTensorMode(), attention:
        network = build_hollow(replace(sizes, layers=layers), which.dtype, which.adapters)
        network.recompute(which.checkpointing)
        move_here(network)
        if which.gpu:
            _fuse_norms(network)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        noisy = torch.empty(which.clips, *sizes.latent_CFHW)
        sigma = torch.empty(which.clips)
        prompts = Conditions({k: torch.empty(which.clips, *shape) for k, shape in sizes.conditions.items()})
        given = [*network.parameters(), *network.buffers(), noisy, sigma, *prompts.tensors.values()]
        with LiveBytes(given) as live, torch.set_grad_enabled(which.gradient):
            velocity = network(noisy, sigma, prompts)
            saved = live.now
            if which.gradient:
                velocity.backward(torch.empty_like(velocity))
    return PassMemory(saved, live.peak)


def build_hollow(sizes: Sizes, dtype: torch.dtype, adapters: AdaptersRecipe | None) -> Backbone:
    """The network on the meta device, all of it trained or, with `adapters`, only these.

    Parameters are of `dtype`; buffers keep their precision, as they do in training. Raises UserError for adapters of
    layers that are not there.
    """
    with torch.device("meta"):
        network = sizes.build()
        if adapters is not None:
            targets = adapters.targets or sizes.adapter_targets
            add_adapters(network.transformer, ("student",), rank=adapters.rank, alpha=adapters.alpha, targets=targets)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def move_here(network: nn.Module) -> None:
    """From the meta device to fake tensors of the CPU, for which kernels are chosen as for real ones."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations under it make, from when they are made until they are freed."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """Storages of `given` tensors are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in given}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor):  # whose parts are counted by themselves
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _fuse_norms(network: nn.Module) -> None:
    """RMS norms as a GPU's fused kernel keeps them; elsewhere they are composed of operations that keep more."""
    for module in network.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = partial(_fused_norm, module)  # type: ignore[method-assign]


def _fused_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return _FusedNorm.apply(x, norm.weight)


class _FusedNorm(torch.autograd.Function):
    """Sizes of an RMS norm whose backward starts from the input, the weight and one float32 a row."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = context.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
