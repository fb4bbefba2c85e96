"""From videos and captions to a latent cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from avd.data.cache import MANIFEST, Geometry, Item, Skip, is_begun, manifest_header, read_manifest, source_seconds
from avd.data.cache_writer import CacheWriter, check_begun, join_caches
from avd.data.overlap import read_heldout, shared_prompts
from avd.data.parts import (
    PART_FILES,
    Part,
    Share,
    failing_aloud,
    locked,
    remove_notes,
    remove_parts,
    split_parts,
    wait_for,
)
from avd.data.plan import Captioned, Planned, plan
from avd.data.tensor_files import Dtype
from avd.data.texts import TextEncoder, encode_texts, join_texts
from avd.data.video.checks import Checks, recommended
from avd.data.video.reading import ReadOptions, RefusedWindow, VideoError
from avd.data.video.workers import Job, Outcome, decoded
from avd.files import FolderInUse
from avd.types import CountProgress, UserError


class Encoder(TextEncoder, Protocol):
    """A model as preparation sees it."""

    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Whitened latents (B, C, F', H', W') of uint8 clips (B, F, H, W, 3)."""
        ...

    def drop(self, *parts: str) -> None:
        """Forget parts (`text_encoder`, `vae`) until they are needed again."""
        ...


@dataclass(frozen=True)
class Summary:
    """What a cache was made of.

    `kept` clips of `files` files, `seconds` of video in all, out of the `source_seconds` that these files last; `size`
    bytes on disk. `skipped` counts what was left out by reason, `examples` has the first of each; `skipped.jsonl` in
    the cache names them all.
    """

    kept: int
    files: int
    seconds: float
    source_seconds: float
    size: int
    skipped: dict[str, int]
    examples: dict[str, Skip]


@dataclass(frozen=True)
class Reports:
    """Whom to tell how preparation proceeds, if anybody.

    `say` is called with a line of what is asked of the videos, once nothing speaks against preparing them; `warn` with
    one for each list of prompts that the captions overlap; `videos` with the number of this process's captioned videos
    done and of all of them, `texts` likewise, and `waiting` with the number of parts that are complete, and of all that
    are waited for.
    """

    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    videos: CountProgress = lambda done, total: None
    texts: CountProgress = lambda done, total: None
    waiting: CountProgress = lambda done, total: None


def prepare(
    videos: Path,
    captions: Path | None,
    encoder: Encoder,
    output: Path,
    reading: ReadOptions,
    *,
    file_column: str | None = None,
    caption_column: str | None = None,
    workers: int = 0,
    batch_size: int = 4,
    shard_size: int = 64,
    part_size: int = PART_FILES,
    dtype: Dtype = "float16",
    texts: Sequence[str] = ("",),
    prompts: Sequence[str] | None = None,
    heldout: Sequence[Path] = (),
    share: Share | None = None,
    reports: Reports | None = None,
) -> Summary | None:
    """Encode the captioned videos of the folder or tar `videos` into a latent cache at `output`.

    `captions` is a table (see `read_captions`); None takes `captions.jsonl` in the folder, or else the text beside each
    video. Each file gives the clips that `reading` asks for; they are read by `workers` processes; 0 is this one. Files
    and windows that cannot be used, or do not pass its checks, are skipped. Then the captions of the clips are encoded,
    and `texts`, which a run needs besides: the null prompt and a negative one. `prompts` become the list of the cache.

    This process does its `share` of the parts of `part_size` files (see `avd.data.parts`); None is all of them. Returns
    None, and not what the cache holds, if others still have parts to do, or are to complete the cache.

    An interrupted run, repeated, resumes after the last complete shard and writes the same bytes as a run at a stretch
    (on devices that repeat their results), whatever `workers` and however many shares there are. A finished cache is
    left as it is.

    Raises `UserError` for captions or a `heldout` that cannot be read, a missing folder, an output folder in use by
    anything else or by another process, captions that have changed since the cache was begun, if no file can be used
    at all, and if another process that this one waits for has failed.
    """
    share, reports = share or Share(), reports or Reports()
    job = _Job(encoder, reading, captions or videos, workers, batch_size, shard_size, dtype)
    planned = plan(videos, captions, file_column, caption_column)
    _warn_of_overlap(planned, heldout, reports.warn)
    parts = job.split(output, planned, part_size)
    reports.say(f"asked of videos: {reading.checks}")
    with failing_aloud(output, share):
        job.encode(parts[share.index :: share.count], reports)
    if not share.waits_for:
        return None
    wait_for(output, parts, share, reports.waiting)
    if not all(part.is_complete for part in parts):
        return None
    try:
        with locked(output, of=output):
            if not (output / MANIFEST).exists():
                job.join(output, parts, texts, videos)
            return job.describe(output, planned, texts, prompts, reports)
    except FolderInUse:
        if len(share.waits_for) == share.count:
            raise
        return None  # another share was as fast, and completes it


