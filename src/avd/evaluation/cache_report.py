"""What a latent cache holds, in metrics: is it the data one meant to train on, and does the model's VAE fit it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from avd.data import LatentCache, read_skipped, source_seconds
from avd.measures.video import measure_pixels
from avd.models.family import TextToVideo
from avd.objectives.temporal import frame_variance, temporal_regularization

_UPSAMPLED = 0.2


@dataclass(frozen=True)
class CacheReport:
    """Metrics of the latents are over `sampled` clips, evenly spaced over the cache."""

    clips: int
    files: int
    clips_per_file: tuple[int, int]
    """Fewest and most clips of a file."""
    seconds: float
    source_seconds: float
    """Length of the files that the clips are of."""
    sampled: int
    different_captions: int
    words: tuple[int, int]
    """Fewest and most words of a caption."""
    repeated_share: float
    """Share of the clips' frames that repeat the one before."""
    upsampled_share: float
    """Share of clips in which a fifth of the frames or more do: those of footage with fewer frames per second."""
    skipped: dict[str, int]
    """Files and windows left out, by reason."""
    latent_mean: float
    latent_std: float
    """About 0 and 1 if the videos are like those that the VAE's statistics come from."""
    still_share: float
    """Share of clips whose latents hardly change: variance over frames below a tenth of the median."""
    temporal_loss: float
    """The temporal regularization's loss of these latents: what `truncation: data` means."""


def report_on(cache: LatentCache, sample: int = 256) -> CacheReport:
    """Read `sample` clips of a cache, or all if it has fewer, and describe it."""
    latents = cache.latents(evenly_spaced(len(cache), sample))
    variance = frame_variance(latents)
    per_file = Counter(item.file for item in cache.items)
    repeated = np.array([item.repeated for item in cache.items]) / max(cache.geometry.frames - 1, 1)
    words = [len(caption.split()) for caption in cache.captions]
    return CacheReport(
        clips=len(cache),
        files=len(per_file),
        clips_per_file=(min(per_file.values()), max(per_file.values())),
        source_seconds=source_seconds(cache.items),
        seconds=len(cache) * cache.geometry.frames / cache.geometry.fps,
        sampled=len(latents),
        different_captions=len(set(cache.captions)),
        words=(min(words), max(words)),
        repeated_share=float(repeated.mean()),
        upsampled_share=float((repeated >= _UPSAMPLED).mean()),
        skipped=dict(Counter(skip.reason for skip in read_skipped(cache.path)).most_common()),
        latent_mean=latents.mean().item(),
        latent_std=latents.std().item(),
        still_share=(variance < 0.1 * variance.median()).float().mean().item(),
        temporal_loss=temporal_regularization(latents).per_sample_B[0].item(),
    )


@dataclass(frozen=True)
class PixelReport:
    """Means over decoded clips, in shares of the full range."""

    saturation: float
    """HSV saturation."""
    brightness: float
    contrast: float
    """Standard deviation of the brightness within a frame."""
    change: float
    """Absolute difference between neighbouring frames."""


def decode_some(cache: LatentCache, model: TextToVideo, count: int) -> tuple[np.ndarray, list[str]]:
    """`count` clips spread over the cache, decoded to uint8 videos (B, F, H, W, 3), and their captions."""
    indices = evenly_spaced(len(cache), count)
    return model.decode_video(cache.latents(indices)), [cache.captions[i] for i in indices]


def report_on_pixels(videos: np.ndarray) -> PixelReport:
    """The means over uint8 videos (B, F, H, W, 3), taken in floats a frame at a time: they may be large."""
    stats = [measure_pixels(video) for video in videos]
    return PixelReport(
        saturation=float(np.mean([each.saturation for each in stats])),
        brightness=int(videos.sum(dtype=np.int64)) / (255 * videos.size),
        contrast=float(np.mean([each.contrast for each in stats])),
        change=float(np.mean([_change(video) for video in videos])),
    )


def _change(video: np.ndarray) -> float:
    """`PixelReport.change` of a uint8 video (F, H, W, 3); 0 for a single frame."""
    total = sum(int(np.abs(after.astype(np.int16) - before).sum(dtype=np.int64)) for before, after in pairwise(video))
    return total / (255 * max(video[1:].size, 1))


def evenly_spaced(count: int, sample: int) -> list[int]:
    """`sample` indices below `count`, evenly spaced, or all of them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(sample, count))})
