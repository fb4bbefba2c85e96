"""The latent cache: random access, refusals, and the same bytes however often writing was interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from avd.data import CacheWriter, Geometry, Item, LatentCache, LatentSource, MemoryLatents, Skip, encode_texts
from avd.types import Conditions, UserError

GEOMETRY = Geometry(frames=9, height=16, width=24, fps=8.0)
COUNT = 10


def latent(index: int) -> Tensor:
    return torch.randn(4, 3, 2, 3, generator=torch.Generator().manual_seed(index))


def prompt(index: int) -> Conditions:
    """Two named tensors, one row each."""
    generator = torch.Generator().manual_seed(1000 + index)
    embedding = torch.randn(1, 5, 6, generator=generator)
    return Conditions({"embedding": embedding, "pooled": torch.randn(1, 7, generator=generator)})


def embedding(index: int) -> Tensor:
    return prompt(index)["embedding"][0]


def open_writer(path: Path, **changes: object) -> CacheWriter:
    return CacheWriter(path, **{"identity": "fake-1", "geometry": GEOMETRY, "shard_size": 3} | changes)  # type: ignore[arg-type]


def fill(writer: CacheWriter, stop: int = COUNT) -> None:
    """Add clips up to number `stop`; every fourth is left out, once."""
    skipped = {skip.file for skip in writer.skipped}
    files = {item.file for item in writer.items}
    for index in range(stop):
        file = f"{index}.mp4"
        if index % 4 == 3:
            if file not in skipped:
                writer.skip(Skip(file, "too short", f"clip {index} – too short"))
        elif file not in files:
            writer.add(latent(index), Item(f"caption {index} é", file, 0.5 * index))


class Numbered:
    """An encoder of the captions of `fill`."""

    identity = "fake-1"

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        return Conditions.cat([prompt(int(text.split()[1])) for text in prompts])


CAPTIONS = [f"caption {index} é" for index in range(COUNT)]


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    writer = open_writer(tmp_path / "cache")
    fill(writer)
    writer.finish()
    encode_texts(tmp_path / "cache", Numbered(), CAPTIONS, shard_size=6)
    return tmp_path / "cache"


KEPT = [index for index in range(COUNT) if index % 4 != 3]


def check_source(source: LatentSource, tolerance: float) -> None:
    assert len(source) == len(KEPT)
    assert list(source.captions) == [f"caption {index} é" for index in KEPT]
    for indices in ([0], [7, 0, 3, 3, 5], range(len(KEPT)), []):
        latents, prompts = source.latents(indices), source.prompts(indices)
        assert latents.shape == (len(indices), 4, 3, 2, 3) and latents.dtype == torch.float32
        assert prompts.shapes == {"embedding": (5, 6), "pooled": (7,)} and len(prompts) == len(indices)
        assert all(tensor.dtype == torch.float32 for tensor in prompts.tensors.values())
        for row, index in enumerate(indices):
            torch.testing.assert_close(latents[row], latent(KEPT[index]), atol=tolerance, rtol=tolerance)
            for name, expected in prompt(KEPT[index]).tensors.items():
                torch.testing.assert_close(prompts[name][row], expected[0], atol=tolerance, rtol=tolerance)
    for index in (-1, len(KEPT)):
        if isinstance(source, LatentCache):
            with pytest.raises(IndexError):
                source.latents([index])


def test_a_cache_reads_what_was_written(cache_path: Path) -> None:
    cache = LatentCache(cache_path)
    check_source(cache, 1e-3)
    cache.verify()
    assert cache.identity == "fake-1" and cache.geometry == GEOMETRY
    assert cache.items[3] == Item("caption 4 é", "4.mp4", 2.0)
    manifest = json.loads((cache_path / "manifest.json").read_text())
    assert [shard["items"] for shard in manifest["shards"]] == [3, 3, 2]
    assert sorted(contents(cache_path)) == ["manifest.json", *SHARDS, "skipped.jsonl", *TEXT_FILES, "texts.json"]
    assert len({path.stat().st_mode for path in cache_path.iterdir()}) == 1


SHARDS = [f"shard-0000{number}.safetensors" for number in range(3)]
TEXT_FILES = [f"texts-0000{number}.safetensors" for number in range(2)]


def test_memory_latents_read_alike() -> None:
    latents, prompts = torch.stack([latent(i) for i in KEPT]), Conditions.cat([prompt(i) for i in KEPT])
    check_source(MemoryLatents(latents, prompts, [f"caption {index} é" for index in KEPT]), 0)


def test_bfloat16_holds_a_wider_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.mp4: the latent holds values that torch\.float16 cannot"):
        open_writer(tmp_path / "half").add(latent(0) * 1e6, Item("a", "0.mp4"))
    writer = open_writer(tmp_path / "brain", dtype="bfloat16")
    writer.add(latent(0) * 1e6, Item("caption 0", "0.mp4"))
    writer.finish()
    encode_texts(tmp_path / "brain", Numbered(), ["caption 0"], dtype="bfloat16")
    torch.testing.assert_close(LatentCache(tmp_path / "brain").latents([0])[0], latent(0) * 1e6, atol=0, rtol=0.01)


def test_shapes_must_agree(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "cache", shard_size=1)
    writer.add(latent(0), Item("a", "0.mp4"))
    with pytest.raises(UserError, match=r"1\.mp4: its latent has the shape \(4, 2, 2, 3\), earlier ones had"):
        open_writer(tmp_path / "cache", shard_size=1).add(latent(1)[:, :2], Item("b", "1.mp4"))


@given(stops=st.lists(st.integers(0, COUNT), max_size=4))
@settings(max_examples=30, deadline=None)
def test_interruptions_leave_no_trace(tmp_path_factory: pytest.TempPathFactory, stops: list[int]) -> None:
    folder = tmp_path_factory.mktemp("caches")
    for name, interruptions in (("whole", []), ("pieces", stops)):
        for stop in interruptions:
            fill(open_writer(folder / name), stop)  # the writer is dropped without finish(), as by a kill
        writer = open_writer(folder / name)
        fill(writer)
        writer.finish()
    assert contents(folder / "pieces") == contents(folder / "whole")


@pytest.mark.parametrize(
    "left_over", ["torn journal line", "zeros in the journal", "shard not in the journal", "unfinished files"]
)
def test_debris_of_a_crash_is_cleared(tmp_path: Path, cache_path: Path, left_over: str) -> None:
    path = tmp_path / "pieces"
    fill(open_writer(path), 5)
    if left_over == "torn journal line":
        with (path / "journal.jsonl").open("a") as journal:
            journal.write('{"shard": {"file": "shard-0')
    elif left_over == "zeros in the journal":
        with (path / "journal.jsonl").open("ab") as journal:
            journal.write(b"\0" * 40)
    elif left_over == "shard not in the journal":
        (path / SHARDS[1]).write_bytes(b"half a shard")
    else:
        (path / f"{SHARDS[1]}.writing").write_bytes(b"half a shard")
        (path / "manifest.json.writing").touch()
    writer = open_writer(path)
    assert len(writer) == 3 and len(writer.skipped) == 1
    fill(writer)
    writer.finish()
    assert contents(path) == {name: data for name, data in contents(cache_path).items() if "texts" not in name}


@pytest.mark.parametrize("ending", [".writing", ".partial"])  # an earlier version has left the second
def test_a_cache_killed_at_its_first_write_begins_again(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"journal.jsonl{ending}").write_text('{"form')
    fill(open_writer(tmp_path), 5)
    assert len(open_writer(tmp_path)) == 3


def test_a_crash_just_before_the_journal_goes_is_cleared(tmp_path: Path, cache_path: Path) -> None:
    expected = contents(cache_path)
    (cache_path / "journal.jsonl").touch()
    assert open_writer(cache_path).finished
    assert contents(cache_path) == expected


def test_a_finished_cache_is_left_alone(cache_path: Path) -> None:
    before = contents(cache_path)
    writer = open_writer(cache_path)
    assert writer.finished and len(writer) == len(KEPT)
    assert [skip.file for skip in writer.skipped] == ["3.mp4", "7.mp4"]
    with pytest.raises(AssertionError):
        writer.add(latent(0), Item("a", "a.mp4"))
    assert contents(cache_path) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": "fake-2"}, "begun with identity 'fake-1', this run has 'fake-2'"),
        ({"geometry": Geometry(9, 16, 24, 16.0)}, "begun with geometry .*8.0.*16.0"),
        ({"dtype": "bfloat16"}, "begun with dtype"),
        ({"shard_size": 4}, "begun with shard_size 3, this run has 4"),
    ],
)
def test_caches_are_not_mixed(
    tmp_path: Path, cache_path: Path, finished: bool, change: dict[str, object], message: str
) -> None:
    path = cache_path if finished else tmp_path / "unfinished"
    if not finished:
        fill(open_writer(path), 5)
    before = contents(path)
    with pytest.raises(UserError, match=message):
        open_writer(path, **change)
    assert contents(path) == before


def test_folders_in_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="name a new folder"):
            open_writer(path)
    assert contents(tmp_path) == {"notes.txt": b"keep me"}
    with pytest.raises(UserError, match="shard size is 0"):
        open_writer(tmp_path / "new", shard_size=0)


def test_what_is_no_cache_does_not_open(tmp_path: Path, cache_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        LatentCache(tmp_path / "none")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(UserError, match="not a latent cache: there is no manifest"):
        LatentCache(tmp_path / "foreign")
    (tmp_path / "foreign" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="of another kind"):
        LatentCache(tmp_path / "foreign")
    (tmp_path / "foreign" / "manifest.json").write_text('{"format": "avd-')
    with pytest.raises(UserError, match="damaged"):
        LatentCache(tmp_path / "foreign")
    fill(open_writer(tmp_path / "unfinished"), 5)
    with pytest.raises(UserError, match="unfinished"):
        LatentCache(tmp_path / "unfinished")
    manifest = json.loads((cache_path / "manifest.json").read_text())
    for version in (1, 5, None):
        (cache_path / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
        with pytest.raises(UserError, match=f"format version {version}, this program reads 2 to 4: prepare the cache"):
            LatentCache(cache_path)
    (cache_path / "manifest.json").write_text(json.dumps(manifest | {"latent_shape": 1}))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        LatentCache(cache_path)
    del manifest["shards"]
    (cache_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \('shards'\)"):
        LatentCache(cache_path)


def test_a_cache_without_all_of_its_captions_is_unfinished(cache_path: Path) -> None:
    for left in (6, 0):
        texts = json.loads((cache_path / "texts.json").read_text())
        if left:
            (cache_path / "texts.json").write_text(json.dumps(texts | {"shards": texts["shards"][:1]}))
        else:
            (cache_path / "texts.json").unlink()
        with pytest.raises(UserError, match="is unfinished: run the command that began it again"):
            LatentCache(cache_path)
    assert encode_texts(cache_path, Numbered(), CAPTIONS, shard_size=6) == COUNT
    check_source(LatentCache(cache_path), 1e-3)


def test_an_unfinished_cache_of_version_2_is_not_continued(tmp_path: Path) -> None:
    fill(open_writer(tmp_path / "old"), 5)
    journal = tmp_path / "old" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"version": 4', '"version": 2'))
    with pytest.raises(UserError, match="begun with version 2, this run has 4: choose another folder"):
        open_writer(tmp_path / "old")


def test_damaged_shards_are_named(cache_path: Path) -> None:
    shard = cache_path / SHARDS[1]
    good = shard.read_bytes()
    for bad in (b"", good[:4], good[:100], good[:-1]):
        shard.write_bytes(bad)
        with pytest.raises(UserError, match=SHARDS[1]):
            LatentCache(cache_path)
    shutil.copy(cache_path / SHARDS[2], shard)
    with pytest.raises(UserError, match=f"{SHARDS[1]} does not fit the manifest"):
        LatentCache(cache_path)
    items = json.dumps([{"caption": "a", "file": f"{i}.mp4"} for i in range(3)])
    save_file({"other": torch.zeros(3)}, shard, {"items": items})
    with pytest.raises(UserError, match=rf"{SHARDS[1]} holds no latents"):
        LatentCache(cache_path)
    save_file({"latents": torch.zeros(2, 4, 3, 2, 3)}, shard, {"items": items})
    with pytest.raises(UserError, match=f"{SHARDS[1]} holds 2 latents of 3 clips"):
        LatentCache(cache_path)
    save_file({"latents": torch.zeros(3, 4, 3, 2, 3)}, shard)
    with pytest.raises(UserError, match=f"{SHARDS[1]} names no clips"):
        LatentCache(cache_path)
    shard.unlink()
    with pytest.raises(UserError, match=SHARDS[1]):
        LatentCache(cache_path)
    shard.write_bytes(good)
    LatentCache(cache_path).verify()


@pytest.mark.parametrize("name", [SHARDS[2], TEXT_FILES[1]])
def test_flipped_bits_are_found_by_verify(cache_path: Path, name: str) -> None:
    shard = cache_path / name
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} has changed since it was written"):
        LatentCache(cache_path).verify()


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    fill(open_writer(tmp_path / "cache"), 5)
    journal = tmp_path / "cache" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"sha256"', '"sha'))
    with pytest.raises(UserError, match="damaged"):
        open_writer(tmp_path / "cache")
