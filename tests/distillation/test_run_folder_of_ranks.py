"""Ranks that see the run folder differently: refused on all of them, or led by what the first one sees."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.processes import start_ranks


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each scene of `helpers.ranks_folders` gave on either rank. A rank that waits for the other is a failure."""
    found = []
    for process in start_ranks(2, "helpers.ranks_folders", str(tmp_path_factory.mktemp("ranks"))):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        found.append(json.loads(output.splitlines()[-1]))
    return found


def test_a_run_folder_that_a_rank_does_not_see_is_refused_on_all(outcomes: list[dict[str, Any]]) -> None:
    for rank, outcome in enumerate(outcomes):
        message = outcome["start_on_own_disks"]
        assert message.startswith("1 of 2 processes, the first of them rank 1 on ") and "\n" not in message
        assert f"disk-{rank}/run" in message and message.endswith("by the same path")


def test_a_part_that_the_first_rank_does_not_see_is_missed_before_the_checkpoint_appears(
    outcomes: list[dict[str, Any]],
) -> None:
    for outcome in outcomes:
        message = outcome["save_on_own_disks"]
        assert message.startswith("checkpoint of update 6 cannot be written")
        assert "1 of 2 parts, the first of them rank 1's, are not there" in message
        assert "storage that all machines share" in message and "none before it" in message


def test_an_error_of_one_rank_is_an_error_of_all(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome["fail_on_one"] for outcome in outcomes] == ["the disk of rank 1 is full"] * 2


def test_the_first_ranks_clock_is_the_one_that_counts(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome["save_by_the_first_clock"] for outcome in outcomes] == [["step-0000004"]] * 2


def test_ranks_stop_at_the_same_place_within_an_update(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        message, resumed = outcome["stop_within_an_update"]
        assert "within update 4: " in message and "step-0000002 is left in" in message
        assert resumed == [2, 3, 4, 5]


def test_the_first_rank_decides_where_a_run_resumes(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome["resume_with_an_old_listing"] for outcome in outcomes] == [[[0, 1, 2, 3], [4, 5]]] * 2


def test_the_first_rank_decides_about_references_and_roll_backs(outcomes: list[dict[str, Any]]) -> None:
    for roll_backs, samplings, message in (outcome["monitor_with_nothing_seen"] for outcome in outcomes):
        assert roll_backs == 1 and samplings == 1
        assert message.startswith("stopped after") and "--checkpoint best" in message
