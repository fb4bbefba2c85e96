"""How long one training cycle of several codes takes: their network passes, re-enacted on one network, in turns.

    python benchmarks/cycles.py
    python benchmarks/cycles.py --random-size 8 512 5 16 16 --checkpointing
    python benchmarks/cycles.py --random-size 30 1536 21 60 104 --device cuda --dtype bfloat16 --checkpointing --batch 1

One cycle is a student update and the updates of the fake score that go with it. What decides its time is how often the
network is called, with a backward pass or without; so each code is written down as its calls (`CODES`), as its public
version makes them or its paper says, for a student of four stages. All play on the same network and batch, so networks,
text encoders, optimizers and communication make no difference. Ours are taken from `Method.at`, which the training step
runs.

Codes take turns cycle by cycle, because a shared machine changes its speed, and what is reported is a code's time over
that of the first. A round has two cycles of each code for every exit stage, as some recipes alternate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from diffusers import WanTransformer3DModel

from avd.config import load_recipe
from avd.methods.method import Method
from avd.models.family import load_model
from avd.models.wan.network import WanVelocity
from avd.types import Conditions

STAGES = 4
HEAD_WIDTH = 64
OURS = ("avd-wan2.1-1.3b", "avd", "dmd", "avd-lean")

Backward = Literal["none", "weights", "input"]


@dataclass(frozen=True)
class Call:
    """`times` calls of the network, one after the other, each on `clips` batches at once.

    backward: none; through the network to its weights; or to its input alone, past frozen weights.
    """

    times: int
    backward: Backward = "none"
    clips: int = 1

    def forwards(self, *, checkpointing: bool) -> float:
        """A backward to weights costs two forwards, one to the input about one; checkpointing repeats the forward."""
        backward = {"none": 0.0, "weights": 2.0, "input": 1.0}[self.backward]
        again = float(checkpointing and self.backward != "none")
        return self.times * self.clips * (1.0 + backward + again)


Cycle = Callable[[int, int], list[Call]]
"""The calls of one cycle whose rollouts exit at a stage (0 is the first), and whose number is the second argument."""

LEARN = Call(1, "weights")


def released(exit_stage: int, number: int) -> list[Call]:
    """AVD's released code, 1 + 5: rollouts run all stages, whatever the exit; guidance's branches are two calls; a
    rollout for each update."""
    student = [Call(STAGES - 1), LEARN, Call(1), Call(2), LEARN]  # the last one is the regression
    return student + 5 * [Call(STAGES), LEARN]


def fastvideo(exit_stage: int, number: int) -> list[Call]:
    """FastVideo's DMD with simulated rollouts, 1 + 5: these run all stages but the last, then the exit; guidance's
    branches are two calls; a rollout for each update."""
    student = [Call(STAGES - 1), LEARN, Call(1), Call(2)]
    return student + 5 * [Call(STAGES), LEARN]


def fastgen(exit_stage: int, number: int) -> list[Call]:
    """FastGen's DMD2 for Wan, 1 + 4: the student on noised real clips, without a rollout; heads on the teacher's
    features, once for the student and for a generated and a real clip with each fake-score update."""
    student = [LEARN, Call(1), Call(2), Call(1, "input")]
    return student + 4 * [Call(1), LEARN, Call(2)]


def rcm(exit_stage: int, number: int) -> list[Call]:
    """rCM, 1 + 4: consistency on real clips with a tangent of two forwards, and DMD; a rollout for each update."""
    student = [Call(2), Call(2), LEARN, Call(exit_stage), LEARN, Call(1), Call(2)]
    return student + 4 * [Call(exit_stage + 1), LEARN]


def sgmd(exit_stage: int, number: int) -> list[Call]:
    """SGMD, 1 + 1: one rollout for both, and the student's gradient goes back through the fake score's input."""
    return [Call(exit_stage), LEARN, Call(1, "input"), Call(2), LEARN]


def recipe_cycle(name: str) -> Cycle:
    """A shipped recipe's own, as its method declares it; both branches of guidance are one call."""
    method = Method.of(load_recipe(name))

    def cycle(exit_stage: int, number: int) -> list[Call]:
        found = []
        for each in method.at(number).passes():
            count = round(each.count)
            if each.network == "teacher":
                found.append(Call(1, clips=count))
            else:
                times = count * exit_stage if each.place == "before_exit" else count
                found.append(Call(times, "weights" if each.learns else "input" if each.to_input else "none"))
        return found

    return cycle


CODES: dict[str, Cycle] = {
    "released code": released,
    "FastVideo, DMD": fastvideo,
    "FastGen, DMD2": fastgen,
    "rCM": rcm,
    "SGMD": sgmd,
} | {f"this project, {name}": recipe_cycle(name) for name in OURS}


