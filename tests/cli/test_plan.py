"""`avd plan`: what it prints, what it writes, where it takes sizes from, and the page that shows it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avd.models.folders import AdapterFolder
from avd.models.settings import Settings, write_settings
from helpers.benchmarks import write_infos
from helpers.command import avd
from helpers.families import fake_family, save_model
from helpers.pages import as_on_page, console_blocks

__all__ = ["fake_family"]

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
BLOCKS = console_blocks(PAGE.read_text(encoding="utf-8"))


def planned(path: Path, *arguments: object) -> dict[str, Any]:
    assert avd("plan", *arguments, "--json", path) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("command", BLOCKS)
def test_the_page_shows_what_the_command_prints(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """If not: `python tests/pages.py docs/planning.md`."""
    assert avd(*shlex.split(command)[1:]) == 0
    assert as_on_page(capfd.readouterr().out) == BLOCKS[command]


def test_the_page_has_both_models_on_three_numbers_of_gpus() -> None:
    found = {(model, gpus) for command in BLOCKS for model, gpus in re.findall(r"-(1.3b|14b).*--gpus (\d+)", command)}
    assert found == {(model, gpus) for model in ("1.3b", "14b") for gpus in ("1", "8", "24")}


def test_the_numbers_written_are_those_printed(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path / "plan.json", "avd", "--model", WAN, "--set", "compute.checkpointing=full")
    out = capfd.readouterr().out
    assert f"{found['bytes']['peak'] / 1e9:,.1f}" in out
    assert f"{found['flops_per_cycle'] / 1e15:,.1f}" in out
    assert f"{found['seconds_per_update']:,.1f} s per update" in out
    assert ("does not fit" in out) == (not found["fits"]) and found["model"]["tokens"] == 32760
    assert found["recipe"]["compute"]["checkpointing"] == "full" and found["machine"]["peak_tflops"] == 67


def test_what_the_verdict_names_makes_it_fit(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["avd", "--model", WAN, "--gpus", 4]
    before = planned(tmp_path / "before.json", *command)
    fix = re.search(r"fits with (.*): .* GB, ", capfd.readouterr().out)
    assert fix is not None and not before["fits"]
    after = planned(tmp_path / "after.json", *command, *shlex.split(fix[1]))
    assert after["fits"] and after["bytes"] == before["remedy"]["plan"]["bytes"]


def test_a_plan_and_a_run_say_that_adapters_learn_too_slowly(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    low = ["--set", "roles=adapters", "--set", "adapters.rank=4", "--set", "student.optimizer.learning_rate=2e-6"]
    line = "student.optimizer.learning_rate is 2e-06: adapters move several times less"
    assert avd("plan", "small.yaml", *low) == 0
    assert line in capfd.readouterr().out
    assert avd("distill", "small.yaml", *low, "--updates", 1, "--output", "run") == 0
    assert line in capfd.readouterr().err


def test_time_follows_the_assumptions(place: Path, tmp_path: Path) -> None:
    command = ["small.yaml", "--mfu", 0.5, "--peak-tflops", 100]
    one, two = (planned(tmp_path / f"{n}.json", *command, "--gpus", n) for n in (1, 2))
    assert one["seconds_per_update"] == pytest.approx(one["flops_per_cycle"] / (0.5 * 100e12))
    assert two["seconds_per_update"] == pytest.approx(one["seconds_per_update"] / 2)


def test_sizes_are_those_of_the_folder_or_of_the_cache(place: Path, tmp_path: Path) -> None:
    folder = planned(tmp_path / "folder.json", "small.yaml")
    assert folder["model"]["latents"] == [12, 5, 2, 2] and folder["model"]["tokens"] == 5
    assert avd("world", "render", "--output", "clips", "--count", 2, "--size", 16) == 0
    captions = ["--captions", "clips/captions.jsonl", "--model", "tiny", "--output", "cache", "--frames", 9]
    assert avd("prepare", "clips", *captions) == 0
    cache = planned(tmp_path / "cache.json", "small.yaml", "--set", "data.cache=cache")
    assert cache["model"]["latents"] == [12, 3, 2, 2] and cache["model"]["tokens"] == 3
    prepared = {name: plan["preparation"] for name, plan in (("folder", folder), ("cache", cache))}
    assert prepared["folder"]["cached"] is None and prepared["cache"]["cached"] == 2
    assert 0 < prepared["cache"]["clip"]["flops"] < prepared["folder"]["clip"]["flops"]  # of 9 frames and of 17
    assert prepared["cache"]["caption"] == prepared["folder"]["caption"]


def test_preparing_is_planned_for_the_gpus(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path / "plan.json", "avd", "--model", WAN, "--gpus", 8)["preparation"]
    out = capfd.readouterr().out
    assert found["gpus"] == 8 and f"preparing 1,000 clips: {found['seconds_per_1000']:,.1f} s on 8 GPUs\n" in out
    assert f"VAE {found['clip']['flops'] / 1e12:,.1f} TFLOP a clip" in out
    assert f"text encoder {found['caption']['flops'] / 1e12:,.1f} TFLOP a caption" in out


def test_what_cannot_be_known_of_preparing_is_left_out(
    fake_family: None, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A family that does not say what encodes, a folder without its config, and prompts that need no clips."""
    save_model("fake", tmp_path / "fake")
    shutil.copytree("tiny", tmp_path / "bare", ignore=shutil.ignore_patterns("text_encoder"))
    (tmp_path / "list.txt").write_text("a red square\n")
    assert avd("prepare", "--prompts", tmp_path / "list.txt", "--model", "tiny", "--output", tmp_path / "texts") == 0
    weights = ["objective.regression.weight=0", "objective.temporal.weight=0"]
    prompts = [*weights, "monitors.every=0", f"data.prompts={tmp_path / 'texts'}"]
    cases: dict[str, list[object]] = {
        "fake": ["--model", tmp_path / "fake", "--set", "interpolator=null"],
        "bare": ["--model", tmp_path / "bare"],
        "prompts": [word for change in prompts for word in ("--set", change)],
    }
    for name, words in cases.items():
        assert planned(tmp_path / f"{name}.json", "small.yaml", *words)["preparation"] is None
    assert "preparing" not in capfd.readouterr().out
    assert avd("plan", "--generate", tmp_path / "bare") == 2  # where there is nothing to leave out
    assert "cannot be read as a Wan text-to-video model" in capfd.readouterr().err


