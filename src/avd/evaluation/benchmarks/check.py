"""The check of a benchmark's folder, before hours of official code: every video there, nothing else, each decodable.

The official code is silent about all of this: it skips a video that it does not find, and takes the suffix of any file
that does not belong for that of all. Every frame is decoded here, one at a time. What has passed is remembered by size
and time of change, in `{folder}.checked.jsonl` beside the folder, and is not decoded again. What each file says of its
making is remembered too, and compared with the manifest each time: a video under another's name decodes as well.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from avd.evaluation.benchmarks.layout import Layout
from avd.evaluation.benchmarks.manifest import Manifest
from avd.evaluation.suite import Shape
from avd.files import append_json_line, is_unfinished, read_json_lines
from avd.sampling.generation import read_description
from avd.types import CountProgress, UserError

_MOST_THREADS = 8
"""Files that are decoded at a time; FFmpeg lets other threads run meanwhile."""

_REMEDY = "remove it, and run its `avd generate` again"


@dataclass(frozen=True)
class _Passed:
    """A file that was decoded, as it was then."""

    file: str
    size: int
    changed: int
    decoded: Shape
    made: str
    """Digest of what it says of its making."""


def check_folder(
    layout: Layout,
    folder: Path,
    progress: CountProgress = lambda done, total: None,
    *,
    dimensions: Collection[str] = (),
) -> Shape:
    """Check that `folder` holds the videos of a layout and nothing else, each decodable and all of one shape.

    Returns the shape: that of the folder's manifest, or without one that of the first video. With `dimensions`, only
    their videos must be there. `progress` counts videos.

    Raises UserError, in one line, for a file that does not belong, a missing one, one that is cut short or broken, one
    of another shape, and one that says it was made otherwise than the manifest says of its name.
    """
    title = layout.prompts.benchmark.title
    needed = dict.fromkeys(
        layout.files if not dimensions else [name for each in dimensions for name in layout.files_of(each)]
    )
    _check_strays(folder, set(layout.files), title)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing):,} of {len(needed):,} videos of {title}, such as {missing[0]!r}: run the "
            "`avd generate` that made the others again"
        )
    manifest, first = Manifest.read(folder), ""
    shape, making = None, dict[str, dict[str, Any]]()
    if manifest is not None:
        made = manifest.making
        shape = Shape(made.frames, made.height, made.width, made.fps)
        making = _making_of_files(manifest)
    for done, (name, passed) in enumerate(_examine_all(folder, list(needed)), start=1):
        shape, first = shape or passed.decoded, first or name
        if passed.decoded != shape:
            wanted = f"the manifest says {shape}" if manifest is not None else f"{first!r} has {shape}"
            raise UserError(f"{folder / name} has {passed.decoded}, and {wanted}: {_REMEDY}")
        if manifest is not None and passed.made != _digest(making.get(name)):
            raise UserError(f"{folder / name} {_difference(folder / name, making.get(name))}: {_REMEDY}")
        progress(done, len(needed))
    assert shape is not None, "a layout has videos"
    return shape


def _check_strays(folder: Path, names: Collection[str], title: str) -> None:
    folders = {name.rpartition("/")[0] for name in names} - {""}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in (folders if path.is_dir() else names):
            continue
        if is_unfinished(path):
            raise UserError(f"{path} was left by a command that was stopped: run that again, or remove the file")
        raise UserError(f"{path} is no video of {title}, and would spoil every score: remove it")


def _making_of_files(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What each file has to say of its making, by its name."""
    shared = {"identity": manifest.making.identity, **manifest.making.sampler}
    return {
        name: {"prompt": video.text, "seed": video.seed, **shared}
        for video in manifest.plan.videos
        for name in video.files
    }


def _examine_all(folder: Path, names: list[str]) -> Iterator[tuple[str, _Passed]]:
    """What each file holds, in order. Names of one file, and files that have passed before, are not decoded again."""
    record = folder.absolute().with_name(f"{folder.absolute().name}.checked.jsonl")
    known = {passed.file: passed for passed in _read_record(record)}
    status = {name: (folder / name).stat() for name in names}

    def passed_before(name: str) -> bool:
        passed, now = known.get(name), status[name]
        return passed is not None and (passed.size, passed.changed) == (now.st_size, now.st_mtime_ns)

    first_names: dict[tuple[int, int], str] = {}
    for name in names:
        if not passed_before(name):
            first_names.setdefault((status[name].st_dev, status[name].st_ino), name)
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        waiting = {name: pool.submit(_examine, folder / name) for name in first_names.values()}
        for name in names:
            if not passed_before(name):
                now = status[name]
                decoded, made = waiting[first_names[now.st_dev, now.st_ino]].result()
                known[name] = _Passed(name, now.st_size, now.st_mtime_ns, decoded, made)
                append_json_line(record, asdict(known[name]))
            yield name, known[name]
    finally:
        pool.shutdown(cancel_futures=True)


def _examine(path: Path) -> tuple[Shape, str]:
    """What a file holds, and the digest of what it says of its making. Raises UserError as `_decode`."""
    return _decode(path), _digest(_read_making(path))


def _read_making(path: Path) -> dict[str, Any] | None:
    """What a file says of its making, without names that may change; None for one from elsewhere."""
    about = read_description(path)
    return None if about is None else {key: value for key, value in about.items() if key not in {"avd", "model"}}


def _digest(making: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(making, sort_keys=True).encode()).hexdigest()


def _difference(path: Path, wanted: Mapping[str, Any] | None) -> str:
    """How a file was made otherwise than the manifest says, in words."""
    found = _read_making(path)
    if wanted is None:
        return "is not in the manifest"
    if found is None:
        return "does not say how it was made, and a manifest says how it was to be"
    key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
    values = [json.dumps(each.get(key), ensure_ascii=False) for each in (found, wanted)]
    return f"was made with {key} {values[0]}, and the manifest says {values[1]}"


def _decode(path: Path) -> Shape:
    """Decode every frame, and keep none. Raises UserError for what is no MP4, broken, or cut short."""
    if not _is_complete(path):
        raise UserError(f"{path} is no MP4 file, or one that is cut short: {_REMEDY}")
    frames = 0
    try:
        with av.open(str(path), format="mp4") as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise UserError(f"{path} holds no video: {_REMEDY}")
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise UserError(f"{path} is broken at frame {frames}: {_REMEDY}")
                frames += 1
            if not frames or frames < stream.frames:
                raise UserError(f"{path} is broken, and has {frames} of {stream.frames} frames: {_REMEDY}")
            return Shape(frames, stream.height, stream.width, float(stream.average_rate or 0))
    except av.FFmpegError as error:
        raise UserError(f"{path} is broken at frame {frames} ({error.strerror}): {_REMEDY}") from error


def _is_complete(path: Path) -> bool:
    """Whether a file is a sequence of complete boxes, as an MP4 is: a decoder forgives an end that is missing."""
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:  # the length follows, in 64 bits
                length = int.from_bytes(header[8:], "big")
            elif length == 0:  # up to the end of the file
                length = size - position
            if len(header) < 8 or length < 8:
                return False
            position += length
    return 0 < size == position


def _read_record(record: Path) -> Iterator[_Passed]:
    """Files that have passed, as far as the record can be read."""
    if not record.exists():
        return
    for value in read_json_lines(record):
        try:
            yield _Passed(**{**value, "decoded": Shape(**value["decoded"])})
        except (KeyError, TypeError):  # of a version that remembered something else
            continue
