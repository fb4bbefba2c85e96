"""Teachers at their true widths, cut in depth: loaded, and run as stock diffusers runs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from avd.models.family import load_model
from avd.models.solvers import make_solver
from avd.models.wan.known import KNOWN
from avd.models.wan.model import VideoModel
from avd.sampling.teacher import sample_teacher, solve
from avd.types import UserError
from helpers.teachers import TOKENS, publish, write_original

PROMPT = "a red ball drifts left"
FRAMES, SIZE = 5, 64


@pytest.fixture(scope="module", params=["wan2.1-1.3b", "wan2.2-ti2v-5b"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Wan2.2's VAE has 0.7 G parameters, so its width is cut; its structure, channels and whitening are its own."""
    vae = {"base_dim": 8, "decoder_base_dim": 12} if name == "wan2.2-ti2v-5b" else {"base_dim": 8}
    folder = publish(name, tmp_path_factory.mktemp("hub") / name, vae=vae)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(published: Path) -> VideoModel:
    return load_model(str(published))


@pytest.fixture(scope="module")
def pipeline(published: Path, model: VideoModel) -> WanPipeline:
    """Stock diffusers' own, but for the transformer, of which one copy is enough."""
    pipeline = WanPipeline.from_pretrained(published, dtype=torch.float32, transformer=None)
    pipeline.register_modules(transformer=model.transformer)
    pipeline.vae.requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(model: VideoModel) -> Tensor:
    channels = model.latent_shape()[0]
    side = SIZE // (16 if channels == 48 else 8)
    return torch.randn(1, channels, 2, side, side)


def of_pipeline(pipeline: WanPipeline, latents: Tensor, steps: int) -> Tensor:
    return pipeline(
        PROMPT,
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=5.0,
        latents=latents,
        max_sequence_length=TOKENS,
        output_type="latent",
    ).frames


def test_settings_are_those_of_the_pipeline(name: str, model: VideoModel) -> None:
    assert model.settings == KNOWN[name].settings
    channels, compression = (48, 16) if name == "wan2.2-ti2v-5b" else (16, 8)
    frames = (model.settings.frames - 1) // 4 + 1
    sides = (model.settings.height // compression, model.settings.width // compression)
    assert model.latent_shape() == (channels, frames, *sides)
    assert model.text_length == TOKENS
    with pytest.raises(UserError, match=f"multiples of {2 * compression}"):
        model.check_clip(5, compression, compression)


def test_the_default_solver_is_the_pipelines_own(model: VideoModel, pipeline: WanPipeline) -> None:
    """UniPC at stock settings, and per-token timesteps where the pipeline expands them."""
    latents = noise(model)
    settings = model.settings
    assert settings.solver == "unipc"
    found = sample_teacher(
        model.velocity(),
        latents,
        model.encode_prompts([PROMPT]),
        model.encode_prompts([""]),
        steps=3,
        guidance=5.0,
        shift=settings.shift,
        solver=make_solver("unipc", settings.shift),
    )
    torch.testing.assert_close(found, of_pipeline(pipeline, latents, 3), rtol=0, atol=1e-4)


def test_a_flow_match_scheduler_is_followed_too(model: VideoModel, pipeline: WanPipeline) -> None:
    latents, prompt, null = noise(model), model.encode_prompts([PROMPT]), model.encode_prompts([""])
    network, own = model.velocity(), pipeline.scheduler

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        cond, uncond = network(x, sigma, prompt), network(x, sigma, null.expand(len(prompt)))
        return uncond + 5.0 * (cond - uncond)

    try:
        pipeline.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
        expected = of_pipeline(pipeline, latents, 3)
    finally:
        pipeline.register_modules(scheduler=own)
    found = solve(guided, latents, FlowMatchEulerDiscreteScheduler(shift=3.0), 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_prompt_embeddings_are_the_pipelines(model: VideoModel, pipeline: WanPipeline) -> None:
    prompts = [PROMPT, "", " A  red\nball &amp; ball", "red " * 50]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    torch.testing.assert_close(model.encode_prompts(prompts)["embedding"], expected)


def test_latents_are_the_pipelines(model: VideoModel, pipeline: WanPipeline) -> None:
    """What we encode, the pipeline decodes as it decodes its own latents, and so do we."""
    video = np.random.default_rng(0).integers(0, 256, (1, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    latents = model.encode_video(video)
    config = pipeline.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    pixels = pipeline.video_processor.preprocess_video(torch.from_numpy(video[0]).permute(0, 3, 1, 2)[None] / 255.0)
    expected = (pipeline.vae.encode(pixels).latent_dist.mode() - mean) / std
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    decoded = pipeline.vae.decode(latents * std + mean).sample
    frames = pipeline.video_processor.postprocess_video(decoded, output_type="np")
    difference = np.abs(model.decode_video(latents).astype(int) - np.round(frames * 255).astype(int))
    assert difference.max() <= 1  # of 255, from rounding


def test_a_single_file_is_the_folders_transformer(model: VideoModel, published: Path) -> None:
    file = write_original(published, published / "single.safetensors")
    single = load_model(str(published), transformer=str(file))
    assert single.identity == model.identity
    ours, theirs = single.transformer.state_dict(), model.transformer.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


PEAK = """
import sys, torch
from avd.models.family import load_model
from avd.types import Conditions

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

model = load_model(sys.argv[1], transformer=sys.argv[2] or None, dtype=torch.bfloat16)
opened = peak()
network = model.velocity()
with torch.no_grad():
    v = network(torch.randn(1, 16, 1, 2, 2), torch.tensor([0.5]), Conditions({"embedding": torch.randn(1, 2, 4096)}))
assert v.shape == (1, 16, 1, 2, 2) and v.isfinite().all()
print(peak() - opened, sum(p.numel() * p.element_size() for p in network.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("form", ["folder", "single file"])
def test_weights_are_in_memory_once_in_the_precision_they_are_stored_in(form: str, tmp_path: Path) -> None:
    """A 14B's true widths in 2 of 40 layers, 0.9 G parameters; as a single file the 1.3B's, which is sooner written."""
    text = {"d_kv": 8, "num_heads": 4, "d_ff": 64}
    folder, file = tmp_path / "published", ""
    publish("wan2.1-14b" if form == "folder" else "wan2.1-1.3b", folder, vae={"base_dim": 8}, text_encoder=text)
    if form == "single file":
        file = str(write_original(folder, tmp_path / "single.safetensors"))
    command = [sys.executable, "-c", PEAK, str(folder), file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    assert size > (1.8e9 if form == "folder" else 2.3e8) and peak < 1.5 * size
    shutil.rmtree(tmp_path)
