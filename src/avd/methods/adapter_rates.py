"""Learning rates of adapters, which at those of full models learn several times less.

A step of AdamW changes each weight by about the learning rate, so a full layer's output moves with as many weights as
it has inputs. An adapter's B A begins with B = 0 and moves through the few rows of A: the less, the smaller its rank is
beside the layer's width. docs/method.md has what was measured.
"""

from __future__ import annotations

from avd.config import OptimizerRecipe, Recipe
from avd.methods.method import Method

ADAPTER_RATE = 10
"""Times the rate of a full model at which its adapters move at least as far per update."""
LOWEST_ADAPTER_RATE = 1e-5
"""Rates below are those of full models: five times the paper's, which stands for those of its size."""


def adapter_rates(recipe: Recipe) -> dict[str, float]:
    """The rates, by dotted key, for the adapters of networks that `recipe` trains in full."""
    rates = {key: ADAPTER_RATE * optimizer.learning_rate for key, optimizer in _optimizers(recipe).items()}
    return {key: float(f"{rate:.6g}") for key, rate in rates.items()}


def explain_low_rates(recipe: Recipe) -> str | None:
    """A line about adapters that learn at a full model's rate, and what to do; None where there are none."""
    slow = {key: each.learning_rate for key, each in _optimizers(recipe).items()}
    slow = {key: rate for key, rate in slow.items() if rate < LOWEST_ADAPTER_RATE}
    if recipe.roles == "full" or not slow:
        return None
    found = " and ".join(f"{key} is {rate:g}" for key, rate in slow.items())
    rates = adapter_rates(recipe)
    remedy = " ".join(f"--set {key}={rates[key]:g}" for key in slow)
    return f"{found}: adapters move several times less than full models at such a rate; try {remedy}"


def _optimizers(recipe: Recipe) -> dict[str, OptimizerRecipe]:
    """The optimizers of the networks that learn, by the dotted key of their learning rate."""
    networks = Method.of(recipe).networks
    optimizers = {"student": recipe.student.optimizer, **{name: each.optimizer for name, each in networks.items()}}
    return {f"{name}.optimizer.learning_rate": optimizer for name, optimizer in optimizers.items()}
