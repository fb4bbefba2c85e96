"""Official results are read as they are written, and refused where a total must not be made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from avd.evaluation.benchmarks.results import read_official
from avd.evaluation.benchmarks.scoring import Dimension
from avd.types import UserError

SCENE = Dimension("scene", "")
VIDEOS = (("a-0.mp4", "a-1.mp4"), ("b-0.mp4", "b-1.mp4"))
LIST = [{"video_path": f"/links/{name}", "video_results": 0.5} for names in VIDEOS for name in names]


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "official_eval_results.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_result_is_read(tmp_path: Path) -> None:
    found = read_official(written(tmp_path, {"scene": [0.25, LIST]}), SCENE, VIDEOS)
    assert (found.score, found.judged, found.unjudged) == (0.25, 4, 0)


def test_a_score_that_rounding_took_past_its_range_is_the_end_of_it(tmp_path: Path) -> None:
    """Cosines in 32 bits of a video that stands still are 1.00000036 in the mean."""
    assert read_official(written(tmp_path, {"scene": [1.00000036, LIST]}), SCENE, VIDEOS).score == 1.0
    assert read_official(written(tmp_path, {"scene": [-1e-7, LIST]}), SCENE, VIDEOS).score == 0.0


def test_truth_values_are_results(tmp_path: Path) -> None:
    """As VBench writes them for human_action and dynamic_degree."""
    items = [{**item, "video_results": True} for item in LIST]
    assert read_official(written(tmp_path, {"scene": [1, items]}), SCENE, VIDEOS).score == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scene": [math.nan, []]}, "the official score of scene is nan: it could judge no video"),
        ({"scene": [math.inf, LIST]}, "the official score of scene is inf"),
        ({"scene": [None, LIST]}, "the official score of scene is None"),
        ({"scene": [True, LIST]}, "the official score of scene is True"),
        ({"scene": [67.56, LIST]}, r"is 67.56, which is out of its range \(earlier versions"),
        ({"scene": [1.001, LIST]}, "is 1.001, which is out of its range$"),
        ({"scene": [-0.1, LIST]}, "is -0.1, which is out of its range$"),
        ({"color": [0.5, LIST]}, "has no result for scene"),
        ({"scene": 0.5}, r"scene is not \[score, \[results\]\]"),
        ([], "has no result for scene"),
        ('{"scene": [0.5', "is damaged"),
        ({"scene": [0.5, LIST[:3]]}, "1 of 4 videos are missing from the official result of scene, such as 'b-1.mp4'"),
        ({"scene": [0.0, []]}, "the official code could judge none|4 of 4 videos are missing"),
        ({"scene": [0.5, [*LIST, {"video_path": "/c-0.mp4", "video_results": 1}]]}, "1 of 4 videos are too many"),
        ({"scene": [0.5, [*LIST, LIST[0]]]}, "1 of 4 videos are too many in .* 'a-0.mp4'"),
        ({"scene": [0.5, [{**LIST[0], "video_results": math.nan}, *LIST[1:]]]}, "result of a-0.mp4 in scene is nan"),
        ({"scene": [0.5, [{"video_path": "/a-0.mp4"}, *LIST[1:]]]}, "has no video_path or no video_results"),
        ({"scene": [0.0, [{**item, "video_results": -1} for item in LIST]]}, "could judge none of the 4 videos"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, value: Any, message: str) -> None:
    path = written(tmp_path, value)
    with pytest.raises(UserError, match=message) as caught:
        read_official(path, SCENE, VIDEOS)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_official(tmp_path / "none.json", SCENE, VIDEOS)


def test_videos_that_official_code_could_not_judge_are_counted(tmp_path: Path) -> None:
    items = [{**LIST[0], "video_results": -1}, *LIST[1:]]
    found = read_official(written(tmp_path, {"scene": [0.5, items]}), SCENE, VIDEOS)
    assert (found.judged, found.unjudged) == (3, 1)


def test_a_prompt_that_stands_twice_in_the_list_is_judged_twice(tmp_path: Path) -> None:
    twice = (*VIDEOS, VIDEOS[0])
    path = written(tmp_path, {"scene": [0.5, [*LIST, *LIST[:2]]]})
    assert read_official(path, SCENE, twice).judged == 6
    with pytest.raises(UserError, match="2 of 6 videos are missing"):
        read_official(written(tmp_path, {"scene": [0.5, LIST]}), SCENE, twice)


def test_color_may_leave_out_videos_without_the_object(tmp_path: Path) -> None:
    color = Dimension("color", "", partial_list=True)
    found = read_official(written(tmp_path, {"color": [0.5, LIST[:1]]}), color, VIDEOS)
    assert (found.judged, found.unjudged, found.silent) == (1, 3, 1)
    with pytest.raises(UserError, match="4 of 4 videos are missing"):
        read_official(written(tmp_path, {"color": [0.5, []]}), color, VIDEOS)


def test_diversity_has_an_item_per_prompt(tmp_path: Path) -> None:
    diversity = Dimension("Diversity", "", per_prompt=True)
    items = [LIST[0], LIST[2]]
    assert read_official(written(tmp_path, {"Diversity": [0.5, items]}), diversity, VIDEOS).judged == 2
    with pytest.raises(UserError, match=r"1 of 2 videos are missing .* 'b-0\.mp4'"):
        read_official(written(tmp_path, {"Diversity": [0.5, items[:1]]}), diversity, VIDEOS)


def test_a_cosine_may_be_below_zero(tmp_path: Path) -> None:
    style = Dimension("scene", "", signed=True)
    assert read_official(written(tmp_path, {"scene": [-0.01, LIST]}), style, VIDEOS).score == -0.01
