"""Clips that a student predicts: what an interpolator meets in that student's rollouts.

An interpolator of real latents is asked, in a rollout, about something else: the clean video that a student predicts at
a high noise level, which is smoother, and more like what is usual, than any clip. Here it learns from such predictions.
The student goes through its first stages in full, from noise, to the last stage that it will run on part of the
latents, and what it predicts there is a clip: every second frame of it (or row and column) goes in, all of it is to
come out. So what goes in and what is to come out belong to one video. A real clip, or the prediction in full beside one
at half rate from the same noise, would be another video than what goes in, and the best answer to a mean square error
would be the mean of all that fit: no motion.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from avd.data.cache import MemoryLatents, PromptSource
from avd.engine.randomness import UpdateRandom, derive_seed
from avd.flow import few_step_sigmas
from avd.models.family import TextToVideo, open_model
from avd.models.settings import Settings
from avd.sampling.rollout import Rollout, make_stages
from avd.types import Conditions, CountProgress, UserError

_AT_ONCE = 16


def open_predictor(name: str) -> TextToVideo:
    """A student's folder, or a run's student. Raises UserError for any other model, and as `last_strided_stage`."""
    inner = Path(name) / "student"
    student = open_model(str(inner) if inner.is_dir() else name)
    last_strided_stage(student.settings)
    return student


def last_strided_stage(settings: Settings) -> int:
    """The last stage that a student runs on part of the latents: its own, or, if it has none, that of half its steps.

    Raises UserError for a model that is no student, and for a student that has no such stage.
    """
    timesteps = settings.student_timesteps
    if timesteps is None:
        raise UserError("the student of an interpolator is a many-step model: name a student's folder or its run")
    if settings.transition == "euler":
        raise UserError("the student of an interpolator takes Euler steps, which are full: it needs no interpolator")
    if len(timesteps) == 1:
        raise UserError("the student of an interpolator has one step, which is full: it needs no interpolator")
    return (max(settings.half_rate_stages, settings.half_resolution_stages) or len(timesteps) // 2) - 1


@torch.no_grad()
def predict_clips(
    student: TextToVideo, source: PromptSource, count: int, seed: int, progress: CountProgress | None = None
) -> MemoryLatents:
    """The clip that the student predicts at `last_strided_stage` for each of the first `count` prompts of `source`.

    Clip i has noise of its own, whatever else is computed beside it. Kept in half precision.
    """
    settings, device, network = student.settings, student.device, student.velocity(student.device).eval()
    assert settings.student_timesteps is not None, "see `last_strided_stage`"
    rollout, stage = Rollout(make_stages(few_step_sigmas(settings.student_timesteps))), last_strided_stage(settings)
    seed, latents, prompts = derive_seed(seed, "interpolator", "predicted"), [], []
    for start in range(0, count, _AT_ONCE):
        samples = range(start, min(start + _AT_ONCE, count))
        normal = partial(UpdateRandom(seed, 0, samples, device).normal, "rollout", shape=student.latent_shape())
        prompts.append(source.prompts(samples))
        prompt = prompts[-1].to(device)
        x = rollout.run_until(network, normal("start"), prompt, normal, stage)
        latents.append(rollout.predict(network, x, prompt, stage).half().cpu())
        if progress is not None:
            progress(samples.stop, count)
    return MemoryLatents(torch.cat(latents), Conditions.cat(prompts), [source.captions[i] for i in range(count)])
