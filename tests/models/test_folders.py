"""Models of the hub: fetched by one process for all that wait, at a revision, and never twice after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avd.models import folders
from avd.models.folders import INDEX_FILE, ModelSource, locate
from avd.types import UserError

FETCH = """
import sys, time
from pathlib import Path
from avd.models import folders
from avd.types import UserError

place, fails = Path(sys.argv[1]), sys.argv[2] == "fails"

def download(hub_id, revision):
    with (place / "calls").open("a") as file:
        file.write(f"{hub_id} {revision}\\n")
    time.sleep(0.5)  # the others are waiting by now
    return {"folder": None, "error": "ConnectionError"} if fails else {"folder": str(place)}

folders._download = download
(place / f"ready-{sys.argv[3]}").touch()
while len(list(place.glob("ready-*"))) < 4:
    time.sleep(0.01)
try:
    print(folders.locate("owner/model@v1.0", {}))
except UserError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("outcome", ["succeeds", "fails"])
def test_one_process_fetches_for_all_that_wait(outcome: str, tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, str(tmp_path), outcome, str(i)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    results = [process.communicate(timeout=60) for process in processes]
    assert (tmp_path / "calls").read_text() == "owner/model v1.0\n"
    for shown, errors in results:
        if outcome == "succeeds":
            assert shown.strip() == str(tmp_path), errors
        else:
            assert shown.startswith("owner/model@v1.0 cannot be loaded:") and "(ConnectionError)" in shown, errors


def test_a_process_asks_again_after_its_own_failure_and_not_after_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, results = [], [{"folder": None, "error": "OSError"}, {"folder": str(tmp_path)}]
    monkeypatch.setattr(folders, "_download", lambda *what: calls.append(what) or results[len(calls) - 1])
    with pytest.raises(UserError, match=r"owner/model cannot be loaded: .* \(OSError\): check name, revision and net"):
        locate("owner/model", {})
    assert locate("owner/model", {}) == locate("owner/model", {}) == tmp_path
    assert calls == [("owner/model", None)] * 2


def test_a_later_process_asks_the_hub_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(folders, "_download", lambda *what: calls.append(what) or {"folder": str(tmp_path)})
    locate("owner/model", {})
    monkeypatch.setattr(folders, "_STARTED", folders.time.time() + 1)
    locate("owner/model", {})
    assert len(calls) == 2


def test_a_cache_that_may_only_be_read_is_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("no folder can be made here")
    monkeypatch.setattr(folders, "_download", lambda *what: {"folder": str(tmp_path)})
    assert locate("owner/model", {}) == tmp_path


@pytest.mark.parametrize(
    ("name", "folder", "pinned"),
    [
        ("owner/model", "hub/models--owner--model/snapshots/abc123", "owner/model@abc123"),
        ("owner/model@main", "hub/models--owner--model/snapshots/abc123", "owner/model@abc123"),
        ("wan-mini", "assets/wan-mini", "wan-mini"),
    ],
)
def test_a_model_of_the_hub_is_pinned_to_its_commit(name: str, folder: str, pinned: str) -> None:
    assert ModelSource(name, Path(folder), {}).pinned == pinned


def test_a_folder_is_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    (folder / INDEX_FILE).write_text("{}")
    found = locate(str(folder), {})
    assert found == folder and ModelSource(str(folder), folder, {}).pinned == str(folder)