@dataclass(frozen=True)
class _Job:
    """How a cache is made: by whom, of what, and in which portions. `source` is what messages call the captions."""

    encoder: Encoder
    reading: ReadOptions
    source: Path
    workers: int
    batch_size: int
    shard_size: int
    dtype: Dtype

    def __post_init__(self) -> None:
        windows, batch_size, workers = self.reading.windows, self.batch_size, self.workers
        if min(windows, batch_size) < 1 or workers < 0:
            least = "at least 1, 1 and 0 are needed"
            raise UserError(f"{windows} windows, batch size {batch_size}, {workers} workers: {least}")

    def split(self, output: Path, planned: Sequence[Planned], part_size: int) -> list[Part]:
        """The parts of a cache; none if it is finished. Raises `UserError` if others have begun it in another way."""
        if (output / MANIFEST).exists():
            return []
        parts = split_parts(output, planned, part_size)
        begun = next((part for part in parts if is_begun(part.path) or (part.path / MANIFEST).exists()), None)
        if begun is not None:  # now, and not when all parts are joined
            check_begun(begun.path, manifest_header(**self._way))
        return parts

    def encode(self, parts: Sequence[Part], reports: Reports) -> None:
        """Encode the clips of all parts, and then their captions: no two encoders need be in memory together."""
        texts: list[list[str]] = []
        counts = [sum(isinstance(each, Captioned) for each in part.planned) for part in parts]
        for number, part in enumerate(parts):
            with part.locked():
                writer = self._open(part.path, part.planned)
                if not writer.finished:
                    batch = _Batch(writer, self.encoder, self.batch_size)
                    progress = _shifted(reports.videos, sum(counts[:number]), sum(counts))
                    _fill(writer, part.planned, self.reading, self.workers, batch, progress)
                    writer.finish()
                texts.append(list(dict.fromkeys(item.caption for item in writer.items)))
        self.encoder.drop("vae")
        counts = [len(each) for each in texts]
        for number, part in enumerate(parts):
            with part.locked():
                progress = _shifted(reports.texts, sum(counts[:number]), sum(counts))
                self._encode_texts(part.path, texts[number], progress)

    def join(self, output: Path, parts: Sequence[Part], texts: Sequence[str], videos: Path) -> None:
        """Make the cache of its parts, which are complete, with `texts` besides.

        Raises `UserError` if none of them has a clip; nothing is left then.
        """
        writers = [self._open(part.path, part.planned) for part in parts]
        if not any(map(len, writers)):
            skipped = [skip for writer in writers for skip in writer.skipped]
            remove_parts(output, parts)
            reasons = ", ".join(f"{count} {reason}" for reason, count in _count_reasons(skipped).items())
            first = f"the first, {skipped[0].file}: {skipped[0].detail}"
            raise UserError(f"no file in {videos} can be used ({reasons}); {first}")
        join_texts(output, [writer.path for writer in writers if len(writer)])
        self._encode_texts(output, texts)
        remove_notes(output)
        join_caches(output, writers)

    def describe(
        self,
        output: Path,
        planned: Sequence[Planned],
        texts: Sequence[str],
        prompts: Sequence[str] | None,
        reports: Reports,
    ) -> Summary:
        """What a finished cache holds. Texts that it lacks, as one of an earlier version may, are added to it, as are
        `prompts`."""
        job = replace(self, reading=_asked_then(self.reading, read_manifest(output)))
        writer = job._open(output, planned)
        captions = [] if writer.holds_prompts else [item.caption for item in writer.items]
        needed, report = [*texts, *captions], reports.texts
        encode_texts(output, self.encoder, needed, dtype=self.dtype, prompts=prompts, progress=report)
        return _summary(writer, self.reading.frames / self.reading.fps)

    def _open(self, path: Path, planned: Sequence[Planned]) -> CacheWriter:
        writer = CacheWriter(path, **self._way)
        _refuse_other_captions(writer, planned, self.source)
        return writer

    @property
    def _way(self) -> dict[str, Any]:
        """What all that write one cache must have in common."""
        return {
            "identity": self.encoder.identity,
            "geometry": Geometry(self.reading.frames, *self.reading.size, float(self.reading.fps)),
            "dtype": self.dtype,
            "shard_size": self.shard_size,
            "reading": self.reading.header,
        }

    def _encode_texts(self, folder: Path, texts: Sequence[str], progress: CountProgress | None = None) -> None:
        encode_texts(folder, self.encoder, texts, dtype=self.dtype, shard_size=max(1, len(texts)), progress=progress)


def _asked_then(reading: ReadOptions, manifest: Mapping[str, Any]) -> ReadOptions:
    """What the same options asked for when a cache was made: before there were checks, none were recommended."""
    recommends = reading.checks == recommended(reading.fps, *reading.size)
    return replace(reading, checks=Checks()) if recommends and "checks" not in manifest else reading


