"""What cannot be is refused before anything is loaded or written: one line, exit code 2, by every command that asks."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from avd.config import load_recipe
from avd.data import CacheWriter, Geometry, Item, encode_texts
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.models.wan.files import ModelFiles
from helpers.command import avd, snapshot
from helpers.tiny import tiny_interpolator, tiny_model

ADAPTERS = "--set roles=adapters --set adapters.rank=4"
NO_TERMS = " ".join(f"--set objective.{term}.weight=0" for term in ("distribution_matching", "temporal", "regression"))

VALUES = {
    "training.batch=1000000000000000000000": "training.batch is 1000000000000000000000: input should be less than",
    "training.updates=1e30": "training.updates is '1e30'",
    "training.checkpoint_every=10000000000": "training.checkpoint_every is 10000000000",
    "training.keep_checkpoints=1000000000000": "training.keep_checkpoints is",
    "training.batch=2024-99-99": "is not YAML",
    "seed=100000000000000000000": "seed is 100000000000000000000",
    "name=../elsewhere": "name is '../elsewhere': it names the run's folder",
    "name=..": "name is '..'",
    "name=": "name is None",
    "data.world_clips=1000000000000": "data.world_clips is 1000000000000",
    "monitors.clips=1000000000000": "monitors.clips is 1000000000000",
    "monitors.teacher_steps=1000000000": "monitors.teacher_steps is 1000000000",
    "student.optimizer.learning_rate=1e30": "student.optimizer.learning_rate is '1e30'",
    "student.optimizer.betas=[0.9, 0.99999999999999999999]": "student.optimizer.betas.1 is 1.0",
    "student.optimizer.weight_decay=1e9": "student.optimizer.weight_decay is '1e9'",
    "fake_score.updates=1000000": "fake_score.updates is 1000000",
    "adapters.rank=100000000": "adapters.rank is 100000000",
    "adapters.alpha=1e30": "adapters.alpha is '1e30'",
    "adapters.targets=[]": "adapters.targets is []",
    "compute.microbatch=1000000000000": "compute.microbatch is 1000000000000",
    "compute.context=1000000000000": "compute.context is 1000000000000",
    "compute.shard=1000000000000": "compute.shard is 1000000000000",
    "objective.distribution_matching.guidance=1e9": "objective.distribution_matching.guidance is '1e9'",
    "objective.distribution_matching.shift=1e30": "objective.distribution_matching.shift is '1e30'",
    "objective.distribution_matching.sigma_max=1.5": "objective.distribution_matching.sigma_max is 1.5",
    "objective.regression.weight=1e30": "objective.regression.weight is '1e30'",
    "objective.temporal.truncation=1e300": "objective.temporal.truncation is '1e300'",
    "rollout.timesteps=[.nan]": "rollout.timesteps.0 is nan",
    "rollout.timesteps=&a [*a]": "rollout.timesteps.0 is",
}
"""What no run can have, by the recipe alone."""

RUNS = {
    # the machine
    "a GPU that is not there": ("--set compute.device=cuda", "finds 0 GPUs", "compute.device=cpu"),
    "a package that is not there": ("--set compute.attention=flash", "'flash', which does not work here", "null"),
    "attention that needs a GPU": ("--set compute.attention=_native_cudnn", "does not work here", "null"),
    "shards without processes": ("--set compute.shard=2", "compute.shard is 2, with 1 process", "torchrun"),
    "shared clips without processes": ("--set compute.context=2", "compute.context is 2, with 1 process", "torchrun"),
    # the method
    "a student's last updates without a student": (
        "--set objective.distribution_matching.real=0.5",
        "objective.distribution_matching, as it is set, is for a student that has been distilled",
        "student.start",
        "objective.distribution_matching.from_scratch=true",
    ),
    # the model
    "a student": ("--set model=student", "model student is a student", "distilled from"),
    "attention of no name": ("--set compute.attention=flish", "attention is 'flish'", "native"),
    "adapters wider than a layer": ("--set roles=adapters --set adapters.rank=25", "adapters.rank is 25", "at most 24"),
    "adapters of no layer": (f"{ADAPTERS} --set adapters.targets=[to_q,to_z]", "adapters.targets names 'to_z'"),
    "adapters of an attention": (f"{ADAPTERS} --set adapters.targets=[attn1]", "'attn1', which is not a linear layer"),
    "half rate of even clips": ("--set model=even", "4 latent frames, an even number", "8 n + 1"),
    "half rate of an even cache": ("--data cache-even", "4 latent frames, an even number", "8 n + 1"),
    "an interpolator of other channels": ("--set model=channels", "for latents of 3 channels", "have 12"),
    "a named interpolator of other channels": (
        "--set interpolator=channels",
        "channels/interpolator is for latents of 3 channels",
        "have 12",
    ),
    "a named interpolator that is not there": ("--set interpolator=nowhere", "no interpolator at nowhere", "avd train"),
    "an interpolator that is cut short": ("--set model=cut", "the interpolator", "is damaged"),
    "an interpolator without end": ("--set model=endless", "interpolator of 12 channels and widths", "at most 8192"),
    "a world that there is not": ("--set data.world_level=99", "world level is 99"),
    # the data
    "a cache of another model": ("--data cache --set model=other", "cache was prepared with another model"),
    "a cache of other channels": ("--data cache-thin", "its latents have 3 channels", "12"),
    "a cache of words": ("--data cache-words", "manifest.json is damaged", "prepare the cache again"),
    "a cache at no rate": ("--data cache-still", "manifest.json is damaged", "at 0 fps"),
    # the folder
    "a recipe that is a list": ("--resume -o run-list", "run-list/recipe.yaml is not an avd recipe", "holds a list"),
    "a recipe that is not text": ("--resume -o run-bytes", "run-bytes/recipe.yaml is not an avd recipe"),
    "a recipe without an end": ("--resume -o run-cut", "run-cut/recipe.yaml is not an avd recipe"),
    "a recipe of another version": ("--resume -o run-old", "run-old began with a recipe", "training.old_key"),
    "a recipe of avd train": (
        "--resume -o run-vae",
        "run-vae began with a recipe",
        "this command or version does not accept",
    ),
    "another recipe": ("--resume -o run-other", "began with student.ema = 0.5, now it is 0.95"),
    "a folder below a file": ("-o small.yaml/a/b", "small.yaml is a file"),
}
"""What `avd distill` refuses with everything there; without an output folder of its own it is `new`."""

COMMANDS = {
    "plan": ("plan small.yaml --gpus 3", "training.batch is 2, over 3 processes"),
    "plan of shards": ("plan small.yaml --gpus 2 --set compute.shard=3", "compute.shard is 3, with 2 processes"),
    "plan of groups": (
        "plan small.yaml --gpus 4 --set compute.context=2 --set training.batch=3",
        "training.batch is 3, over 2 groups of processes",
    ),
    "plan of heads": ("plan small.yaml --gpus 5 --set compute.context=5", "has 2 attention heads"),
    "plan of heads on shared clips": (
        "plan small.yaml --gpus 2 --set compute.context=2 --set objective.adversarial.weight=1",
        "objective's discriminator reads all tokens of a clip on one process",
    ),
    "plan of a gradient of the input on shared clips": (
        "plan small.yaml --gpus 2 --set compute.context=2 --set objective.fisher.weight=1",
        "needs the gradient of a network's input (fake score, through its input)",
    ),
    "plan of tokens": ("plan small.yaml --gpus 2 --set compute.context=2", "sequences of 5 and 3 tokens"),
    "plan of attention": (
        "plan small.yaml --gpus 2 --set compute.context=2 --set compute.attention=_native_math --set data.cache=tall",
        "'_native_math', which cannot share sequences",
    ),
    "plan of no attention": ("plan small.yaml --set compute.attention=flish", "attention is 'flish'"),
    "plan of a student": ("plan small.yaml --model student", "model student is a student"),
    "plan of adapters": ("plan small.yaml --set roles=adapters", "adapters.rank is 64", "at most 24"),
    "plan of even clips": ("plan small.yaml --model even", "4 latent frames, an even number"),
    "plan of another's cache": ("plan small.yaml --set data.cache=cache-thin", "prepared with another model"),
    "plan of no terms": (f"plan small.yaml {NO_TERMS}", "small.yaml: every weight of its objective is 0"),
    "plan of a city of GPUs": ("plan small.yaml --gpus 1000000000000", "--gpus"),
    "two of one name": ("compare small.yaml twin.yaml --seeds 1 -o new", "two of the recipes are called small"),
    "a comparison's last run": ("compare small.yaml bad.yaml --seeds 1 -o new", "compute.shard is 2, with 1 process"),
    "a comparison without end": ("compare small.yaml --seeds 1000000000000 -o new", "--seeds"),
    "a comparison below a file": ("compare small.yaml --seeds 1 -o small.yaml", "small.yaml is a file"),
    "a demonstration in a file": ("demo -o small.yaml", "small.yaml is a file"),
    "an interpolator of one clip": ("train interpolator --model tiny --data cache-1 -o new", "there is 1 clip"),
    "an interpolator of even clips": ("train interpolator --model tiny --data cache-even -o new", "4 latent frames"),
    "an interpolator of an even world": ("train interpolator --model even -o new", "4 latent frames"),
    "a teacher from elsewhere": (
        "train teacher --vae vae --from tiny -o new",
        "tiny does not have the miniature's sizes",
    ),
    "a VAE of no sizes": ("train teacher --vae tiny/transformer -o new", "holds no VAE of the miniature"),
    "a rate of 1e30": ("train vae --set learning_rate=1e30 -o new", "learning_rate is '1e30'"),
    "a world without end": ("train teacher --vae vae --clips 1000000000000 -o new", "clips is 1000000000000"),
    "seeds past counting": ("generate student --prompt x -o new.mp4 --seed 1000000000000000000000", "--seed"),
    "videos past counting": ("generate student --prompt x -o new.mp4 --count 1000000000000", "--count"),
    "steps past counting": ("generate tiny --prompt x -o new.mp4 --steps 1000000000000", "steps is 1000000000000"),
    "guidance that is no number": ("generate tiny --prompt x -o new.mp4 --guidance nan", "guidance is nan"),
    "guidance without end": ("generate tiny --prompt x -o new.mp4 --guidance 1e400", "guidance is inf"),
    "judging without end": ("evaluate student --json new.json --clips 1000000000000", "clips of the world suite is"),
    "judging a wall": ("evaluate clips --json new.json --set size=1000000", "size of the world suite is 1000000"),
    "noise past counting": ("evaluate student --json new.json --seed 1000000000000000000000", "--seed"),
    "clips of no frames": ("prepare clips --model tiny -o new --frames 0", "clips of 0 frames"),
    "clips of no height": ("prepare clips --model tiny -o new --height 0", "0 x 16"),
    "clips at no rate": ("prepare clips --model tiny -o new --fps 0", "fps is 0"),
    "more than all of a picture": ("prepare clips --model tiny -o new --min-kept 2", "min_kept is 2", "from 0 to 1"),
    "a start that never comes": ("prepare clips --model tiny -o new --skip-start inf", "inf s to skip"),
    "windows past counting": ("prepare clips --model tiny -o new --windows 1000000000000000000000", "--windows"),
    "workers past counting": ("prepare clips --model tiny -o new --workers 1000000", "--workers"),
    "pictures past drawing": ("world render --size 100000000 -o new", "--size"),
}


@pytest.fixture(scope="module")
def workshop(place: Path) -> Path:
    """Everything that these commands name."""
    text = (place / "small.yaml").read_text() + "rollout: {half_rate_stages: 2}\n"
    (place / "small.yaml").write_text(text)
    (place / "twin.yaml").write_text("extends: small.yaml\nstudent: {ema: 0.5}\n")
    (place / "bad.yaml").write_text("extends: small.yaml\nname: bad\ncompute: {shard: 2}\n")
    tiny_model(seed=1).save(place / "other")
    tiny_model().save(place / "student", student_timesteps=(1000, 500))
    for name, frames in {"even": 13, "channels": 17, "cut": 17, "endless": 17}.items():
        model = tiny_model()
        model.settings = replace(model.settings, frames=frames)
        model.save(place / name)
        tiny_interpolator().save(place / name / "interpolator")
    shutil.copytree(place / "tiny" / "vae", place / "vae")
    weights = place / "cut" / "interpolator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    edit(place / "endless" / "interpolator" / "config.json", widths=[8 * 10**9])
    FrameInterpolator(InterpolatorConfig(3, (8, 16))).save(place / "channels" / "interpolator")
    assert avd("world", "render", "--output", "clips", "--count", 2, "--size", 16) == 0
    for cache, *options in (
        ("cache",),
        ("cache-even", "--frames", 13),
        ("tall", "--height", 32),
    ):
        assert avd("prepare", "clips", "--model", "tiny", "--output", cache, "--workers", 0, *options) == 0
    shutil.copytree("clips", "clip")
    (place / "clip" / "000001.mp4").unlink()
    table = (place / "clip" / "captions.jsonl").read_text().splitlines(keepends=True)
    (place / "clip" / "captions.jsonl").write_text(table[0])
    assert avd("prepare", "clip", "--model", "tiny", "--output", "cache-1", "--workers", 0) == 0
    for name, values in {"words": {"frames": "many"}, "still": {"fps": 0}}.items():
        shutil.copytree("cache", f"cache-{name}")
        edit(place / f"cache-{name}" / "manifest.json", geometry=values)
    thin_cache(place)
    make_runs(place)
    return place


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file, or of the objects in it."""
    found = json.loads(path.read_text())
    for key, value in values.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(found))


