"""What a run does about what its monitors see: it warns, keeps its best, stops, or goes back and tries other noise.

Rolling back is a resume. The best checkpoint is written as the run's newest, with the number of roll-backs raised in
its state, and the loop restarts from there as a new process would: so a run that is killed after a roll-back, or in the
middle of one, is resumed exactly too. Updates are counted from the best checkpoint again. They see the same data; their
noise is drawn with a seed derived from the recipe's and the number of roll-backs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avd.config import MonitorsRecipe
from avd.distillation.monitoring.alarms import Alarms
from avd.distillation.monitoring.monitor import Monitor, MonitorResult
from avd.distillation.saved_student import BEST
from avd.distillation.task import DistillTask
from avd.engine.checkpoint import SavedTensors, list_checkpoints, restore_checkpoint
from avd.engine.loop import CONTINUE, Decision, UpdateResult, due
from avd.engine.run_folder import RunFolder
from avd.engine.saving import Saver
from avd.engine.stopping import Heed
from avd.engine.trackers import Trackers
from avd.files import append_json_line, read_json_lines, remove_folder, write_json, write_json_lines

WARNINGS_FILE = "warnings.jsonl"
BEST_CHECKPOINT = "best-checkpoint"

Tell = Callable[[str], None]
"""Shows a person a line."""


class RunWatch:
    """See `engine.loop.Watch`. Lines of `warnings.jsonl` hold `updates`, `roll_backs`, `event`, `about`, `text`."""

    def __init__(
        self, task: DistillTask, monitor: Monitor | None, folder: RunFolder, trackers: Trackers, tell: Tell
    ) -> None:
        self._task, self._monitor, self._folder, self._trackers, self._tell = task, monitor, folder, trackers, tell
        self._recipe: MonitorsRecipe = task.recipe.monitors
        self._warnings = folder.path / WARNINGS_FILE

    def begin(self, updates: int) -> None:
        """Drop warnings that the run has not come to yet: they will come again."""
        if not (self._task.ranks.is_main and self._warnings.exists()):
            return
        reached = (self._task.roll_backs, updates)
        lines = [line for line in read_json_lines(self._warnings) if (line["roll_backs"], line["updates"]) <= reached]
        write_json_lines(self._warnings, lines)

    def observe(self, result: UpdateResult) -> None:
        if self._monitor is not None:
            self._monitor.observe(result)

    def measure(self, updates: int, heed: Heed) -> MonitorResult | None:
        if self._monitor is None or not due(updates, self._recipe.every, self._task.recipe.training.updates):
            return None
        return self._monitor.measure(heed)

    def state(self) -> dict[str, Any]:
        return {"monitors": None if self._monitor is None else self._monitor.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        if self._monitor is not None and state["monitors"] is not None:  # it may have been switched on since
            self._monitor.load_state_dict(state["monitors"])

    def after_update(self, updates: int, metrics: Mapping[str, float], measurement: MonitorResult | None) -> Decision:
        self._trackers.metrics(updates, metrics)
        sample = self._folder.samples / f"update-{updates:06d}.mp4"
        if self._task.ranks.is_main and sample.exists():
            self._trackers.video(updates, sample)
        if measurement is None:
            return CONTINUE
        for event in measurement.events:
            self._note(updates, event.kind, event.metric, event.text)
        if measurement.best:
            self._keep_best(updates, measurement)
        if measurement.lasting is None or self._recipe.action == "warn":
            return CONTINUE
        if self._recipe.action == "roll_back" and self._task.roll_backs < self._recipe.roll_backs:
            return self._announce_roll_back(updates, measurement.lasting)
        return self._stop(updates, measurement.lasting)

    def _stop(self, updates: int, reason: str) -> Decision:
        self._note(updates, "stopped", "run", reason, shown=False)  # it is shown as the command ends
        path = self._folder.path
        best = self._task.ranks.decide(lambda: bool(list_checkpoints(path / BEST)))
        note = f"; the best student can be written with `avd export {path} --checkpoint best`" if best else ""
        return Decision(
            stop=f"stopped after {updates} updates: {reason}; the state is saved in {path}{note}; "
            "to continue nevertheless, add --resume --set monitors.action=warn"
        )

    def roll_back(self, updates: int) -> None:
        number = self._task.roll_backs + 1
        with self._task.ranks.together():
            if self._task.ranks.is_main:
                best = self._best_checkpoints(updates)[-1]
                restore_checkpoint(best, self._folder.checkpoints, lambda state: _sent_back(state, number))
                _forget_after(self._folder.checkpoints, _step(best))

    def _best_checkpoints(self, updates: int) -> list[Path]:
        """The best checkpoints after at most `updates` updates."""
        return [path for path in list_checkpoints(self._folder.path / BEST_CHECKPOINT) if _step(path) <= updates]

    def _announce_roll_back(self, updates: int, reason: str) -> Decision:
        steps = self._task.ranks.decide(lambda: [_step(path) for path in self._best_checkpoints(updates)])
        if not steps:  # no measurement had a score, or the options were changed and the run was resumed
            return self._stop(updates, f"{reason}; and there is no best checkpoint to roll back to")
        step, number = steps[-1], self._task.roll_backs + 1
        self._note(
            updates, "rolled back", "run", f"rolled back to update {step}, with other noise (number {number}): {reason}"
        )
        return Decision(roll_back=True)

    def complete(self) -> None:
        """Write the folder of the best student, from its weights."""
        if self._recipe.keep_best is not None:
            self._task.ranks.attend(self._write_best)

    def _write_best(self) -> None:
        best = self._folder.path / BEST
        for path in list_checkpoints(best)[-1:]:
            with SavedTensors(path) as tensors:
                self._task.export_saved(tensors, best)

    def _keep_best(self, updates: int, measurement: MonitorResult) -> None:
        """Save the averaged student, as each rank has it: a folder that tools can load takes far longer to write."""
        task, best = self._task, self._folder.path / BEST
        with task.ranks.together():
            if task.ranks.is_main and (best / "student").exists():
                remove_folder(best / "student")  # of a run that had ended, and of a student before
        self._save(best, updates, task.average_tensors(), {})
        with task.ranks.together():
            if task.ranks.is_main:
                values = {"updates": updates, "by": self._recipe.keep_best, **measurement.metrics}
                write_json(best / "best.json", values)
        if self._recipe.action == "roll_back":
            self._save(self._folder.path / BEST_CHECKPOINT, updates, task.tensors(), task.state() | self.state())

    def _save(self, folder: Path, updates: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Make a checkpoint the only one in `folder`, and wait for it."""
        with self._task.ranks.together():
            if self._task.ranks.is_main:
                _forget_after(folder, updates)  # of updates that are being done again
        saver = Saver(folder, 1, self._task.ranks)
        saver.save(updates, tensors, state)
        saver.finish()

    def _note(self, updates: int, event: str, about: str, text: str, *, shown: bool = True) -> None:
        """In the file, in the trackers, and on the screen."""
        if not self._task.ranks.is_main:
            return
        line = {
            "updates": updates,
            "roll_backs": self._task.roll_backs,
            "event": event,
            "about": about,
            "text": text,
        }
        append_json_line(self._warnings, line)
        message = f"update {updates}: {'' if event in ('recovered', 'rolled back') else 'warning: '}{text}"
        self._trackers.text(updates, message)
        if shown:
            self._tell(message)


def _sent_back(state: dict[str, Any], number: int) -> None:
    """Turn the state of a best checkpoint into that of a run sent back to it, for the `number`-th time."""
    state["roll_backs"] = number
    state["monitors"]["alarms"] = Alarms([]).state_dict()  # what was crossed is judged again


def _forget_after(folder: Path, step: int) -> None:
    """Remove checkpoints past `step`.

    The newest goes first: killed in between, a run resumes from one of the others, comes to the same roll-back, and
    does it again.
    """
    for path in reversed(list_checkpoints(folder)):
        if _step(path) > step:
            remove_folder(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
