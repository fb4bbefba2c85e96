"""A model folder: written, read back, and run by stock diffusers with the same results."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

from avd.miniature import architecture as mini
from avd.models.family import load_model
from avd.models.settings import SETTINGS_FILE
from avd.models.streams import stream
from avd.models.wan.model import VideoModel
from avd.models.weights import MemoryWeights
from avd.sampling.teacher import sample_teacher
from avd.types import UserError

PROMPTS = ["a red circle moves left", "a blue square is still"]


class UniformGrid(FlowMatchEulerDiscreteScheduler):
    """Diffusers' own steps on the grid of Wan's own code, which ends at 0 one step below the last noise level."""

    def set_timesteps(self, num_inference_steps: int, device: str | None = None) -> None:
        super().set_timesteps(sigmas=torch.linspace(1, 0, num_inference_steps + 1)[:-1].tolist(), device=device)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_saved_model_loads_the_same(model: VideoModel, folder: Path) -> None:
    loaded = load_model(str(folder))
    assert loaded.settings == model.settings
    assert loaded.identity == model.identity
    for name in ("transformer", "vae", "text_encoder"):
        before, after = getattr(model, name).state_dict(), getattr(loaded, name).state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(loaded.encode_prompts(PROMPTS)["embedding"], model.encode_prompts(PROMPTS)["embedding"])
    assert loaded.latent_shape() == model.latent_shape() == (12, 5, 6, 6)
    assert loaded.latent_shape(9) == (12, 3, 6, 6)


def test_only_the_transformer_is_trained(model: VideoModel) -> None:
    frozen = [*model.vae.parameters(), *model.text_encoder.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in model.velocity().parameters())


def test_another_transformer_and_settings_can_be_saved(model: VideoModel, tmp_path: Path) -> None:
    """What a distilled student's folder is; a transformer seen as a velocity before is saved as plain diffusers."""
    student = copy.deepcopy(model.transformer)
    with torch.no_grad():
        student.patch_embedding.bias += 1.0
    timesteps = (1000.0, 900.0, 757.0, 522.0)
    model.save(
        tmp_path / "student",
        stream(MemoryWeights(student.state_dict())),
        student_timesteps=timesteps,
        half_rate_stages=2,
    )
    loaded = load_model(str(tmp_path / "student"))
    assert loaded.settings.student_timesteps == timesteps and loaded.settings.half_rate_stages == 2
    assert torch.equal(loaded.transformer.patch_embedding.bias, student.patch_embedding.bias)


def test_identity_follows_the_vae_its_whitening_and_the_text_encoder(model: VideoModel, tmp_path: Path) -> None:
    def changed(change: Callable[[VideoModel], object]) -> bool:
        parts = copy.deepcopy((model.transformer, model.vae, model.text_encoder))
        other = VideoModel(*parts, model.tokenizer, model.settings)
        with torch.no_grad():
            change(other)
        other.save(tmp_path / "changed")
        assert load_model(str(tmp_path / "changed")).identity == other.identity
        return other.identity != model.identity

    assert changed(lambda m: m.vae.decoder.conv_in.weight.mul_(2))
    assert changed(lambda m: m.text_encoder.shared.weight.mul_(2))
    assert changed(lambda m: m.vae.register_to_config(latents_std=[2.0] * mini.LATENT_CHANNELS))
    assert not changed(lambda m: m.transformer.patch_embedding.bias.add_(1))


def test_identity_is_that_of_caches_made_before() -> None:
    assert load_model("wan-mini").identity == "wan-c601a27a9d264982"


def test_stock_diffusers_makes_videos_from_the_folder(pipeline: WanPipeline) -> None:
    frames = pipeline(
        PROMPTS[0],
        height=48,
        width=48,
        num_frames=17,
        num_inference_steps=2,
        max_sequence_length=mini.TEXT_LENGTH,
        output_type="np",
    ).frames
    assert frames.shape == (1, 17, 48, 48, 3)


@pytest.mark.parametrize("prompt", [PROMPTS[0], "", " A  red\ncircle ", "red &amp; blue", "red " * 50])
def test_prompt_embeddings_are_those_of_the_pipeline(model: VideoModel, pipeline: WanPipeline, prompt: str) -> None:
    expected, null = pipeline.encode_prompt([prompt, PROMPTS[1]], max_sequence_length=mini.TEXT_LENGTH)
    found = model.encode_prompts([prompt, PROMPTS[1]])["embedding"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_prompts([""])["embedding"], null[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_our_sampler_is_the_pipelines_on_the_same_noise_levels(
    model: VideoModel, pipeline: WanPipeline, guidance: float
) -> None:
    """Both work on whitened latents; the pipeline's `latent` output is not unwhitened."""
    pipeline.scheduler = UniformGrid(shift=model.settings.shift)
    noise = torch.randn(2, *model.latent_shape())
    expected = pipeline(
        PROMPTS,
        height=48,
        width=48,
        num_frames=17,
        num_inference_steps=3,
        guidance_scale=guidance,
        max_sequence_length=mini.TEXT_LENGTH,
        latents=noise,
        output_type="latent",
    ).frames
    found = sample_teacher(
        model.velocity(),
        noise,
        model.encode_prompts(PROMPTS),
        model.encode_prompts([""]),
        steps=3,
        guidance=guidance,
        shift=model.settings.shift,
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, for a test to damage."""
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


def assert_refused(name: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_model(name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["wan-maxi", "./nowhere", "/nowhere/at/all", "nobody/has-this-model"])
def test_a_missing_model_is_one_line(name: str) -> None:
    assert_refused(name)


def test_a_foreign_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("not a model")
    assert_refused(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    assert_refused(str(tmp_path))


def test_weights_cut_short_are_one_line(damaged: Path) -> None:
    weights = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(str(damaged))


def test_another_family_of_model_is_one_line(damaged: Path) -> None:
    (damaged / "transformer" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    assert_refused(str(damaged))


@pytest.mark.parametrize("text", ['{"colour": 1}', '{"frames', "[]"])
def test_bad_settings_are_one_line(damaged: Path, text: str) -> None:
    (damaged / SETTINGS_FILE).write_text(text)
    assert_refused(str(damaged))


def test_pickled_weights_are_never_read(damaged: Path) -> None:
    folder = damaged / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    assert_refused(str(damaged))
