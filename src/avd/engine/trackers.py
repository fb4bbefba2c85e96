"""Trackers: TensorBoard and Weights & Biases, beside the JSONL that every run writes.

Their packages are optional. What is asked for and not installed is reported before any work. Once the run is going, no
tracker can stop it: one that fails is named once and then left out.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from avd.config import Recipe, TrackerName
from avd.data import read_video
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.files import read_text, write_text
from avd.types import UserError

_MODULES: dict[TrackerName, str] = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
_WANDB_ID = "wandb-id.txt"


class Tracker(Protocol):
    """Where metrics go. `updates` is the number of updates done."""

    def metrics(self, updates: int, metrics: Mapping[str, float]) -> None: ...

    def video(self, updates: int, path: Path) -> None:
        """An MP4 file."""
        ...

    def text(self, updates: int, text: str) -> None:
        """A warning."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder; videos as GIFs among the images."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._writer = importlib.import_module(_MODULES["tensorboard"]).SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("recipe", f"```yaml\n{recipe.to_yaml()}```")

    def metrics(self, updates: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, updates)

    def video(self, updates: int, path: Path) -> None:
        # `SummaryWriter.add_video` would need moviepy to make the same GIF.
        summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        gif, width, height = _gif(path)
        image = summaries.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = summaries.Summary(value=[summaries.Summary.Value(tag="samples", image=image)])
        self._writer.file_writer.add_summary(summary, updates)

    def text(self, updates: int, text: str) -> None:
        self._writer.add_text("warnings", text, updates)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run folder, resumed with it. WANDB_MODE, WANDB_PROJECT and the like apply."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._wandb = importlib.import_module(_MODULES["wandb"])
        known = folder / _WANDB_ID
        if not known.exists():
            write_text(known, self._wandb.util.generate_id())
        config = recipe.model_dump(mode="json")
        self._run = self._wandb.init(
            id=read_text(known), resume="allow", name=folder.name, dir=str(folder), config=config
        )
        # Its own step may only rise, and a run that is resumed or rolled back does some updates again.
        self._run.define_metric("updates")
        self._run.define_metric("*", step_metric="updates")

    def metrics(self, updates: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"updates": updates, **metrics})

    def video(self, updates: int, path: Path) -> None:
        self._run.log({"updates": updates, "samples": self._wandb.Video(str(path), format="mp4")})

    def text(self, updates: int, text: str) -> None:
        self._run.alert(title=f"{self._run.name}: update {updates}", text=text)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[TrackerName, Callable[[Path, Recipe], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Trackers:
    """All trackers of a run as one. A failure of any is reported once; that tracker is left alone from then on."""

    def __init__(self, trackers: Mapping[str, Tracker], tell: Callable[[str], None]) -> None:
        self._trackers, self._tell = dict(trackers), tell

    def add(self, name: str, tracker: Tracker) -> None:
        self._trackers[name] = tracker

    def metrics(self, updates: int, metrics: Mapping[str, float]) -> None:
        """Metrics that are not finite are left out."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._each(lambda tracker: tracker.metrics(updates, finite))

    def video(self, updates: int, path: Path) -> None:
        self._each(lambda tracker: tracker.video(updates, path))

    def text(self, updates: int, text: str) -> None:
        self._each(lambda tracker: tracker.text(updates, text))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a network, a full disk, a bug of theirs: never the run's end
                del self._trackers[name]
                self._tell(f"tracker {name} failed and is left out from now on: {_short(error)}")


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UserError if a tracker's package is not installed."""
    for name in names:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise UserError(
                f"tracker {name} needs a package that is not installed ({_short(error)}): "
                f"pip install 'avd[{name}]', or leave it out of trackers"
            ) from error


@contextmanager
def open_trackers(
    recipe: Recipe, folder: Path, tell: Callable[[str], None], ranks: Ranks = SINGLE_PROCESS
) -> Iterator[Trackers]:
    """The recipe's trackers, for the duration of a block; on the first rank. Raises UserError if one does not start."""
    trackers = Trackers({}, tell)
    try:
        for name in recipe.trackers if ranks.is_main else ():
            trackers.add(name, _start(name, folder, recipe))
        yield trackers
    finally:
        trackers.close()


def _start(name: TrackerName, folder: Path, recipe: Recipe) -> Tracker:
    try:
        return _KINDS[name](folder, recipe)
    except Exception as error:
        hint = "log in with `wandb login`, set WANDB_MODE=offline" if name == "wandb" else "fix that"
        raise UserError(
            f"tracker {name} does not start ({_short(error)}): {hint}, or leave it out of trackers"
        ) from error


def _gif(path: Path) -> tuple[bytes, int, int]:
    """A video as a looping GIF, with its width and height."""
    video = read_video(path)
    frames: list[Any] = [Image.fromarray(frame) for frame in video.frames]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / video.fps), loop=0)
    return buffer.getvalue(), *frames[0].size


def _short(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
