"""VBench: sixteen dimensions, judged by the official code.

Each dimension is normalised by the worst and the best score that its authors found (the constants of the benchmark's
own scripts/constant.py). The total is (4 quality + semantic) / 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from avd.evaluation.benchmarks.known import VBENCH
from avd.evaluation.benchmarks.scoring import Category, Dimension, Scoring
from avd.evaluation.suite import Measure


@dataclass(frozen=True)
class VBench:
    """VBench."""

    local: bool = False
    """Whether CLIP and DINO are read from the folder VBENCH_CACHE_DIR, and not from where their libraries keep them."""

    name: ClassVar[str] = "vbench"
    scoring: ClassVar[Scoring] = Scoring(
        VBENCH,
        entry="VBench",
        categories=(
            Category(
                "quality",
                "Quality",
                "How videos look, whatever they were asked to show: seven dimensions, normalised.",
                (
                    Dimension("subject_consistency", "DINO features of a subject stay alike over frames.", 0.1462),
                    Dimension("background_consistency", "CLIP features of frames stay alike.", 0.2615),
                    Dimension(
                        "temporal_flickering", "1 - mean change of pixels between frames of still scenes.", 0.6293
                    ),
                    Dimension("motion_smoothness", "Frames lie where interpolation expects them.", 0.706, 0.9975),
                    Dimension("dynamic_degree", "Share of clips in which RAFT finds large motion.", weight=0.5),
                    Dimension("aesthetic_quality", "LAION's aesthetic predictor, mean of frames."),
                    Dimension("imaging_quality", "MUSIQ: blur, noise, exposure; mean of frames."),
                ),
                weight=4.0,
            ),
            Category(
                "semantic",
                "Semantic",
                "Whether videos show what they were asked for: nine dimensions, normalised.",
                (
                    Dimension("object_class", "Share of frames in which the object is detected."),
                    Dimension("multiple_objects", "Share of frames in which both objects are detected."),
                    Dimension("human_action", "Share of clips in which the action is recognised."),
                    Dimension(
                        "color", "Share of frames with the colour asked for, where the object is.", partial_list=True
                    ),
                    Dimension("spatial_relationship", "Objects stand to each other as asked for."),
                    Dimension("scene", "Share of frames that a captioner describes as the scene.", most=0.8222),
                    Dimension("appearance_style", "CLIP similarity to the style.", 0.0009, 0.2855, signed=True),
                    Dimension("temporal_style", "ViCLIP similarity to the camera's motion.", most=0.364, signed=True),
                    Dimension("overall_consistency", "ViCLIP similarity to the prompt.", most=0.364, signed=True),
                ),
            ),
        ),
        install="python3.10 -m venv vbench-env && "
        "vbench-env/bin/pip install torch==2.5.1 torchvision==0.20.1 vbench==0.1.5 && "
        "vbench-env/bin/pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git",
    )
    measures: ClassVar[tuple[Measure, ...]] = scoring.measures

    def unavailable(self) -> str | None:
        """Its code runs in a Python of its own, which is looked at when it is named."""
        return None

    def arguments(self) -> dict[str, Any]:
        """As the official command passes them."""
        return {"local": self.local, "imaging_quality_preprocessing_mode": "longer"}


SUITE = VBench
