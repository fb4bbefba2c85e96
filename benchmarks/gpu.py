"""What distillation and sampling cost at a model's true size, with random weights, as Markdown tables.

    python benchmarks/gpu.py wan2.1-1.3b --roles full adapters
    python benchmarks/gpu.py wan2.1-14b --roles adapters --no-sampling
    python benchmarks/gpu.py wan2.1-1.3b --device cpu --dtype float32 --layers 1 --latents 5 8 8 --teacher-steps 2

The last only tries the script. Everything is of one run on one device: seconds, peaks of allocated memory, and the
share of the rate of a matrix product measured in the same run. `avd plan`'s peak stands beside the measured one.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from avd.config import Recipe, load_recipe
from avd.distillation.roles import Roles
from avd.distillation.starts import Starts
from avd.distillation.step import Batch, TrainingStep
from avd.engine.randomness import UpdateRandom
from avd.engine.ranks import Ranks, process_group
from avd.flow import few_step_sigmas
from avd.methods.method import Method
from avd.models.devices import pick_device
from avd.models.interpolator import FrameInterpolator, InterpolatorConfig
from avd.models.solvers import make_solver
from avd.models.wan.known import KNOWN
from avd.models.wan.network import WanVelocity, hollow_transformer
from avd.models.wan.sizes import WanSizes, known_sizes
from avd.objectives.term import Setting
from avd.planning.plan import Machine, Planner
from avd.sampling.rollout import Rollout, make_stages
from avd.types import Conditions


@dataclass(frozen=True)
class RandomModel:
    """As much of a model as roles and samplers need: a transformer of true size with random weights."""

    sizes: WanSizes

    def hollow_velocity(self) -> WanVelocity:
        return WanVelocity(hollow_transformer({**self.sizes.config, "num_layers": self.sizes.layers}))

    def weights(self) -> RandomWeights:
        return RandomWeights({k: tuple(v.shape) for k, v in self.hollow_velocity().transformer.state_dict().items()})


@dataclass(frozen=True)
class RandomWeights:
    """Normal numbers, small enough for a deep network, as `avd.models.weights.Weights`."""

    shapes: dict[str, tuple[int, ...]]

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        return 0.02 * torch.randn(shape)


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak: float
    """Bytes; 0 where the device does not count them."""


class Clock:
    """Times on a device that computes behind the program's back, and the most memory since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.read()

    def read(self) -> Cost:
        """Time and memory since the last reading."""
        if self._on_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        cost = Cost(
            now - getattr(self, "_before", now), float(torch.cuda.max_memory_allocated()) if self._on_gpu else 0.0
        )
        self._before = now
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return cost


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock, best = Clock(device), float("inf")
    for _ in range(10):
        clock.read()
        a @ b
        best = min(best, clock.read().seconds)
    return 2 * size**3 / best


def measure_training(sizes: WanSizes, recipe: Recipe, ranks: Ranks, cycles: int) -> dict[str, Cost]:
    """A student update, a fake-score update and a full cycle; medians over cycles, after one that is not counted."""
    method = Method.of(recipe)
    starts = Starts.alike(RandomModel(sizes), method)  # type: ignore[arg-type]
    roles = Roles(starts, recipe, method, ranks)
    rollout = Rollout(make_stages(few_step_sigmas(recipe.rollout.timesteps)))
    device, count = ranks.device, recipe.training.batch
    latents = torch.randn(count, *sizes.latent_CFHW, device=device)
    prompts = Conditions({"embedding": torch.randn(count, *sizes.conditions["embedding"], device=device)})
    unconditional = Conditions({"embedding": torch.zeros_like(prompts["embedding"][:1])})
    setting = Setting(len(rollout.stages), real_latents=lambda count: latents[:count])
    step = TrainingStep(method, roles, unconditional, setting, microbatch=recipe.compute.microbatch, ranks=ranks)
    clock, found = Clock(device), {"student update": [], "fake-score update": []}  # type: ignore[var-annotated]

    def timed(step: Callable[[], float], name: str) -> Callable[[], float]:
        def stepped() -> float:
            norm = step()
            found[name].append(clock.read())
            return norm

        return stepped

    roles.student.step = timed(roles.student.step, "student update")  # type: ignore[method-assign]
    fake_score = roles.learned["fake_score"]
    fake_score.step = timed(fake_score.step, "fake-score update")  # type: ignore[method-assign]
    for n in range(cycles + 1):
        clock.read()
        batch = Batch(latents, prompts, (prompts,) * method.rollouts, sizes.latent_CFHW)
        step.run(batch, UpdateRandom(0, n, range(count), device), rollout)
        if n == 0:
            for costs in found.values():
                costs.clear()
    costs = {name: Cost(median(c.seconds for c in each), max(c.peak for c in each)) for name, each in found.items()}
    updates = recipe.fake_score.updates
    seconds = costs["student update"].seconds + updates * costs["fake-score update"].seconds
    return {**costs, f"cycle of 1 + {updates}": Cost(seconds, max(cost.peak for cost in costs.values()))}


