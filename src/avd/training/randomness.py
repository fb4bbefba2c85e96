"""Random numbers as a pure function of (seed, what for, update), so that a resumed run draws what it would have drawn.

No generator's state is ever saved: update 1,234 of a run uses the same noise whether the run was killed before it or
not.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of integers and words."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for, say, (seed, "rollout", update)."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
