"""Measuring on several ranks: every clip once, batches no larger than training's, as many calls on each rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avd.engine.ranks import SINGLE_PROCESS
from helpers.monitor_ranks import measure_and_count
from helpers.processes import end_of, start_ranks
from helpers.watched_run import watched_recipe

CLIPS, STEPS, STAGES = 5, 3, 4
RECIPE = (
    f"monitors.clips={CLIPS}", f"monitors.teacher_steps={STEPS}", "training.batch=12", "compute.microbatch=2",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure_and_count(tmp_path_factory.mktemp("alone"), watched_recipe(*RECIPE), SINGLE_PROCESS)


def test_one_process_goes_through_its_clips_in_parts(alone: dict[str, Any]) -> None:
    assert alone["student"] == [2] * STAGES + [2] * STAGES + [1] * STAGES
    assert alone["teacher"] == [4] * STEPS + [4] * STEPS + [2] * STEPS  # guidance doubles them, as in training
    assert alone["references"] == {"decoded": 2 * CLIPS, "measured": 2 * CLIPS}
    assert alone["decoded"] == alone["measured"] == 3 * CLIPS


def test_without_microbatches_a_part_is_a_rank_s_share_of_the_batch(tmp_path: Path) -> None:
    recipe = watched_recipe("monitors.clips=5", "monitors.teacher_steps=1", "training.batch=3")
    assert measure_and_count(tmp_path, recipe, SINGLE_PROCESS)["student"] == [3] * STAGES + [2] * STAGES


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_clips_that_they_do_not_divide(size: int, alone: dict[str, Any], tmp_path: Path) -> None:
    for code, errors in end_of(start_ranks(size, "helpers.monitor_ranks", str(tmp_path), *RECIPE)):
        assert code == 0, errors
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(size)]
    calls = {2: [2, 1], 3: [2]}[size]  # clips in each call, of 5 over 2 or 3 ranks, at most 2 at once
    for rank in ranks:
        assert rank["student"] == [clips for clips in calls for _ in range(STAGES)]
        assert rank["teacher"] == [2 * clips for clips in calls for _ in range(STEPS)]
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert sum(rank["measured"] for rank in ranks) == sum(rank["decoded"] for rank in ranks) == 3 * CLIPS
    assert {rank["measured"] for rank in ranks} <= {3 * (CLIPS // size), 3 * (CLIPS // size + 1)}
