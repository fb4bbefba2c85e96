"""A model's files: what a folder may be, what is refused, and when its parts are read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from avd.models.family import load_model
from avd.models.settings import SolverName
from avd.models.wan import model as wan_model
from avd.models.wan.files import ModelFiles
from avd.sampling.samplers import ManySteps
from avd.types import UserError
from helpers.teachers import UNLIMITED, publish, write_original

PROMPTS = ["a red ball drifts left", "a ball rests"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(
        "wan2.1-1.3b",
        tmp_path_factory.mktemp("small") / "wan",
        transformer={"num_attention_heads": 1, "ffn_dim": 64, "text_dim": 32},
        vae={"base_dim": 8},
        text_encoder={"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64},
        tokens=UNLIMITED,
    )


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copied"))


def refused(folder: Path, transformer: Path | None = None) -> str:
    with pytest.raises(UserError) as refusal:
        load_model(str(folder), transformer=None if transformer is None else str(transformer))
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_without_a_limit_of_the_tokenizers_prompts_have_512_tokens(small: Path) -> None:
    model, pipeline = load_model(str(small)), WanPipeline.from_pretrained(small, dtype=torch.float32)
    prompts = [PROMPTS[0], "red " * 600]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)
    assert expected.shape == (2, 512, 32)
    torch.testing.assert_close(model.encode_prompts(prompts)["embedding"], expected, rtol=0, atol=1e-4)


def test_parts_are_read_when_asked_for(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load = ModelFiles.load
    monkeypatch.setattr(ModelFiles, "load", lambda files, part, dtype: (read.append(part), load(files, part, dtype))[1])
    model = load_model(str(small))
    assert model.identity and model.text_length and model.latent_shape()
    model.check_clip(5, 32, 32)
    assert not read
    first = model.encode_prompts(PROMPTS)["embedding"]
    given_back: list[torch.device] = []
    monkeypatch.setattr(wan_model, "give_back_memory", given_back.append)
    model.drop("text_encoder")
    model.drop("text_encoder", "vae")  # are not there
    assert given_back == [torch.device("cpu")]
    assert torch.equal(model.encode_prompts(PROMPTS)["embedding"], first)
    assert read == ["text_encoder", "text_encoder"]


def test_the_sampler_takes_the_models_own_solver(small: Path) -> None:
    model = load_model(str(small))
    model.settings = replace(model.settings, frames=5, height=32, width=32)

    def sample(solver: SolverName | None) -> Tensor:
        return ManySteps(model, 3, 1.0, solver)([PROMPTS[0]], torch.Generator().manual_seed(0))

    own = sample(None)
    assert torch.equal(own, sample("unipc")) and not torch.allclose(own, sample("euler"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_single_file_in_original_names_is_the_folders_transformer(small: Path, tmp_path: Path, prefix: str) -> None:
    file = write_original(small, tmp_path / "single.safetensors", prefix=prefix)
    single, original = load_model(str(small), transformer=str(file)), load_model(str(small))
    assert single.identity == original.identity
    ours, theirs = single.transformer.state_dict(), original.transformer.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_single_file_may_have_diffusers_names(small: Path) -> None:
    file = small / "transformer" / "diffusion_pytorch_model.safetensors"
    ours = load_model(str(small), transformer=str(file)).transformer.state_dict()
    theirs = load_model(str(small)).transformer.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_sharded_weights_are_one_model(small: Path, copied: Path) -> None:
    original = load_model(str(small))
    for part in ("transformer", "text_encoder"):
        for file in (copied / part).glob("*.safetensors"):
            file.unlink()
        getattr(original, part).bfloat16().save_pretrained(copied / part, max_shard_size="10KB")
        assert len(list((copied / part).glob("*.safetensors"))) > 1
    sharded, again = load_model(str(copied)), load_model(str(small))
    assert sharded.identity == again.identity
    ours, theirs = sharded.transformer.state_dict(), again.transformer.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    shard = min((copied / "text_encoder").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "copied cannot be loaded" in refused(copied)


def test_precision_is_the_callers(small: Path) -> None:
    wanted = load_model(str(small), dtype=torch.bfloat16)
    assert wanted.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert wanted.text_encoder.shared.weight.dtype == torch.bfloat16
    assert wanted.vae.dtype == torch.float32
    assert wanted.identity == load_model(str(small)).identity


def test_a_single_file_has_a_folders_precisions(small: Path, tmp_path: Path) -> None:
    file = write_original(small, tmp_path / "single.safetensors")
    ours = load_model(str(small), transformer=str(file), dtype=torch.bfloat16).transformer.state_dict()
    theirs = load_model(str(small), dtype=torch.bfloat16).transformer.state_dict()
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_with_a_single_file_the_folder_needs_no_transformer_weights(copied: Path) -> None:
    file = write_original(copied, copied / "single.safetensors")
    (copied / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert "transformer" in refused(copied)
    assert load_model(str(copied), transformer=str(file)).transformer.config.num_layers == 2


@pytest.mark.parametrize("change", ["one more", "one less", "another shape", "no file", "pickle", "text"])
def test_a_single_file_that_does_not_fit_is_one_line(copied: Path, change: str) -> None:
    file = write_original(copied, copied / "single.safetensors")
    weights = load_file(file)
    if change == "one more":
        weights["vace_blocks.0.after_proj.bias"] = torch.zeros(2)
    elif change == "one less":
        del weights["blocks.1.ffn.0.weight"]
    elif change == "another shape":
        weights["head.head.bias"] = torch.zeros(3)
    save_file(weights, file)
    if change == "no file":
        file = copied / "nothing.safetensors"
    elif change == "pickle":
        file = file.rename(file.with_suffix(".pth"))
    elif change == "text":
        file.write_text("weights")
    message = refused(copied, file)
    assert {"one more": "vace_blocks", "one less": "ffn", "another shape": "proj_out", "no file": "nothing"}.get(
        change, ""
    ) in message


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "part"),
    [
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "two transformers"),
        ("transformer/config.json", {"image_dim": 1280}, "needs an image"),
        ("transformer/config.json", {"in_channels": 36}, "takes 36 channels, and its VAE makes 16"),
        ("transformer/config.json", {"text_dim": 64}, "prompts of width 64, and its text encoder makes 32"),
        ("transformer/config.json", {"num_layers": 3}, "lacks weights, such as blocks.2."),
        ("transformer/config.json", {"ffn_dim": 128}, "blocks.0.ffn.net.0.proj.weight has shape (64, 128)"),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "is of class WanVACE"),
    ],
)
def test_another_kind_of_model_is_one_line(copied: Path, file: str, values: dict[str, object], part: str) -> None:
    change_json(copied / file, **values)
    assert part in refused(copied)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_missing_weights_are_reported_before_anything_is_read(copied: Path, part: str) -> None:
    (file,) = (copied / part).glob("*.safetensors")
    weights = load_file(file)
    missing = max(weights)
    save_file({name: weights[name] for name in weights if name != missing}, file, metadata={"format": "pt"})
    assert f"{part}: it lacks weights, such as {missing}" in refused(copied)


def test_a_hub_id_is_found_in_the_local_cache(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as the hub's client lays it out; nothing may be fetched here."""
    commit = "0" * 40
    repository = tmp_path / "models--somebody--wan"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(small, snapshot)
    (snapshot / "avd.json").write_text(json.dumps({"frames": 9}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_model("somebody/wan")
    assert model.folder == snapshot and model.settings.frames == 9
    assert model.identity == load_model(str(small)).identity


def test_settings_of_old_files_load(copied: Path) -> None:
    old = {"frames": 9, "height": 32, "width": 32, "fps": 8, "steps": 20, "guidance": 4.0, "shift": 2.0}
    (copied / "avd.json").write_text(json.dumps({**old, "student_timesteps": None, "half_rate_stages": 0}))
    settings = load_model(str(copied)).settings
    assert (settings.frames, settings.shift, settings.solver) == (9, 2.0, "euler")
    (copied / "avd.json").write_text(json.dumps({**old, "solver": "magic"}))
    assert "solver is 'magic'" in refused(copied)


def test_a_copy_keeps_what_it_is(small: Path, tmp_path: Path) -> None:
    """Parts that are not trained are copied; nothing that would be unpickled goes along."""
    source = Path(shutil.copytree(small, tmp_path / "source"))
    (source / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    load_model(str(source)).save(tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("*.bin"))
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "copy" / weights).read_bytes() == (source / weights).read_bytes()
    copy, before = load_model(str(tmp_path / "copy")), load_model(str(source))
    assert copy.identity == before.identity and copy.settings == before.settings


def test_a_model_in_half_precision_is_saved_as_it_is(copied: Path, tmp_path: Path) -> None:
    change_json(copied / "model_index.json", expand_timesteps=True)
    load_model(str(copied)).half().save(tmp_path / "half")
    weights = load_file(tmp_path / "half" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((tmp_path / "half" / "model_index.json").read_text())["expand_timesteps"] is True
