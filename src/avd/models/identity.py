"""Which latents and prompt embeddings belong to which model: a hash over what they were made with.

It reads the first values of every weight of VAE and text encoder. It reads only those of a model on disk, so it needs
no memory, whatever the size of the text encoder and the precision it would be loaded in. A sampler's identity reads a
network in the same way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

from torch import nn

from avd.models.weights import WeightFiles, Weights, stored_names

_VALUES = 64
Entry = tuple[str, bytes]
"""Name and shape of a weight, and its first values."""


def entries_in_memory(network: nn.Module) -> Iterator[Entry]:
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.flatten()[:_VALUES].float().cpu().numpy()
        yield f"{name}{tuple(tensor.shape)}", values.tobytes()


def entries_on_disk(skeleton: nn.Module, weights: WeightFiles) -> Iterator[Entry]:
    """Entries of the weights that fill `skeleton`; the same as those of the network they make, loaded in float32."""
    stored = stored_names(skeleton, weights.shapes)
    for name, tensor in sorted(skeleton.state_dict().items()):
        alias = stored[name]
        assert alias is not None, "weights were checked when they were found"
        yield f"{name}{tuple(tensor.shape)}", weights.first_values(alias, _VALUES).numpy().tobytes()


def entries_of(weights: Weights) -> Iterator[Entry]:
    """Entries of a network by its weights as they are stored: no more is read of each than its first rows."""
    for name, shape in sorted(weights.shapes.items()):
        first = shape
        if shape:
            rows = math.ceil(_VALUES / max(math.prod(shape[1:]), 1))
            first = (min(rows, shape[0]), *shape[1:])
        values = weights.region(name, (0,) * len(shape), first).flatten()[:_VALUES]
        yield f"{name}{shape}", values.float().numpy().tobytes()


def identity_of(family: str, entries: Iterable[Entry], *about: object) -> str:
    """`<family>-<hash>`, which changes with any of the entries and with what else is passed."""
    digest = hashlib.sha256(repr(about).encode())
    for name, values in entries:
        digest.update(name.encode() + values)
    return f"{family}-{digest.hexdigest()[:16]}"
