"""From a folder of videos and a captions file to a latent cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from avd.data.cache import Geometry, Item
from avd.data.cache_writer import CacheWriter
from avd.data.captions import CaptionedFile, captions_beside, read_captions
from avd.data.video import VideoError, read_video
from avd.types import UserError

CAPTIONS_FILE = "captions.jsonl"
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


class Encoder(Protocol):
    """A model as preparation sees it. `identity` changes whenever the encodings would."""

    @property
    def identity(self) -> str: ...

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Whitened latents (B, C, F', H', W') of uint8 clips (B, F, H, W, 3)."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Embeddings (B, L, D), L the same for all prompts."""
        ...


@dataclass(frozen=True)
class Summary:
    """What a cache was made of.

    `kept` clips, `seconds` of video in all, `size` bytes on disk; `skipped` counts the files left out by reason, among
    them files that have no caption and captions that have no file. `skipped.jsonl` in the cache names them.
    """

    kept: int
    skipped: dict[str, int]
    seconds: float
    size: int


def prepare(
    videos: Path,
    captions: Path | None,
    encoder: Encoder,
    output: Path,
    *,
    file_column: str | None = None,
    caption_column: str | None = None,
    frames: int,
    fps: float,
    height: int,
    width: int,
    batch_size: int = 4,
    shard_size: int = 64,
    dtype: Literal["float16", "bfloat16"] = "float16",
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Encode the captioned files of the folder `videos` into a latent cache at `output`.

    `captions` is a table (see `read_captions`); None takes `captions.jsonl` in the folder, or else the text file beside
    each video.
    The first `frames` frames of each file, at `fps` and cropped to `height` x `width`, make one clip; see `read_video`.
    Files that cannot be used are skipped. `progress` is called with the number of captions done and of all captions.

    An interrupted run, repeated, goes on after the last complete shard and writes the same bytes as a run at a stretch
    (on devices that repeat their results). A finished cache is left as it is.

    Raises `UserError` for a captions file that cannot be read, a missing folder, an output folder in use by anything
    else, captions that have changed since the cache was begun, and if no file can be used at all.
    """
    if not videos.is_dir():
        raise UserError(f"no videos at {videos}: there is no such folder")
    captions = captions or _table_in(videos)
    if captions is None:
        entries = captions_beside(videos, _files_in(videos))
    else:
        entries = read_captions(captions, file_column=file_column, caption_column=caption_column)
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}: at least 1 is needed")
    geometry = Geometry(frames, height, width, float(fps))
    writer = CacheWriter(output, identity=encoder.identity, geometry=geometry, shard_size=shard_size, dtype=dtype)
    _refuse_other_captions(writer, entries, captions or videos)
    if not writer.finished:
        _encode_all(writer, entries, videos, encoder, geometry, batch_size, progress)
        _skip_uncaptioned(writer, entries, videos)
        if len(writer) == 0:
            first, counts = writer.skipped[0], _count_reasons(writer)
            writer.abandon()
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            raise UserError(f"no file in {videos} can be used ({reasons}); the first, {first.file}: {first.detail}")
        writer.finish()
    return Summary(
        kept=len(writer),
        skipped=_count_reasons(writer),
        seconds=len(writer) * frames / fps,
        size=sum(entry.stat().st_size for entry in output.iterdir()),
    )


def _refuse_other_captions(writer: CacheWriter, entries: list[CaptionedFile], captions: Path) -> None:
    """A cache continued, or finished, with other captions would not hold what its captions file says."""
    caption_of = {entry.file: entry.caption for entry in entries}
    for item in writer.items:
        if caption_of.get(item.file) != item.caption:
            raise UserError(f"{captions} changed after {writer.path} was begun ({item.file}): choose another folder")
    if writer.finished:
        missing = caption_of.keys() - _settled(writer)
        if missing:
            raise UserError(
                f"the latent cache {writer.path} is finished without {len(missing)} files of {captions}, "
                f"such as {min(missing)}: choose another folder"
            )


def _encode_all(
    writer: CacheWriter,
    entries: list[CaptionedFile],
    videos: Path,
    encoder: Encoder,
    geometry: Geometry,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    settled = _settled(writer)
    batch: list[CaptionedFile] = []
    clips: list[np.ndarray] = []

    def encode_batch() -> None:
        latents = encoder.encode_video(np.stack(clips))
        prompts = encoder.encode_prompts([entry.caption for entry in batch])
        for entry, latent, prompt in zip(batch, latents, prompts, strict=True):
            writer.add(latent, prompt, Item(entry.caption, entry.file))
        batch.clear()
        clips.clear()

    for done, entry in enumerate(entries, start=1):
        if entry.file not in settled:
            try:
                clip = read_video(
                    videos / entry.file,
                    frames=geometry.frames,
                    fps=geometry.fps,
                    size=(geometry.height, geometry.width),
                )
            except VideoError as error:
                writer.skip(entry.file, error.reason, error.detail)
            else:
                batch.append(entry)
                clips.append(clip.frames)
        # Batches end where shards do: a continued run then forms the same batches, and results in the last bit may
        # depend on what else is in a batch.
        if len(batch) == min(batch_size, writer.room):
            encode_batch()
        if progress is not None:
            progress(done, len(entries))
    if batch:
        encode_batch()


def _skip_uncaptioned(writer: CacheWriter, entries: list[CaptionedFile], videos: Path) -> None:
    known = {entry.file for entry in entries} | _settled(writer)
    for file in _files_in(videos):
        if file not in known:
            writer.skip(file, "no caption", "no caption names it")


def _table_in(videos: Path) -> Path | None:
    table = videos / CAPTIONS_FILE
    return table if table.is_file() else None


def _files_in(videos: Path) -> list[str]:
    """The video files anywhere under a folder, relative to it, sorted."""
    found = (path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    return sorted(path.relative_to(videos).as_posix() for path in found)


def _settled(writer: CacheWriter) -> set[str]:
    return {item.file for item in writer.items} | {skip.file for skip in writer.skipped}


def _count_reasons(writer: CacheWriter) -> dict[str, int]:
    return dict(Counter(skip.reason for skip in writer.skipped).most_common())
