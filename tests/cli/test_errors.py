"""A user's mistake is one line on stderr and exit code 2, and changes nothing on disk."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from avd.cli import main as command_line
from avd.engine.checkpoint import SavedTensors, copy_pieces, write_pieces
from helpers.command import avd, snapshot
from helpers.tiny import tiny_model

PROMPT = '--prompt "a red square"'
CHECKPOINT = Path("checkpoints/step-0000002")

MISTAKES = {
    # the command line itself
    "unknown command": ("distil avd -o new", "No such command 'distil'", "Did you mean 'distill'?", "`avd --help`"),
    "unknown option": ("distill avd -o new --sed 3", "No such option: --sed", "`avd distill --help`"),
    "missing argument": ("distill -o new", "Missing argument 'recipe'", "`avd distill --help`"),
    "no number": ("distill avd -o new --seed three", "Invalid value for '--seed'", "integer"),
    "unknown suite": ("evaluate student --json new.json --suite moon", "suite 'moon' is not one of", "'world'"),
    # recipes
    "unknown recipe": ("distill avdd -o new", "no recipe avdd", "did you mean avd?"),
    "recipe in a folder": ("distill tiny -o new", "recipe tiny cannot be read"),
    "wrong key": ("distill small.yaml -o new --set objective.temporl.weight=1", "objective.temporl", "temporal?"),
    "wrong key in a file": ("distill wrong-key.yaml -o new", "wrong-key.yaml", "trainig", "training?"),
    "bad value": ("distill small.yaml -o new --set training.batch=0", "training.batch is 0"),
    "override without a value": ("distill small.yaml -o new --set training.batch", "KEY=VALUE"),
    "level out of range": ("distill small.yaml -o new --set data.world_level=99", "world level is 99"),
    "half rate without interpolator": (
        "distill small.yaml -o new --set model=plain --set rollout.half_rate_stages=2",
        "plain ships no interpolator",
        "rollout.half_rate_stages=0",
    ),
    "recipe of avd train": ("distill vae -o new", "recipe vae is for `avd train vae`", "not for `avd distill`"),
    "plan of a recipe of avd train": ("plan teacher", "recipe teacher is for `avd train teacher`"),
    "recipe of avd distill": ("train vae avd -o new", "recipe avd is for `avd distill`", "kind: vae"),
    "recipe of another part": ("train vae teacher -o new", "recipe teacher is for `avd train teacher`"),
    "unknown recipe to train": ("train vae vea -o new", "no recipe vea", "did you mean vae?"),
    "wrong key to train": ("train vae -o new --set lerning_rate=1", "lerning_rate (did you mean learning_rate?)"),
    "bad value to train": ("train vae -o new --set batch=0", "recipe vae: batch is 0"),
    # models
    "missing model": (f"generate nowhere {PROMPT} -o new.mp4", "no model nowhere"),
    "missing model of a recipe": ("distill small.yaml -o new --set model=nowhere", "no model nowhere"),
    "missing hub model": (f"generate nobody/nothing {PROMPT} -o new.mp4", "nobody/nothing cannot be loaded"),
    "folder that is no model": (f"generate clips {PROMPT} -o new.mp4", "clips is not a diffusers folder"),
    "model of another kind": (
        f"generate foreign {PROMPT} -o new.mp4",
        "foreign holds a pipeline of class 'StableDiffusionPipeline'",
        "wan (WanPipeline)",
    ),
    "damaged transformer": (f"generate cut-transformer {PROMPT} -o new.mp4", "cut-transformer cannot be loaded"),
    "damaged VAE": (f"generate cut-vae {PROMPT} -o new.mp4", "cut-vae cannot be loaded"),
    "damaged text encoder": (f"generate cut-text_encoder {PROMPT} -o new.mp4", "cut-text_encoder cannot be loaded"),
    "damaged tokenizer": (f"generate cut-tokenizer {PROMPT} -o new.mp4", "cut-tokenizer cannot be loaded"),
    "weights of another size": (f"generate mixed {PROMPT} -o new.mp4", "mixed cannot be loaded"),
    "a hub id that is not here": (
        "distill small.yaml -o new --set model=nobody/nothing",
        "nobody/nothing cannot be loaded",
    ),
    "a hub model whose clips the world cannot draw": (
        "distill avd-wan2.1-1.3b -o new",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers makes clips of 480 x 832",
        "--data CACHE",
    ),
    "no transformer file": (
        "distill small.yaml -o new --set transformer=nowhere.safetensors",
        "there is no transformer nowhere.safetensors",
    ),
    "transformer of another kind": (
        f"generate tiny --transformer tiny/vae/diffusion_pytorch_model.safetensors {PROMPT} -o new.mp4",
        "tiny cannot be loaded",
        "tiny/vae/diffusion_pytorch_model.safetensors",
    ),
    "solver of a student": (f"generate student --solver unipc {PROMPT} -o new.mp4", "leave --solver out"),
    "damaged settings": (f"generate cut-settings {PROMPT} -o new.mp4", "avd.json is not an avd settings file"),
    "damaged interpolator": ("distill small.yaml -o new --set model=cut-interpolator", "interpolator", "is damaged"),
    "model whose clips the world cannot draw": (
        "distill small.yaml -o new --set model=wide",
        "wide makes clips of 48 x 80",
        "--data CACHE",
    ),
    # run folders
    "run there already": ("distill small.yaml -o run", "run already holds a run", "--resume"),
    "somebody's folder": ("distill small.yaml -o clips", "clips holds files that are not an avd run"),
    "somebody's folder, resumed": ("distill small.yaml -o clips --resume", "not an avd run"),
    "file as output": ("distill small.yaml -o small.yaml", "small.yaml is a file"),
    "output below a file": ("distill small.yaml -o small.yaml/run", "small.yaml is a file"),
    "resume of nothing": ("distill small.yaml -o rnu --resume", "no run rnu to resume"),
    "resume with another recipe": (
        "distill small.yaml -o run --resume --set student.ema=0.5",
        "began with student.ema = 0.95",
    ),
    "resume with another seed": ("distill small.yaml -o run --resume --seed 5", "began with seed = 0, now it is 5"),
    "resume to fewer updates": ("distill small.yaml -o run --resume --updates 1", "has done 2 updates already"),
    "corrupt checkpoint": ("distill small.yaml -o cut-run --resume --updates 3", str(CHECKPOINT), "move it away"),
    "corrupt state": ("distill small.yaml -o cut-state --resume --updates 3", str(CHECKPOINT), "is damaged"),
    # caches
    "missing cache": ("distill small.yaml -o new --data nowhere", "no latent cache at", "nowhere"),
    "cache that is none": ("distill small.yaml -o new --data clips", "clips is not a latent cache"),
    "cache of another model": ("distill small.yaml -o new --data cache --set model=other", "another model"),
    "missing captions": ("prepare clips --captions none.jsonl --model tiny -o new", "none.jsonl"),
    "binary captions": ("prepare clips --captions clips/000000.mp4 --model tiny -o new", "000000.mp4 is not UTF-8"),
    "missing videos": ("prepare none --captions clips/captions.jsonl --model tiny -o new", "no videos at none"),
    "cache in a run": ("prepare clips --captions clips/captions.jsonl --model tiny -o run", "run holds other files"),
    "frames that do not fit": (
        "prepare clips --captions clips/captions.jsonl --model tiny -o new --frames 16",
        "clips of 16 frames",
        "4 n + 1",
    ),
    "sides that do not fit": (
        "prepare clips --captions clips/captions.jsonl --model tiny -o new --width 20",
        "16 x 20",
        "multiples of 16",
    ),
    "nothing to inspect": ("inspect clips", "clips is not a latent cache"),
    "sheet without a model": ("inspect cache --sheet new.png", "--sheet needs --model"),
    "inspected with another model": ("inspect cache --model other", "another model"),
    # generate
    "no prompt": ("generate student -o new.mp4", "--prompt TEXT"),
    "missing prompt file": ("generate student --prompts none.txt -o new.mp4", "none.txt"),
    "empty prompt file": ("generate student --prompts empty.txt -o new.mp4", "empty.txt holds no prompts"),
    "binary prompt file": ("generate student --prompts clips/000000.mp4 -o new.mp4", "000000.mp4"),
    "folder of prompts": ("generate student --prompts clips -o new.mp4", "clips"),
    "video there already": (f"generate student {PROMPT} -o clips/000000.mp4", "000000.mp4 exists already"),
    "one of several videos there": (f"generate student {PROMPT} --count 2 -o mine.mp4", "mine-1.mp4 exists already"),
    "no kind of video": (f"generate student {PROMPT} -o new.avi", "new.avi is no kind of video known here"),
    "video below a file": (f"generate student {PROMPT} -o small.yaml/new.mp4", "small.yaml is a file"),
    "guidance of a student": (f"generate student {PROMPT} --guidance 4 -o new.mp4", "leave --guidance out"),
    "half rate of a teacher": (f"generate tiny {PROMPT} --half-rate -o new.mp4", "half rate is for students"),
    "student without interpolator": (f"generate plain-student {PROMPT} --half-rate -o new.mp4", "no interpolator"),
    # plan
    "plan of no recipe": ("plan avdd", "no recipe avdd", "did you mean avd?"),
    "plan of no model": ("plan small.yaml --model nowhere", "no model nowhere"),
    "plan of sizes unknown": ("plan small.yaml --model nobody/nothing", "nobody/nothing", "name its folder"),
    "plan of another kind": (
        "plan small.yaml --model foreign",
        "foreign holds a pipeline of class 'StableDiffusionPipeline'",
        "wan (WanPipeline)",
    ),
    "plan of damaged settings": ("plan small.yaml --model cut-settings", "avd.json is not an avd settings file"),
    "plan of a missing cache": ("plan small.yaml --set data.cache=nowhere", "no latent cache at nowhere"),
    "memory that is none": ('plan small.yaml --memory "80 potatoes"', "--memory is '80 potatoes'", "80GB"),
    "no memory": ("plan small.yaml --memory 0GB", "--memory is '0GB'"),
    "more than all of the peak": ("plan small.yaml --mfu 1.5", "--mfu is 1.5"),
    "no peak": ("plan small.yaml --peak-tflops 0", "--peak-tflops is 0"),
    "batch over too many GPUs": ("plan small.yaml --gpus 3", "training.batch is 2, over 3 processes"),
    "shard that does not divide": (
        "plan small.yaml --gpus 2 --set compute.shard=3",
        "compute.shard is 3, with 2 processes",
    ),
    "adapters of no layer": (
        "plan small.yaml --set roles=adapters --set adapters.rank=4 --set adapters.targets=[to_z]",
        "adapters.targets names 'to_z'",
    ),
    "plan there already": ("plan small.yaml --json row.json", "row.json exists already"),
    "plan below a file": ("plan small.yaml --json small.yaml/plan.json", "small.yaml is a file"),
    # evaluate, table
    "row there already": ("evaluate student --json row.json", "row.json exists already"),
    "row below a file": ("evaluate student --json small.yaml/row.json", "small.yaml is a file"),
    "neither videos nor model": ("evaluate empty --json new.json", "it holds none", "no model_index.json"),
    "missing model to evaluate": ("evaluate nowhere --json new.json", "no model nowhere"),
    "missing video": ("evaluate torn --json new.json --clips 2 --set size=16", "000001.mp4", "no such file"),
    "world level": ("evaluate clips --json new.json --level 99", "world level is 99"),
    "samples in a file": ("evaluate student --json new.json --samples small.yaml", "small.yaml is a file"),
    "option of no suite": ("evaluate clips --json new.json --set sizes=16", "suite world has no option sizes"),
    "option without a value": ("evaluate clips --json new.json --set size", "--set size: write KEY=VALUE"),
    "one seed for diversity": ("evaluate clips --json new.json --repeats 1", "at least 2 seeds"),
    "videos of another size": (
        "evaluate clips --json new.json --clips 2",
        "000000.mp4: 17 frames of 16 x 16 at 8 fps, and the world's clips are 17 frames of 48 x 48",
    ),
    "model of another size": (
        "evaluate tiny --json new.json --clips 2",
        "tiny makes clips that suite world cannot judge: 17 frames of 16 x 16",
    ),
    "table of nothing": ("table none.json", "none.json"),
    "table of something else": ("table tiny/avd.json", "tiny/avd.json does not hold results"),
    # export
    "export into a folder": ("export student --format diffusers -o clips", "clips exists already"),
    "export below a file": ("export student --format diffusers -o small.yaml/new", "small.yaml is a file"),
    "export of a teacher": ("export tiny --format diffusers -o new", "tiny is a many-step model"),
    "export of nothing": ("export nowhere --format diffusers -o new", "no model nowhere"),
    "unknown export format": ("export student --format gguf -o new", "'gguf' is not one of diffusers, lora"),
    "LoRA of a full student": ("export run --format lora -o new", "cannot be written as lora", "roles=adapters"),
    # the world, demo and training
    "level to render": ("world render -o new --level 99", "world level is 99"),
    "clips there already": ("world render -o clips --size 16", "clips is in use"),
    "demo in another's folder": ("demo -o clips", "clips holds files that are not a demonstration"),
    "level to train on": ("train vae -o new --level 99", "world level is 99"),
    "longer than a clip": ("train vae -o new --set frames=21", "frames is 21", "have 17"),
    "teacher without a VAE": ("train teacher -o new", "--vae FOLDER"),
    "no VAE": ("train teacher --vae clips -o new", "clips holds no VAE"),
    "interpolator of no model": ("train interpolator --model nowhere -o new", "no model nowhere"),
    "pack into a folder": ("train pack tiny -o clips", "clips exists already"),
    "pack a damaged interpolator": ("train pack tiny --interpolator clips -o new", "no interpolator at clips"),
}


@pytest.fixture(scope="module")
def workshop(place: Path) -> Path:
    """Everything that mistakes are made with."""
    tiny_model().save(place / "plain")
    tiny_model(seed=1).save(place / "other")
    wide = tiny_model()
    wide.settings = replace(wide.settings, height=48, width=80)
    wide.save(place / "wide")
    assert avd("world", "render", "--output", "clips", "--count", 2, "--size", 16) == 0
    assert avd("prepare", "clips", "--captions", "clips/captions.jsonl", "--model", "tiny", "--output", "cache") == 0
    assert avd("distill", "small.yaml", "--output", "run") == 0
    shutil.copytree("run/student", "student")
    shutil.copytree("student", "plain-student", ignore=shutil.ignore_patterns("interpolator"))
    damage_models(place)
    damage_runs(place)
    shutil.copytree("clips", "torn", ignore=shutil.ignore_patterns("000001.mp4"))
    for name, text in {
        "wrong-key.yaml": "extends: avd\nname: mine\ntrainig: {batch: 1}\n",
        "empty.txt": "\n \n",
        "mine-1.mp4": "mine",
        "row.json": "mine",
    }.items():
        (place / name).write_text(text)
    (place / "empty").mkdir()
    return place


def damage_models(place: Path) -> None:
    for part, file in {
        "transformer": "transformer/diffusion_pytorch_model.safetensors",
        "vae": "vae/diffusion_pytorch_model.safetensors",
        "text_encoder": "text_encoder/model.safetensors",
        "tokenizer": "tokenizer/tokenizer.json",
        "settings": "avd.json",
        "interpolator": "interpolator/model.safetensors",
    }.items():
        shutil.copytree("tiny", f"cut-{part}")
        cut(place / f"cut-{part}" / file)
    shutil.copytree("tiny", "mixed")
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copyfile(f"tiny/vae/{weights}", f"mixed/transformer/{weights}")
    (place / "foreign").mkdir()
    (place / "foreign" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def damage_runs(place: Path) -> None:
    for name in ("cut-run", "cut-state"):
        shutil.copytree("run", name)
    cut(place / "cut-run" / CHECKPOINT / "tensors-00000-of-00001.safetensors")
    cut(place / "cut-state" / CHECKPOINT / "state.json")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(
    mistake: str, workshop: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    command, *words = MISTAKES[mistake]
    before = snapshot(workshop)
    capfd.readouterr()
    assert avd(*shlex.split(command)) == 2
    out, err = capfd.readouterr()
    assert err.startswith("avd: ") and err.endswith("\n") and err.count("\n") == 1 and not out
    assert all(word in err for word in words), err
    assert not recwarn.list  # outside a test they would be lines too
    assert snapshot(workshop) == before


ENVIRONMENTS = {
    "rank without a size": ({"RANK": "1"}, "RANK is 1 and WORLD_SIZE is not set"),
    "size without a place": ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT"),
    "size alone": ({"WORLD_SIZE": "2"}, "without RANK, LOCAL_RANK"),
    "rank that is no number": ({"RANK": "x"}, "RANK is 'x'"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_half_a_launch_is_one_line_and_changes_nothing(
    case: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment, words = ENVIRONMENTS[case]
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    before = snapshot(workshop)
    capfd.readouterr()
    assert avd("distill", "small.yaml", "--output", "new") == 2
    out, err = capfd.readouterr()
    assert err.startswith("avd: ") and err.count("\n") == 1 and words in err and "torchrun" in err and not out
    assert snapshot(workshop) == before


@pytest.mark.parametrize("command", ["compare small.yaml --output new", "demo --output new"])
def test_an_experiment_runs_in_one_process(
    command: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launch = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29511"}
    for key, value in launch.items():
        monkeypatch.setenv(key, value)
    capfd.readouterr()
    assert avd(*command.split()) == 2
    assert "WORLD_SIZE is 2, and this command runs in one process" in capfd.readouterr().err
    assert not (workshop / "new").exists()


def test_after_a_corrupt_checkpoint_the_run_resumes_from_the_one_before(workshop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(workshop / "cut-run", run)
    (run / CHECKPOINT).rename(tmp_path / "moved")
    assert avd("distill", "small.yaml", "--output", run, "--resume") == 0
    assert snapshot(run / "student") == snapshot(workshop / "run" / "student")


def test_a_checkpoint_of_another_model_is_reported_by_its_name(
    workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree("run", run)
    other = SavedTensors(run / CHECKPOINT)
    write_pieces(run / "other", 0, copy_pieces({f"other.{name}": other[name] for name in other}, first=True))
    part = "tensors-00000-of-00001.safetensors"
    (run / "other" / "step-0000000.writing" / part).rename(run / CHECKPOINT / part)
    shutil.rmtree(run / "other")
    before = snapshot(run)
    assert avd("distill", "small.yaml", "--output", run, "--resume") == 2
    assert f"avd: checkpoint {run / CHECKPOINT} does not fit the model" in capfd.readouterr().err
    assert snapshot(run) == before


def test_a_mistake_in_a_process_of_its_own(workshop: Path) -> None:
    """No library adds a warning of its own."""
    command = [sys.executable, "-m", "avd", "generate", "student", "--prompt", "a", "--guidance", "4", "-o", "new.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "avd: a student has its guidance distilled into it: leave --guidance out\n"


def test_what_the_system_refuses_is_one_line(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "new/000000.mp4")

    monkeypatch.setattr(command_line, "app", refuse)
    assert avd() == 2
    assert capfd.readouterr().err == "avd: new/000000.mp4: No space left on device\n"


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(ZeroDivisionError):
        avd()
