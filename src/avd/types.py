"""Words that all of the project shares.

Shape suffixes of tensors in maths code, as in `x_BCFHW`:

    B  samples in a batch            L  text tokens of a prompt
    C  latent channels               D  width of a text embedding
    F  latent frames                 S  stages of a rollout
    H  latent height                 P  pairs of neighbouring latent frames
    W  latent width

Pixel videos are uint8 arrays of shape (F, H, W, 3), sRGB. Latents are float tensors of shape (B, C, F, H, W), whitened
with the VAE's own mean and standard deviation. A clip of `4 n + 1` frames has `n + 1` latent frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

if TYPE_CHECKING:  # so that rooms without maths can use UserError without loading torch
    import torch
    from torch import Tensor


class UserError(ValueError):
    """Something a user can fix. The message is one line: what was found, where, and what to do.

    The command line prints it and exits with code 2; anything else is a bug and may print a traceback.
    """


Transition = Literal["renoise", "euler"]
"""How a student goes from one stage to the next: it noises its clean video afresh, or takes an Euler step."""

CountProgress = Callable[[int, int], None]
"""Called with the number done and the number in all."""


class Stopped(Exception):
    """A run that ended early, on purpose and with its state saved. The command line prints it and exits with `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a network is given beside the noisy latents: tensors by name, every one (B, ...), a row per sample.

    "embedding" (B, L, D), the encoded prompt, is always there. A family may add "mask" (B, L), 1 at the tokens of the
    prompt and 0 past its end, "pooled" (B, P), one vector per prompt, and "embedding_2", of a second text encoder.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        assert "embedding" in self.tensors
        assert len({len(tensor) for tensor in self.tensors.values()}) == 1, "tensors of different batch sizes"

    def __len__(self) -> int:
        return len(self.tensors["embedding"])

    @overload
    def __getitem__(self, key: str) -> Tensor: ...

    @overload
    def __getitem__(self, key: slice) -> Conditions: ...

    def __getitem__(self, key: str | slice) -> Tensor | Conditions:
        """The tensor of a name, or the conditions of a slice of the batch, as a view."""
        return self.tensors[key] if isinstance(key, str) else self._map(lambda tensor: tensor[key])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample's tensor, by name."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}

    def to(self, *where: Any) -> Conditions:
        """On a device, of a dtype, or both, as `Tensor.to` takes them."""
        return self._map(lambda tensor: tensor.to(*where))

    def pin_memory(self) -> Conditions:
        """In memory that a GPU copies from while the CPU does something else: see `upload`."""
        return self._map(lambda tensor: tensor.pin_memory())

    def upload(self, device: torch.device) -> Conditions:
        """On a device, without waiting for the copy where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def expand(self, count: int) -> Conditions:
        """One row seen as a batch of `count`, without a copy."""
        assert len(self) == 1
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Batches of the same names, one after the other."""
        import torch

        assert all(part.tensors.keys() == parts[0].tensors.keys() for part in parts)
        return Conditions({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        return Conditions({name: function(tensor) for name, tensor in self.tensors.items()})


class Velocity(Protocol):
    """A network seen as the maths sees it: the velocity v = eps - x0 that it predicts at a noise level.

    `x_BCFHW` is the noisy latent, `sigma_B` its noise level in (0, 1], `conditions` the encoded prompts. With
    `frame_stride` s, frame i of `x_BCFHW` stands at position s * i of the full-rate video, and with `space_stride` r
    row and column j stand at r * j of the full-resolution one.
    """

    def __call__(
        self,
        x_BCFHW: Tensor,
        sigma_B: Tensor,
        conditions: Conditions,
        *,
        frame_stride: int = 1,
        space_stride: int = 1,
    ) -> Tensor: ...


@dataclass(frozen=True)
class LossTerm:
    """What an objective returns: a named loss with a value per sample, metrics to log, and values to watch.

    `per_sample_B` carries the gradient; its mean is the term of the total loss, before the recipe's weight. `values`
    are further numbers per sample, (B,) each, without gradient, by names of the term's own. `gradient_parts` are what
    its gradient is the sum of: by name as it is logged, the mean square (B,) of that part of D dL_b/dx, with L_b a
    sample's loss, x what the term judges of it and D the number of its values. `notes` are tensors without gradient,
    (B, ...) each, for terms that judge the same samples after it.
    """

    name: str
    per_sample_B: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    gradient_parts: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Tensor] = field(default_factory=dict)
