"""Folders of videos, read clip by clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from avd.data import CaptionedFile, write_captions, write_video
from avd.evaluation.folder import VideoFolder
from avd.evaluation.judging import judge
from avd.evaluation.suites.world import WorldSuite
from avd.types import UserError
from helpers.painter import WORLD

SUITE = WorldSuite(clips=4, repeats=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = [WORLD.clip(i, "heldout") for i in range(4)]
    for i, clip in enumerate(clips):
        write_video(tmp_path / f"{i}.mp4", clip.video, 8)
    captions = [CaptionedFile(f"{i}.mp4", clip.caption.text) for i, clip in enumerate(clips)]
    write_captions(tmp_path / "captions.jsonl", captions)
    return tmp_path


def test_a_folder_of_videos(folder: Path) -> None:
    videos = VideoFolder(folder)
    clips = list(videos.clips())
    assert len(videos) == len(clips) == 4
    assert [clip.prompt for clip in clips] == list(SUITE.prompts())
    video = clips[2].read()
    assert video.frames.shape == (17, 48, 48, 3) and video.fps == 8
    row = judge(SUITE, videos.clips(), name="folder")
    assert (row.score("world", "instance_preservation"), row.videos, row.seconds_per_video) == (1.0, 4, None)


def test_a_file_is_opened_when_its_clip_is_read(folder: Path) -> None:
    clips = list(VideoFolder(folder).clips())
    (folder / "1.mp4").unlink()
    clips[0].read()
    with pytest.raises(UserError, match=r"1\.mp4.*no such file"):
        clips[1].read()
    with pytest.raises(UserError, match=r"1\.mp4.*no such file"):  # known before anything is judged
        VideoFolder(folder)


def test_a_clip_of_another_length_is_refused(folder: Path) -> None:
    write_video(folder / "1.mp4", WORLD.clip(1, "heldout").video[:9], 8)
    with pytest.raises(UserError, match=r"1\.mp4: 9 frames of 48 x 48 at 8 fps") as caught:
        judge(SUITE, VideoFolder(folder).clips(), name="folder")
    assert "\n" not in str(caught.value)
