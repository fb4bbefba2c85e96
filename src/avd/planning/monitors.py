"""What a run's monitors take: their references, once, and each measurement of the student.

The teacher's videos cost most by far. A large one makes them in at most 25 steps, unless a recipe says otherwise: they
are compared by their colours and their motion, for which the finer steps of a published setting are not needed.
"""

from __future__ import annotations

from avd.models.settings import Settings
from avd.models.sizes import Sizes
from avd.planning.flops import flops_of

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
