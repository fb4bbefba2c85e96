"""Options of the commands that sample a model: how it is sampled, how its parts are computed, and where they wait."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avd import ui
from avd.types import UserError

if TYPE_CHECKING:
    from avd.models.family import TextToVideo
    from avd.sampling.placement import PlacedModel, Placement


HalfRate = Annotated[bool | None, typer.Option("--half-rate/--full-rate", help="High-noise steps at half frame rate.")]
HalfResolution = Annotated[
    bool | None,
    typer.Option("--half-resolution/--full-resolution", help="High-noise steps at half the height and width."),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Steps of a many-step model.", min=1)]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Guidance scale of a many-step model.")]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt", help="What guidance leads a many-step model away from; default: the model's own."
    ),
]


class Offloading(StrEnum):
    none = "none"
    model = "model"
    blocks = "blocks"


Offload = Annotated[
    Offloading | None,
    typer.Option(
        "--offload",
        help="What waits in the host's memory: model, the network while clips are decoded; blocks, each of its blocks "
        "while others compute. Default: by the GPU's free memory.",
    ),
]
Tiling = Annotated[
    bool | None,
    typer.Option("--tiling/--no-tiling", help="Decode in tiles of the picture. Default: by the GPU's free memory."),
]
Attention = Annotated[
    str | None, typer.Option("--attention", help="Attention backend of diffusers, such as native, flash or sage.")
]
Float8 = Annotated[bool, typer.Option("--fp8", help="Weights of 8 bits, e4m3 (torchao; compute capability 8.9).")]
Int8 = Annotated[bool, typer.Option("--int8", help="Weights of 8 bits, integers (torchao).")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network's blocks with torch.compile.")]
Decoder = Annotated[
    Path | None, typer.Option("--decoder", help="Safetensors file of a tiny decoder (TAEHV), in the VAE's place.")
]


def placement_of(
    offload: Offloading | None,
    tiling: bool | None,
    attention: str | None,
    fp8: bool,
    int8: bool,
    compiled: bool,
    decoder: Path | None,
) -> Placement:
    """Raises UserError for options that do not go together."""
    from avd.sampling.placement import Placement

    if fp8 and int8:
        raise UserError("--fp8 and --int8 are both given: choose one")
    if decoder is not None and tiling:
        raise UserError("--tiling is for the model's own decoder, and --decoder names another: leave one out")
    return Placement(
        None if offload is None else offload.value,
        tiling,
        "float8" if fp8 else "int8" if int8 else None,
        attention,
        compiled,
        decoder,
    )


def place(model: TextToVideo, placement: Placement) -> PlacedModel:
    """The model placed, with what was left open chosen by the memory there is, and shown where there was a choice.

    Raises UserError for what the model, its device or the installed packages do not have.
    """
    from avd.sampling.placement import PlacedModel

    placement.check(model)
    fitted = placement.fit_to(model)
    fitted.check(model)
    if model.device.type == "cuda":
        ui.say(f"on {model.device}: {fitted}")
    return PlacedModel(model, fitted)
