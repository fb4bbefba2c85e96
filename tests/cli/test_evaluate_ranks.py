"""`avd evaluate` in two processes: they share the sampling, and one of them judges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from avd.evaluation.rows import read_results
from helpers.command import avd


def test_two_processes_make_the_clips_of_one_and_one_row(place: Path) -> None:
    options = ("--clips", 36, "--repeats", 0, "--set", "size=16", "--steps", 1, "--seed", 2)  # batches of 16, 16 and 4
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avd"]
    command = [*launch, "evaluate", "tiny", "--json", "two.json", "--samples", "two", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Network calls") == 1
    assert avd("evaluate", "tiny", "--json", "one.json", "--samples", "one", *options) == 0
    clips = [{file.name: file.read_bytes() for file in Path(folder).glob("clip-*")} for folder in ("one", "two")]
    assert len(clips[0]) == 36 and clips[0] == clips[1]
    (one,), (two,) = (read_results(Path(file)).rows for file in ("one.json", "two.json"))
    assert one.scores == two.scores and (one.seed, one.videos) == (two.seed, two.videos)