def test_config_files_are_all_it_reads_of_a_model(place: Path, tmp_path: Path) -> None:
    shutil.copytree("tiny", tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    command = [sys.executable, "-m", "avd", "plan", "small.yaml", "--model", str(tmp_path / "bare")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "fits: " in done.stdout and not done.stderr


def test_making_a_video_is_planned_from_configs(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path / "plan.json", "--generate", "wan-mini", "--steps", 50, "--memory", "3GB")
    out = capfd.readouterr().out
    assert out.startswith("wan-mini, 50 guided steps\n17 frames of 48 x 48, 45 tokens per clip\n")
    (plan,) = found["plans"]
    assert plan["fits"] and plan["options"] == {"offload": "none", "tiling": False, "weights": None}
    assert f"{plan['stages'][1]['flops'] / 1e12:,.1f} TFLOP" in out and "fits with no option" in out


@pytest.mark.parametrize(
    ("suite", "videos", "more"), [("vbench", 20, [("--flickering-samples", 25, 40)]), ("vbench2", 26, [])]
)
def test_all_videos_of_a_benchmark_are_planned(
    suite: str, videos: int, more: list[tuple[str, int, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By hand: 4 prompts of 5 samples, or one of 20 and two of 3; each GPU makes full videos."""
    command = ["--generate", "wan-mini", "--suite", suite, "--suite-info", write_infos(tmp_path / "site-packages")]
    for options, count in [((), videos), *(((name, value), count) for name, value, count in more)]:
        path = tmp_path / f"{count}.json"
        found = planned(path, *command, *options, "--gpus", 3)
        out = capfd.readouterr().out
        seconds = found["plans"][0]["seconds"]
        hours = found["benchmark"]
        assert (hours["name"], hours["videos"], hours["gpus"]) == (suite, count, 3)
        assert hours["gpu_hours"] == pytest.approx(count * seconds / 3600)
        assert hours["hours"] == pytest.approx(-(-count // 3) * seconds / 3600)
        assert f"{count} videos" in out and "h of one GPU, " in out and "h on 3 GPUs" in out


def test_a_lora_of_a_published_model_is_planned_without_its_files(tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    AdapterFolder(student, f"{WAN}@main").write()
    of_published = planned(tmp_path / "published.json", "--generate", WAN)
    for frames in (81, 41):
        write_settings(student, Settings(frames=frames, student_timesteps=(1000, 757, 522, 255)))
        plans = planned(tmp_path / f"{frames}.json", "--generate", student)["plans"]
        assert (plans == of_published["plans"]) == (frames == 81)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name a recipe, or with --generate a model, and not both"),
        ("avd --generate wan-mini", "and not both"),
        ("--generate wan-mini --gpus 2", "leave --model and --set out, and --gpus unless all videos of a --suite"),
        ("--generate wan-mini --suite vbench", "--suite vbench needs --suite-info: name VBench_full_info.json"),
        ("--generate wan-mini --suite world --suite-info x", "suite 'world' is no benchmark"),
        ("--generate wan-mini --suite-info x", "add --suite vbench or --suite vbench2"),
        ("avd --suite vbench --suite-info x", "--suite goes with --generate"),
        ("--generate wan-mini --suite vbench --suite-info nowhere", "there is no nowhere"),
        ("avd --steps 3", "--steps goes with --generate"),
        ("--generate nobody/nothing", "the sizes of nobody/nothing are not known here"),
    ],
)
def test_what_is_planned_must_be_clear(words: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert avd("plan", *words.split()) == 2
    assert message in capfd.readouterr().err