def mean_forwards(cycle: Cycle, *, checkpointing: bool = False) -> float:
    """Forwards per clip of one cycle, over exits and two cycles in a row; a backward to weights counts as two."""
    calls = [call for number in (0, 1) for stage in range(STAGES) for call in cycle(stage, number)]
    return sum(call.forwards(checkpointing=checkpointing) for call in calls) / (2 * STAGES)


class Network:
    """One network and one batch, on which every code plays."""

    def __init__(self, student: WanVelocity, shape: tuple[int, ...], prompt: tuple[int, ...], batch: int) -> None:
        self._student, self._device = student, next(student.parameters()).device
        self._clips = torch.randn(batch, *shape, device=self._device)
        self._prompt = torch.randn(batch, *prompt, device=self._device)

    @property
    def on_cpu(self) -> bool:
        return self._device.type == "cpu"

    def play_all(self, calls: Sequence[Call]) -> None:
        """Ends when an accelerator has."""
        for call in calls:
            self.play(call)
        if not self.on_cpu:
            torch.cuda.synchronize()

    def play(self, call: Call) -> None:
        for parameter in self._student.parameters():
            parameter.requires_grad_(call.backward == "weights")
        for _ in range(call.times):
            self._once(call)

    def _once(self, call: Call) -> None:
        x = self._clips.repeat(call.clips, 1, 1, 1, 1).requires_grad_(call.backward == "input")
        sigma = torch.full((len(x),), 0.9, device=self._device)
        with torch.set_grad_enabled(call.backward != "none"):
            out = self._student(x, sigma, Conditions({"embedding": self._prompt.repeat(call.clips, 1, 1)}))
        if call.backward != "none":
            out.square().mean().backward()
        for parameter in self._student.parameters():
            parameter.grad = None


def measure(network: Network, rounds: int) -> dict[str, list[float]]:
    """Seconds of each code in every round.

    On a CPU they are the process's own, which other processes take less from than from the clock's.
    """
    clock = time.process_time if network.on_cpu else time.perf_counter
    found = {name: [0.0] * rounds for name in CODES}
    for cycle in CODES.values():  # once untimed
        network.play_all(cycle(0, 0))
    for i in range(rounds):
        for number in (0, 1):
            for stage in range(STAGES):
                for name, cycle in CODES.items():
                    started = clock()
                    network.play_all(cycle(stage, number))
                    found[name][i] += clock() - started
    return found


def make_network(given: argparse.Namespace) -> Network:
    """The shipped miniature, or a Wan transformer of random weights."""
    if given.random_size is None:
        model = load_model("wan-mini")
        student: WanVelocity = model.velocity()
        shape: tuple[int, ...] = model.latent_shape()
        prompt = (model.text_length, model.transformer.config.text_dim)
    else:
        layers, width, frames, rows, columns = given.random_size
        transformer = WanTransformer3DModel(
            num_attention_heads=width // HEAD_WIDTH,
            attention_head_dim=HEAD_WIDTH,
            ffn_dim=4 * width,
            num_layers=layers,
        )
        student, shape = WanVelocity(transformer), (transformer.config.in_channels, frames, rows, columns)
        prompt = (512, transformer.config.text_dim)
    student = student.to(given.device, getattr(torch, given.dtype))
    if given.checkpointing:
        student.transformer.enable_gradient_checkpointing()
    return Network(student, shape, prompt, given.batch)


def print_table(seconds: dict[str, list[float]], *, checkpointing: bool) -> None:
    first = next(iter(seconds.values()))
    print("| cycle | forwards | time, as a share of the first | least and most of a round |")
    print("|---|---|---|---|")
    for name, own in seconds.items():
        shares = [each / reference for each, reference in zip(own, first, strict=True)]
        forwards = mean_forwards(CODES[name], checkpointing=checkpointing)
        print(f"| {name} | {forwards:g} | {median(shares):.2f} | {min(shares):.2f} to {max(shares):.2f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--random-size",
        nargs=5,
        type=int,
        metavar=("LAYERS", "WIDTH", "FRAMES", "ROWS", "COLUMNS"),
        help="random weights, not the shipped miniature (Wan2.1 1.3B: 30 1536 21 60 104)",
    )
    parser.add_argument("--batch", type=int, default=8, help="clips of a cycle")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks again in every backward pass")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args(arguments)
    network = make_network(given)
    print_table(measure(network, given.rounds), checkpointing=given.checkpointing)


if __name__ == "__main__":
    main()
