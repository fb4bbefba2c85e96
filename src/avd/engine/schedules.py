"""Factors on the learning rate, as functions of the update n, counted from 0."""

from __future__ import annotations

import math


def warm_cosine(n: int, warmup: int, updates: int) -> float:
    """Linear from 0 over `warmup` updates, then half a cosine to 0 at `updates`."""
    if n < warmup:
        return (n + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (n - warmup) / max(updates - warmup, 1)))


def trapezoid(n: int, warmup: int, cooldown: float, updates: int) -> float:
    """Linear up over `warmup` updates, flat at 1, linear to 0 over the last `cooldown` share of `updates`."""
    falling = max(updates * cooldown, 1.0)
    return min(1.0, (n + 1) / max(warmup, 1), (updates - n) / falling)
