"""The columns of every table: their order, titles, units and what they say in plain language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avd.evaluation.rows import Row

ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One measure. `key` is its field in `Row`; values are multiplied by `scale` and shown with `digits` decimals."""

    key: str
    title: str
    goal: str
    """Where a good value lies, in two or three words; empty where there is no better or worse."""
    help: str
    digits: int = 0
    scale: float = 1.0
    unit: str = ""
    signed: bool = False

    def text(self, value: float | None) -> str:
        """The value as shown, unit included."""
        if value is None:
            return ABSENT
        return f"{value * self.scale:{'+' if self.signed else ''}.{self.digits}f}{self.unit}"

    def spread_text(self, values: Sequence[float]) -> str:
        """`mean ± sample standard deviation`; the value alone where there is one, or all are equal."""
        if not values:
            return ABSENT
        mean = sum(values) / len(values)
        if len(set(values)) == 1:
            return self.text(values[0])
        deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        return f"{self.text(mean).removesuffix(self.unit)} ± {deviation * self.scale:.{self.digits}f}{self.unit}"


def value_of(row: Row, column: Column) -> float | None:
    value: float | None = getattr(row, column.key)
    return value


def _share(key: str, title: str, goal: str, help: str) -> Column:
    return Column(key, title, goal, help, digits=1, scale=100.0, unit=" %")


COLUMNS = (
    Column("steps", "Steps", "", "Sampling steps from noise to video."),
    Column(
        "network_calls",
        "Network calls",
        "fewer",
        "How often the large network runs for one video. Guidance doubles the calls of a step.",
    ),
    Column(
        "seconds_per_video",
        "Time per video",
        "less",
        "Wall time of sampling one video on this machine, a clip's share of a batch, without text encoder and VAE.",
        digits=2,
        unit=" s",
    ),
    Column(
        "saturation_error",
        "Saturation error",
        "near 0",
        "How far the colours stray from the true ones, too strong and too pale alike.",
        digits=3,
    ),
    Column(
        "saturation_signed",
        "Saturation drift",
        "near 0",
        "Which way they stray: above 0 looks fried, below 0 washed out.",
        digits=3,
        signed=True,
    ),
    _share("clipped_share", "Clipped pixels", "low", "Pixels burnt out to the end of a colour channel."),
    _share(
        "dynamic_degree",
        "Dynamic degree",
        "as rendered",
        "Videos in which something moves. A collapsed model stands still.",
    ),
    Column(
        "speed_ratio",
        "Speed ratio",
        "near 1",
        "Measured speed over the speed it should be: below 1 is sluggish, above 1 hasty.",
        digits=2,
    ),
    _share(
        "instance_preservation",
        "Instance preservation",
        "high",
        "Videos in which every object stays whole: none vanishes, fuses with another, splits or doubles.",
    ),
    _share(
        "caption_accuracy",
        "Caption accuracy",
        "high",
        "Promises of the prompt that the video keeps: count, colour, shape, motion.",
    ),
    Column("flicker", "Flicker", "low", "Change from frame to frame that motion does not explain.", digits=4),
)


def diversity_column(attribute: str) -> Column:
    """The measure behind one entry of `Row.diversity`."""
    return Column(
        attribute,
        f"Diversity of {attribute}",
        "as rendered",
        f"How much the {attribute} varies from seed to seed where the prompt leaves it open.",
        digits=2,
    )
