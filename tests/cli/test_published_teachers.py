"""All the way with teachers as they are published: prepare, interpolator, distil, generate, and stock diffusers.

Wan2.1-1.3B is at its true widths, cut to 2 layers. The 14B, at its own, is cut to 1, and its student is an adapter and
stays one: three full networks would be too many. Wan2.2-TI2V-5B, of another VAE and another form of timesteps, keeps
its channels, compression and whitening and is narrower: three networks of its width and their optimizers are 16 GB.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file

from avd.data import LatentCache, read_video, write_video
from avd.models.family import load_model
from avd.sampling.choose import make_sampler
from helpers.command import avd
from helpers.teachers import TOKENS, publish, write_original

PROMPT = "a red ball drifts left"
NARROW: dict[str, Any] = {
    "transformer": {"num_attention_heads": 2, "ffn_dim": 64, "text_dim": 32},
    "vae": {"base_dim": 8, "decoder_base_dim": 12},
    "text_encoder": {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64},
}


@dataclass(frozen=True)
class Case:
    name: str
    size: int
    latent_shape: tuple[int, int, int, int]
    cuts: dict[str, Any]
    single_file: bool = False
    adapters: bool = False


CASES = [
    Case("wan2.1-1.3b", 32, (16, 3, 4, 4), {}),
    Case("wan2.2-ti2v-5b", 64, (48, 3, 4, 4), NARROW, single_file=True),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Its working directory holds the model `wan`, `clips`, the `cache`, and the `run` with its student."""
    case: Case = request.param
    before, folder = Path.cwd(), tmp_path_factory.mktemp(case.name)
    os.chdir(folder)
    try:
        walk(case)
        yield case
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def walk(case: Case) -> None:
    publish(case.name, Path("wan"), **case.cuts)
    sizes = ("--frames", 9, "--fps", 8, "--height", case.size, "--width", case.size)
    assert avd("world", "render", "--output", "clips", "--count", 2, "--size", case.size) == 0
    assert avd("prepare", "clips", "--model", "wan", "--output", "cache", *sizes) == 0
    assert avd("train", "interpolator", "--model", "wan", "--data", "cache", "--updates", 1, "--output", "between") == 0
    shutil.copytree("between/interpolator", "wan/interpolator")
    changes = [
        "model=wan",
        "rollout.half_rate_stages=2",
        "rollout.half_rate_share=0.5",
        "fake_score.updates=1",
        "compute.dtype=float32",
        "compute.checkpointing=none",
        "training.updates=2",
        "training.batch=1",
        "training.checkpoint_every=0",
        "training.sample_every=2",
    ]
    if case.adapters:
        changes += ["roles=adapters", "adapters.rank=4", "adapters.merge=false", "student.optimizer.learning_rate=1e-5"]
    if case.single_file:
        changes.append(f"transformer={write_original(Path('wan'), Path('single.safetensors'))}")
        Path("wan/transformer/diffusion_pytorch_model.safetensors").rename("kept.safetensors")
    words = [word for change in changes for word in ("--set", change)]
    assert avd("distill", "avd-wan2.1-1.3b", "--data", "cache", "--output", "run", *words) == 0
    if case.single_file:
        Path("kept.safetensors").rename("wan/transformer/diffusion_pytorch_model.safetensors")


def test_the_cache_holds_latents_of_the_models_shape(case: Case) -> None:
    cache = LatentCache(Path("cache"))
    assert cache.latent_shape == case.latent_shape
    assert cache.identity == load_model("wan").identity == load_model("run/student").identity


def test_every_figure_of_the_run_is_finite(case: Case) -> None:
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert {"distribution_matching", "temporal", "regression", "fake_score"} <= line.keys()
        assert all(value is not None for value in line.values())
    assert read_video(Path("run/samples/update-000002.mp4")).frames.shape == (9, case.size, 2 * case.size, 3)


def test_the_student_is_the_teacher_a_step_further(case: Case) -> None:
    teacher, student = (load_model(name).transformer.state_dict() for name in ("wan", "run/student"))
    assert teacher.keys() == student.keys()
    differences = [(teacher[k].float() - student.pop(k)).abs().max().item() for k in teacher]
    assert 0 < max(differences) < 1e-4


def test_the_student_runs_at_half_rate(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert avd("generate", "run/student", "--prompt", PROMPT, "--output", "half.mp4", "--half-rate") == 0
    assert "4 network calls" in capsys.readouterr().err
    video = read_video(Path("half.mp4"))
    assert video.frames.shape == (9, case.size, case.size, 3) and video.fps == 8


def test_stock_diffusers_runs_the_student_to_the_same_video(case: Case) -> None:
    """The folder's own scheduler re-noises as the rollout does; its noise levels are the student's timesteps."""
    pipeline = WanPipeline.from_pretrained("run/student", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.expand_timesteps == (case.name == "wan2.2-ti2v-5b")
    levels = [1.0, 0.9, 0.757, 0.522]
    pipeline.scheduler.set_timesteps = functools.partial(pipeline.scheduler.set_timesteps, sigmas=levels)
    torch.manual_seed(5)
    stock = pipeline(
        PROMPT,
        height=case.size,
        width=case.size,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=TOKENS,
        output_type="latent",
    ).frames
    student = load_model("run/student")
    ours = make_sampler(student, half_rate=False)([PROMPT], torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
    assert avd("generate", "run/student", "--prompt", PROMPT, "--seed", 5, "--full-rate", "--output", "ours.mp4") == 0
    write_video(Path("stock.mp4"), student.decode_video(stock)[0], 8)
    found, expected = (read_video(Path(f"{name}.mp4")).frames.astype(int) for name in ("ours", "stock"))
    assert np.abs(found - expected).mean() < 1.0  # of 255: a pixel rounded otherwise is coded otherwise


def test_the_teacher_makes_videos_with_either_solver(case: Case) -> None:
    single = ("--transformer", "single.safetensors") if case.single_file else ()
    geometry = {"frames": 5, "height": case.size, "width": case.size, "fps": 8}
    Path("wan/avd.json").write_text(json.dumps(geometry))
    try:
        for solver in ("euler", "unipc"):
            words = ("--prompt", PROMPT, "--steps", 2, "--solver", solver, *single, "--output", f"{solver}.mp4")
            assert avd("generate", "wan", *words) == 0
        euler, unipc = (read_video(Path(f"{solver}.mp4")).frames.astype(int) for solver in ("euler", "unipc"))
    finally:
        Path("wan/avd.json").unlink()
    assert np.abs(euler - unipc).mean() > 1.0


def test_the_14b_goes_all_the_way_as_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    walk(Case("wan2.1-14b", 32, (16, 3, 4, 4), {"transformer": {"num_layers": 1}}, adapters=True))
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(value is not None for line in lines for value in line.values())
    assert avd("generate", "run/student", "--prompt", PROMPT, "--output", "half.mp4", "--half-rate") == 0
    assert read_video(Path("half.mp4")).frames.shape == (9, 32, 32, 3)
    transformer = WanTransformer3DModel.from_pretrained("wan", subfolder="transformer", dtype=torch.bfloat16)
    keys = set(load_file("run/student/pytorch_lora_weights.safetensors"))
    assert len(keys) == 2 * sum(name.endswith(TARGETS) for name, _ in transformer.named_modules())
    shutil.rmtree(tmp_path / "wan")


TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
