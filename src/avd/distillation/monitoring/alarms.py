"""Limits on what a run measures of itself, and the words of its warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avd.config import LimitsRecipe
from avd.distillation.monitoring.statistics import LOW_WEIGHT


@dataclass(frozen=True)
class Rule:
    """When a metric is over its limit, and how that is reported."""

    metric: str
    crossed: Callable[[float], bool]
    words: Callable[[float], str]
    fault: str
    """What the metric is then a sign of."""
    relief: str
    """What is reported when it is no longer."""

    def warning(self, value: float) -> str:
        return f"{self.words(value)}: {self.fault}"


@dataclass(frozen=True)
class Event:
    """A limit was crossed, or is no longer."""

    kind: Literal["crossed", "recovered"]
    metric: str
    text: str


def rules_of(limits: LimitsRecipe, timesteps: Sequence[float], *, several_seeds: bool) -> list[Rule]:
    """The rules that are not switched off; docs/monitors.md says what the metrics are.

    `several_seeds`: whether any prompt has several videos, whose differences are measured.
    """
    rules = []
    if limits.saturation is not None:
        rules.append(_excess("saturation", limits.saturation, "oversaturation"))
    if limits.contrast is not None:
        rules.append(_excess("contrast", limits.contrast, "overcontrast"))
    if limits.motion is not None:
        rules.append(_collapse(limits.motion))
    if limits.diversity is not None and several_seeds:
        rules.append(_alike(limits.diversity))
    if limits.fake_score is not None:
        rules.append(_lag(limits.fake_score))
    if limits.low_weights is not None:
        rules += [_distrust(limits.low_weights, f"{timestep:g}") for timestep in timesteps]
    return rules


class Alarms:
    """Judges measurement after measurement; knows for how many in a row each limit has been crossed."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._streaks: dict[str, int] = {}

    def judge(self, metrics: Mapping[str, float]) -> list[Event]:
        """What has changed. A metric that is missing or NaN leaves its alarm as it was."""
        events = []
        for rule in self._rules:
            value = metrics.get(rule.metric, math.nan)
            if math.isnan(value):
                continue
            streak = self._streaks.pop(rule.metric, 0)
            if rule.crossed(value):
                self._streaks[rule.metric] = streak + 1
                if streak == 0:
                    events.append(Event("crossed", rule.metric, rule.warning(value)))
            elif streak:
                events.append(Event("recovered", rule.metric, f"{rule.words(value)}: {rule.relief}"))
        return events

    @property
    def crossed(self) -> int:
        """How many limits are crossed now."""
        return len(self._streaks)

    def lasting(self, metrics: Mapping[str, float], patience: int) -> str | None:
        """In words, what has been crossed for `patience` measurements in a row, if anything has."""
        texts = []
        for rule in self._rules:
            value, streak = metrics.get(rule.metric, math.nan), self._streaks.get(rule.metric, 0)
            if streak >= patience and not math.isnan(value):
                texts.append(f"{rule.warning(value)}, for {streak} measurement{'s' * (streak > 1)} in a row")
        return "; ".join(texts) or None

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": dict(self._streaks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Alarms whose rule is switched off since are forgotten."""
        known = {rule.metric for rule in self._rules}
        self._streaks = {metric: streak for metric, streak in state["streaks"].items() if metric in known}


def _excess(what: str, limit: float, fault: str) -> Rule:
    def words(ratio: float) -> str:
        return f"{what} {100 * abs(ratio - 1):.0f} % {'above' if ratio >= 1 else 'below'} real data"

    return Rule(f"{what}_to_real", lambda ratio: ratio > 1 + limit, words, fault, f"recovered from {fault}")


def _collapse(limit: float) -> Rule:
    def words(ratio: float) -> str:
        return f"motion at {100 * ratio:.0f} % of the teacher's"

    fault = "temporal collapse"
    return Rule("motion_to_teacher", lambda ratio: ratio < limit, words, fault, f"recovered from {fault}")


def _alike(limit: float) -> Rule:
    def words(ratio: float) -> str:
        return f"videos of one prompt differ by {100 * ratio:.0f} % of what the teacher's do"

    return Rule(
        "diversity_appearance_to_teacher",
        lambda ratio: ratio < limit,
        words,
        "every seed gives much the same",
        "seeds differ again",
    )


def _lag(limit: float) -> Rule:
    def words(rise: float) -> str:
        return f"the fake score's loss {100 * rise:.0f} % above its lowest level"

    return Rule(
        "fake_score_rise", lambda rise: rise > limit, words, "it lags behind the student", "no longer lags behind"
    )


def _distrust(limit: float, timestep: str) -> Rule:
    def words(share: float) -> str:
        return f"{100 * share:.0f} % of the regression's weights at timestep {timestep} below {LOW_WEIGHT}"

    return Rule(f"weight_low_{timestep}", lambda share: share > limit, words, "it hardly acts", "acts again")
