"""A model folder that cannot be is refused in one line, at once, by whatever would open it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from avd.models.settings import SETTINGS_FILE
from helpers.command import avd, snapshot

INDEX = "model_index.json"
TRANSFORMER, VAE, TEXT = (f"{part}/config.json" for part in ("transformer", "vae", "text_encoder"))
STUDENT = {"student_timesteps": [1000, 900, 757, 522]}

CHANGES: dict[str, tuple[str, dict[str, Any], str]] = {
    # which family it is
    "another family": (INDEX, {"_class_name": "LTXPipeline"}, "'LTXPipeline', which no family handles: known are wan"),
    "another pipeline": (INDEX, {"_class_name": "WanImageToVideoPipeline"}, "'WanImageToVideoPipeline'"),
    "no family": (INDEX, {"_class_name": None}, "class None"),
    "a list for a family": (INDEX, {"_class_name": ["WanPipeline"]}, "class ['WanPipeline']"),
    # the transformer
    "layers without end": (TRANSFORMER, {"num_layers": 60_000}, "num_layers is 60000, not a whole number from 1"),
    "no layers": (TRANSFORMER, {"num_layers": 0}, "num_layers is 0"),
    "layers in words": (TRANSFORMER, {"num_layers": "two"}, "num_layers is 'two'"),
    "half a head": (TRANSFORMER, {"num_attention_heads": 1.5}, "num_attention_heads is 1.5"),
    "heads of yes": (TRANSFORMER, {"num_attention_heads": True}, "num_attention_heads is True"),
    "an odd head": (TRANSFORMER, {"attention_head_dim": 13}, "attention_head_dim is 13, an odd number"),
    "negative width": (TRANSFORMER, {"ffn_dim": -48}, "ffn_dim is -48"),
    "absurd width": (TRANSFORMER, {"ffn_dim": 10**21}, "ffn_dim is 1000000000000000000000"),
    "positions without end": (TRANSFORMER, {"rope_max_seq_len": 10**9}, "rope_max_seq_len is 1000000000"),
    "patches of nothing": (TRANSFORMER, {"patch_size": [1, 0, 2]}, "patch_size is [1, 0, 2]"),
    "flat patches": (TRANSFORMER, {"patch_size": 2}, "patch_size is 2"),
    "other channels": (TRANSFORMER, {"in_channels": 36}, "takes 36 channels, and its VAE makes 12"),
    # the VAE
    "no channels": (VAE, {"z_dim": 0}, "vae: z_dim is 0"),
    "no compression": (VAE, {"scale_factor_temporal": 0}, "scale_factor_temporal is 0"),
    "compression in words": (VAE, {"scale_factor_spatial": "8"}, "scale_factor_spatial is '8'"),
    "no levels": (VAE, {"dim_mult": []}, "dim_mult is []"),
    "levels of halves": (VAE, {"dim_mult": [1, 0.5, 1]}, "dim_mult is [1, 0.5, 1]"),
    "levels that do not fit": (VAE, {"temperal_downsample": [True]}, "temperal_downsample is [True], not 2"),
    "residual blocks without end": (VAE, {"num_res_blocks": 10**6}, "num_res_blocks is 1000000"),
    "whitening of one channel": (VAE, {"latents_mean": [0.0]}, "latents_mean is not a list of 12 numbers"),
    "whitening by nothing": (VAE, {"latents_std": [0.0] * 12}, "latents_std holds 0.0"),
    # the text encoder
    "an encoder without end": (TEXT, {"num_layers": 60_000}, "text_encoder: num_layers is 60000"),
    "an absurd vocabulary": (TEXT, {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "an encoder of another width": (TEXT, {"d_model": 32}, "prompts of width 64, and its text encoder makes 32"),
    "prompts of no length": ("tokenizer/tokenizer_config.json", {"model_max_length": 0}, "model_max_length is 0"),
    # settings
    "rising timesteps": (SETTINGS_FILE, {"student_timesteps": [1, 2, 3]}, "timesteps are [1, 2, 3]: they must fall"),
    "no timesteps": (SETTINGS_FILE, {"student_timesteps": []}, "student timesteps are []"),
    "timesteps in words": (SETTINGS_FILE, {"student_timesteps": ["all"]}, "student_timesteps is ['all']"),
    "a lone timestep": (SETTINGS_FILE, {"student_timesteps": 1000}, "student_timesteps is 1000, not a list"),
    "no frames": (SETTINGS_FILE, {"frames": 0}, "frames is 0"),
    "frames without end": (SETTINGS_FILE, {"frames": 10**15 + 1}, "frames is 1000000000000001"),
    "frames that do not fit": (SETTINGS_FILE, {"frames": 16}, "clips of 16 frames of 16 x 16 do not fit the model"),
    "sides that do not fit": (SETTINGS_FILE, {"height": 20}, "multiples of 16"),
    "backwards in time": (SETTINGS_FILE, {"fps": -1}, "fps is -1"),
    "guidance in words": (SETTINGS_FILE, {"guidance": "x"}, "guidance is 'x'"),
    "guidance past all floats": (SETTINGS_FILE, {"guidance": 10**400}, "guidance is 1000"),
    "no shift": (SETTINGS_FILE, {"shift": 0}, "shift is 0"),
    "half rate past the end": (SETTINGS_FILE, {**STUDENT, "half_rate_stages": 9}, "is 9, not a whole number from 0 to"),
    "half rate of a teacher": (SETTINGS_FILE, {"half_rate_stages": 1}, "half_rate_stages is 1"),
    "half resolution past the end": (SETTINGS_FILE, {**STUDENT, "half_resolution_stages": 4}, "half_resolution_stages"),
    "half rate by Euler": (SETTINGS_FILE, {**STUDENT, "half_rate_stages": 1, "transition": "euler"}, "at full rate"),
    "no such transition": (SETTINGS_FILE, {**STUDENT, "transition": "heun"}, "'heun', not renoise or euler"),
    "half a step": (SETTINGS_FILE, {"steps": 2.5}, "steps is 2.5"),
    "a solver of its own": (SETTINGS_FILE, {"solver": ["unipc"]}, "solver is ['unipc']"),
    "unknown keys": (SETTINGS_FILE, {"colour": "red"}, "unknown key 'colour'"),
}  # fmt: skip


@pytest.fixture(params=["generate", "plan"])
def refused(
    request: pytest.FixtureRequest,
    place: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], str]:
    """Open a folder by a command that must refuse it before it builds anything; what it says."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network was built")

    for kind in (WanTransformer3DModel, AutoencoderKLWan):
        monkeypatch.setattr(kind, "from_config", never)
    command = {
        "generate": lambda model: ("generate", model, "--prompt", "a red square", "--output", tmp_path / "new.mp4"),
        "plan": lambda model: ("plan", "small.yaml", "--model", model),
    }[request.param]

    def refuse(model: Path) -> str:
        before = snapshot(tmp_path)
        capfd.readouterr()
        assert avd(*command(model)) == 2
        out, err = capfd.readouterr()
        assert err.startswith("avd: ") and err.count("\n") == 1 and not out, err
        assert snapshot(tmp_path) == before
        return err

    return refuse


