"""The manifest: seeds, the share of a process, what changes it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avd.evaluation.benchmarks.known import VBENCH, VBENCH2
from avd.evaluation.benchmarks.layout import make_layout
from avd.evaluation.benchmarks.manifest import (
    BenchmarkPlan,
    Making,
    Manifest,
    check_same,
    manifest_file,
    plan_videos,
    share_of,
)
from avd.evaluation.benchmarks.prompts import Rewritten, read_prompt_list
from avd.types import UserError

MAKING = Making("runs/student", {"steps": 2, "negative_prompt": "模糊"}, 17, 16, 16, 16.0, 8.0, "weights")


def plan(infos: Path, seed: int = 0, rewritten: Rewritten | None = None) -> BenchmarkPlan:
    return plan_videos(make_layout(read_prompt_list(VBENCH, infos)), seed, rewritten)


def test_noise_follows_from_seed_prompt_and_index_alone(infos: Path) -> None:
    one, other = plan(infos), plan(infos, seed=1)
    seeds = {(video.prompt, video.index): video.seed for video in one.videos}
    assert len({*seeds.values(), *(video.seed for video in other.videos)}) == 40
    assert all(0 <= seed < 2**48 for seed in seeds.values())
    assert seeds["a red square", 3] == 241476315094603  # as long as manifests of version 1 are read
    vbench2 = plan_videos(make_layout(read_prompt_list(VBENCH2, infos)), 0)
    assert {seeds["a red square", i] for i in range(3)} <= {video.seed for video in vbench2.videos}
    texts = Rewritten({"a red square": "A square, red all over"}, "digest")
    instead = plan(infos, rewritten=texts)
    assert [video.seed for video in instead.videos] == list(seeds.values())
    assert {v.text for v in instead.videos} == {v.text for v in one.videos} - {"a red square"} | {
        "A square, red all over"
    }
    assert (one.prompts, instead.prompts) == ("original", "digest")


def test_processes_share_prompts(infos: Path) -> None:
    videos = plan(infos).videos
    shares = [share_of(videos, rank, 3) for rank in range(3)]
    assert sorted(v.files for share in shares for v in share) == sorted(v.files for v in videos)
    prompts = [{v.prompt for v in share} for share in shares]
    assert [len(each) for each in prompts] == [2, 1, 1] and len(set.union(*prompts)) == 4


def test_a_manifest_lies_beside_its_folder_and_reads_back(infos: Path, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "wan2.1", Manifest(plan(infos), MAKING)
    assert Manifest.read(folder) is None
    manifest.write(folder)
    assert [path.name for path in tmp_path.glob("wan*")] == ["wan2.1.manifest.json"]
    assert Manifest.read(folder) == manifest and Manifest.read(folder).digest == manifest.digest  # type: ignore[union-attr]
    assert "模糊" in manifest_file(folder).read_text(encoding="utf-8")
    assert manifest.protocol == {
        "suite": "vbench",
        "info": manifest.plan.info,
        "prompts": "original",
        "samples": dict.fromkeys(manifest.plan.samples, 5),
        "fps": 16.0,
        "frames": 17,
        "size": "16x16",
        "sampler": {"steps": 2},
        "negative_prompt": "模糊",
    }


def test_the_digest_is_of_all_but_the_models_name(infos: Path) -> None:
    manifest = Manifest(plan(infos), MAKING)
    assert replace(manifest, making=replace(MAKING, model="elsewhere/student")).digest == manifest.digest
    others = [
        replace(manifest, making=replace(MAKING, identity="other weights")),
        replace(manifest, making=replace(MAKING, sampler={"steps": 3, "negative_prompt": "模糊"})),
        replace(manifest, plan=plan(infos, seed=1)),
        replace(manifest, plan=replace(manifest.plan, info="another file")),
    ]
    assert len({each.digest for each in [manifest, *others]}) == 5


@pytest.mark.parametrize("damage", ["cut", "version", "changed", "key"])
def test_a_damaged_manifest_is_refused(damage: str, infos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    Manifest(plan(infos), MAKING).write(folder)
    text = manifest_file(folder).read_text(encoding="utf-8")
    value = json.loads(text)
    if damage == "version":
        value["version"] = 2
    elif damage == "changed":
        value["plan"]["videos"][3]["seed"] += 1
    elif damage == "key":
        del value["making"]["fps"]
    manifest_file(folder).write_text(text[:-9] if damage == "cut" else json.dumps(value))
    with pytest.raises(
        UserError, match=r"videos\.manifest\.json is (damaged|no manifest of version 1).*: remove it with"
    ):
        Manifest.read(folder)


def test_what_differs_is_named(infos: Path, tmp_path: Path) -> None:
    folder, found = tmp_path / "videos", plan(infos)
    check_same(folder, found, plan(infos))
    check_same(folder, MAKING, replace(MAKING, model="elsewhere/student"))
    texts = Rewritten({}, "digest")
    for given, message in (
        (plan(infos, seed=2), "with seed 0, and 2 is asked for: name another folder, or remove it and videos.manifest"),
        (plan(infos, rewritten=texts), 'with prompts "original", and "digest" is asked for'),
        (replace(found, videos=found.videos[1:]), "with other videos"),
    ):
        with pytest.raises(UserError, match=message):
            check_same(folder, found, given)
    with pytest.raises(UserError, match=r'with sampler .*"steps": 2.*, and .*"steps": 4'):
        check_same(folder, MAKING, replace(MAKING, sampler={"steps": 4}, identity="other"))
