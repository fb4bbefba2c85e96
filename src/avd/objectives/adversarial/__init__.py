"""Adversarial matching: the student's clips against real ones."""

from __future__ import annotations

from avd.objectives.adversarial.matching import TERM

__all__ = ["TERM"]
