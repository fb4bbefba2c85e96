"""Parts that take turns: what is in memory when, that no placement changes a clip, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avd.models.adapters import add_adapters
from avd.models.family import load_model, read_sizes
from avd.models.wan.model import VideoModel
from avd.models.wan.sizes import WanSizes
from avd.sampling.choose import make_sampler
from avd.sampling.placement import PlacedModel, Placement, encoded_first
from avd.types import UserError
from helpers.tiny import tiny_model

NEEDS_TORCHAO = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
CPU = Placement(offload="none", tiling=False)
PROMPTS = ["a red square", "a blue circle"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model().save(folder)
    return folder


def clip(model: Any) -> Tensor:
    """The latents of a two-step teacher, guided."""
    if isinstance(model, PlacedModel):
        model.encode_ahead({("a red square",), ("",)})
    return make_sampler(model, steps=2)(["a red square"], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("offload", ["none", "model", "blocks"])
def test_no_placement_changes_a_clip(offload: Any) -> None:
    model = PlacedModel(tiny_model(), Placement(offload=offload, tiling=False))
    expected = clip(tiny_model())
    for _ in range(2):  # decoding moves the network away, and the next clip has it back
        torch.testing.assert_close(clip(model), expected, rtol=0, atol=0)
        np.testing.assert_array_equal(model.decode_video(expected), tiny_model().decode_video(expected))


def adapted_model() -> VideoModel:
    """With a LoRA that changes what it makes, run beside the weights."""
    model = tiny_model()
    targets = WanSizes.adapter_targets
    add_adapters(model.transformer, ("student",), rank=2, alpha=2, targets=targets)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return model


@pytest.mark.parametrize("weights", [None, pytest.param("int8", marks=NEEDS_TORCHAO)])
def test_a_lora_that_is_not_merged_takes_part(weights: Any) -> None:
    expected = clip(adapted_model())
    assert (expected - clip(tiny_model())).abs().max() > 0.1
    found = clip(PlacedModel(adapted_model(), Placement(offload="blocks", tiling=False, weights=weights)))
    assert (found - expected).norm() <= (0.05 if weights else 0) * expected.norm()


class Turns:
    """Records the parts that a model in files reads and lets go, in order."""

    def __init__(self, model: VideoModel, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        load, drop = model._files.load, model.drop  # type: ignore[union-attr]
        patch.setattr(model._files, "load", lambda part, dtype: self.events.append(part) or load(part, dtype))
        patch.setattr(model, "drop", lambda *parts: self.events.append(f"no {' '.join(parts)}") or drop(*parts))


def test_the_text_encoder_is_gone_before_the_network_is_read(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(teacher))
    assert isinstance(model, VideoModel)
    turns, placed = Turns(model, monkeypatch), PlacedModel(model, CPU)
    sampler = make_sampler(placed, steps=1)
    assert sampler.identity == make_sampler(tiny_model(), steps=1).identity  # which reads no part
    batches = [(i, [PROMPTS[i % 2]]) for i in range(4)]
    for i in encoded_first(placed, batches, sampler.unconditional):
        placed.decode_video(sampler([PROMPTS[i % 2]], torch.Generator().manual_seed(i)))
    assert turns.events == ["text_encoder", "no text_encoder", "transformer", "vae"]


def test_more_prompts_than_fit_are_encoded_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    placed, encoded = PlacedModel(model, CPU), []
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda texts: encoded.append(texts) or encode(texts))
    monkeypatch.setattr("avd.sampling.placement._ENCODED", 3 * placed.bytes_of_prompt)

    def at_work() -> Iterator[int]:
        for batch in encoded_first(placed, [(i, [f"prompt {i // 2}"]) for i in range(8)], [""]):
            assert torch.equal(
                placed.encode_prompts([f"prompt {batch // 2}"])["embedding"],
                encode([f"prompt {batch // 2}"])["embedding"],
            )
            assert len(placed._encoded) <= 3
            yield batch

    assert list(at_work()) == list(range(8))
    assert sorted(encoded) == [[""], *([f"prompt {i}"] for i in range(4))]  # each once, and the empty one is kept


def test_memory_decides_what_is_left_open() -> None:
    """A 14B model: 28.6 GB of weights in bfloat16, about 10 GB to decode 480 x 832 in one piece."""
    sizes = read_sizes("Wan-AI/Wan2.1-T2V-14B-Diffusers")

    def fitted(free: float, **given: Any) -> tuple[Any, Any]:
        found = Placement(**given).fit_into(free, sizes, 480 * 832)
        return found.offload, found.tiling

    assert fitted(79e9) == ("none", False)
    assert fitted(40e9) == ("model", False)
    assert fitted(40e9, decoder=Path("tiny")) == ("none", False)
    assert fitted(24e9) == ("blocks", False)
    assert fitted(24e9, weights="float8") == ("model", False)
    assert fitted(16e9, weights="float8") == ("blocks", False)
    assert fitted(10e9) == ("blocks", True)
    assert fitted(24e9, offload="none", tiling=False) == ("none", False)


def test_tiles_that_nobody_wanted_are_marked_so() -> None:
    sizes = tiny_model().sizes
    assert Placement().fit_into(2e9, sizes, 16 * 16).tiling_fitted
    assert not Placement(tiling=True).fit_into(2e9, sizes, 16 * 16).tiling_fitted


def test_a_cpu_waits_for_nothing() -> None:
    placement = Placement().fit_to(tiny_model())
    assert (placement.offload, placement.tiling) == ("none", False)


@NEEDS_TORCHAO
@pytest.mark.parametrize("offload", ["none", "blocks"])
def test_weights_of_8_bits_make_nearly_the_same_clip(offload: Any) -> None:
    expected = clip(tiny_model())
    model = PlacedModel(tiny_model(), Placement(offload=offload, tiling=False, weights="int8"))
    found = clip(model)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    assert model.identity != PlacedModel(tiny_model(), CPU).identity


def test_what_changes_clips_changes_the_identity(tmp_path: Path) -> None:
    def identity(**about: Any) -> str:
        placed = PlacedModel.__new__(PlacedModel)
        placed._model, placed.placement = tiny_model(), Placement(offload="none", **about)
        return placed.identity

    decoders = [tmp_path / "a", tmp_path / "b"]
    for file in decoders:
        file.write_text(file.name)
    plain = identity(tiling=False)
    assert plain == tiny_model().identity == identity(tiling=False, compile=True)
    assert plain == identity(tiling=True, tiling_fitted=True)
    others = [{"tiling": True}, {"tiling": False, "weights": "int8"}, {"tiling": False, "weights": "float8"}]
    others += [{"tiling": False, "decoder": file} for file in decoders]
    assert len({plain, *(identity(**about) for about in others)}) == 6


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(weights="float8"), "float8 weights need a GPU, and the model is on the cpu"),
        (Placement(attention="magic"), "attention is 'magic': leave it out .*, or choose one of"),
        (Placement(attention="_flash_3"), "attention is '_flash_3', which does not work here"),
        (Placement(offload="blocks", compile=True), "leave out --compile or --offload blocks"),
    ],
)
def test_what_is_not_there_is_refused(placement: Placement, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        placement.check(tiny_model())
    assert len(str(caught.value).splitlines()) == 1


def test_without_torchao_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"int8 weights need the package torchao: pip install 'avd\[8bit\]'"):
        Placement(weights="int8").check(tiny_model())
