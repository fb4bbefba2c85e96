"""Checkpoints: atomic and exact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avd.engine import checkpoint
from avd.engine.checkpoint import Reader, SavedTensors, list_checkpoints, load_checkpoint
from avd.engine.packing import pack_module, pack_optimizer, unpack_module, unpack_optimizer
from avd.miniature import architecture as mini
from avd.types import UserError
from helpers.checkpoints import save_checkpoint, save_sharded, shard_rows


class Killed(BaseException):
    """Ends the process as far as the code under test can tell: nothing catches it."""


def kill(*args: object, **kwargs: object) -> Any:
    raise Killed


def save(folder: Path, step: int, keep: int = 2) -> None:
    save_checkpoint(folder, step, {"w": torch.full((3,), float(step))}, {"note": f"step {step}"}, keep)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "half": torch.randn(2).bfloat16(),
        "flag": torch.tensor(True),
        "t": torch.ones(4, 2).T,
    }
    save_checkpoint(tmp_path, 7, tensors, {"seed": 1}, keep=1)
    found, state = load_checkpoint(tmp_path / "step-0000007")
    assert state == {"step": 7, "seed": 1}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())


def test_only_the_newest_are_kept_in_order(tmp_path: Path) -> None:
    for step in (5, 90, 100, 1000):
        save(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-0000100", "step-0001000"]


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize("moment", ["save_file", "sync", "os.replace"])
def test_a_write_cut_short_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        owner, name = (os, "replace") if moment == "os.replace" else (checkpoint, moment)
        patch.setattr(owner, name, kill)
        save(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-0000001"]
    assert load_checkpoint(list_checkpoints(tmp_path)[-1])[1]["step"] == 1
    assert (tmp_path / "step-0000002.writing").exists()
    (tmp_path / ".writing-2").mkdir()  # as earlier versions called it
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000001", "step-0000003"]


def test_a_removal_cut_short_leaves_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, keep=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", kill)
        save(tmp_path, 2, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-0000002"]  # none that lacks a file
    assert load_checkpoint(list_checkpoints(tmp_path)[-1])[1]["step"] == 2
    save(tmp_path, 3, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000003"]


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {}, keep=2)
    assert load_checkpoint(tmp_path / "step-0000001")[0]["w"].tolist() == [0.0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\x00" * 40)


@pytest.mark.parametrize("damage", [cut, garble, Path.unlink, lambda path: path.write_text("{}")])
@pytest.mark.parametrize("file", ["tensors-00000-of-00001.safetensors", "state.json"])
def test_damage_is_one_line_that_says_where(tmp_path: Path, file: str, damage: Callable[[Path], object]) -> None:
    save(tmp_path, 4)
    path = tmp_path / "step-0000004"
    damage(path / file)
    with pytest.raises(UserError) as refusal:
        load_checkpoint(path)
    assert str(path) in str(refusal.value) and "damaged" in str(refusal.value) and "\n" not in str(refusal.value)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    """Two groups, as training has them."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim == 1]
    return torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=0.01)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for n in updates:
        g = torch.Generator().manual_seed(n)
        optimizer.zero_grad()
        module(torch.randn(16, 3, generator=g)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("killed_after", [0, 3])
def test_training_continues_bit_for_bit(
    tmp_path: Path, make: Callable[[nn.Module], torch.optim.Optimizer], killed_after: int
) -> None:
    uninterrupted = network()
    train(uninterrupted, make(uninterrupted), range(8))

    first = network()
    optimizer = make(first)
    train(first, optimizer, range(killed_after))
    tensors = pack_module("net", first) | pack_optimizer("net_optimizer", optimizer)
    save_checkpoint(tmp_path, killed_after, tensors, {}, keep=1)

    tensors, _ = load_checkpoint(list_checkpoints(tmp_path)[0])
    second = network()
    nn.init.zeros_(second[0].weight)
    optimizer = make(second)
    unpack_module("net", second, tensors)
    unpack_optimizer("net_optimizer", optimizer, tensors)
    train(second, optimizer, range(killed_after, 8))
    assert_same(second.state_dict(), uninterrupted.state_dict())


def test_learning_rates_are_the_recipes_not_the_checkpoints() -> None:
    module = network()
    optimizer = adamw(module)
    train(module, optimizer, range(1))
    packed = pack_optimizer("o", optimizer)
    changed = torch.optim.AdamW(module.parameters(), lr=0.5)
    unpack_optimizer("o", changed, packed)
    assert changed.param_groups[0]["lr"] == 0.5


def test_tied_weights_are_saved_and_loaded_tied(tmp_path: Path) -> None:
    """A UMT5 holds its word embedding under two names, which safetensors alone would refuse."""
    encoder, other = mini.build_text_encoder(20), mini.build_text_encoder(20)
    save_checkpoint(tmp_path, 1, pack_module("text", encoder), {}, keep=1)
    tensors, _ = load_checkpoint(tmp_path / "step-0000001")
    unpack_module("text", other, tensors)
    assert_same(other.state_dict(), encoder.state_dict())
    assert other.shared.weight.data_ptr() == other.encoder.embed_tokens.weight.data_ptr()


def test_the_state_is_readable_json(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert json.loads((tmp_path / "step-0000001" / "state.json").read_text()) == {"step": 1, "note": "step 1"}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


# -- the parts of many ranks --------------------------------------------------------------------------------------

RANKS = 64
MANY = {
    f"net.{i}": torch.randn(rows, 2, generator=torch.Generator().manual_seed(i)) for i, rows in enumerate((130, 64, 3))
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, in order."""
    names: list[str] = []
    safe_open = checkpoint.safe_open
    monkeypatch.setattr(
        checkpoint, "safe_open", lambda path, **how: (names.append(path.name), safe_open(path, **how))[1]
    )
    return names


def read_shards(path: Path, reader: Reader) -> None:
    """Read all shards of `reader`, and compare."""
    with SavedTensors(path, reader) as saved:
        for name in saved:
            tensor = MANY[name]
            rows = shard_rows(len(tensor), reader.shard, reader.shards)
            found = saved.region(name, (rows.start, 0), (len(rows), 2))
            assert torch.equal(found, tensor[rows.start : rows.stop])


@pytest.mark.parametrize(("copies", "own"), [(1, 37), (8, 5)])
def test_as_many_ranks_as_saved_open_their_own_part_and_the_first(
    tmp_path: Path, opened: list[str], copies: int, own: int
) -> None:
    """With `copies`, groups of ranks hold the same shards (HSDP), and only the first group has saved them."""
    save_sharded(tmp_path, 1, MANY, RANKS, copies=copies)
    read_shards(tmp_path / "step-0000001", Reader(own, RANKS // copies, RANKS))
    assert sorted(opened) == ["tensors-00000-of-00064.safetensors", f"tensors-{own:05d}-of-00064.safetensors"]


@pytest.mark.parametrize("shards", [1, 8, 48, 100])
def test_no_rank_opens_a_part_twice(tmp_path: Path, opened: list[str], shards: int) -> None:
    save_sharded(tmp_path, 1, MANY, RANKS)
    for shard in range(0, shards, 7):
        opened.clear()
        read_shards(tmp_path / "step-0000001", Reader(shard, shards, shards))
        assert len(opened) == len(set(opened)) <= RANKS


def test_neighbours_are_looked_in_before_the_rest(tmp_path: Path, opened: list[str]) -> None:
    """Half as many ranks as saved need two parts each, besides the first."""
    save_sharded(tmp_path, 1, {"net.1": MANY["net.1"]}, RANKS)
    read_shards(tmp_path / "step-0000001", Reader(20, 32, 32))
    assert sorted(int(name[8:13]) for name in opened) == [0, 40, 41]


def test_rows_that_no_part_holds_are_damage(tmp_path: Path) -> None:
    save_sharded(tmp_path, 1, MANY, 2)
    part = tmp_path / "step-0000001" / "tensors-00001-of-00002.safetensors"
    checkpoint.save_file({}, part, {"places": "{}"})
    with (
        SavedTensors(tmp_path / "step-0000001") as saved,
        pytest.raises(UserError, match=r"no part holds all of net\.0"),
    ):
        saved["net.0"]


def test_the_newest_checkpoint_is_checked_part_by_part(tmp_path: Path) -> None:
    """A rank may meet a damaged part hours later; the first one looks at all of them before any work."""
    save_sharded(tmp_path, 1, MANY, 4)
    cut(tmp_path / "step-0000001" / "tensors-00003-of-00004.safetensors")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.check_newest(tmp_path, 5)
