"""Writes tests/golden from the present code. Run it with `make golden`, once a change moves numbers on purpose."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.golden import FOLDER, train, write_golden
from helpers.miniatures import configurations


def main() -> None:
    metrics = {}
    for configuration in configurations():
        with TemporaryDirectory() as scratch:
            metrics[configuration.name] = train(configuration, Path(scratch) / "run")
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.jsonl"):
        stale.unlink()
    for name, lines in metrics.items():
        write_golden(name, lines)


if __name__ == "__main__":
    main()
