"""Videos of the networks of a run: what its monitors measure and its previews show."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avd.distillation.roles import Roles
from avd.engine.stopping import Heed
from avd.models.family import TextToVideo
from avd.models.solvers import make_solver
from avd.planning.monitors import default_teacher_steps
from avd.sampling.rollout import Renoise, Rollout
from avd.sampling.teacher import sample_teacher
from avd.types import Conditions, Velocity


class RunSampler:
    """The averaged student by its rollout, and the teacher by many steps. What it takes and gives is on the CPU."""

    def __init__(self, model: TextToVideo, roles: Roles, rollout: Rollout, unconditional: Conditions) -> None:
        self._model, self._roles, self._rollout, self._unconditional = model, roles, rollout, unconditional
        self._teacher = roles.starts.teacher.model
        self._device = unconditional["embedding"].device

    @torch.no_grad()
    def student(self, noise_BCFHW: Tensor, prompts: Conditions, renoise: Renoise, heed: Heed = lambda: None) -> Tensor:
        """Latents of the averaged student's rollout. `heed` is called before each call of the network."""
        network, device = _heeding(self._roles.path_of(self._roles.average.network), heed), self._device
        noise, prompts = noise_BCFHW.to(device), prompts.to(device)
        return self._rollout(network, noise, prompts, lambda stage: renoise(stage).to(device)).cpu()

    @property
    def fps(self) -> float:
        """Frames per second of the videos."""
        return self._model.settings.fps

    @property
    def default_teacher_steps(self) -> int:
        """Steps of the teacher where a recipe does not say."""
        return default_teacher_steps(self._teacher.settings, self._teacher.sizes)

    def teacher(self, noise_BCFHW: Tensor, prompts: Conditions, steps: int, heed: Heed = lambda: None) -> Tensor:
        """Latents of the teacher in `steps` steps. `heed` is called before each call of the network."""
        settings = self._teacher.settings
        return sample_teacher(
            _heeding(self._roles.teacher, heed),
            noise_BCFHW.to(self._device),
            prompts.to(self._device),
            self._unconditional,
            steps=steps,
            guidance=settings.guidance,
            shift=settings.shift,
            solver=make_solver(settings.solver, settings.shift),
        ).cpu()

    def decode(self, latents_BCFHW: Tensor) -> np.ndarray:
        """uint8 videos (B, F, H, W, 3)."""
        return self._model.decode_video(latents_BCFHW)

    def rest(self) -> None:
        """Let go of what training has no use for."""
        self._model.drop("vae")


def _heeding(network: Velocity, heed: Heed) -> Velocity:
    """The network, calling `heed` before it computes."""

    def call(
        x_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions, *, frame_stride: int = 1, space_stride: int = 1
    ) -> Tensor:
        heed()
        return network(x_BCFHW, sigma_B, conditions, frame_stride=frame_stride, space_stride=space_stride)

    return call