def thin_cache(place: Path) -> None:
    """A cache whose latents have another model's channels."""
    model = tiny_model()
    writer = CacheWriter(place / "cache-thin", identity=model.identity, geometry=Geometry(17, 16, 16, 8), shard_size=2)
    writer.add(torch.zeros(3, 5, 2, 2), Item("a red square", "0.mp4"))
    writer.finish()
    encode_texts(place / "cache-thin", model, ["", "a red square"])


def make_runs(place: Path) -> None:
    """Folders of runs that began with other recipes, or have damaged ones."""
    values = yaml.safe_load(load_recipe("small.yaml").to_yaml())
    older = {**values, "training": {**values["training"], "old_key": 3}}
    other = {**values, "student": {**values["student"], "ema": 0.5}}
    for name, content in {
        "list": b"- a\n",
        "bytes": b"\xff\xfe",
        "cut": b"training: {batch: 2",
        "old": yaml.safe_dump(older).encode(),
        "other": yaml.safe_dump(other).encode(),
        "vae": b"kind: vae\nupdates: 3\n",
    }.items():
        (place / f"run-{name}").mkdir()
        (place / f"run-{name}" / "recipe.yaml").write_bytes(content)


def check_refused(
    place: Path, command: list[object], words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(place)
    capfd.readouterr()
    assert avd(*command) == 2
    out, err = capfd.readouterr()
    assert err.startswith("avd: ") and err.count("\n") == 1 and not out, err
    assert all(word in err for word in words), err
    assert snapshot(place) == before


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("a refused run has begun")

    monkeypatch.setattr(ModelFiles, "load", never)
    monkeypatch.setattr(dist, "init_process_group", never)


@pytest.mark.parametrize("change", VALUES)
@pytest.mark.parametrize("command", ["distill", "plan"])
def test_what_no_run_can_have_is_one_line(
    command: str, change: str, workshop: Path, nothing_loaded: None, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(workshop, [command, "small.yaml", "--set", change], (VALUES[change],), capfd)


@pytest.mark.parametrize("mistake", RUNS)
def test_a_run_that_cannot_be_is_refused_before_anything_is_loaded(
    mistake: str, workshop: Path, nothing_loaded: None, capfd: pytest.CaptureFixture[str]
) -> None:
    options, *words = RUNS[mistake]
    output = [] if "-o " in options else ["--output", "new"]
    check_refused(workshop, ["distill", "small.yaml", *output, *shlex.split(options)], tuple(words), capfd)


@pytest.mark.parametrize("mistake", COMMANDS)
def test_other_commands_refuse_likewise(mistake: str, workshop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command, *words = COMMANDS[mistake]
    check_refused(workshop, list(shlex.split(command)), tuple(words), capfd)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--set training.batch=3", "training.batch is 3, over 2 processes"),
        ("--set compute.shard=3", "compute.shard is 3, with 2 processes"),
        ("--set compute.context=2", "sequences of 5 and 3 tokens, which compute.context=2 does not divide"),
        ("--set compute.context=2 --set compute.attention=_native_math --data tall", "cannot share sequences"),
    ],
)
def test_ranks_that_do_not_go_with_the_recipe_never_meet(
    options: str,
    words: str,
    workshop: Path,
    nothing_loaded: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    for key, value in launch.items():
        monkeypatch.setenv(key, value)
    check_refused(workshop, ["distill", "small.yaml", "--output", "new", *shlex.split(options)], (words,), capfd)


def test_a_run_that_lacks_newer_keys_resumes_with_their_defaults(
    workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("distill", "small.yaml", "--output", tmp_path / "run")
    assert avd(*command, "--updates", 1) == 0
    path = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    del values["trackers"], values["transformer"], values["rollout"]["half_rate_share"], values["compute"]["context"]
    path.write_text(yaml.safe_dump(values))
    assert avd(*command, "--resume") == 0
    assert load_recipe(str(path)) == load_recipe("small.yaml")
    del values["student"]["ema"]  # whose default is another than the recipe's
    path.write_text(yaml.safe_dump(values))
    before = snapshot(tmp_path)
    capfd.readouterr()
    assert avd(*command, "--resume") == 2
    assert "began with student.ema = 0.99, now it is 0.95" in capfd.readouterr().err
    assert snapshot(tmp_path) == before


def test_parts_of_a_batch_may_be_uneven(workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `avd distill` takes them, `avd plan` plans them: a part of two clips, and one."""
    parts = ("--set", "training.batch=3", "--set", "compute.microbatch=2")
    assert avd("distill", "small.yaml", *parts, "--updates", 1, "--output", tmp_path / "run") == 0
    capfd.readouterr()
    assert avd("plan", "small.yaml", *parts) == 0
    assert "3 per rank, 2 at once" in capfd.readouterr().out
    assert avd("plan", "small.yaml", *parts, "--memory", "0.0001GB") == 0


def test_more_monitored_clips_than_there_are_is_all_of_them(workshop: Path, tmp_path: Path) -> None:
    monitors = ("--set", "monitors.every=1", "--set", "monitors.clips=50")
    run = tmp_path / "run"
    assert avd("distill", "small.yaml", *monitors, "--data", "cache-1", "--updates", 1, "--output", run) == 0
    assert json.loads((run / "references.json").read_text())["clips"] == [0]
