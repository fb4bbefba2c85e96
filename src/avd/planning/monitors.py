"""What a run's monitors take: their references, once, and each measurement of the student.

The teacher's videos cost most by far. A large one makes them in at most 25 steps, unless a recipe says otherwise: they
are compared by their colours and their motion, for which the finer steps of a published setting are not needed.

Counted are the networks. The VAE's decoding, one clip at a time, and the statistics, which threads of the CPU compute
meanwhile, are not.
"""

from __future__ import annotations

from dataclasses import dataclass

from avd.flow import few_step_sigmas
from avd.models.settings import Settings
from avd.models.sizes import Sizes
from avd.planning.flops import flops_of
from avd.planning.plan import Plan
from avd.sampling.rollout import make_stages

LARGE_FORWARD = 1e12
"""Operations of one clip's forward from which a model is large. The miniature's takes 3e8, that of a model with 1.3
billion parameters on 81 frames of 480 x 832 3e14. At 1e12 a clip of 50 steps with guidance takes a quarter of a second
at 40 % of an H100's peak."""
LARGE_STEPS = 25


def default_teacher_steps(settings: Settings, sizes: Sizes) -> int:
    """Steps of the teacher's videos where `monitors.teacher_steps` is null: as its settings say, at most `LARGE_STEPS`
    for a large model. `sizes` are at the size of the run's clips."""
    large = flops_of(sizes).forward >= LARGE_FORWARD
    return min(settings.steps, LARGE_STEPS) if large else settings.steps


@dataclass(frozen=True)
class Sampled:
    """Videos of all monitored clips, over all ranks: forwards of one clip, their operations, and how long they take."""

    forwards: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class MonitorPlan:
    """A rank that is one clip short repeats one, which is counted too."""

    clips: int
    """Videos, further seeds of a prompt among them."""
    clips_per_rank: int
    """What every rank samples."""
    teacher_steps: int
    references: Sampled
    measurement: Sampled
    measurements: int
    """In the run."""
    share: float
    """How much of the run's time references and all measurements take."""
    peak: float
    """Bytes on a rank while the networks sample."""


def plan_monitors(plan: Plan, settings: Settings) -> MonitorPlan | None:
    """What the monitors of a planned run take, of a model with these settings; None if it has none."""
    recipe, machine, sizes, teacher = plan.recipe, plan.machine, plan.sizes, plan.sizes_of("teacher")
    monitors, updates = recipe.monitors, recipe.training.updates
    if not monitors.every:
        return None
    shares = machine.gpus // recipe.compute.context
    prompts, seeds = monitors.seeds_of(monitors.clips)
    videos = monitors.clips + prompts * (seeds - 1)
    sampled = -(-videos // shares) * shares  # all ranks sample as many
    steps = monitors.teacher_steps or default_teacher_steps(settings, teacher)
    calls = steps * (1 if settings.guidance == 1.0 else 2)
    stages = make_stages(few_step_sigmas(recipe.rollout.timesteps), *recipe.rollout.strided_stages)
    stages = stages[: recipe.trained_stages.stop]
    adapters = recipe.adapters if recipe.roles == "adapters" else None
    rate = machine.gpus * machine.mfu * machine.peak_of(recipe) * 1e12

    def sample(forwards: int, flops: float) -> Sampled:
        return Sampled(sampled * forwards, sampled * flops, sampled * flops / rate)

    references = sample(calls, calls * flops_of(teacher).forward)
    measurement = sample(len(stages), sum(flops_of(sizes, stage.strides, adapters).forward for stage in stages))
    measurements = -(-updates // monitors.every)  # the last update is always measured
    seconds = references.seconds + measurements * measurement.seconds
    return MonitorPlan(
        clips=videos,
        clips_per_rank=sampled // shares,
        teacher_steps=steps,
        references=references,
        measurement=measurement,
        measurements=measurements,
        share=seconds / (seconds + plan.seconds * updates),
        peak=plan.resident.total + max(moment.total for moment in plan.account.monitoring()),
    )
