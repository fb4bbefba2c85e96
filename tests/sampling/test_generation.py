"""Prompts to files: names and seeds, what is made again, what a file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avd import __version__
from avd.data import write_video
from avd.sampling.generation import Wanted, check_made_by, generate, list_videos, read_description, select_missing
from avd.sampling.samplers import FewSteps, ManySteps
from avd.types import UserError
from helpers.painter import Painter
from helpers.tiny import tiny_model


class Describing(Painter):
    """A painter that says how it paints."""

    @property
    def description(self) -> dict[str, Any]:
        return {"timesteps": [1000, 500], "half_rate_stages": 1}

    def decode_video(self, latents: Tensor) -> np.ndarray:
        return super().decode_video(latents)[:, :3]


class Killed(Exception):
    pass


class Mortal(Describing):
    """Is killed while it makes its third video."""

    def decode_video(self, latents: Tensor) -> np.ndarray:
        if len(self.seeds) == 3:
            raise Killed
        return super().decode_video(latents)


def nothing(done: int, video: Wanted) -> None: ...


def test_names_and_seeds_follow_from_the_list(tmp_path: Path) -> None:
    videos = list_videos(["a", "b"], 7, 2, tmp_path / "new" / "clip.gif")
    assert [(v.prompt, v.seed, v.path.name) for v in videos] == [
        ("a", 7, "clip-0.gif"),
        ("a", 8, "clip-1.gif"),
        ("b", 7, "clip-2.gif"),
        ("b", 8, "clip-3.gif"),
    ]
    assert list_videos(["a"], 0, 1, tmp_path / "clip")[0].path == tmp_path / "clip"
    with pytest.raises(UserError, match=r"output .*clip\.avi is no kind of video"):
        list_videos(["a"], 0, 1, tmp_path / "clip.avi")


def test_each_video_is_written_when_it_is_made_and_says_how(tmp_path: Path) -> None:
    painter, seen = Describing(), []

    def made(done: int, video: Wanted) -> None:
        seen.append((done, video.path.exists(), len(painter.seeds)))

    videos = list_videos(["一个球", "a box"], 3, 1, tmp_path / "clip.mp4")
    generate(painter, videos, "runs/student", made=made)
    assert seen == [(1, True, 1), (2, True, 2)]
    assert read_description(videos[0].path) == {
        "avd": __version__,
        "prompt": "一个球",
        "seed": 3,
        "model": "runs/student",
        "identity": "painter",
        "timesteps": [1000, 500],
        "half_rate_stages": 1,
    }
    assert painter.seeds == [3, 3] and painter.prompts == [["一个球"], ["a box"]]


def test_after_a_kill_only_what_is_missing_is_made(tmp_path: Path) -> None:
    videos = list_videos(["a", "b", "c", "d"], 0, 1, tmp_path / "clip.mp4")
    with pytest.raises(Killed):
        generate(Mortal(), videos, "m", made=nothing)
    assert [video.path.exists() for video in videos] == [True, True, False, False]
    with pytest.raises(UserError, match=r"clip-0\.mp4 exists already: name another file, or keep it with --skip-exist"):
        select_missing(videos, skip_existing=False)
    painter, missing = Describing(), select_missing(videos, skip_existing=True)
    generate(painter, missing, "m", made=nothing)
    assert painter.prompts == [["c"], ["d"]]
    generate(Describing(), list_videos(["a", "b", "c", "d"], 0, 1, tmp_path / "at-once.mp4"), "m", made=nothing)
    for i, video in enumerate(videos):
        assert video.path.read_bytes() == (tmp_path / f"at-once-{i}.mp4").read_bytes()


def test_the_videos_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for size in (1, 3):
        for rank in reversed(range(size)):
            videos = list_videos(["a", "b"], 0, 2, tmp_path / str(size) / "clip.gif")
            generate(Describing(), select_missing(videos[rank::size], skip_existing=False), "m", made=nothing)
    for i in range(4):
        alone, shared = (tmp_path / name / f"clip-{i}.gif" for name in ("1", "3"))
        assert alone.read_bytes() == shared.read_bytes()


@pytest.mark.parametrize("about", [("a", 1), ("b", 0), None], ids=["another seed", "another prompt", "from elsewhere"])
def test_a_file_that_is_another_video_is_not_skipped(about: tuple[str, int] | None, tmp_path: Path) -> None:
    (video,) = list_videos(["a"], 0, 1, tmp_path / "clip.mp4")
    if about is None:
        write_video(video.path, np.zeros((2, 16, 16, 3), np.uint8), 8)
        assert read_description(video.path) is None
    else:
        generate(Describing(), [Wanted(*about, video.path)], "m", made=nothing)
    with pytest.raises(UserError, match=r"clip\.mp4 is not the video of this prompt and seed"):
        select_missing([video], skip_existing=True)


def test_a_broken_file_is_not_skipped(tmp_path: Path) -> None:
    (video,) = list_videos(["a"], 0, 1, tmp_path / "clip.mp4")
    generate(Describing(), [video], "m", made=nothing)
    video.path.write_text("no video")
    with pytest.raises(UserError, match=r"clip\.mp4 is no video: remove it, or name another file"):
        select_missing([video], skip_existing=True)


def test_a_file_of_another_model_or_way_of_sampling_is_not_skipped(tmp_path: Path) -> None:
    model = tiny_model()
    videos = list_videos(["a", "b"], 0, 1, tmp_path / "clip.gif")
    few = FewSteps(model, (1000.0, 757.5))
    generate(few, videos, "m", made=nothing)
    check_made_by(few, videos)
    with torch.no_grad():
        (other := tiny_model()).transformer.proj_out.bias[0] += 0.01
    for sampler, message in (
        (FewSteps(model, (1000.0,)), r"clip-0\.gif was made with timesteps \[1000.0, 757.5\], and \[1000.0\] is asked"),
        (ManySteps(model, 2, 4.0), "was made with guidance null, and 4.0 is asked for"),
        (FewSteps(other, (1000.0, 757.5)), r"was made by other weights \(m\): name another file"),
    ):
        check_made_by(sampler, [])
        with pytest.raises(UserError, match=message):
            check_made_by(sampler, videos)


def test_noise_is_the_seeds_alone(tmp_path: Path) -> None:
    painter = Describing()
    generate(painter, [Wanted("a", seed, tmp_path / f"{seed}.gif") for seed in (5, 2**40)], "m", made=nothing)
    assert painter.seeds == [torch.Generator().manual_seed(seed).initial_seed() for seed in (5, 2**40)]
