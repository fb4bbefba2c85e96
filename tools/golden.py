"""Writes tests/golden from the present code. Run it with `make golden`, once a change moves numbers on purpose."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.golden import FOLDER, golden_file, have_moved, train, write_golden, write_numbers
from helpers.miniatures import configurations, read_metrics


def main() -> None:
    metrics = {}
    for configuration in configurations():
        with TemporaryDirectory() as scratch:
            metrics[configuration.name] = train(configuration, Path(scratch) / "run")
    before = {name: read_metrics(golden_file(name)) for name in metrics if golden_file(name).exists()}
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.jsonl"):
        stale.unlink()
    for name, lines in metrics.items():
        write_golden(name, lines)
    write_numbers(have_moved(before, metrics))


if __name__ == "__main__":
    main()
