"""Checkpoints that cannot be lost: out of disk, or with training going on while they are written."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from avd.engine import checkpoint, saving
from avd.engine.checkpoint import list_checkpoints, load_checkpoint
from avd.engine.ranks import SINGLE_PROCESS
from avd.engine.saving import Saver
from avd.types import UserError
from helpers.distill_run import distill


def tensors(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((3,), value)}


def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training continues, in place, while the file is written."""
    save_file: Callable[..., None] = checkpoint.save_file

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        save_file(*args)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    saver, live = Saver(tmp_path, 2, SINGLE_PROCESS), tensors(1.0)
    saver.save(1, live, {"note": "one"})
    live["w"].fill_(9.0)
    saver.poll()
    assert list_checkpoints(tmp_path) == []  # not complete yet
    saver.finish()
    found, state = load_checkpoint(tmp_path / "step-0000001")
    assert found["w"].tolist() == [1.0] * 3 and state == {"step": 1, "note": "one"}


def test_checkpoints_appear_in_order_and_the_newest_stay(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 2, SINGLE_PROCESS)
    for step in (1, 2, 3):
        saver.save(step, tensors(step), {})
    saver.finish()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002", "step-0000003"]


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_safetensors_tells_it(*args: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [
        (checkpoint, "save_file", full_disk),
        (checkpoint, "save_file", full_disk_as_safetensors_tells_it),
        (saving, "publish", full_disk),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, failure: Callable[..., None]
) -> None:
    saver = Saver(tmp_path, 2, SINGLE_PROCESS)
    saver.save(1, tensors(1.0), {})
    saver.finish()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failure)
        saver.save(2, tensors(2.0), {})
        with pytest.raises(UserError, match=r"update 2 cannot be written.*No space left.*step-0000001.*--resume"):
            saver.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert load_checkpoint(tmp_path / "step-0000001")[0]["w"].tolist() == [1.0] * 3


def test_a_run_that_met_a_full_disk_resumes_from_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = distill(tmp_path / "straight", 6)
    write_pieces: Callable[..., int] = saving.write_pieces

    def fill_up(folder: Path, step: int, *args: Any) -> int:
        if step == 4:
            full_disk()
        return write_pieces(folder, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_pieces", fill_up)
        with pytest.raises(UserError, match="No space left"):
            distill(tmp_path / "run", 6)
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-0000002"]
    resumed = distill(tmp_path / "run", 6, resume=True)
    expected = straight.tensors()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.tensors().items())
