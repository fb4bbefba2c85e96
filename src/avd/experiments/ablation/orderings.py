"""Does the paper's order of two rows hold here? A change with its error, and what follows from it.

Rows of one seed share their noise, so methods are compared seed by seed: with values a_s, b_s of S seeds and their
standard errors e(a_s), e(b_s),

    d_s = a_s - b_s        change = mean d_s

The half-width of its interval is the larger of two, as either alone may undo the change:

    t(S - 1) std(d_s) / sqrt(S)                         what other seeds would change, with Student's t for 95 %
    1.96 sqrt(mean_s e(a_s)^2 + e(b_s)^2)               what other captions would change

The second does not shrink with S: all seeds are judged on the same captions, so another seed tells nothing of other
captions. It is rather too wide, as both rows have these captions too. If the interval lies on the paper's side of
0, the order agrees, on the other it disagrees, and across 0, or with a single seed, it is undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.special import stdtrit

from avd.evaluation.rows import Row
from avd.evaluation.suite import Measure

_SURE = 0.975
_NORMAL = 1.96


class Agreement(StrEnum):
    agrees = "agrees"
    disagrees = "disagrees"
    undecided = "undecided"


@dataclass(frozen=True)
class SeedChange:
    """How far one row's measure is from another's, over the seeds that both have; `half_width` None with one seed."""

    change: float
    half_width: float | None
    seeds: int

    def agreement(self, expected: float) -> Agreement:
        """With a change of the sign of `expected`."""
        if self.half_width is None or abs(self.change) <= self.half_width:
            return Agreement.undecided
        return Agreement.agrees if self.change * expected > 0 else Agreement.disagrees


def compare_rows(rows: Sequence[Row], others: Sequence[Row], suite: str, measure: str) -> SeedChange | None:
    """`rows` of one name against `others` of another; None where no seed has both."""
    mine, theirs = (_by_seed(each, suite, measure) for each in (rows, others))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [mine[seed][0] - theirs[seed][0] for seed in seeds]
    count, change = len(seeds), sum(differences) / len(seeds)
    if count == 1:
        return SeedChange(change, None, 1)
    deviation = (sum((each - change) ** 2 for each in differences) / (count - 1)) ** 0.5
    squares = sum(side[seed][1] ** 2 for side in (mine, theirs) for seed in seeds)
    spread = float(stdtrit(count - 1, _SURE)) * deviation / count**0.5
    return SeedChange(change, max(spread, _NORMAL * (squares / count) ** 0.5), count)


def _by_seed(rows: Sequence[Row], suite: str, measure: str) -> dict[int, tuple[float, float]]:
    """Value and standard error of each seed that has a value; an error that nobody recorded counts as 0."""
    found = {}
    for row in rows:
        value = row.score(suite, measure)
        if value is not None:
            found[row.seed] = (value, row.error(suite, measure) or 0.0)
    return found


def describe_ordering(
    names: tuple[str, str], measure: Measure, published: tuple[float, float], found: SeedChange
) -> str:
    """A sentence: what the paper has of the first row against the second, what is found, and whether it agrees."""
    shown = measure.change_format
    expected = published[0] - published[1]
    text = f"{names[0]} against {names[1]}, {measure.title.lower()}: the paper has {shown.text(expected)}"
    change = shown.text(found.change)
    if found.half_width is None:
        return f"{text}, one seed here {change}: undecided."
    width = f"{found.half_width * shown.scale:.{shown.digits}f}"
    return f"{text}, here {change.removesuffix(shown.unit)} ± {width}{shown.unit}: {found.agreement(expected)}."