def _shifted(progress: CountProgress, before: int, total: int) -> CountProgress:
    """Reports the progress of a portion as that of all, `total`, of which `before` come first."""
    return lambda done, _: progress(before + done, total)


def _warn_of_overlap(planned: list[Planned], heldout: Sequence[Path], warn: Callable[[str], None]) -> None:
    captions = {each.caption: None for each in planned if isinstance(each, Captioned)}
    for path in heldout:
        shared = shared_prompts(captions, read_heldout(path))
        if shared:
            warn(f"{len(shared)} of {len(captions)} different captions are prompts of {path}, such as: {shared[0]}")


class _Batch:
    """Clips to be encoded together."""

    def __init__(self, writer: CacheWriter, encoder: Encoder, size: int) -> None:
        self._writer, self._encoder, self._size = writer, encoder, size
        self._items: list[Item] = []
        self._frames: list[np.ndarray] = []

    def add(self, item: Item, frames: np.ndarray) -> None:
        self._items.append(item)
        self._frames.append(frames)
        # Batches end where shards do: a continued run then forms the same batches, and results in the last bit may
        # depend on what else is in a batch.
        if len(self._items) == min(self._size, self._writer.room):
            self.encode()

    def encode(self) -> None:
        if not self._items:
            return
        latents = self._encoder.encode_video(np.stack(self._frames))
        for item, latent in zip(self._items, latents, strict=True):
            self._writer.add(latent, item)
        self._items.clear()
        self._frames.clear()


def _fill(
    writer: CacheWriter,
    planned: Sequence[Planned],
    reading: ReadOptions,
    workers: int,
    batch: _Batch,
    progress: CountProgress,
) -> None:
    written = Counter(item.file for item in writer.items)
    # An interruption may have come between two windows of the last file written, and of that one only.
    last = writer.items[-1] if writer.items else None
    settled = _files_before(last.file if last else None, planned)
    settled |= {skip.file for skip in writer.skipped if skip.kept == 0 and skip.start is None}
    captioned = [each for each in planned if isinstance(each, Captioned)]
    jobs = [
        Job(each.source, last.start if last and last.file == each.source.name else None)
        for each in captioned
        if each.source.name not in settled
    ]
    done = len(captioned) - len(jobs)
    progress(done, len(captioned))
    with closing(decoded(jobs, reading, workers)) as results:
        for each in planned:
            if isinstance(each, Skip):
                writer.skip(each)
            elif each.source.name not in settled:
                clips = written[each.source.name]
                for outcome in next(results):
                    clips += _add(outcome, each, clips, writer, batch)
                done += 1
                progress(done, len(captioned))
    batch.encode()


def _files_before(file: str | None, planned: Sequence[Planned]) -> set[str]:
    """The captioned files that come before one; none if that is None."""
    names = [each.source.name for each in planned if isinstance(each, Captioned)]
    return set() if file is None else set(names[: names.index(file)])


def _add(outcome: Outcome, of: Captioned, clips: int, writer: CacheWriter, batch: _Batch) -> int:
    """Add a window to the batch, or note why there is none; the number of windows that is."""
    name = of.source.name
    if isinstance(outcome, VideoError):
        writer.skip(Skip(name, outcome.reason, outcome.detail, clips))
    elif isinstance(outcome, RefusedWindow):
        writer.skip(Skip(name, outcome.reason, outcome.detail, clips, outcome.start))
    else:
        seconds, repeated = outcome.source_seconds, outcome.repeated
        batch.add(Item(of.caption, name, outcome.start, seconds, repeated), outcome.frames)
        return 1
    return 0


def _refuse_other_captions(writer: CacheWriter, planned: Sequence[Planned], captions: Path) -> None:
    """A cache continued, or finished, with other captions would not hold what its captions say."""
    caption_of = {each.source.name: each.caption for each in planned if isinstance(each, Captioned)}
    for item in writer.items:
        if caption_of.get(item.file) != item.caption:
            raise UserError(f"{captions} changed after {writer.path} was begun ({item.file}): choose another folder")
    if writer.finished:
        settled = {item.file for item in writer.items} | {skip.file for skip in writer.skipped}
        missing = caption_of.keys() - settled
        if missing:
            raise UserError(
                f"the latent cache {writer.path} is finished without {len(missing)} files of {captions}, "
                f"such as {min(missing)}: choose another folder"
            )


def _summary(writer: CacheWriter, clip_seconds: float) -> Summary:
    return Summary(
        kept=len(writer),
        files=len({item.file for item in writer.items}),
        seconds=len(writer) * clip_seconds,
        source_seconds=source_seconds(writer.items),
        size=sum(entry.stat().st_size for entry in writer.path.rglob("*") if entry.is_file()),
        skipped=_count_reasons(writer.skipped),
        examples={skip.reason: skip for skip in reversed(writer.skipped)},
    )


def _count_reasons(skipped: Sequence[Skip]) -> dict[str, int]:
    return dict(Counter(skip.reason for skip in skipped).most_common())