@torch.no_grad()
def measure_sampling(
    sizes: WanSizes, device: torch.device, dtype: torch.dtype, repeats: int, steps: int
) -> dict[str, Cost]:
    """One clip: 4 steps at full and at half rate in turns, and the teacher's guided steps through diffusers."""
    network = sizes.build().to(device, dtype).eval()
    between = FrameInterpolator(InterpolatorConfig(sizes.latent_CFHW[0])).to(device).eval()
    noise = torch.randn(1, *sizes.latent_CFHW, device=device)
    prompt = torch.randn(1, *sizes.conditions["embedding"], device=device)
    sigmas = few_step_sigmas((1000, 900, 757, 522))
    clock, rounds = Clock(device), {"4 steps, full rate": [], "4 steps, half rate": []}  # type: ignore[var-annotated]
    for n in range(repeats + 1):
        for stages, (_, costs) in zip((0, 2), rounds.items(), strict=True):
            clock.read()
            conditions = Conditions({"embedding": prompt})
            Rollout(make_stages(sigmas, stages), between)(network, noise, conditions, lambda _: torch.randn_like(noise))
            cost = clock.read()
            if n > 0:
                costs.append(cost)
    found = {name: Cost(median(c.seconds for c in each), max(c.peak for c in each)) for name, each in rounds.items()}
    found[f"teacher, {steps}x2 steps"] = _teacher(network.transformer, noise, prompt.to(dtype), steps, clock)
    return found


def _teacher(transformer: Any, noise: Tensor, prompt: Tensor, steps: int, clock: Clock) -> Cost:
    """Stock `WanPipeline`, from embeddings to latents."""
    space, time_ = 8, 4
    vae = AutoencoderKLWan(base_dim=8, z_dim=noise.shape[1], dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    solver = make_solver("unipc", 3.0)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=solver)
    pipeline.set_progress_bar_config(disable=True)
    clock.read()
    pipeline(
        prompt_embeds=prompt,
        negative_prompt_embeds=torch.zeros_like(prompt),
        latents=noise,
        num_frames=(noise.shape[2] - 1) * time_ + 1,
        height=noise.shape[3] * space,
        width=noise.shape[4] * space,
        num_inference_steps=steps,
        guidance_scale=5.0,
        output_type="latent",
    )
    return clock.read()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(KNOWN))
    parser.add_argument("--roles", nargs="*", choices=["full", "adapters"], default=["full", "adapters"])
    parser.add_argument("--cycles", type=int, default=2, help="timed cycles")
    parser.add_argument("--repeats", type=int, default=3, help="timed samplings of each rate")
    parser.add_argument("--teacher-steps", type=int, default=50)
    parser.add_argument("--no-sampling", action="store_true")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, help="cut the network to so many")
    parser.add_argument("--latents", type=int, nargs=3, metavar=("FRAMES", "ROWS", "COLUMNS"), help="other clips")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device, dtype = pick_device(options.device), getattr(torch, options.dtype)
    hub_id = KNOWN[options.model].hub_id
    sizes = known_sizes(hub_id)
    if options.layers:
        sizes = replace(sizes, layers=options.layers)
    if options.latents:
        sizes = replace(sizes, latent_CFHW=(sizes.latent_CFHW[0], *options.latents))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    peak = matmul_peak(device, dtype)
    channels, frames, rows, columns = sizes.latent_CFHW
    print(f"# {options.model} on {name}\n")
    print(f"Random weights, {sizes.layers} layers; latents {channels} x {frames} x {rows} x {columns}, batch 1;")
    print(f"torch {torch.__version__}, {options.dtype}. A matrix product reaches {peak / 1e12:.1f} TFLOP/s.")
    for roles in options.roles:
        changes = [f"roles={roles}", "training.batch=1", f"compute.device={device.type}", *options.set]
        recipe = load_recipe("avd-wan2.1-1.3b", [f"model={hub_id}", f"compute.dtype={options.dtype}", *changes])
        plan = Planner(sizes).plan(recipe, Machine(1))
        with process_group(recipe.compute) as ranks:
            costs = measure_training(sizes, recipe, ranks, options.cycles)
        print(f"\n## Training, roles {roles}\n")
        print_costs(costs, {"cycle": (plan.flops, plan.peak)}, peak)
        gc.collect()
    if not options.no_sampling:
        print("\n## Sampling\n")
        print_costs(measure_sampling(sizes, device, dtype, options.repeats, options.teacher_steps), {}, peak)


def print_costs(costs: dict[str, Cost], plans: dict[str, tuple[float, float]], peak: float) -> None:
    """`plans`: operations and bytes by the beginning of a row's name."""
    print("| what | seconds | peak memory, GB | planned, GB | share of the matrix product's rate |")
    print("|---|---:|---:|---:|---:|")
    for name, cost in costs.items():
        flops, planned = next((plan for key, plan in plans.items() if name.startswith(key)), (0.0, 0.0))
        cells = [
            f"{cost.seconds:.3f}",
            f"{cost.peak / 1e9:.1f}" if cost.peak else "–",
            f"{planned / 1e9:.1f}" if planned else "–",
            f"{flops / cost.seconds / peak:.0%}" if flops else "–",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
