"""Memory that evaluation takes as the number of videos grows.

    python benchmarks/evaluation_memory.py --videos 4720 --measured 4

One video of 81 frames of 480 x 832 is made, with `--videos` names (hard links) as VBench has them, five per prompt. The
first `--measured` of them are decoded and measured by the native suite, which takes seconds each; the others get copies
of their records, because what is kept of a clip does not depend on its content. Then all are summarised and compared
with themselves. Printed is the most memory that the process has had after each part, in MB.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from avd.data import write_video
from avd.evaluation.comparison import JudgedSet, compare_sets
from avd.evaluation.folder import list_clips
from avd.evaluation.judging import make_row, measure_share
from avd.evaluation.records import RecordFolder
from avd.evaluation.suites.native import NativeSuite

_PER_PROMPT = 5


def make_videos(folder: Path, count: int) -> None:
    """A picture of random patches that moves to the right, under `count` names."""
    patches = np.random.default_rng(0).integers(0, 256, (30, 52 + 6, 3), dtype=np.uint8)
    picture = patches.repeat(16, axis=0).repeat(16, axis=1)
    write_video(folder / "prompt 0-0.mp4", np.stack([picture[:, t : t + 832] for t in range(81)]), 16)
    for i in range(1, count):
        os.link(folder / "prompt 0-0.mp4", folder / f"prompt {i // _PER_PROMPT}-{i % _PER_PROMPT}.mp4")


def report(part: str) -> None:
    print(f"{part:<48} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=4720)
    parser.add_argument("--measured", type=int, default=4)
    options = parser.parse_args()
    suite = NativeSuite()
    with tempfile.TemporaryDirectory() as name:
        maker = get_context("spawn").Process(target=make_videos, args=(Path(name) / "videos", options.videos))
        maker.start()  # elsewhere, as making a video takes memory too
        maker.join()
        report("started")
        clips = list_clips(Path(name) / "videos")
        report(f"{len(clips)} videos listed")
        records = RecordFolder(Path(name) / "records", suite)
        for i, clip in enumerate(clips[: options.measured], 1):
            measure_share(suite, [clip], records)
            report(f"{i} measured")
        measured = records.wait(clips[: options.measured], lambda done, total: None)
        for i, clip in enumerate(clips[options.measured :]):
            records.add(clip, replace(measured[i % len(measured)], clip=clip.name, prompt=clip.prompt))
        found = records.wait(clips, lambda done, total: None)
        report(f"{len(found)} records read")
        row = make_row(suite, found, name="mine")
        values = JudgedSet.of(suite, row.name, found)
        report(f"row of {row.videos} videos")
        compare_sets(suite, values, values)
        report("compared")


if __name__ == "__main__":
    main()
