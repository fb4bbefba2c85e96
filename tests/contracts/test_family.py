"""What training, planning, cache and command line take for granted of a model family, checked of each."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avd.config import AdaptersRecipe, Recipe, load_recipe
from avd.data import CacheWriter, Geometry, Item, LatentCache, MemoryLatents, encode_texts
from avd.distillation.data import RunData
from avd.distillation.task import DistillTask
from avd.engine.sources import open_cache
from avd.flow import subsample
from avd.models.adapters import AdapterVelocity, add_adapters, merged_stream
from avd.models.backbone import Backbone
from avd.models.family import TextToVideo, families, load_model, read_sizes
from avd.planning.activations import MeasuredPass, PassMeter, build_hollow
from avd.planning.flops import flops_of
from avd.planning.plan import Machine, Planner
from avd.sampling.choose import make_sampler
from avd.types import Conditions, UserError
from helpers.families import FAMILIES, HELPERS, fake_family, save_model
from helpers.networks import filled

__all__ = ["fake_family"]

pytestmark = pytest.mark.usefixtures("fake_family")

CAPTIONS = ["a red square rises", "", "a blue circle rests"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, fake_family: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("families") / request.param
    save_model(request.param, path)
    return path


@pytest.fixture
def model(folder: Path) -> TextToVideo:
    return load_model(str(folder))


def inputs(model: TextToVideo, count: int = 2, frames: int | None = None) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    channels, own, height, width = model.latent_shape()
    x = torch.randn(count, channels, frames or own, height, width, generator=generator)
    return x, torch.tensor([0.9, 0.4])[:count]


def prompts_of(model: TextToVideo, count: int = 2) -> Conditions:
    return model.encode_prompts(CAPTIONS[:count])


def distil(*overrides: str) -> Recipe:
    return load_recipe("avd", ["training.batch=2", "monitors.every=0", *overrides])


def source_of(model: TextToVideo) -> MemoryLatents:
    captions = ["a red square rises", "a blue circle rests", "a red circle rests"]
    return MemoryLatents(torch.randn(3, *model.latent_shape()), model.encode_prompts(captions), captions)


def test_a_folder_opens_as_its_family(folder: Path, model: TextToVideo) -> None:
    assert model.folder == folder and model.identity.startswith(f"{folder.name}-")
    assert load_model(str(folder)).identity == model.identity
    assert isinstance(model.settings.negative_prompt, str)
    with pytest.raises(UserError):
        model.check_clip(2, 16, 16)
    model.check_clip(model.settings.frames, model.settings.height, model.settings.width)


def test_prompts_have_the_declared_names_and_shapes(model: TextToVideo) -> None:
    encoded = model.encode_prompts(CAPTIONS)
    assert len(encoded) == len(CAPTIONS) and encoded.shapes == dict(model.sizes.conditions)
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in encoded.tensors.values())
    alone = model.encode_prompts(CAPTIONS[2:])
    for name, tensor in encoded.tensors.items():
        torch.testing.assert_close(tensor[2:], alone[name])


def test_every_condition_reaches_the_velocity(model: TextToVideo) -> None:
    (x, sigma), conditions, network = inputs(model), prompts_of(model), model.velocity()
    with torch.no_grad():
        before = network(x, sigma, conditions)
        for name, tensor in conditions.tensors.items():
            other = Conditions({**conditions.tensors, name: tensor + 1.0})
            assert not torch.allclose(network(x, sigma, other), before, atol=1e-6), name


def test_latents_and_pixels_have_the_declared_shapes(model: TextToVideo) -> None:
    s = model.settings
    video = np.random.default_rng(0).integers(0, 256, (2, s.frames, s.height, s.width, 3), dtype=np.uint8)
    latents = model.encode_video(video)
    assert latents.shape == (2, *model.latent_shape()) and latents.dtype == torch.float32
    assert torch.equal(latents, model.encode_video(video))  # without randomness
    decoded = model.decode_video(latents)
    assert decoded.shape == video.shape and decoded.dtype == np.uint8


def test_a_velocity_is_float32_and_its_gradient_reaches_every_weight(model: TextToVideo) -> None:
    (x, sigma), network = inputs(model), filled(model).train().requires_grad_(True)
    x.requires_grad_()
    velocity = network(x, sigma, prompts_of(model))
    assert velocity.shape == x.shape and velocity.dtype == torch.float32
    velocity.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in network.parameters())
    theirs = {p.data_ptr() for p in model.velocity().parameters()}
    assert not any(p.data_ptr() in theirs for p in network.parameters())


def test_a_network_without_memory_is_filled_to_be_the_same(model: TextToVideo) -> None:
    hollow = model.hollow_velocity()
    assert all(p.is_meta and p.dtype == torch.float32 for p in hollow.parameters())
    assert not any(buffer.is_meta for buffer in hollow.buffers())
    network, weights = model.velocity(), model.weights()
    state = {k: tuple(v.shape) for k, v in network.transformer.state_dict().items()}
    assert dict(weights.shapes) == state
    (x, sigma), conditions = inputs(model), prompts_of(model)
    with torch.no_grad():
        assert torch.equal(filled(model)(x, sigma, conditions), network(x, sigma, conditions))
    for name, tensor in network.transformer.state_dict().items():
        rows = (tensor.shape[0] - 1, *tensor.shape[1:])
        assert torch.equal(weights.region(name, (1, *[0] * (tensor.ndim - 1)), rows), tensor[1:])


def test_a_frame_stride_changes_positions_for_one_call(model: TextToVideo) -> None:
    network = model.velocity()
    with torch.no_grad():
        (x, sigma), conditions = inputs(model, frames=3), prompts_of(model)
        before, strided = network(x, sigma, conditions), network(x, sigma, conditions, frame_stride=2)
        assert not torch.allclose(before, strided, atol=1e-6)
        assert torch.equal(network(x, sigma, conditions), before)
        alone = x[:, :, :1]  # the first frame stands at 0 whatever the stride
        assert torch.equal(network(alone, sigma, conditions, frame_stride=2), network(alone, sigma, conditions))


def test_a_space_stride_changes_positions_for_one_call(model: TextToVideo) -> None:
    network, side = model.velocity(), model.sizes.patch_side
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(2, model.latent_shape()[0], 3, 2 * side, 2 * side, generator=generator), inputs(model)[1]
    conditions = prompts_of(model)
    with torch.no_grad():
        before, strided = network(x, sigma, conditions), network(x, sigma, conditions, space_stride=2)
        assert not torch.allclose(before, strided, atol=1e-6)
        assert torch.equal(network(x, sigma, conditions), before)
        alone = x[..., :side, :side]  # the first patch stands at 0 whatever the stride
        assert torch.equal(network(alone, sigma, conditions, space_stride=2), network(alone, sigma, conditions))


def test_half_resolution_is_refused_where_the_latents_do_not_halve(model: TextToVideo) -> None:
    channels, frames, _, _ = model.latent_shape()
    multiple = 2 * model.sizes.patch_side
    fits = replace(model.sizes, latent_CFHW=(channels, frames, 3 * multiple, multiple))
    fits.check_half_resolution(24 * multiple)
    assert fits.halves
    odd = replace(model.sizes, latent_CFHW=(channels, frames, 3 * multiple, multiple + 1))
    with pytest.raises(
        UserError, match=rf"multiples of {8 * multiple} pixels .*{3 * multiple} x {multiple + 1} latents"
    ):
        odd.check_half_resolution(24 * multiple)


def test_features_are_what_the_blocks_give_and_later_blocks_do_not_compute(model: TextToVideo) -> None:
    (x, sigma), conditions, network = inputs(model, frames=3), prompts_of(model), filled(model).requires_grad_(False)
    given: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(lambda block, args, output, i=i: given.update({i: output}))
        for i, block in enumerate(network.blocks)
    ]
    before = network(x, sigma, conditions, frame_stride=2)
    expected, last = dict(given), len(network.blocks) - 1
    for blocks in ((0,), (last,), (0, last)):
        given.clear()
        x.requires_grad_()
        found = network.features(x, sigma, conditions, blocks, frame_stride=2)
        assert sorted(given) == list(range(max(blocks) + 1))
        for i, each in zip(blocks, found, strict=True):
            assert each.dtype == torch.float32 and each.shape[2] == model.sizes.width
            torch.testing.assert_close(each, expected[i], rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(sum(each.square().sum() for each in found), x)
        assert gradient.abs().sum() > 0
    for handle in handles:
        handle.remove()
    assert torch.equal(network(x, sigma, conditions, frame_stride=2), before)


def test_shard_units_are_apart_and_hold_every_block(model: TextToVideo) -> None:
    network = model.velocity()
    units = network.shard_units()
    held = [id(p) for unit in units for module in unit.modules for p in module.parameters()]
    all_of_it = {id(p) for p in network.parameters()}
    assert len(held) == len(set(held)) and set(held) <= all_of_it
    assert {id(p) for block in network.blocks for p in block.parameters()} <= set(held)
    precise = {id(p) for unit in units if unit.float32 for module in unit.modules for p in module.parameters()}
    network.requires_grad_(False).store_frozen(torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in network.parameters() if id(p) in precise)
    assert any(p.dtype == torch.bfloat16 for p in network.parameters())


def test_sizes_are_those_of_the_network(folder: Path, model: TextToVideo) -> None:
    sizes = read_sizes(str(folder))
    assert sizes == model.sizes
    assert sizes.latent_CFHW == model.latent_shape() and sizes.frames() == model.latent_shape()[1]
    network = model.velocity()
    assert sizes.layers == len(network.blocks)
    hollow = build_hollow(sizes, torch.float32, None)
    assert {k: p.shape for k, p in hollow.named_parameters()} == {k: p.shape for k, p in network.named_parameters()}
    deeper = build_hollow(replace(sizes, layers=sizes.layers + 1), torch.float32, None)
    assert len(deeper.blocks) == sizes.layers + 1


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("adapters", [None, AdaptersRecipe(rank=2)])
def test_operations_are_those_that_are_counted(
    model: TextToVideo, strides: tuple[int, int], adapters: AdaptersRecipe | None
) -> None:
    (channels, frames, *_), side = model.latent_shape(), 4 * model.sizes.patch_side
    sizes = replace(model.sizes, latent_CFHW=(channels, frames, side, 2 * side))
    network = build_hollow(sizes, torch.float32, adapters)
    x = subsample(torch.empty(1, *sizes.latent_CFHW, device="meta"), *strides)
    conditions = Conditions({k: torch.empty(1, *shape, device="meta") for k, shape in sizes.conditions.items()})
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(x, torch.empty(1, device="meta"), conditions, frame_stride=strides[0], space_stride=strides[1])
    assert flops_of(sizes, strides, adapters).forward == counter.get_total_flops()


def test_a_plan_counts_the_parameters_that_there_are(folder: Path, model: TextToVideo) -> None:
    recipe = distil(f"model={folder}", "compute.device=cpu")
    plan = Planner(read_sizes(recipe.model)).plan(recipe, Machine(1))
    assert plan.parameters.network == sum(p.numel() for p in model.velocity().parameters())
    assert plan.peak > plan.resident.total > 0 and plan.flops > 0


def test_recomputed_blocks_keep_less_and_give_the_same_gradient(model: TextToVideo) -> None:
    meter = PassMeter(replace(model.sizes, layers=6))
    none, full = (meter(MeasuredPass(1, True, torch.float32, which, gpu=False)).saved for which in ("none", "full"))
    assert full < none
    (x, sigma), gradients = inputs(model), []
    for which in ("none", "selective", "full"):
        network = filled(model).train()
        network.recompute(which)
        network(x, sigma, prompts_of(model), frame_stride=2).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


def test_what_cannot_be_computed_is_one_line(model: TextToVideo) -> None:
    network: Backbone = filled(model)
    network.use_attention(None)
    with pytest.raises(UserError, match="attention is 'magic'"):
        model.sizes.check_attention("magic")
    with pytest.raises(UserError, match=r"compute\.context is 7"):
        model.sizes.check_context(7)
    with pytest.raises(UserError, match="decoder") as caught:
        model.decode_with(tiled=False, decoder=Path("nowhere.safetensors"))
    assert len(str(caught.value).splitlines()) == 1


def test_blocks_may_wait_in_the_hosts_memory(model: TextToVideo) -> None:
    (x, sigma), conditions = inputs(model), prompts_of(model)
    network = filled(model)
    with torch.no_grad():
        expected = network(x, sigma, conditions)
        network.stream_blocks(torch.device("cpu"))
        torch.testing.assert_close(network(x, sigma, conditions), expected, rtol=0, atol=0)


def test_adapters_go_into_the_declared_targets(model: TextToVideo) -> None:
    (x, sigma), conditions, base = inputs(model), prompts_of(model), filled(model)
    targets = model.sizes.adapter_targets
    with pytest.raises(UserError, match=r"adapters\.targets names 'nothing'"):
        add_adapters(base.transformer, ("one",), rank=2, alpha=2.0, targets=("nothing",))
    with torch.no_grad():
        before = base(x, sigma, conditions)
    add_adapters(base.transformer, ("one", "two"), rank=2, alpha=2.0, targets=targets)
    one, none = AdapterVelocity(base, "one"), AdapterVelocity(base, None)
    own = dict(one.named_parameters())
    assert all(any(f".{target}." in name for name in own) for target in targets)
    with torch.no_grad():
        torch.testing.assert_close(one(x, sigma, conditions), before)
        for p in one.parameters():
            p += 0.05
        torch.testing.assert_close(none(x, sigma, conditions), before)
        own_features, base_features = (each.features(x, sigma, conditions, (0,))[0] for each in (one, none))
        assert not torch.allclose(own_features, base_features, atol=1e-4)
        torch.testing.assert_close(base_features, filled(model).features(x, sigma, conditions, (0,))[0])
        plain = filled(model)
        merged = merged_stream(base.transformer, "one", model.weights(), lambda tensor: tensor.detach())
        plain.transformer.load_state_dict(dict(merged))
        torch.testing.assert_close(plain(x, sigma, conditions), one(x, sigma, conditions), rtol=1e-4, atol=1e-5)


def test_a_cache_holds_every_condition(model: TextToVideo, tmp_path: Path) -> None:
    s = model.settings
    writer = CacheWriter(
        tmp_path / "cache", identity=model.identity, geometry=Geometry(s.frames, s.height, s.width, s.fps), shard_size=2
    )
    latents, prompts = torch.randn(3, *model.latent_shape()), model.encode_prompts(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        writer.add(latents[i], Item(caption, f"{i}.mp4"))
    writer.finish()
    encode_texts(tmp_path / "cache", model, ["", *CAPTIONS])
    cache = open_cache(tmp_path / "cache", model)
    cache.verify()
    assert isinstance(cache, LatentCache) and cache.condition_shapes == dict(model.sizes.conditions)
    read = cache.prompts([2, 0])
    for name, tensor in prompts.tensors.items():
        torch.testing.assert_close(read[name], tensor[[2, 0]], rtol=1e-3, atol=1e-3)
    assert cache.texts is not None
    null = model.encode_prompts([""])
    for name, tensor in cache.texts.conditions([""]).tensors.items():
        torch.testing.assert_close(tensor, null[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("overrides", [(), ("roles=adapters", "adapters.rank=2")], ids=["full", "adapters"])
def test_a_student_is_distilled_exported_and_sampled(
    model: TextToVideo, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    recipe = distil("student.optimizer.learning_rate=1e-2", *overrides)
    before = {k: v.clone() for k, v in filled(model).transformer.state_dict().items()}
    task = DistillTask(recipe, model, RunData.encode(model, source_of(model)), None)
    for n in range(2):
        metrics = task.update(n).metrics
        assert all(np.isfinite(value) for value in metrics.values())
    task.export(tmp_path)
    student = load_model(str(tmp_path / "student"))
    after = filled(student).transformer.state_dict()
    assert after.keys() == before.keys() and any(not torch.equal(after[k], before[k]) for k in before)
    assert student.settings.student_timesteps == (1000, 900, 757, 522)
    latents = make_sampler(student)(["a red square"], torch.Generator().manual_seed(0))
    assert latents.shape == (1, *model.latent_shape()) and latents.isfinite().all()


def test_families_are_found_and_only_the_one_that_is_asked_for_is_imported(folder: Path) -> None:
    assert {family.name for family in families()} == {"wan", "fake"}
    other = {"wan": "avd.models.fake_family.model", "fake": "avd.models.wan.model"}[folder.name]
    script = f"""
import sys
import avd.models
avd.models.__path__.append({str(HELPERS)!r})
from avd.models.family import families, load_model
assert len(families()) == 2 and "torch" not in sys.modules
load_model({str(folder)!r})
assert {other!r} not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
