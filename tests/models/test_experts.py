"""Two networks as one, by noise level: as weights, as a network, and as a folder that stock diffusers samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from safetensors.torch import load_file
from torch import Tensor

from avd.models.experts import HIGH, LOW, Experts, ExpertsWeights, join_streams, stream_of
from avd.models.family import load_model, read_sizes
from avd.models.settings import read_settings
from avd.models.streams import stream
from avd.models.weights import MemoryWeights, read_tensor
from avd.sampling.choose import make_sampler
from avd.types import Conditions, UserError
from helpers.tiny import tiny_model

TIMESTEPS, SIGMAS = (1000.0, 900.0, 757.0, 522.0), [1.0, 0.9, 0.757, 0.522]
PROMPTS = ["a red square rises"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two tiny experts, the first of which runs two of four stages."""
    folder = tmp_path_factory.mktemp("experts") / "student"
    high, low = (stream(tiny_model(seed).weights()) for seed in (1, 2))
    how: dict[str, Any] = {"student_timesteps": TIMESTEPS, "transition": "euler", "high_stages": 2}
    tiny_model().save(folder, join_streams(high, low), **how)
    return folder


def velocity(add: float) -> Any:
    return lambda x, sigma, conditions, *, frame_stride=1, space_stride=1: x + add * frame_stride * space_stride


def test_the_noise_level_says_which_expert_answers() -> None:
    experts, x = Experts(velocity(1.0), velocity(10.0), boundary=0.8), torch.zeros(2, 1)
    prompt = Conditions({"embedding": x})

    def answer(*sigmas: float) -> float:
        return experts(x, torch.tensor(sigmas), prompt, frame_stride=2, space_stride=2)[0].item()

    assert (answer(1.0, 0.81), answer(0.8, 0.1)) == (4.0, 40.0)
    with pytest.raises(AssertionError, match="both sides"):
        answer(0.9, 0.7)


def test_weights_of_two_are_joined_and_parted() -> None:
    high, low = {"a.b": torch.arange(6.0).view(3, 2)}, {"a.b": torch.ones(3, 2), "c": torch.zeros(())}
    joined = ExpertsWeights(MemoryWeights(high), MemoryWeights(low))
    assert dict(joined.shapes) == {f"{HIGH}.a.b": (3, 2), f"{LOW}.a.b": (3, 2), f"{LOW}.c": ()}
    assert torch.equal(joined.region(f"{HIGH}.a.b", (1, 0), (2, 2)), high["a.b"][1:])
    streams = join_streams(stream(MemoryWeights(high)), stream(MemoryWeights(low)))
    assert streams.shapes == joined.shapes
    for part, expected in ((HIGH, high), (LOW, low)):
        parted = dict(stream_of(part, streams))
        assert parted.keys() == expected.keys() and all(torch.equal(parted[k], expected[k]) for k in parted)


def test_a_folder_of_two_loads_as_one_network(pair: Path) -> None:
    model = load_model(str(pair))
    assert (model.settings.high_stages, model.sizes.networks, read_sizes(str(pair))) == (2, 2, model.sizes)
    assert model.settings.boundary == pytest.approx((0.9 + 0.757) / 2)
    network, prompt = model.velocity(), model.encode_prompts(PROMPTS)
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    for seed, sigma in ((1, 1.0), (1, 0.9), (2, 0.757), (2, 0.522)):
        expected = tiny_model(seed).velocity()(x, torch.tensor([sigma]), prompt)
        torch.testing.assert_close(network(x, torch.tensor([sigma]), prompt), expected)
    state, weights = network.transformer.state_dict(), model.weights()
    hollow = model.hollow_velocity().transformer.state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == dict(weights.shapes)
    assert {k: tuple(v.shape) for k, v in hollow.items()} == dict(weights.shapes)
    assert all(torch.equal(read_tensor(weights, name), tensor) for name, tensor in state.items())
    assert len(network.blocks) == 4


def test_written_again_it_has_the_same_weights(pair: Path, tmp_path: Path) -> None:
    load_model(str(pair)).save(tmp_path / "again")
    files = sorted(path.relative_to(pair) for path in pair.rglob("*.safetensors"))
    assert [file.parent.name for file in files] == ["text_encoder", HIGH, LOW, "vae"]
    for file in files:
        before, after = load_file(pair / file), load_file(tmp_path / "again" / file)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


class StudentsLevels(FlowMatchEulerDiscreteScheduler):
    """Diffusers' own steps at the student's own noise levels, which a caller of a pipeline must give it."""

    def set_timesteps(self, num_inference_steps: int, device: str | None = None) -> None:
        super().set_timesteps(sigmas=SIGMAS, device=device)


def test_stock_diffusers_samples_as_avd_does(pair: Path) -> None:
    pipeline = WanPipeline.from_pretrained(pair, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = StudentsLevels.from_config(pipeline.scheduler.config)
    model = load_model(str(pair))
    noise = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    stock: Tensor = pipeline(
        PROMPTS,
        height=16,
        width=16,
        num_frames=17,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=32,
        output_type="latent",
    ).frames
    own = make_sampler(model)(PROMPTS, torch.Generator().manual_seed(0))
    torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-4)


def broken(pair: Path, folder: Path, change: str) -> None:
    shutil.copytree(pair, folder)
    if change == "weights":
        next((folder / LOW).glob("*.safetensors")).unlink()
    else:
        path, key, value = {
            "sizes": (folder / LOW / "config.json", "ffn_dim", 96),
            "index": (folder / "model_index.json", LOW, [None, None]),
            "settings": (folder / "avd.json", "high_stages", 0),
        }[change]
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", "transformer_2 has no weights"),
        ("sizes", "transformer_2 has other sizes"),
        ("index", "two experts, and it has one transformer"),
        ("settings", "two transformers"),
    ],
)
def test_a_damaged_pair_is_one_line(change: str, message: str, pair: Path, tmp_path: Path) -> None:
    broken(pair, tmp_path / "broken", change)
    with pytest.raises(UserError, match=message) as raised:
        load_model(str(tmp_path / "broken"))
    assert "\n" not in str(raised.value)


def test_a_pair_takes_no_transformer_of_another_file(pair: Path) -> None:
    with pytest.raises(UserError, match="leave the transformer's file out"):
        load_model(str(pair), transformer=str(next((pair / HIGH).glob("*.safetensors"))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": "renoise"}, "high_stages is 2 without Euler steps"),
        ({"end_timestep": 100}, "end_timestep is 100 with both experts"),
    ],
)
def test_a_pair_that_is_sampled_otherwise_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    how = {"student_timesteps": list(TIMESTEPS), "transition": "euler", "high_stages": 2}
    (tmp_path / "avd.json").write_text(json.dumps(how))
    assert read_settings(tmp_path) is not None
    (tmp_path / "avd.json").write_text(json.dumps({**how, **change}))
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path)


def test_an_expert_of_high_noise_by_itself_is_not_sampled(tmp_path: Path) -> None:
    tiny_model().save(tmp_path, student_timesteps=TIMESTEPS[:2], transition="euler", end_timestep=757.0)
    with pytest.raises(UserError, match="ends at timestep 757"):
        make_sampler(load_model(str(tmp_path)))
