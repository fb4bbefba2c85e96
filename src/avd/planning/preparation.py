"""What preparing a run's clips takes: the VAE's encoder on each, and the text encoder on its caption.

Encoding is counted as making a video is (`generation`): operations at a share of the peak in bfloat16, those of the VAE
at half of it, as its float32 convolutions run in TF32. Reading and checking videos, which processes of the CPU do
meanwhile, disks, and what memory slows down are not counted. Clips are spread evenly over the GPUs, as thousands are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from avd.models.settings import Settings
from avd.models.sizes import OtherParts, Sizes
from avd.planning.parts import measure_encoder, measure_text_encoder
from avd.planning.plan import Machine


@dataclass(frozen=True)
class Encoded:
    """Operations of encoding one clip or one caption, and the seconds that a GPU takes for them."""

    flops: float
    seconds: float


@dataclass(frozen=True)
class Preparation:
    """Clips that are each encoded with a caption of their own, on `gpus` GPUs."""

    gpus: int
    clip: Encoded
    caption: Encoded
    cached: int | None
    """Clips of the recipe's caches; None where it names no data."""

    def seconds_of(self, clips: int) -> float:
        return clips * (self.clip.seconds + self.caption.seconds) / self.gpus

    def to_json(self) -> dict[str, Any]:
        """With the seconds of 1,000 clips, and of those that the recipe's caches hold."""
        cached = None if self.cached is None else self.seconds_of(self.cached)
        return {**asdict(self), "seconds_per_1000": self.seconds_of(1000), "cached_seconds": cached}


def plan_preparation(
    parts: OtherParts, sizes: Sizes, settings: Settings, machine: Machine, cached: int | None
) -> Preparation:
    """What preparing takes of a model with these parts, of clips whose size `sizes` and `settings` agree on."""
    video = measure_encoder(parts, (settings.frames, settings.height, settings.width), sizes.latent_CFHW)
    text = measure_text_encoder(parts)
    return Preparation(
        machine.gpus,
        Encoded(video.flops, machine.seconds_of(video.flops, tf32=True)),
        Encoded(text.flops, machine.seconds_of(text.flops)),
        cached,
    )
