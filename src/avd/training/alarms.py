"""Thresholds on what a run measures of itself, and the words in which it warns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avd.config import LimitsRecipe
from avd.training.statistics import LOW_WEIGHT


@dataclass(frozen=True)
class Rule:
    """A figure, whether a value of it is too much (or too little), how to say it, and what it is a sign of."""

    name: str
    figure: str
    crossed: Callable[[float], bool]
    words: Callable[[float], str]
    fault: str


@dataclass(frozen=True)
class Event:
    """A threshold was crossed, or is no longer."""

    kind: Literal["crossed", "recovered"]
    rule: str
    text: str


def rules_of(limits: LimitsRecipe, timesteps: Sequence[float]) -> list[Rule]:
    """The rules that are not switched off; ratios are to the references, see `training.monitors`."""
    rules = []
    if limits.saturation is not None:
        rules.append(_excess("saturation", "saturation_to_real", limits.saturation, "real data", "oversaturation"))
    if limits.contrast is not None:
        rules.append(_excess("contrast", "contrast_to_real", limits.contrast, "real data", "overcontrast"))
    if limits.motion is not None:
        rules.append(_motion(limits.motion))
    if limits.fake_score is not None:
        rules.append(_fake_score(limits.fake_score))
    if limits.low_weights is not None:
        rules += [_low_weights(limits.low_weights, f"{timestep:g}") for timestep in timesteps]
    return rules


class Alarms:
    """Judges measurement after measurement; knows for how many in a row each threshold has been crossed."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._streaks: dict[str, int] = {}

    def judge(self, figures: Mapping[str, float]) -> list[Event]:
        """What has changed. A figure that is missing or NaN leaves its alarm as it was."""
        events = []
        for rule in self._rules:
            value = figures.get(rule.figure, math.nan)
            if math.isnan(value):
                continue
            streak = self._streaks.pop(rule.name, 0)
            if rule.crossed(value):
                self._streaks[rule.name] = streak + 1
                if streak == 0:
                    events.append(Event("crossed", rule.name, f"{rule.words(value)}: {rule.fault}"))
            elif streak:
                events.append(Event("recovered", rule.name, f"{rule.words(value)}: recovered from {rule.fault}"))
        return events

    @property
    def crossed(self) -> int:
        """How many thresholds are crossed now."""
        return len(self._streaks)

    def lasting(self, figures: Mapping[str, float], patience: int) -> str | None:
        """In words, what has been crossed for `patience` measurements in a row, if anything has."""
        texts = [
            f"{rule.words(figures[rule.figure])}: {rule.fault}, for {streak} measurement{'s' * (streak > 1)} in a row"
            for rule in self._rules
            if (streak := self._streaks.get(rule.name, 0)) >= patience and rule.figure in figures
        ]
        return "; ".join(texts) or None

    def state_dict(self) -> dict[str, Any]:
        return {"streaks": self._streaks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Alarms whose rule is switched off since are forgotten."""
        known = {rule.name for rule in self._rules}
        self._streaks = {name: streak for name, streak in state["streaks"].items() if name in known}


def _excess(what: str, figure: str, limit: float, reference: str, fault: str) -> Rule:
    def words(ratio: float) -> str:
        return f"{what} {100 * abs(ratio - 1):.0f} % {'above' if ratio >= 1 else 'below'} {reference}"

    return Rule(what, figure, lambda ratio: ratio > 1 + limit, words, fault)


def _motion(limit: float) -> Rule:
    def words(ratio: float) -> str:
        return f"motion at {100 * ratio:.0f} % of the teacher's"

    return Rule("motion", "motion_to_teacher", lambda ratio: ratio < limit, words, "temporal collapse")


def _fake_score(limit: float) -> Rule:
    def words(rise: float) -> str:
        return f"the fake score's loss {100 * rise:.0f} % above its lowest level"

    return Rule("fake_score", "fake_score_rise", lambda rise: rise > limit, words, "it loses track of the student")


def _low_weights(limit: float, timestep: str) -> Rule:
    def words(share: float) -> str:
        return f"{100 * share:.0f} % of the regression's weights at timestep {timestep} below {LOW_WEIGHT}"

    figure = f"weight_low_{timestep}"
    return Rule(figure, figure, lambda share: share > limit, words, "real data hardly count")
