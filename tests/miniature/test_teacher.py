"""The teacher's task: where its weights start, what it learns from, and that its loss is flow matching."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import pytest
import torch

from avd.config import TeacherRecipe
from avd.miniature import architecture as mini
from avd.miniature.teacher import TeacherTask
from avd.models.family import load_model
from avd.models.settings import Settings
from avd.models.wan.model import VideoModel, encode_prompts
from avd.world import World, vocabulary

WORLD = World()
CONFIG = TeacherRecipe(updates=4, batch=2, warmup=1, clips=4)


@pytest.fixture(scope="module")
def trained_before() -> VideoModel:
    torch.manual_seed(5)
    tokenizer = mini.build_tokenizer(vocabulary())
    text_encoder = mini.build_text_encoder(len(tokenizer))
    return VideoModel(mini.build_transformer(), mini.build_vae(), text_encoder, tokenizer, Settings(17, 48, 48, 8))


def test_starts_from_another_miniature(trained_before: VideoModel) -> None:
    latents = torch.zeros(4, 12, 5, 6, 6)
    task = TeacherTask(CONFIG, WORLD, trained_before.vae, latents, trained_before)
    for network in (task.network, task.ema.module):
        mine, theirs = network.velocity.transformer.state_dict(), trained_before.transformer.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        mine, theirs = network.text_encoder.state_dict(), trained_before.text_encoder.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_an_update_trains_transformer_and_text_encoder_together(trained_before: VideoModel) -> None:
    latents = torch.randn(4, 12, 5, 6, 6)
    task = TeacherTask(CONFIG, WORLD, trained_before.vae, latents)
    before = [p.clone() for p in task.network.parameters()]
    metrics = [task.update(n).metrics for n in range(2)]
    moved = [not torch.equal(a, b) for a, b in zip(before, task.network.parameters(), strict=True)]
    assert all(moved)
    assert all(0 < f["loss"] < 20 for f in metrics)


def test_noise_levels_cover_the_full_range(trained_before: VideoModel) -> None:
    task = TeacherTask(CONFIG, WORLD, trained_before.vae, torch.zeros(4, 12, 5, 6, 6))
    sigma = task._noise_levels(20_000, torch.Generator().manual_seed(0))
    assert 0 < sigma.min() < 0.02 and 0.98 < sigma.max() <= 1
    # 85 % sigmoid(N(1.5, 1)), 15 % uniform
    for level in (0.5, 0.8, 0.9):
        below = 0.85 * NormalDist(1.5, 1.0).cdf(math.log(level / (1 - level))) + 0.15 * level
        assert (sigma < level).float().mean().item() == pytest.approx(below, abs=0.015)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(trained_before: VideoModel) -> None:
    latents = torch.zeros(4, 12, 5, 6, 6)
    task = TeacherTask(CONFIG, WORLD, trained_before.vae, latents)
    names = {id(p): name for name, p in task.network.named_parameters()}
    trained = {
        key: [names[id(p)] for group in each.param_groups for p in group["params"]]
        for key, each in task.optimizers.items()
    }
    assert sorted(trained["optimizer"] + trained["muon"]) == sorted(names.values())
    assert len(trained["muon"]) == 6 * 10 and all(".blocks." in name for name in trained["muon"])
    task.update(0)
    rates = {key: each.param_groups[0]["lr"] for key, each in task.optimizers.items()}
    assert rates["muon"] == pytest.approx(3 * rates["optimizer"])
    alone = TeacherTask(CONFIG.model_copy(update={"matrix_rate": 0.0}), WORLD, trained_before.vae, latents)
    assert list(alone.optimizers) == ["optimizer"]


def test_object_maps_teach_the_blocks_before_them_and_no_model_keeps_their_head(
    trained_before: VideoModel, tmp_path: Path
) -> None:
    task = TeacherTask(CONFIG, WORLD, trained_before.vae, torch.randn(4, 12, 5, 6, 6))
    prompt = encode_prompts(task.network.text_encoder, task.tokenizer, ["a red ball"], mini.TEXT_LENGTH)
    maps = task.network(torch.randn(1, 12, 5, 6, 6), torch.tensor([0.5]), prompt)[1]
    maps.sum().backward()
    blocks = task.network.velocity.transformer.blocks
    graded = [any(p.grad is not None for p in block.parameters()) for block in blocks]
    assert graded == [True] * 3 + [False] * 3
    task.export(tmp_path)
    assert not any("maps" in key for key in load_model(str(tmp_path / "teacher")).transformer.state_dict())


def test_a_weight_of_zero_for_object_maps_leaves_flow_matching_alone(trained_before: VideoModel) -> None:
    latents = torch.randn(4, 12, 5, 6, 6)
    gradients = []
    for weight in (0.0, 0.5):
        task = TeacherTask(CONFIG.model_copy(update={"object_maps": weight}), WORLD, trained_before.vae, latents)
        gradients.append(task.update(0).metrics)
    assert gradients[0]["loss"] == gradients[1]["loss"] and gradients[0]["grad_norm"] < gradients[1]["grad_norm"]
