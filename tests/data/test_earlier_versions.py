"""Caches of earlier versions of the format: read, given texts, and left as they are when prepared again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avd.data import (
    CaptionedFile,
    Checks,
    EncodedTexts,
    LatentCache,
    ReadOptions,
    encode_texts,
    prepare,
    recommended,
    write_captions,
)
from avd.types import Conditions, UserError

SHARD = "shard-00000.safetensors"
READING = ReadOptions(9, 8.0, (16, 24), 1)


class Numbered:
    """An encoder of texts by their length, which has no videos to encode."""

    identity = "fake-1"

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        return Conditions({"embedding": torch.stack([torch.full((5, 6), float(len(text))) for text in prompts])})

    def encode_video(self, frames: Any) -> Tensor:
        raise AssertionError("what a finished cache holds is encoded again")

    def drop(self, *parts: str) -> None:
        """There are none."""


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def write_old(path: Path, version: int) -> tuple[Tensor, Tensor]:
    """A cache by hand, as version 2, with one tensor of embeddings by the name of `prompts`, or 3 was. Returns latents
    and embeddings."""
    path.mkdir()
    latents, embeddings = (torch.randn(3, *shape).half() for shape in ((4, 3, 2, 3), (5, 6)))
    items = [{"caption": f"caption {i}", "file": f"{i}.mp4", "start": 0.0, "source_seconds": 1.0} for i in range(3)]
    rows = torch.tensor([2, 0, 2], dtype=torch.int32)
    name = "prompts" if version == 2 else "condition.embedding"
    tensors = {"latents": latents, name: embeddings, "prompt_rows": rows}
    save_file(tensors, path / SHARD, {"items": json.dumps(items)})
    digest = hashlib.sha256((path / SHARD).read_bytes()).hexdigest()
    manifest = {
        "format": "avd-latent-cache",
        "version": version,
        "identity": "fake-1",
        "geometry": {"frames": 9, "height": 16, "width": 24, "fps": 8.0},
        "windows": 1,
        "picture_fps": 8.0,
        "dtype": "float16",
        "shard_size": 3,
        "count": 3,
        "latent_shape": [4, 3, 2, 3],
        **({"prompt_shape": [5, 6]} if version == 2 else {"condition_shapes": {"embedding": [5, 6]}}),
        "shards": [{"file": SHARD, "items": 3, "sha256": digest}],
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return latents, embeddings


@pytest.mark.parametrize("version", [2, 3])
def test_a_cache_of_an_earlier_version_is_read(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old"
    latents, embeddings = write_old(path, version)
    cache = LatentCache(path)
    cache.verify()
    assert cache.condition_shapes == {"embedding": (5, 6)} and cache.geometry.frames == 9
    prompts = cache.prompts([1, 0])
    assert list(prompts.tensors) == ["embedding"]
    assert torch.equal(prompts["embedding"], embeddings[[0, 2]].float())
    assert torch.equal(cache.latents([2, 1]), latents[[2, 1]].float())


def again(tmp_path: Path, reading: ReadOptions) -> None:
    """Run the preparation of `write_old` once more."""
    videos = tmp_path / "videos"
    videos.mkdir(exist_ok=True)
    for i in range(3):
        (videos / f"{i}.mp4").touch()
    write_captions(videos / "captions.jsonl", [CaptionedFile(f"{i}.mp4", f"caption {i}") for i in range(3)])
    summary = prepare(videos, None, Numbered(), tmp_path / "old", reading, shard_size=3)
    assert summary is not None and (summary.kept, summary.files) == (3, 3)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("checks", [Checks(), recommended(8.0, 16, 24)], ids=["none", "recommended"])
def test_prepared_again_it_is_left_as_it_is_but_for_texts(tmp_path: Path, version: int, checks: Checks) -> None:
    """The same command recommends checks by now, which nobody has asked for."""
    write_old(tmp_path / "old", version)
    before = contents(tmp_path / "old")
    again(tmp_path, replace(READING, checks=checks))
    after = contents(tmp_path / "old")
    assert {name: data for name, data in after.items() if "texts" not in name and name != ".lock"} == before
    texts = EncodedTexts(tmp_path / "old")
    assert "" in texts and "caption 0" not in texts, "its prompts are in its shards"


@pytest.mark.parametrize(
    "change", [{"windows": 2}, {"skip_start": 1.0}, {"spread": True}, {"checks": Checks(min_motion=0.5)}]
)
def test_prepared_again_in_another_way_it_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_old(tmp_path / "old", 3)
    with pytest.raises(UserError, match=f"begun with {next(iter(change))} "):
        again(tmp_path, replace(READING, **change))


def test_texts_are_added_to_a_cache_of_an_earlier_version(tmp_path: Path) -> None:
    _, embeddings = write_old(tmp_path / "old", 3)
    before = contents(tmp_path / "old")
    assert LatentCache(tmp_path / "old").texts is None
    encode_texts(tmp_path / "old", Numbered(), ["negative"])
    cache = LatentCache(tmp_path / "old")
    assert cache.texts is not None and "negative" in cache.texts and "caption 0" not in cache.texts
    assert torch.equal(cache.prompts([1])["embedding"], embeddings[:1].float())
    assert {name: data for name, data in contents(tmp_path / "old").items() if "texts" not in name} == before


def test_damaged_shards_of_an_earlier_version_are_named(tmp_path: Path) -> None:
    latents, embeddings = write_old(tmp_path / "old", 3)
    shard = tmp_path / "old" / SHARD
    items = {"items": json.dumps([{"caption": "a", "file": f"{i}.mp4"} for i in range(3)])}
    for tensors, message in (
        ({}, r"holds no condition\.embedding"),
        ({"condition.embedding": embeddings}, "holds no prompt_rows"),
        ({"condition.embedding": embeddings[:, :4], "prompt_rows": torch.zeros(3)}, "does not fit the manifest"),
        ({"condition.embedding": embeddings, "prompt_rows": torch.tensor([0, 1, 3])}, "lacks prompts"),
    ):
        save_file({"latents": latents, **{name: each.contiguous() for name, each in tensors.items()}}, shard, items)
        with pytest.raises(UserError, match=f"{SHARD} {message}"):
            LatentCache(tmp_path / "old")
