"""Trackers against stand-ins for their packages, and against the packages themselves where they are installed."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avd.config import Recipe, load_recipe
from avd.data import write_video
from avd.engine.trackers import Trackers, check_trackers, open_trackers
from avd.types import UserError
from helpers.command import avd
from helpers.watched_run import COLLAPSING, watched

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


class Recorder:
    """Takes any call and writes it down."""

    def __init__(self, calls: Calls, *arguments: Any, **options: Any) -> None:
        self._calls = calls
        calls.append(("init", arguments, options))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self._calls.append((name, arguments, options))


def recipe_with(*names: str) -> Recipe:
    return load_recipe("avd", [f"trackers=[{','.join(names)}]"])


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(members)
    return made


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Calls of a stand-in for TensorBoard's writer; summaries are named tuples of what went into them."""
    calls: Calls = []

    class Writer(Recorder):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(calls, *arguments, **options)
            self.file_writer = self

    class Summary(SimpleNamespace):
        Image = Value = SimpleNamespace

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module("tensorboard", SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.summary_pb2", module("summary_pb2", Summary=Summary))
    return calls


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    class Run(Recorder):
        name = "run"

    fake = module(
        "wandb",
        init=lambda **options: Run(calls, **options),
        util=SimpleNamespace(generate_id=lambda: f"id{len(calls)}"),
        Video=lambda path, format: ("video", Path(path).name, format),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return calls


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "update-000003.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8), 8)
    return path


def test_tensorboard_gets_metrics_videos_and_warnings(tensorboard: Calls, video: Path, tmp_path: Path) -> None:
    with open_trackers(recipe_with("tensorboard"), tmp_path, print) as trackers:
        trackers.metrics(3, {"saturation": 0.25, "score": float("nan")})
        trackers.video(3, video)
        trackers.text(3, "too colourful")
    assert tensorboard[0] == ("init", (str(tmp_path / "tensorboard"),), {})
    named = {name: arguments for name, arguments, _ in tensorboard[2:]}
    assert named["add_scalar"] == ("saturation", 0.25, 3)
    assert named["add_text"] == ("warnings", "too colourful", 3)
    assert [name for name, _, _ in tensorboard].count("add_scalar") == 1 and tensorboard[-1][0] == "close"
    summary, step = named["add_summary"]
    image = summary.value[0].image
    gif = Image.open(io.BytesIO(image.encoded_image_string))
    assert (gif.format, gif.size, gif.n_frames, step) == ("GIF", (32, 16), 5, 3)  # type: ignore[attr-defined]
    assert (image.width, image.height) == (32, 16)


def test_wandb_gets_them_and_a_resumed_run_is_the_same_one(wandb: Calls, video: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with open_trackers(recipe_with("wandb"), tmp_path, print) as trackers:
            trackers.metrics(3, {"saturation": 0.25})
            trackers.video(3, video)
            trackers.text(3, "too colourful")
    begun = [options for name, _, options in wandb if name == "init"]
    assert begun[0] == begun[1] and begun[0]["id"] == "id0" and begun[0]["config"]["name"] == "avd"
    assert "mode" not in begun[0]  # WANDB_MODE decides
    logged = [arguments[0] for name, arguments, _ in wandb if name == "log"]
    assert logged[:2] == [{"updates": 3, "saturation": 0.25}, {"updates": 3, "samples": ("video", video.name, "mp4")}]
    assert ("alert", (), {"title": "run: update 3", "text": "too colourful"}) in wandb
    assert wandb[-1][0] == "finish"


def test_a_full_run_is_tracked(wandb: Calls, tmp_path: Path) -> None:
    with open_trackers(recipe_with("wandb"), tmp_path, print) as trackers:
        watched(tmp_path / "run", 2, *COLLAPSING, "training.sample_every=2", trackers={"wandb": trackers})
    logged = [arguments[0] for name, arguments, _ in wandb if name == "log"]
    assert [line["updates"] for line in logged if "distribution_matching" in line] == [1, 2]
    assert [line["updates"] for line in logged if "samples" in line] == [2]
    assert len([text for name, _, text in wandb if name == "alert"]) == 1


class Failing:
    """Fails from its second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def metrics(self, updates: int, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("the network\nis gone")

    def video(self, updates: int, path: Path) -> None:
        raise AssertionError("left out by now")

    text = video

    def close(self) -> None:
        raise AssertionError("left out by now")


def test_a_tracker_that_fails_is_reported_once_and_left_out(tmp_path: Path) -> None:
    messages: list[str] = []
    failing = Failing()
    watched(tmp_path / "run", 4, "training.sample_every=2", messages=messages, trackers={"wandb": failing})
    assert failing.calls == 2 and (tmp_path / "run" / "student").exists()
    assert messages[1:] == ["tracker wandb failed and is left out from now on: the network is gone"]


def test_the_other_trackers_resume() -> None:
    calls: Calls = []
    trackers = Trackers({"a": Failing(), "b": Recorder(calls)}, lambda text: None)  # type: ignore[dict-item]
    for n in range(3):
        trackers.metrics(n, {})
    trackers.close()
    assert [name for name, _, _ in calls] == ["init", "metrics", "metrics", "metrics", "close"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_reported_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=rf"tracker {name} needs a package .* pip install 'avd\[{name}\]'"):
        check_trackers([name])  # type: ignore[list-item]
    assert avd("distill", "avd", "--output", tmp_path / "run", "--set", f"trackers=[{name}]") == 2
    assert f"avd[{name}]" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UserError, match=r"trackers\.0 is 'mlflow'"):
        recipe_with("mlflow")


def test_a_tracker_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("api_key not configured")

    fake = module("wandb", init=refuse, util=SimpleNamespace(generate_id=lambda: "id"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with (
        pytest.raises(UserError, match=r"does not start \(api_key not configured\).*WANDB_MODE=offline"),
        open_trackers(recipe_with("wandb"), tmp_path, print),
    ):
        raise AssertionError("not reached")


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_itself(video: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    with open_trackers(recipe_with("tensorboard"), tmp_path, messages.append) as trackers:
        trackers.metrics(3, {"saturation": 0.25})
        trackers.video(3, video)
        trackers.text(3, "too colourful")
    assert messages == [] and any((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_offline(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    messages: list[str] = []
    with open_trackers(recipe_with("wandb"), tmp_path, messages.append) as trackers:
        trackers.metrics(3, {"saturation": 0.25})
        trackers.video(3, video)
        trackers.text(3, "too colourful")
    assert messages == [] and any((tmp_path / "wandb").glob("offline-run-*"))
