"""The manifest of a benchmark's folder: which videos it is to hold, and everything that they were made with.

It lies beside the folder, as `{folder}.manifest.json`: whatever lies inside is judged. It is written before the first
video, and a command that would make other videos in the same folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avd.evaluation.benchmarks.layout import Generation, Layout
from avd.evaluation.benchmarks.prompts import Rewritten
from avd.files import read_json, write_json
from avd.types import UserError

_FORMAT, _VERSION = "avd benchmark manifest", 1
_SEED_BYTES = 6
"""Seeds stay below 2^48, so that every reader of JSON takes them exactly and `avd generate --seed` takes them too."""


@dataclass(frozen=True)
class PlannedVideo:
    """Sample `index` of a prompt: the text that is sampled, the seed of its noise, and its names in the folder."""

    prompt: str
    index: int
    text: str
    seed: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is asked of a model, whichever it is."""

    suite: str
    info: str
    """SHA-256 of what the benchmark's file of prompts says."""
    prompts: str
    """"original", or the SHA-256 of the texts in place of the prompts."""
    samples: dict[str, int]
    """Videos per prompt, by dimension."""
    seed: int
    videos: tuple[PlannedVideo, ...]


@dataclass(frozen=True)
class Making:
    """What makes the videos: a model, how it is sampled, and the clips it gives."""

    model: str
    """The name it goes by."""
    sampler: dict[str, Any]
    """How it is sampled; of a many-step model, with its negative prompt."""
    frames: int
    height: int
    width: int
    fps: float
    """Frames per second of the files."""
    model_fps: float
    """Frames per second that the model was trained for."""
    identity: str
    """Changes with the model's weights and with anything else that its videos depend on."""


@dataclass(frozen=True)
class Manifest:
    """A folder's plan and what makes its videos."""

    plan: BenchmarkPlan
    making: Making

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        """The manifest of a folder; None if there is none. Raises UserError for one that is damaged."""
        path = manifest_file(folder)
        if not path.exists():
            return None
        remedy = "remove it with its folder, or name another folder"
        value = read_json(path, "the manifest", remedy)
        if (value.get("format"), value.get("version")) != (_FORMAT, _VERSION):
            raise UserError(f"{path} is no manifest of version {_VERSION}: {remedy}")
        try:
            plan = dict(value["plan"])
            videos = tuple(PlannedVideo(**{**video, "files": tuple(video["files"])}) for video in plan.pop("videos"))
            manifest = Manifest(BenchmarkPlan(**plan, videos=videos), Making(**value["making"]))
            damaged = manifest.digest != value["digest"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the manifest {path} is damaged ({error}): {remedy}") from error
        if damaged:
            raise UserError(f"the manifest {path} is damaged (its digest is another): {remedy}")
        return manifest

    def write(self, folder: Path) -> Manifest:
        """Write the manifest of a folder, atomically, unless there is one; returns the one that is there then.

        So of several processes that write at once, of one command or of several, the first counts.
        """
        header = {"format": _FORMAT, "version": _VERSION, "digest": self.digest}
        path = manifest_file(folder)
        own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        value = {**header, "making": asdict(self.making), "plan": asdict(self.plan)}
        write_json(own, value, indent=1, ascii_only=False)
        try:
            os.link(own, path)
        except FileExistsError:
            return Manifest.read(folder) or self
        except OSError:  # a disk without hard links
            os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)
        return self

    @property
    def digest(self) -> str:
        """Changes with anything that the videos depend on, and not with the model's name."""
        values = {**asdict(self.plan), **asdict(self.making)}
        del values["model"]
        return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).hexdigest()

    @property
    def protocol(self) -> dict[str, Any]:
        """How a benchmark's numbers came about, for a row: everything but the model."""
        making = self.making
        return {
            "suite": self.plan.suite,
            "info": self.plan.info,
            "prompts": self.plan.prompts,
            "samples": self.plan.samples,
            "fps": making.fps,
            "frames": making.frames,
            "size": f"{making.height}x{making.width}",
            "sampler": {key: value for key, value in making.sampler.items() if key != "negative_prompt"},
            "negative_prompt": making.sampler.get("negative_prompt"),
        }


def plan_videos(layout: Layout, seed: int, rewritten: Rewritten | None = None) -> BenchmarkPlan:
    """The videos of a layout. A video's noise follows from `seed`, its prompt as the benchmark has it, and its index.

    So a rewritten prompt is sampled from the noise of the original.
    """
    texts: Mapping[str, str] = {} if rewritten is None else rewritten.texts
    videos = tuple(
        PlannedVideo(each.prompt, each.index, texts.get(each.prompt, each.prompt), _seed(seed, each), each.files)
        for each in layout.generations
    )
    digest = "original" if rewritten is None else rewritten.digest
    return BenchmarkPlan(layout.prompts.benchmark.name, layout.prompts.digest, digest, layout.samples, seed, videos)


def manifest_file(folder: Path) -> Path:
    """Where the manifest of a benchmark's folder is: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.manifest.json")


def check_same(folder: Path, found: BenchmarkPlan | Making, given: BenchmarkPlan | Making) -> None:
    """Raise UserError, naming the first thing that differs, where `folder` is being filled by another command."""
    was, now = asdict(found), asdict(given)
    remedy = f"name another folder, or remove it and {manifest_file(folder).name}"
    for key in was:
        if key not in {"model", "videos"} and was[key] != now[key]:
            values = [json.dumps(each[key], ensure_ascii=False) for each in (was, now)]
            raise UserError(f"{folder} is being filled with {key} {values[0]}, and {values[1]} is asked for: {remedy}")
    if was.get("videos") != now.get("videos"):
        raise UserError(f"{folder} is being filled with other videos: {remedy}")


def share_of(videos: Sequence[PlannedVideo], rank: int, size: int) -> list[PlannedVideo]:
    """The videos that process `rank` of `size` makes: those of every `size`-th prompt, each encoded by one process."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(video.prompt for video in videos))}
    return [video for video in videos if numbers[video.prompt] % size == rank]


def _seed(seed: int, generation: Generation) -> int:
    text = json.dumps([seed, generation.prompt, generation.index])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:_SEED_BYTES], "big")
