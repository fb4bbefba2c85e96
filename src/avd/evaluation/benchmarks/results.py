"""The official code's results of one dimension: read, and refused where they are not what a total may be made of.

The official code writes `{dimension: [score, [{"video_path": ..., "video_results": ...}, ...]]}`. It goes past a video
that it cannot decode or find, and writes NaN where it found none; VBench-2.0 marks a video that it could not judge
by -1, and leaves it out of the score. So the list is compared with the videos that were to be judged.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from avd.evaluation.benchmarks.scoring import Dimension
from avd.files import read_text
from avd.types import UserError

_UNJUDGED = -1
"""The result of a video that the official code leaves out of the score."""
_MOST_OF_ONE = 1.5
"""A score above it was counted to 100."""
_NAMED = 3
"""Videos named in a message."""


@dataclass(frozen=True)
class OfficialResult:
    """A dimension's score, and how many videos, or prompts in a dimension of those, it is over."""

    score: float
    judged: int
    unjudged: int
    """Those that the official code left out of the score, or of its list."""
    silent: int = 0
    """Prompts of which its list has no video, in a dimension that may leave out videos."""


def read_official(path: Path, dimension: Dimension, videos: Sequence[Sequence[str]]) -> OfficialResult:
    """The result in `path`, for `videos`: file names by prompt, in the benchmark's order.

    Raises UserError for a file that is missing or damaged, that lacks the dimension, whose score is not a number in the
    dimension's range, or whose list is not one of these videos.
    """
    value = _dimension_of(path, dimension.name)
    if not (isinstance(value, list) and len(value) >= 2 and isinstance(value[1], list)):
        raise UserError(f"{path}: {dimension.name} is not [score, [results]]: is this an official result?")
    score, items = value[0], value[1]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError(
            f"{path}: the official score of {dimension.name} is {score}: it could judge no video; see its log"
        )
    in_range = dimension.in_range(score)
    if in_range is None:
        hint = " (earlier versions of the official code counted to 100)" if score > _MOST_OF_ONE else ""
        raise UserError(f"{path}: the official score of {dimension.name} is {score}, which is out of its range{hint}")
    results = [_result_of(item, path, dimension) for item in items]
    found = [name for name, _ in results]
    missing = _compare(found, path, dimension, videos)
    unjudged = sum(result == _UNJUDGED for _, result in results)
    if unjudged == len(results):
        raise UserError(
            f"{path}: the official code could judge none of the {len(results)} videos of {dimension.name}, so its "
            f"score {score} means nothing; see its log"
        )
    silent = sum(not set(names) & set(found) for names in videos) if dimension.partial_list else 0
    return OfficialResult(float(in_range), len(results) - unjudged, unjudged + missing, silent)


def _dimension_of(path: Path, name: str) -> Any:
    """What the file holds for the dimension, NaN included."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}): remove it and run the command again") from error
    if not isinstance(value, dict) or name not in value:
        raise UserError(f"{path} has no result for {name}: remove it and run the command again")
    return value[name]


def _result_of(item: Any, path: Path, dimension: Dimension) -> tuple[str, float]:
    """A video's file name and its result."""
    if isinstance(item, dict):
        name, result = item.get("video_path"), item.get("video_results")
        if isinstance(name, str) and isinstance(result, int | float):
            if not math.isfinite(result):
                raise UserError(f"{path}: the official result of {PurePath(name).name} in {dimension.name} is {result}")
            return PurePath(name).name, float(result)
    raise UserError(f"{path}: an item of {dimension.name} has no video_path or no video_results: {str(item)[:80]}")


def _compare(found: list[str], path: Path, dimension: Dimension, videos: Sequence[Sequence[str]]) -> int:
    """How many videos the list lacks where it may.

    Raises UserError unless its videos are those that were to be judged.
    """
    if dimension.per_prompt:
        expected = Counter(names[0] for names in videos)
    else:
        expected = Counter(name for names in videos for name in names)
    missing, strange = expected - Counter(found), Counter(found) - expected
    left_out = 0
    if dimension.partial_list and found:
        left_out = missing.total()
        missing.clear()
    for lost, what in ((missing, "are missing from"), (strange, "are too many in")):
        if lost:
            names = ", ".join(map(repr, sorted(lost)[:_NAMED]))
            raise UserError(
                f"{path}: {lost.total()} of {expected.total()} videos {what} the official result of "
                f"{dimension.name}, such as {names}; see its log"
            )
    return left_out
