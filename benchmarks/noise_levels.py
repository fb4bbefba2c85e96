"""From which noise level on a teacher loses the clip: where its training should spend its time.

Rendered held-out clips of the built-in world are noised to a level and denoised by the teacher with their captions and
its own guidance; the oracle judges what comes back. At level 0 only the VAE is judged, at level 1 the full teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from avd.data import Video
from avd.evaluation.judging import judge
from avd.evaluation.rows import Row
from avd.evaluation.suite import Clip, Prompt
from avd.evaluation.suites.world import WorldSuite
from avd.flow import add_noise, integrate, many_step_sigmas
from avd.models.family import load_model
from avd.models.wan.model import VideoModel
from avd.sampling.teacher import guided
from avd.types import UserError


@torch.no_grad()
def denoised_from(level: float, latents: Tensor, model: VideoModel, captions: Sequence[str]) -> Tensor:
    """Latents noised to `level` and taken back to 0 on the part of the teacher's own grid that lies below."""
    settings, network = model.settings, model.velocity()
    grid = many_step_sigmas(settings.steps, settings.shift)
    sigmas = torch.cat([torch.tensor([level], dtype=grid.dtype), grid[grid < level]])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    prompt, unconditional = model.encode_prompts(list(captions)), model.encode_prompts([""])
    return integrate(
        lambda x, sigma: guided(network, x, sigma, prompt, unconditional, settings.guidance).velocity,
        add_noise(latents, noise, torch.full((len(latents),), level)),
        sigmas,
    )


def measure(model: VideoModel, suite: WorldSuite, levels: Sequence[float]) -> list[Row]:
    rendered = list(suite.rendered())
    prompts = [clip.prompt for clip in rendered]
    latents = model.encode_video(np.stack([clip.read().frames for clip in rendered]))
    rows = []
    for level in levels:
        back = denoised_from(level, latents, model, [prompt.text for prompt in prompts]) if level else latents
        clips = map(partial(_clip, suite.fps), prompts, model.decode_video(back))
        rows.append(judge(suite, clips, name=f"{level:.2f}"))
    return rows


def _clip(fps: float, prompt: Prompt, frames: np.ndarray) -> Clip:
    return Clip(prompt.text, prompt, lambda: Video(frames, fps))


def print_table(model: str, rows: Sequence[Row]) -> None:
    print(f"{model}, {rows[0].videos} clips\n")
    print("| noised to | instance preservation | caption accuracy | dynamic degree | saturation error |")
    print("|---|---|---|---|---|")
    for row in rows:
        keys = ("instance_preservation", "caption_accuracy", "dynamic_degree")
        shares = [row.score(WorldSuite.name, key) for key in keys]
        cells = ["–" if share is None else f"{share:.1%}" for share in shares]
        error = row.score(WorldSuite.name, "saturation_error")
        cells.append("–" if error is None else f"{error:.3f}")
        print(f"| {row.name} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan-mini", help="a shipped model or a diffusers folder")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.4, 0.6, 0.8, 0.9, 1.0], metavar="SIGMA")
    options = parser.parse_args(arguments)
    if not all(0 <= level <= 1 for level in options.levels):
        parser.error(f"levels are {options.levels}: they must lie in [0, 1]")
    try:
        rows = measure(load_model(options.model), WorldSuite(clips=options.clips), options.levels)
    except UserError as error:
        parser.error(str(error))
    print_table(options.model, rows)


if __name__ == "__main__":
    main()
