"""Golden metrics: what each miniature configuration logged when its numbers last moved on purpose."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from avd.cli.main import main
from avd.distillation.numbers import NUMBERS
from helpers.miniatures import Configuration, read_metrics

FOLDER = Path(__file__).parents[1] / "golden"
NUMBERS_FILE = FOLDER.with_name("numbers.json")
"""Which `numbers.NUMBERS` the golden metrics are of, and their digests."""

RELATIVE = 1e-3
"""Another processor sums in another order, and six updates of AdamW enlarge the difference."""
ABSOLUTE = 1e-6
"""What a metric near 0 may differ by."""

Metrics = list[dict[str, Any]]


def train(configuration: Configuration, output: Path) -> Metrics:
    """The metrics of a run in this process. A run without checkpoints logs what one with them logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["avd", *configuration.arguments(output, "training.checkpoint_every=0")])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code, f"{configuration.name}: avd ended with exit code {end.value.code}"
    return read_metrics(output / "metrics.jsonl")


def golden_file(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"


def write_golden(name: str, metrics: Metrics) -> None:
    """Numbers have 7 significant digits: what float32 holds, and no more for a diff to show."""
    rounded = [{k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in line.items()} for line in metrics]
    golden_file(name).write_text("".join(json.dumps(line) + "\n" for line in rounded), encoding="utf-8")


def differences(name: str, found: Metrics, expected: Metrics) -> list[str]:
    """A line for each metric of configuration `name` that is missing, unexpected or out of tolerance."""
    if len(found) != len(expected):
        return [f"{name}: found {len(found)} updates, expected {len(expected)}"]
    return [
        f"{name}, update {update}, {key}: found {new.get(key, 'nothing')}, expected {old.get(key, 'nothing')}"
        for update, (new, old) in enumerate(zip(found, expected, strict=True))
        for key in {**old, **new}
        if key not in old or key not in new or not _close(new[key], old[key])
    ]


def _close(found: float | None, expected: float | None) -> bool:
    """Null is what is logged of a number that is not finite."""
    if found is None or expected is None:
        return found is expected
    return abs(found - expected) <= max(RELATIVE * abs(expected), ABSOLUTE)


def have_moved(before: dict[str, Metrics], after: dict[str, Metrics]) -> bool:
    """Whether a configuration that there was before has other metrics now, past the tolerance."""
    return any(differences(name, after[name], metrics) for name, metrics in before.items() if name in after)


def digests() -> dict[str, str]:
    """A digest of each golden file, by the name of its configuration."""
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(FOLDER.glob("*.jsonl"))}


def numbers_fault(recorded: dict[str, Any], found: dict[str, str], numbers: int) -> str | None:
    """Why the golden files `found` are not those that `numbers` stands for; None if they are."""
    if recorded["numbers"] != numbers:
        return f"tests/numbers.json is of NUMBERS {recorded['numbers']}, and it is {numbers}: run `make golden`"
    moved = [name for name, digest in recorded["golden"].items() if name in found and found[name] != digest]
    if moved:
        return f"{moved[0]}.jsonl has moved: count NUMBERS up (distillation/numbers.py) and run `make golden`"
    new = sorted(found.keys() - recorded["golden"].keys())
    if new:
        return f"{new[0]}.jsonl is not in tests/numbers.json, so it could move unseen: run `make golden`"
    return None


def write_numbers(moved: bool) -> None:
    """Record the golden files as those of today's NUMBERS. Exits where they have `moved` and it has not."""
    if moved and NUMBERS_FILE.exists() and json.loads(NUMBERS_FILE.read_text())["numbers"] == NUMBERS:
        sys.exit("golden metrics have moved: count NUMBERS up (src/avd/distillation/numbers.py), then run this again")
    content = {"numbers": NUMBERS, "golden": digests()}
    NUMBERS_FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
