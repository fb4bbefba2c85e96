"""How far chance moves the diversity of a student's seeds beside its teacher's, by the number of prompts and seeds.

Student and teacher sample the same captions of the built-in world from the same noise, several seeds each. The ratio of
their diversities, as the monitors' suite `native` reports it, is then taken over prompts drawn at random from these,
with replacement.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from avd.evaluation.suites.world import WorldSuite
from avd.measures.diversity import Signature, diversity_of, signature
from avd.models.family import load_model
from avd.sampling.choose import make_sampler
from avd.sampling.samplers import Sampler
from avd.types import UserError

NAMES = ("appearance", "motion")
DRAWS = 10_000


def sample(sampler: Sampler, captions: Sequence[str], seeds: int) -> list[list[Signature]]:
    """Signatures of the videos of each caption, one per seed."""
    found = []
    for i, caption in enumerate(captions):
        latents = sampler([caption] * seeds, torch.Generator().manual_seed(i))
        found.append([signature(video) for video in sampler.model.decode_video(latents)])
    return found


def diversities(groups: Sequence[Sequence[Signature]], seeds: int) -> dict[str, np.ndarray]:
    """Diversity of appearance and of motion of each caption's first `seeds` videos."""
    found = [diversity_of(group[:seeds]) for group in groups]
    return {name: np.array([getattr(each, name) for each in found]) for name in NAMES}


def quantiles(student: np.ndarray, teacher: np.ndarray, prompts: int) -> tuple[float, float]:
    """From where to where 98 % of the ratios lie."""
    drawn = np.random.default_rng(0).integers(len(student), size=(DRAWS, prompts))
    low, high = np.quantile(student[drawn].mean(axis=1) / teacher[drawn].mean(axis=1), [0.01, 0.99])
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="a student's folder")
    parser.add_argument("--model", default="wan-mini", help="its teacher: a shipped model or a diffusers folder")
    parser.add_argument("--captions", type=int, default=32, help="captions that prompts are drawn from")
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 8, 16], help="numbers of prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3], help="numbers of seeds, 2 at least")
    options = parser.parse_args(arguments)
    if min(options.seeds) < 2:
        parser.error(f"seeds are {options.seeds}: one video has no other to differ from")
    captions = [prompt.text for prompt in WorldSuite(clips=options.captions).prompts()][: options.captions]
    try:
        samplers = [make_sampler(load_model(name)) for name in (options.student, options.model)]
    except UserError as error:
        parser.error(str(error))
    student, teacher = (sample(sampler, captions, max(options.seeds)) for sampler in samplers)
    print(f"{len(captions)} captions, {max(options.seeds)} seeds; 1 to 99 % of {DRAWS:,} draws of the prompts\n")
    print("| prompts | seeds | further videos | appearance to teacher | motion to teacher |\n|---|---|---|---|---|")
    for seeds in options.seeds:
        own, reference = (diversities(groups, seeds) for groups in (student, teacher))
        for prompts in options.prompts:
            ends = [quantiles(own[name], reference[name], prompts) for name in NAMES]
            cells = " | ".join(f"{low:.2f} to {high:.2f}" for low, high in ends)
            print(f"| {prompts} | {seeds} | {prompts * (seeds - 1)} | {cells} |")
        ratios = [own[name].mean() / reference[name].mean() for name in NAMES]
        print(f"| all | {seeds} | | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
