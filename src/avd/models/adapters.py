"""Several networks in one: a frozen transformer and LoRA adapters on it (arXiv 2106.09685), each seen as a network.

An adapted linear layer computes W x + (alpha / rank) B A x. B starts at zero, so an adapter begins as its base.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from avd.models.lora import WEIGHT, LoraMatrices, MergedWeights
from avd.models.streams import TensorStream
from avd.models.weights import Weights, read_tensor, slices
from avd.types import Conditions, UserError

if TYPE_CHECKING:
    from avd.models.backbone import Backbone

Collect = Callable[[Tensor], Tensor | None]
"""Collects a tensor that may be sharded on the CPU of the first rank; None on the others."""


class AdapterVelocity:
    """A base with one of its adapters switched on, or with none, as an `avd.types.Velocity`."""

    def __init__(self, base: Backbone, adapter: str | None) -> None:
        self.base, self.adapter = base, adapter

    def __call__(self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, **strides: int) -> Tensor:
        with switched(self.base.transformer, self.adapter):
            return self.base(x_BCFHW, sigma_B, conditions, **strides)

    def features(
        self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, blocks: Sequence[int], **strides: int
    ) -> tuple[Tensor, ...]:
        """See `Backbone.features`."""
        with switched(self.base.transformer, self.adapter):
            return self.base.features(x_BCFHW, sigma_B, conditions, blocks, **strides)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's own; the base's are nobody's."""
        mark = f".{self.adapter}."
        return ((name, p) for name, p in self.base.named_parameters() if "lora_" in name and mark in name)

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for _, p in self.named_parameters())


def add_adapters(
    transformer: nn.Module, names: tuple[str, ...], *, rank: int, alpha: float, targets: tuple[str, ...]
) -> None:
    """Freeze a transformer and give it adapters of these names, in place.

    `targets` are endings of the names of linear layers. How adapters begin is `AdaptedWeights`' to say: what they hold
    before is peft's, or nothing on the meta device. Raises UserError as `check_targets`.
    """
    check_targets(transformer, targets)
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    with warnings.catch_warnings(action="ignore"):  # of there being several adapters
        for name in names:
            inject_adapter_in_model(config, transformer, adapter_name=name)
    _LAYERS.pop(transformer, None)  # as of before
    for layer in _layers(transformer):
        for name in names:
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            # peft makes them of the base's type; they are trained, so in float32
            down.data, up.data = down.data.float(), up.data.float()


def attach_lora(transformer: nn.Module, lora: LoraMatrices) -> None:
    """Have a plain transformer compute W x + B A x, for good, with A and B in float32 whatever W is.

    Merged into weights of bfloat16, most of a small change would be rounded away. The transformer is frozen. Raises
    ValueError for a LoRA that does not fit.
    """
    modules = dict(transformer.named_modules())
    for layer, rank in lora.ranks.items():
        module, (down, up) = modules.get(layer), lora.read(layer)
        found, needed = (tuple(down.shape), tuple(up.shape)), None
        if isinstance(module, nn.Linear):
            needed = (rank, module.in_features), (module.out_features, rank)
        if found != needed:
            raise ValueError(f"it changes {layer} by matrices {found[0]} and {found[1]}, and its base has {module}")
    name, ranks = "student", {f"^{re.escape(layer)}$": rank for layer, rank in lora.ranks.items()}
    config = LoraConfig(target_modules=list(lora.ranks), rank_pattern=ranks, alpha_pattern=ranks)
    inject_adapter_in_model(config, transformer, adapter_name=name)
    _LAYERS.pop(transformer, None)
    for layer, module in _named_layers(transformer):
        for matrix, values in zip((module.lora_A[name], module.lora_B[name]), lora.read(layer), strict=True):
            matrix.weight.data = values.to(matrix.weight.device)
    transformer.requires_grad_(False)


def check_targets(transformer: nn.Module, targets: tuple[str, ...]) -> None:
    """Raise UserError for a target that names no layer, or one that is not linear."""
    modules = dict(transformer.named_modules())
    for target in targets:
        found = [module for name, module in modules.items() if name == target or name.endswith("." + target)]
        if not found:
            raise UserError(f"adapters.targets names {target!r}, and the model has no such layer: see docs/recipes.md")
        if not all(isinstance(module, nn.Linear) for module in found):
            raise UserError(f"adapters.targets names {target!r}, which is not a linear layer: see docs/recipes.md")


