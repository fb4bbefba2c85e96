"""Several networks in one: a frozen transformer and LoRA adapters on it (arXiv 2106.09685), each seen as a network.

An adapted linear layer computes W x + (alpha / rank) B A x. B starts at zero, so an adapter begins as its base.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from avd.types import Conditions, UserError

if TYPE_CHECKING:
    from avd.models.backbone import Backbone

Gather = Callable[[Tensor], Tensor]
"""Gathers a tensor that may be sharded on the CPU."""


class AdapterVelocity:
    """A base with one of its adapters switched on, or with none, as an `avd.types.Velocity`."""

    def __init__(self, base: Backbone, adapter: str | None) -> None:
        self.base, self.adapter = base, adapter

    def __call__(self, x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1) -> Tensor:
        with switched(self.base.transformer, self.adapter):
            return self.base(x_BCFHW, sigma_B, conditions, frame_stride=frame_stride)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's own; the base's are nobody's."""
        mark = f".{self.adapter}."
        return ((name, p) for name, p in self.base.named_parameters() if "lora_" in name and mark in name)

    def parameters(self) -> Iterator[nn.Parameter]:
        return (p for _, p in self.named_parameters())


def add_adapters(
    transformer: nn.Module, names: tuple[str, ...], *, rank: int, alpha: float, targets: tuple[str, ...]
) -> None:
    """Freeze a transformer and give it adapters of these names, in place, all of them beginning alike.

    `targets` are endings of the names of linear layers. The first matrices are drawn from torch's global generator.
    Raises UserError as `check_targets`.
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
            down.data, up.data = layer.lora_A[names[0]].weight.data.float().clone(), up.data.float()


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


def merged_weights(transformer: nn.Module, adapter: str, gather: Gather) -> dict[str, Tensor]:
    """The state dict of a plain transformer that is the base with the adapter in it: W + (alpha / rank) B A."""
    merged = {
        name.replace(".base_layer", ""): gather(p).clone()
        for name, p in transformer.named_parameters()
        if "lora_" not in name
    }
    for name, layer in _named_layers(transformer):
        weight = merged[f"{name}.weight"]
        down, up = gather(layer.lora_A[adapter].weight), gather(layer.lora_B[adapter].weight)
        weight += (layer.scaling[adapter] * (up.float() @ down.float())).to(weight.dtype)
    return merged


def adapter_weights(transformer: nn.Module, adapter: str, gather: Gather) -> dict[str, Tensor]:
    """The adapter by itself, by the names that diffusers gives a LoRA of a transformer, alpha / rank multiplied in."""
    scaling = {name: layer.scaling[adapter] for name, layer in _named_layers(transformer)}
    tensors = get_peft_model_state_dict(transformer, adapter_name=adapter)
    weights = {name: gather(tensor).float() for name, tensor in tensors.items()}
    for name in weights:
        layer, _, matrix = name.partition(".lora_")
        if matrix.startswith("B"):
            weights[name] = weights[name] * scaling[layer]
    return weights


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
