"""How far adapters move for each update, beside full models, by learning rate: which rates adapters need.

    python benchmarks/adapter_rates.py cycles --updates 10 --seeds 0 1
    python benchmarks/adapter_rates.py widths --widths 192 384 768 1536

`cycles` trains the miniature by a recipe, once in full and once for each rate with adapters, from the same start and on
the same batches. `widths` takes the first steps of a Wan transformer of two layers of random weights towards random
velocities: how the same comparison grows with the width of a model. A movement is the root mean square of the change of
a role's velocity on fixed inputs, over that of the velocity itself; printed are the movement of full models and what
share of it adapters make at 1, 3, ... times the rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from avd.config import AdaptersRecipe, OptimizerRecipe, load_recipe
from avd.data import MemoryLatents
from avd.distillation.data import RunData
from avd.distillation.task import DistillTask
from avd.engine.optimizers import make_optimizer
from avd.engine.sources import encode_world, world_of
from avd.models.adapters import AdapterVelocity, add_adapters
from avd.models.family import load_model
from avd.models.wan.network import WanVelocity
from avd.types import Conditions, Velocity

_LEVELS = (1.0, 0.9, 0.757, 0.522, 0.3)
_HEAD_WIDTH = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    cycles, widths = parts.add_parser("cycles"), parts.add_parser("widths")
    for part in (cycles, widths):
        part.add_argument("--rates", type=float, nargs="+", default=[1, 3, 10, 30, 100])
        part.add_argument("--rank", type=int, default=AdaptersRecipe().rank)
        part.add_argument("--seeds", type=int, nargs="+", default=[0])
    cycles.add_argument("--recipe", default="avd")
    cycles.add_argument("--updates", type=int, default=10)
    cycles.add_argument("--batch", type=int, default=4)
    widths.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768, 1536])
    widths.add_argument("--steps", type=int, default=5)
    widths.add_argument("--learning-rate", type=float, default=2e-6)
    given = parser.parse_args(arguments)
    if given.part == "cycles":
        source = _world_clips()
        for seed in given.seeds:
            print(f"{given.recipe}, rank {given.rank}, seed {seed}: movement after {given.updates} updates")
            full = _cycles(given, seed, source, [])
            print("full:", ", ".join(f"{name} {value:.2e}" for name, value in full.items()))
            for rate in given.rates:
                moved = _cycles(given, seed, source, _with_adapters(given, rate))
                print(f"{rate:g} x:", ", ".join(f"{name} {moved[name] / full[name]:.2f}" for name in full), flush=True)
    else:
        for width in given.widths:
            full_step = _first_steps(given, width, None)
            shares = [_first_steps(given, width, rate) / full_step for rate in given.rates]
            found = ", ".join(f"{rate:g} x: {share:.3f}" for rate, share in zip(given.rates, shares, strict=True))
            print(f"width {width}, rank {given.rank}: full {full_step:.2e}; {found}", flush=True)


def _world_clips() -> MemoryLatents:
    model = load_model("wan-mini")
    return encode_world(model, world_of(model.settings, 0, "wan-mini"), 32)


def _with_adapters(given: argparse.Namespace, rate: float) -> list[str]:
    recipe = load_recipe(given.recipe)
    rates = {"student": recipe.student.optimizer, "fake_score": recipe.fake_score.optimizer}
    changes = [f"{name}.optimizer.learning_rate={rate * each.learning_rate}" for name, each in rates.items()]
    return ["roles=adapters", f"adapters.rank={given.rank}", f"adapters.alpha={given.rank}", *changes]


def _cycles(given: argparse.Namespace, seed: int, source: MemoryLatents, changes: list[str]) -> dict[str, float]:
    """The movement of each role that learns."""
    common = [f"seed={seed}", f"training.batch={given.batch}", "student.optimizer.warmup=0", "compute.device=cpu"]
    model = load_model("wan-mini")
    task = DistillTask(load_recipe(given.recipe, [*common, *changes]), model, RunData.encode(model, source), None)
    trained = {"student": task.roles.student, **task.roles.learned}
    ask = _fixed_inputs(source.latents([0, 1]), source.prompts([0, 1]))
    before = {name: ask(role.network) for name, role in trained.items()}
    for n in range(given.updates):
        task.update(n)
    return {name: _movement(before[name], ask(role.network)) for name, role in trained.items()}


def _first_steps(given: argparse.Namespace, width: int, rate: float | None) -> float:
    """The movement of a network of random weights; `rate`: of its adapter at so many times the learning rate."""
    torch.manual_seed(given.seeds[0])
    network = _random_network(width)
    latents = torch.randn(2, 16, 3, 8, 8)
    prompts = Conditions({"embedding": torch.randn(2, 16, 4096)})
    trained: WanVelocity | AdapterVelocity = network
    if rate is not None:
        targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
        add_adapters(network.transformer, ("student",), rank=given.rank, alpha=given.rank, targets=targets)
        trained = AdapterVelocity(network, "student")
    optimizer = make_optimizer(
        list(trained.parameters()), OptimizerRecipe(learning_rate=(rate or 1.0) * given.learning_rate, weight_decay=0.0)
    )
    ask = _fixed_inputs(latents, prompts)
    generator = torch.Generator().manual_seed(given.seeds[0])
    before = ask(trained)
    for _ in range(given.steps):
        x, target = (torch.randn(latents.shape, generator=generator) for _ in range(2))
        sigma = torch.rand(2, generator=generator)
        (trained(x, sigma, prompts) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return _movement(before, ask(trained))


def _random_network(width: int) -> WanVelocity:
    heads = width // _HEAD_WIDTH
    return WanVelocity(
        WanTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=_HEAD_WIDTH, ffn_dim=4 * width, num_layers=2
        )
    )


def _fixed_inputs(latents: Tensor, prompts: Conditions) -> Callable[[Velocity], Tensor]:
    """Asks a network for its velocities of these clips, noised to several levels."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def ask(network: Velocity) -> Tensor:
        found = []
        for level in _LEVELS:
            sigma = torch.full((len(latents),), level)
            found.append(network((1 - level) * latents + level * noise, sigma, prompts))
        return torch.cat(found)

    return ask


def _movement(before: Tensor, after: Tensor) -> float:
    return float((after - before).square().mean().sqrt() / before.square().mean().sqrt())


if __name__ == "__main__":
    main()
