"""Six updates of every miniature configuration log the metrics in tests/golden; `make golden` writes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.golden import FOLDER, differences, golden_file, train
from helpers.miniatures import Configuration, configurations, read_metrics

CONFIGURATIONS = configurations()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
def test_metrics_are_golden(configuration: Configuration, tmp_path: Path) -> None:
    golden = golden_file(configuration.name)
    assert golden.exists(), f"there is no {golden}: write it with `make golden`"
    found = differences(configuration.name, train(configuration, tmp_path / "run"), read_metrics(golden))
    assert not found, "\n".join(["if these numbers moved on purpose, see CONTRIBUTING.md:", *found[:10]])


def test_every_golden_file_has_its_configuration() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {configuration.name for configuration in CONFIGURATIONS}


def test_full_and_half_rate_log_different_numbers() -> None:
    """Otherwise six updates had no cycle at half rate to watch."""
    full, half = (read_metrics(golden_file(name)) for name in ("avd", "avd-half-rate"))
    assert differences("half rate", half, full)


EXPECTED = [{"update": 0, "loss": 2.0, "gap": 0.0}, {"update": 1, "loss": 1.0, "gap": None}]


@pytest.mark.parametrize(
    ("update", "key", "value", "line"),
    [
        (0, "loss", 2.0019, None),
        (0, "loss", 2.0021, "toy, update 0, loss: found 2.0021, expected 2.0"),
        (0, "gap", 9e-7, None),
        (0, "gap", -2e-6, "toy, update 0, gap: found -2e-06, expected 0.0"),
        (1, "gap", 0.5, "toy, update 1, gap: found 0.5, expected None"),
        (1, "loss", None, "toy, update 1, loss: found None, expected 1.0"),
        (1, "new", 1.0, "toy, update 1, new: found 1.0, expected nothing"),
    ],
)
def test_the_check_names_what_differs(update: int, key: str, value: float | None, line: str | None) -> None:
    found = [dict(metrics) for metrics in EXPECTED]
    found[update][key] = value
    assert differences("toy", found, EXPECTED) == ([] if line is None else [line])


def test_the_check_misses_no_key_and_no_update() -> None:
    assert differences("toy", [EXPECTED[0], {"update": 1, "gap": None}], EXPECTED) == [
        "toy, update 1, loss: found nothing, expected 1.0"
    ]
    assert differences("toy", EXPECTED[:1], EXPECTED) == ["toy: found 1 updates, expected 2"]
