"""Why half rate is safe at high noise: how alike neighbouring latent frames are, by noise level.

The teacher is sampled; at every level of its grid the cosine between neighbouring latent frames is taken, of what it
makes of the video there (x0) and of the noisy video itself (x). Near 1, a frame says nothing its neighbours do not.
Of a clip's frames the mean over frames is also taken away ("x0, changes"): what is then left is what moves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from avd.evaluation.suites.world import WorldSuite
from avd.flow import integrate, many_step_sigmas, x0_from_velocity
from avd.models.family import load_model
from avd.models.wan.model import VideoModel
from avd.sampling.teacher import guided
from avd.types import UserError

KINDS = ("x0", "x", "x0, changes")


def neighbour_cosine(x_BCFHW: Tensor) -> Tensor:
    """Mean over a clip's pairs of neighbouring frames of the cosine between them, (B,)."""
    frames = x_BCFHW.double().transpose(1, 2).flatten(2)
    return torch.nn.functional.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(1)


@torch.no_grad()
def measure(model: VideoModel, captions: Sequence[str], steps: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Pairs of noise level and mean cosine over the clips, by kind, from high to low noise."""
    network, settings = model.velocity(), model.settings
    prompt, unconditional = model.encode_prompts(list(captions)), model.encode_prompts([settings.negative_prompt])
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}

    def velocity(x: Tensor, sigma_B: Tensor) -> Tensor:
        v = guided(network, x, sigma_B, prompt, unconditional, settings.guidance).velocity
        x0, sigma = x0_from_velocity(x, v, sigma_B), sigma_B[0].item()
        for kind, seen in zip(KINDS, (x0, x, x0 - x0.mean(2, keepdim=True)), strict=True):
            found[kind].append((sigma, neighbour_cosine(seen).mean().item()))
        return v

    noise = torch.randn(len(captions), *model.latent_shape(), generator=torch.Generator().manual_seed(seed))
    integrate(velocity, noise, many_step_sigmas(steps, settings.shift))
    return found


def print_table(found: dict[str, list[tuple[float, float]]], rows: int) -> None:
    """About `rows` of the levels."""
    print(f"| noise level | {' | '.join(KINDS)} |")
    print(f"|---|{'---|' * len(KINDS)}")
    count = len(found[KINDS[0]])
    for i in sorted({round(i * (count - 1) / max(rows - 1, 1)) for i in range(rows)}):
        cells = [f"{found[kind][i][1]:.3f}" for kind in KINDS]
        print(f"| {found[KINDS[0]][i][0]:.3f} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan-mini", help="a shipped model or a diffusers folder")
    parser.add_argument("--clips", type=int, default=64, help="held-out captions of the built-in world")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=11, help="levels to print; --json has all")
    parser.add_argument("--json", type=Path, help="a file for all of them")
    options = parser.parse_args(arguments)
    try:
        captions = [prompt.text for prompt in WorldSuite(clips=options.clips, repeats=0).prompts()]
        found = measure(load_model(options.model), captions, options.steps, options.seed)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    print_table(found, options.rows)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
