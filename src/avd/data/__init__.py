"""The data room: video files, captions, the latent cache, and the order in which training reads it."""

from __future__ import annotations

from avd.data.batches import BatchOrder, Portion, places_of
from avd.data.cache import (
    Geometry,
    Item,
    LatentCache,
    LatentSource,
    MemoryLatents,
    PromptSource,
    Skip,
    read_skipped,
    source_seconds,
)
from avd.data.cache_writer import CacheWriter
from avd.data.captions import CaptionedFile, read_captions, read_prompts, write_captions
from avd.data.mixture import LatentMixture
from avd.data.parts import Share
from avd.data.prepare import Encoder, Reports, Summary, prepare
from avd.data.prepare_texts import prepare_texts
from avd.data.texts import EncodedTexts, ListedPrompts, encode_texts
from avd.data.video.checks import Checks, recommended
from avd.data.video.mp4 import video_bytes, write_video
from avd.data.video.reading import ReadOptions, Video, VideoError, read_video

__all__ = [
    "BatchOrder",
    "CacheWriter",
    "CaptionedFile",
    "Checks",
    "EncodedTexts",
    "Encoder",
    "Geometry",
    "Item",
    "LatentCache",
    "LatentMixture",
    "LatentSource",
    "ListedPrompts",
    "MemoryLatents",
    "Portion",
    "PromptSource",
    "ReadOptions",
    "Reports",
    "Share",
    "Skip",
    "Summary",
    "Video",
    "VideoError",
    "encode_texts",
    "places_of",
    "prepare",
    "prepare_texts",
    "read_captions",
    "read_prompts",
    "read_skipped",
    "read_video",
    "recommended",
    "source_seconds",
    "video_bytes",
    "write_captions",
    "write_video",
]
