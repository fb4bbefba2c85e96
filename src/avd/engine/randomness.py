"""Random numbers as a pure function of (seed, what for, update, sample), so that nobody needs to save or share any.

No generator's state is ever saved: update 1,234 of a run uses the same noise whether the run was killed before it or
not. And every sample of a batch has numbers of its own, so a batch means the same to one process as to many, and in one
piece as in several.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of integers and words."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for, say, (seed, "rollout", update)."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@dataclass(frozen=True)
class UpdateRandom:
    """The random numbers of update `update` for the samples `samples` of its batch.

    `what` names a quantity, such as ("rollout", 0, "noise"); another name gives independent numbers, the same name the
    same ones. Drawn on the CPU, so that every device sees the same, and put on `device`.
    """

    seed: int
    update: int
    samples: range
    device: torch.device | str = "cpu"

    def part(self, samples: slice) -> UpdateRandom:
        """The same random numbers, for some of the samples."""
        return replace(self, samples=self.samples[samples])

    def normal(self, *what: int | str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._each(what)]).to(self.device)

    def uniform(self, *what: int | str) -> Tensor:
        """Numbers in [0, 1), (B,)."""
        return torch.stack([torch.rand((), generator=g) for g in self._each(what)]).to(self.device)

    def integers(self, *what: int | str, high: int) -> Tensor:
        """Integers in [0, high), (B,)."""
        return torch.stack([torch.randint(high, (), generator=g) for g in self._each(what)]).to(self.device)

    def shared_integer(self, *what: int | str, high: int) -> int:
        """One integer in [0, high) for the full batch, whichever of its samples these are."""
        return int(torch.randint(high, (), generator=generator_for(self.seed, self.update, *what)))

    def shared_uniform(self, *what: int | str) -> float:
        """One number in [0, 1), likewise."""
        return float(torch.rand((), generator=generator_for(self.seed, self.update, *what)))

    def _each(self, what: tuple[int | str, ...]) -> list[torch.Generator]:
        return [generator_for(self.seed, self.update, *what, "sample", row) for row in self.samples]
