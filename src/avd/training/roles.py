"""Teacher, student and fake score: three roles over the weights of one model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avd.config import OptimizerRecipe, Recipe
from avd.models.wan import VideoModel, WanVelocity
from avd.training.checkpoint import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from avd.training.ema import EMA


class Trained:
    """A role that learns: its network, its optimizer, and how many steps were skipped for gradients not finite."""

    def __init__(self, name: str, network: WanVelocity, recipe: OptimizerRecipe) -> None:
        self.name, self.network, self.recipe = name, network.train().requires_grad_(True), recipe
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.steps = self.skipped = 0

    def step(self) -> float:
        """Clip the gathered gradient, take one optimizer step unless the gradient is not finite, clear it.

        Returns the norm before clipping.
        """
        warmup = self.recipe.warmup
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, (self.steps + 1) / max(warmup, 1))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.steps += 1
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> dict[str, Tensor]:
        return pack_module(self.name, self.network) | pack_optimizer(f"{self.name}_optimizer", self.optimizer)

    def state(self) -> dict[str, int]:
        return {"steps": self.steps, "skipped": self.skipped}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, int]) -> None:
        unpack_module(self.name, self.network, tensors)
        unpack_optimizer(f"{self.name}_optimizer", self.optimizer, tensors)
        self.steps, self.skipped = state["steps"], state["skipped"]


class Roles:
    """Three full models: a frozen teacher, and a student and a fake score that start as copies of it."""

    def __init__(self, model: VideoModel, recipe: Recipe) -> None:
        self.teacher = model.velocity().eval().requires_grad_(False)
        self.student = Trained("student", model.fresh_velocity(), recipe.student.optimizer)
        self.fake_score = Trained("fake_score", model.fresh_velocity(), recipe.fake_score.optimizer)
        self.average = EMA(self.student.network, recipe.student.ema)
        """Of the student's weights; what is exported."""