@contextmanager
def switched(transformer: nn.Module, adapter: str | None) -> Iterator[None]:
    """With this adapter on, or none, for the duration of a block.

    peft's own switch also freezes every adapter that is off, which would cut a graph that still waits for its backward
    pass; gradients here reach whatever was on when the graph was made.
    """
    layers = _layers(transformer)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [adapter or "none"], adapter is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def switched_as_now(transformer: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which the same adapter is on as at this moment: for a forward that is run again later."""
    layers = _layers(transformer)
    adapter = None if not layers or layers[0]._disable_adapters else layers[0]._active_adapter[0]
    return lambda: switched(transformer, adapter)


def adapter_stream(transformer: nn.Module, adapter: str, collect: Collect) -> TensorStream:
    """The adapter by itself, by the names that diffusers gives a LoRA of a transformer, alpha / rank multiplied in."""
    matrices: dict[str, tuple[Tensor, float]] = {}
    for name, layer in _named_layers(transformer):
        matrices[f"{name}.lora_A.weight"] = layer.lora_A[adapter].weight, 1.0
        matrices[f"{name}.lora_B.weight"] = layer.lora_B[adapter].weight, layer.scaling[adapter]

    def make(name: str) -> Tensor | None:
        matrix, scale = matrices[name]
        found = collect(matrix)
        return None if found is None else scale * found.float()

    return TensorStream({name: tuple(matrix.shape) for name, (matrix, _) in matrices.items()}, make)


def merged_stream(
    transformer: nn.Module, adapter: str, base: Weights, collect: Collect, *, main: bool = True
) -> TensorStream:
    """The weights of a plain transformer that is the base with the adapter in it: W + (alpha / rank) B A, in float32.

    W is read again from `base`, the weights as they are stored: those in memory may be rounded. `main`: whether this
    rank is the one that `collect` gives its tensors to.
    """
    own = adapter_stream(transformer, adapter, collect)
    shapes = {
        layer: (own.shapes[f"{layer}.lora_A.weight"], own.shapes[f"{layer}.lora_B.weight"])
        for layer in adapted_layers(transformer)
    }

    def read(layer: str) -> tuple[Tensor | None, Tensor | None]:
        return own.make(f"{layer}.lora_A.weight"), own.make(f"{layer}.lora_B.weight")

    merged = MergedWeights(base, LoraMatrices(shapes, read))  # type: ignore[arg-type]

    def make(name: str) -> Tensor | None:
        if main:
            return read_tensor(merged, name).float()
        if merged.changes(name):
            read(name.removesuffix(WEIGHT))
        return None

    return TensorStream(base.shapes, make)


class AdaptedWeights:
    """`Weights` of a network with adapters, by its own names of its parameters, as they begin.

    `starts` holds each adapter's beginning, and `scaling` the alpha / rank that the network multiplies B A with.
    """

    def __init__(self, base: Weights, starts: Mapping[str, LoraMatrices], scaling: float) -> None:
        self._base, self._starts, self._scaling = base, starts, scaling
        self.shapes = base.shapes

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        layer, found, rest = name.partition(".lora_")
        if not found:
            return self._base.region(name.replace(".base_layer", ""), offset, shape)
        matrix, adapter, _ = rest.split(".")
        down, up = self._starts[adapter].read(layer)
        return (down if matrix == "A" else up / self._scaling)[slices(offset, shape)]


def adapted_layers(transformer: nn.Module) -> list[str]:
    """The names of the linear layers that have adapters."""
    return [name for name, _ in _named_layers(transformer)]


_LAYERS: WeakKeyDictionary[nn.Module, list[LoraLayer]] = WeakKeyDictionary()
"""The adapted layers of each transformer that was asked for them. They are switched at every call, and for every block
that is computed again, and there are thousands of modules to look through."""


def _layers(transformer: nn.Module) -> list[LoraLayer]:
    found = _LAYERS.get(transformer)
    if found is None:
        found = _LAYERS[transformer] = [layer for _, layer in _named_layers(transformer)]
    return found


def _named_layers(transformer: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]
