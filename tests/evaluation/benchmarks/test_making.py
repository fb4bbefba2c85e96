"""A benchmark's folder, filled by a painter: names, links, what is made again, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from avd.evaluation.benchmarks import making
from avd.evaluation.benchmarks.known import VBENCH, VBENCH2, Benchmark
from avd.evaluation.benchmarks.layout import make_layout
from avd.evaluation.benchmarks.making import BenchmarkFolder, check_disk
from avd.evaluation.benchmarks.manifest import Manifest, manifest_file, plan_videos
from avd.evaluation.benchmarks.prompts import read_prompt_list
from avd.sampling.generation import generate, select_missing
from avd.types import UserError
from helpers.command import snapshot
from helpers.painter import Painter


class Describing(Painter):
    """A painter that says how it paints."""

    @property
    def description(self) -> dict[str, Any]:
        return {"timesteps": [1000, 500]}

    def decode_video(self, latents: Tensor) -> np.ndarray:
        return super().decode_video(latents)[:, :3]


def fill(
    output: Path,
    infos: Path,
    benchmark: Benchmark = VBENCH2,
    *,
    rank: int = 0,
    size: int = 1,
    identity: str = "painter",
) -> Painter:
    """The painter that has made what was missing, as `avd generate` does."""
    plan = plan_videos(make_layout(read_prompt_list(benchmark, infos)), 0)
    folder = BenchmarkFolder(output, plan, rank=rank, size=size)
    missing, painter = select_missing(folder.wanted(), skip_existing=True), Describing(identity=identity)
    rate = folder.begin(painter, "runs/student").fps
    folder.link_existing()
    generate(painter, missing, "runs/student", fps=rate, made=lambda done, video: folder.link(video.path))
    return painter


def test_a_video_is_made_once_and_linked(infos: Path, tmp_path: Path) -> None:
    painter = fill(tmp_path / "out", infos)
    layout = make_layout(read_prompt_list(VBENCH2, infos))
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if not p.is_dir()}
    assert files == set(layout.files) and len(painter.prompts) == len(layout.generations) == 26
    first, other = (tmp_path / "out" / name for name in layout.generations[0].files)
    assert first.samefile(other) and first.stat().st_nlink == 2
    manifest = Manifest.read(tmp_path / "out")
    assert manifest is not None and manifest.making.identity == "painter"
    assert (manifest.making.fps, manifest.making.model_fps) == (16.0, 8)
    assert painter.seeds == [video.seed for video in manifest.plan.videos]


def test_of_two_commands_that_begin_at_once_the_first_counts(infos: Path, tmp_path: Path) -> None:
    plan = plan_videos(make_layout(read_prompt_list(VBENCH2, infos)), 0)
    other = plan_videos(make_layout(read_prompt_list(VBENCH2, infos)), 1)
    first, same, model, seed = (BenchmarkFolder(tmp_path / "out", each) for each in (plan, plan, plan, other))
    making = first.begin(Describing(identity="painter"), "runs/student")
    assert same.begin(Describing(identity="painter"), "runs/student") == making
    with pytest.raises(UserError, match='being filled with identity "painter", and "other" is asked for'):
        model.begin(Describing(identity="other"), "runs/other")
    with pytest.raises(UserError, match="being filled with seed 0, and 1 is asked for"):
        seed.begin(Describing(identity="painter"), "runs/student")
    assert [path.name for path in tmp_path.glob("out*")] == ["out.manifest.json"]


def test_a_model_on_disk_is_known_by_where_it_is(infos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    plan = plan_videos(make_layout(read_prompt_list(VBENCH2, infos)), 0)
    for name, known in (("run/student", str(tmp_path / "run" / "student")), ("owner/model", "owner/model")):
        assert BenchmarkFolder(tmp_path / name.replace("/", "-"), plan).begin(Describing(), name).model == known


def test_videos_get_their_other_names_after_they_have_been_checked(infos: Path, tmp_path: Path) -> None:
    painter = fill(tmp_path / "out", infos)
    plan = plan_videos(make_layout(read_prompt_list(VBENCH2, infos)), 0)
    name = tmp_path / "out" / plan.videos[0].files[1]
    name.unlink()
    folder = BenchmarkFolder(tmp_path / "out", plan)
    folder.begin(painter, "runs/student")
    assert not name.exists()
    folder.link_existing()
    assert name.samefile(tmp_path / "out" / plan.videos[0].files[0])


def test_what_is_missing_is_made_again_by_however_many_processes(infos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for rank in (1, 0):
        fill(output, infos, rank=rank, size=2)
    before = snapshot(output)
    fill(tmp_path / "alone", infos)
    assert snapshot(tmp_path / "alone") == before
    assert manifest_file(output).read_bytes() == manifest_file(tmp_path / "alone").read_bytes()
    (output / "Diversity" / "a red square-0.mp4").unlink()  # the link of it stays
    (output / "Multi-View_Consistency" / "a red square-1.mp4").unlink()
    (output / "Diversity" / "a red square-7.mp4").unlink()
    (output / "Diversity" / "a red square-7.mp4.writing").write_bytes(b"cut short")
    assert len(fill(output, infos).prompts) == 2
    assert snapshot(output) == before
    assert fill(output, infos).prompts == []


def test_without_hard_links_names_are_copies(infos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path / "out", infos)
    first, other = (tmp_path / "out" / name / "a red square-0.mp4" for name in ("Diversity", "Multi-View_Consistency"))
    assert not first.samefile(other) and first.read_bytes() == other.read_bytes()
    assert fill(tmp_path / "out", infos).prompts == []
    other.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"Multi-View_Consistency/a red square-0\.mp4 is not the same video as"):
        fill(tmp_path / "out", infos)


def test_a_link_that_a_kill_left_unfinished_is_made_again(infos: Path, tmp_path: Path) -> None:
    fill(tmp_path / "out", infos)
    before = snapshot(tmp_path)
    first, other = (tmp_path / "out" / name / "a red square-0.mp4" for name in ("Diversity", "Multi-View_Consistency"))
    other.rename(other.with_name(f"{other.name}.writing"))
    assert fill(tmp_path / "out", infos).prompts == []
    assert snapshot(tmp_path) == before and first.samefile(other)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("foreign", r"holds 'captions\.jsonl' and has no out\.manifest\.json beside it: name a new folder"),
        ("stray", r"holds '\.DS_Store', which is no video of the benchmark: remove it"),
        ("file", "out is a file: a benchmark's videos need a folder"),
        ("other benchmark", 'filled with suite "vbench2", and "vbench" is asked for'),
        ("other model", 'filled with identity "painter", and "another" is asked for'),
    ],
)
def test_a_folder_that_holds_something_else_is_left_alone(
    trouble: str, message: str, infos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    if trouble == "file":
        output.write_bytes(b"")
    elif trouble == "foreign":
        output.mkdir()
        (output / "captions.jsonl").write_text("")
    else:
        fill(output, infos)
    if trouble == "stray":
        (output / ".DS_Store").write_bytes(b"")
    before = snapshot(tmp_path)
    benchmark = VBENCH if trouble == "other benchmark" else VBENCH2
    with pytest.raises(UserError, match=message):
        fill(output, infos, benchmark, identity="another" if trouble == "other model" else "painter")
    assert snapshot(tmp_path) == before


def test_names_that_collide_are_named_or_refused_before_anything(
    infos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = [make_layout(read_prompt_list(each, infos)) for each in (VBENCH, VBENCH2)]
    before, output = snapshot(tmp_path), tmp_path / "new" / "out"
    assert "case alone: 'A blue circle' and 'a blue circle'" in (check_disk(layouts[0], output) or "")
    assert not making.ignores_case(tmp_path)
    monkeypatch.setattr(making, "ignores_case", lambda folder: True)
    with pytest.raises(
        UserError, match=r"does not tell upper from lower case.*'A blue circle' and 'a blue circle' diff"
    ):
        check_disk(layouts[0], output)
    assert check_disk(layouts[1], output) is None
    assert snapshot(tmp_path) == before


def test_the_manifest_is_plain_json(infos: Path, tmp_path: Path) -> None:
    fill(tmp_path / "out", infos, VBENCH)
    value = json.loads(manifest_file(tmp_path / "out").read_text())
    assert value["making"]["sampler"] == {"timesteps": [1000, 500]} and len(value["plan"]["videos"]) == 20