@pytest.fixture
def model(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "tiny", tmp_path / "model"))


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_is_one_line(change: str, model: Path, refused: Callable[[Path], str]) -> None:
    file, values, words = CHANGES[change]
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    message = refused(model)
    assert str(model) in message and words in message, message


@pytest.mark.parametrize("file", [INDEX, TRANSFORMER, VAE, TEXT, SETTINGS_FILE, "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[]", "3", "null", '{"frames', ""])
def test_what_is_no_json_object_is_one_line(file: str, text: str, model: Path, refused: Callable[[Path], str]) -> None:
    (model / file).write_text(text)
    message = refused(model)
    assert file in message or "is not an avd settings file" in message, message


@pytest.mark.parametrize(("file", "layers"), [(TRANSFORMER, 900), (TEXT, 900)], ids=["transformer", "text encoder"])
def test_more_layers_than_there_are_weights_are_reported_before_any_is_built(
    file: str,
    layers: int,
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": layers}))
    monkeypatch.setattr(WanTransformer3DModel, "from_config", None)
    assert avd("generate", model, "--prompt", "a red square", "--output", tmp_path / "new.mp4") == 2
    assert "it lacks weights, such as" in capfd.readouterr().err


@pytest.mark.parametrize(
    "values", [{}, {"base": 5}, {"base": "wan-mini", "transformer": 5}, {"base": "wan-mini", "rank": 4}], ids=str
)
def test_an_adapter_of_nothing_is_one_line(
    values: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter.json").write_text(json.dumps(values))
    assert avd("generate", tmp_path, "--prompt", "a red square", "--output", tmp_path / "new.mp4") == 2
    err = capfd.readouterr().err
    assert "does not say what it is an adapter of" in err and err.count("\n") == 1
