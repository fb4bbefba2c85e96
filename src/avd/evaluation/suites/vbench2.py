"""VBench-2.0: eighteen dimensions in five categories, judged by the official code.

A category is the mean of its dimensions, the total the mean of the categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from avd.evaluation.benchmarks.known import VBENCH2
from avd.evaluation.benchmarks.scoring import Category, Dimension, Scoring
from avd.evaluation.suite import Measure


@dataclass(frozen=True)
class VBench2:
    """VBench-2.0."""

    name: ClassVar[str] = "vbench2"
    scoring: ClassVar[Scoring] = Scoring(
        VBENCH2,
        entry="VBench2",
        categories=(
            Category(
                "creativity",
                "Creativity",
                "Mean of its two dimensions.",
                (
                    Dimension("Composition", "Creatures and scenes that do not exist, put together as asked for."),
                    Dimension("Diversity", "Style and content differ between 20 samples of a prompt.", per_prompt=True),
                ),
            ),
            Category(
                "commonsense",
                "Commonsense",
                "Mean of its two dimensions.",
                (
                    Dimension("Motion_Rationality", "Motion has the effect that it must have."),
                    Dimension("Instance_Preservation", "The number of objects stays as asked for."),
                ),
            ),
            Category(
                "controllability",
                "Controllability",
                "Mean of its seven dimensions.",
                (
                    Dimension("Dynamic_Spatial_Relationship", "Things change places as asked for."),
                    Dimension("Dynamic_Attribute", "Attributes change as asked for."),
                    Dimension("Motion_Order_Understanding", "Two motions happen in the order asked for."),
                    Dimension("Human_Interaction", "People do to each other what was asked for."),
                    Dimension("Complex_Landscape", "A long description of landscapes is followed."),
                    Dimension("Complex_Plot", "A plot of several events is followed."),
                    Dimension("Camera_Motion", "The camera moves as asked for."),
                ),
            ),
            Category(
                "human_fidelity",
                "Human fidelity",
                "Mean of its three dimensions.",
                (
                    Dimension("Human_Anatomy", "Bodies, hands and faces have no deformities."),
                    Dimension("Human_Identity", "Faces stay those of one person."),
                    Dimension("Human_Clothes", "Clothes do not change."),
                ),
            ),
            Category(
                "physics",
                "Physics",
                "Mean of its four dimensions.",
                (
                    Dimension("Mechanics", "Gravity, buoyancy, stress and the like."),
                    Dimension("Thermotics", "Substances melt, boil and freeze as they do."),
                    Dimension("Material", "Substances mix, colour and react as they do."),
                    Dimension("Multi-View_Consistency", "Geometry stays the same while the camera circles."),
                ),
            ),
        ),
        install="git clone https://github.com/Vchitect/VBench && python3.10 -m venv vbench2-env && "
        "vbench2-env/bin/pip install torch==2.5.1 torchvision==0.20.1 torchaudio==2.5.1 psutil ninja && "
        "vbench2-env/bin/pip install --no-build-isolation "
        "git+https://github.com/Dao-AILab/flash-attention.git@v2.7.2.post1 && "
        "vbench2-env/bin/pip install -r VBench/VBench-2.0/requirement.txt && "
        "vbench2-env/bin/pip install --no-deps retinaface_pytorch==0.0.8 && "
        "vbench2-env/bin/pip install -e VBench/VBench-2.0/vbench2/third_party/Instance_detector && "
        "vbench2-env/bin/pip install mmcv==2.2.0 -f "
        "https://download.openmmlab.com/mmcv/dist/cu118/torch2.4/index.html && "
        "export PYTHONPATH=$PWD/VBench/VBench-2.0",
    )
    measures: ClassVar[tuple[Measure, ...]] = scoring.measures

    def unavailable(self) -> str | None:
        """Its code runs in a Python of its own, which is looked at when it is named."""
        return None

    def arguments(self) -> dict[str, Any]:
        """The official defaults."""
        return {}


SUITE = VBench2
