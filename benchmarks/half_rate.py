"""How much sooner a 4-step sample is there when the first two steps run at half the frame rate, or half the resolution.

Rollouts of all kinds take turns in one run, because a shared machine changes its speed from minute to minute; compare
metrics of one run only. Half resolution is left out where the latents do not halve into patches. Timed is the sampling
of latents: no text encoding and no decoding. Weights do not matter to the time, so the interpolator is an untrained
one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from avd.flow import few_step_sigmas
from avd.models.family import load_model
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.models.wan.network import WanVelocity
from avd.sampling.rollout import Rollout, make_stages
from avd.types import Conditions, UserError

TIMESTEPS = (1000.0, 900.0, 757.0, 522.0)
HEAD_WIDTH = 64
RANDOM_CHANNELS = 16
RANDOM_TEXT_LENGTH = 512


@dataclass(frozen=True)
class Workload:
    """A student, the shape (C, F, H, W) of one latent, and the length and width of its prompt embeddings."""

    name: str
    student: WanVelocity
    latent_shape: tuple[int, int, int, int]
    prompt_shape: tuple[int, int]
    halves: bool
    """Whether every second row and column of the latents divide into patches."""


def shipped_or_folder(name: str) -> Workload:
    model = load_model(name)
    prompt_shape = (model.text_length, model.transformer.config.text_dim)
    return Workload(name, model.velocity(), model.latent_shape(), prompt_shape, model.sizes.halves)


def random_weights(layers: int, width: int, frames: int, height: int, columns: int) -> Workload:
    """A Wan transformer of that many layers and that width for latents of that many frames, rows and columns."""
    if width % HEAD_WIDTH or height % 2 or columns % 2:
        raise UserError(
            f"width {width} must be a multiple of {HEAD_WIDTH}; rows {height} and columns {columns} be even"
        )
    transformer = WanTransformer3DModel(
        num_attention_heads=width // HEAD_WIDTH,
        attention_head_dim=HEAD_WIDTH,
        in_channels=RANDOM_CHANNELS,
        out_channels=RANDOM_CHANNELS,
        ffn_dim=4 * width,
        num_layers=layers,
    )
    name = f"random weights, {layers} layers of width {width}"
    shape = (RANDOM_CHANNELS, frames, height, columns)
    text = (RANDOM_TEXT_LENGTH, transformer.config.text_dim)
    return Workload(name, WanVelocity(transformer), shape, text, halves=not (height % 4 or columns % 4))


@torch.no_grad()
def measure(work: Workload, batch: int, repeats: int, device: str, dtype: torch.dtype) -> list[tuple[float, ...]]:
    """Seconds of each way of `ways_of`, `repeats` times in turn after one warm-up of each."""
    student = work.student.to(device, dtype).eval()
    config = InterpolatorConfig(work.latent_shape[0], space=work.halves)
    interpolator = FrameInterpolator(config).to(device).eval()
    noise = torch.randn(batch, *work.latent_shape, device=device)
    prompt = Conditions({"embedding": torch.randn(batch, *work.prompt_shape, device=device)})
    sigmas = few_step_sigmas(TIMESTEPS)
    rollouts = [Rollout(make_stages(sigmas, *strided), interpolator) for strided in ways_of(work).values()]
    rounds = [tuple(seconds_of(rollout, student, noise, prompt) for rollout in rollouts) for _ in range(repeats + 1)]
    return rounds[1:]


def ways_of(work: Workload) -> dict[str, tuple[int, int]]:
    """Stages at half rate and at half resolution, of 4."""
    space = {"half resolution": (0, 2), "both": (2, 2)} if work.halves else {}
    return {"full": (0, 0), "half rate": (2, 0), **space}


def seconds_of(rollout: Rollout, student: WanVelocity, noise: Tensor, prompt: Conditions) -> float:
    generator = torch.Generator(noise.device).manual_seed(0)
    started = time.perf_counter()

    def renoise(stage: int) -> Tensor:
        return torch.randn(noise.shape, generator=generator, device=noise.device)

    rollout(student, noise, prompt, renoise)[0, 0, 0, 0, 0].item()  # reading a value waits for an accelerator
    return time.perf_counter() - started


def print_table(work: Workload, batch: int, device: str, rounds: Sequence[tuple[float, ...]]) -> None:
    frames, height, columns = work.latent_shape[1:]
    place = f"{torch.get_num_threads()} CPU threads" if device == "cpu" else torch.cuda.get_device_name(device)
    print(f"{work.name}; latents {frames} x {height} x {columns}, batch {batch}; {len(rounds)} rounds; {place}\n")
    print("| first two steps | their latents   | seconds, median | fastest | slowest | times as fast |")
    print("|-----------------|-----------------|-----------------|---------|---------|---------------|")
    for (name, (rate, space)), seconds in zip(ways_of(work).items(), zip(*rounds, strict=True), strict=True):
        shrunk = (frames + 1) // 2 if rate else frames, *((side // 2 if space else side) for side in (height, columns))
        early = " x ".join(map(str, shrunk))
        ratio = median(each[0] / own for each, own in zip(rounds, seconds, strict=True))
        print(
            f"| {name:<15} | {early:<15} | {median(seconds):15.3f} | {min(seconds):7.3f} | {max(seconds):7.3f} "
            f"| {ratio:13.2f} |"
        )
    print("\nThe last column is the median over rounds of the full rollout's time by own time.")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="wan-mini", help="a shipped model, a diffusers folder or a hub id")
    which.add_argument(
        "--random-size",
        nargs=5,
        type=int,
        metavar=("LAYERS", "WIDTH", "FRAMES", "ROWS", "COLUMNS"),
        help="random weights instead: size of the transformer and of the latents (Wan2.1 1.3B: 30 1536 21 60 104)",
    )
    parser.add_argument("--batch", type=int, default=1, help="videos sampled at once")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the transformer")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    parser, options = parse(arguments)
    try:
        work = random_weights(*options.random_size) if options.random_size else shipped_or_folder(options.model)
        rounds = measure(work, options.batch, options.repeats, options.device, getattr(torch, options.dtype))
    except ValueError as error:
        parser.error(str(error))
    print_table(work, options.batch, options.device, rounds)


if __name__ == "__main__":
    main()
