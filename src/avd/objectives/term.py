"""What a method is made of: weighted terms, the networks they need besides the student, and what both may know.

A term is declared by its objective file: the section of the recipe that holds its values, the source whose output it
judges, the auxiliaries it needs, the network passes it adds, and how it is made for a run. A term whose weight is 0 is
not made, and neither is an auxiliary that no remaining term names. Nobody else knows a term by name: recipes weigh
what `objectives.registry` finds, and the training step runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from avd.flow import GuidedVelocity
from avd.objectives.passes import Pass
from avd.objectives.source import Random, Source
from avd.section import MOST_UPDATES, MOST_WEIGHT, Section
from avd.types import LossTerm, Transition


class TermSection(Section):
    """A term's values in a recipe; weight 0 leaves the term out."""

    weight: float = Field(0.0, ge=0, le=MOST_WEIGHT)
    start: int = Field(0, ge=0, le=MOST_UPDATES)
    """Student updates before the term acts. What only it needs is not run before: no pass is made, and a network that
    learns for it is still the teacher."""


class GuidedSection(TermSection):
    """Values of a term that asks the teacher."""

    guidance: float = Field(5.0, ge=0, le=1000)
    """Scale of the teacher's guidance."""
    guidance_form: Literal["standard", "conditional"] = "standard"
    """standard: uncond + g (cond - uncond), as in the paper; conditional: cond + g (cond - uncond), as released."""

    @property
    def standard_guidance(self) -> float:
        return self.guidance + (1.0 if self.guidance_form == "conditional" else 0.0)

    @property
    def branches(self) -> int:
        """Forwards of the teacher for one guided velocity."""
        return 1 if self.standard_guidance == 1.0 else 2


Features = tuple[Tensor, ...]
"""What some of the teacher's blocks make of an input, (B, tokens, width) each."""


class Networks(Protocol):
    """The networks of a run, for the conditions and the strides of some samples.

    None of them is called with a gradient unless its caller enables one.
    """

    def teacher(self, x_BCFHW: Tensor, sigma_B: Tensor, guidance: float) -> GuidedVelocity:
        """The teacher's velocity, guided in the usual convention; at `guidance` 1 it is asked once, else twice."""
        ...

    def student(self, x_BCFHW: Tensor, sigma_B: Tensor) -> Tensor: ...

    def auxiliary(self, name: str, x_BCFHW: Tensor, sigma_B: Tensor) -> Tensor: ...

    def features(self, name: str, x_BCFHW: Tensor, sigma_B: Tensor) -> Features:
        """What the teacher's blocks that the heads `name` judge make of an input."""
        ...

    def judge(self, name: str, features: Features) -> Tensor:
        """The logits of the heads `name`, (B, heads): above 0 for what looks real."""
        ...


@dataclass(frozen=True)
class Sample:
    """A source's output for some samples of a batch, and what it was made from.

    `output_BCFHW` is a leaf: a clean video for a rollout, a velocity for real data. `x0`, `eps`, `sigma` and `index`
    are those of noised real data; a rollout leaves them None, unless it is paired (see `Term.paired`): `x0` then are
    the real latents whose captions its prompts are. `notes` are what terms have left of these samples so far, for
    those that read them.
    """

    output_BCFHW: Tensor
    random: Random
    networks: Networks
    x0_BCFHW: Tensor | None = None
    eps_BCFHW: Tensor | None = None
    x_BCFHW: Tensor | None = None
    sigma_B: Tensor | None = None
    index_B: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    end: float = 0.0
    """The noise level of a rollout's video: 0, or where an expert of high noise ends (see `Term.noisy`)."""


def through_input(x_BCFHW: Tensor, leaf_BCFHW: Tensor, loss_B: Tensor) -> Tensor:
    """Values `loss_B`, (B,), of a loss that was computed from `leaf_BCFHW`, a leaf of the value of `x_BCFHW`, through
    networks. Their gradient in `x_BCFHW` is that of the loss, and it reaches nothing else: autograd is asked for the
    leaf's alone, and computes no gradient of a weight."""
    (gradient,) = torch.autograd.grad(loss_B.sum(), leaf_BCFHW)
    x = x_BCFHW.float()
    return loss_B.detach() + ((x - x.detach()) * gradient).flatten(1).sum(1)  # 0, with the gradient wanted


@dataclass(frozen=True)
class TrainedStages:
    """The stages of a rollout that a run trains: all of them, or those of one of two experts."""

    timesteps: tuple[float, ...]
    """One per stage."""
    end: float = 0.0
    """The timestep at which the last one ends."""
    expert: bool = False


@dataclass(frozen=True)
class Setting:
    """What a term may know of its run when it is made."""

    sigmas: tuple[float, ...]
    """Noise levels of the student's stages."""
    real_latents: Callable[[int], Tensor]
    """The first so many real latents of the run's data, (N, C, F, H, W), or all if there are fewer."""
    all_sum: Callable[[Tensor], Tensor] = lambda values: values
    """Adds values of all parts of a batch that is spread over ranks."""
    global_mean: Callable[[Tensor], Tensor] = Tensor.mean
    """The mean of a (B,) tensor over the full batch, wherever its samples are."""


class Evaluate(Protocol):
    """A term, made for a run."""

    def __call__(self, sample: Sample) -> LossTerm: ...

    def commit(self) -> None:
        """The full batch has been through: take the step of whatever the term remembers."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, by names of the term's own."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Stateless:
    """A term that remembers nothing, from its loss."""

    loss: Callable[[Sample], LossTerm]

    def __call__(self, sample: Sample) -> LossTerm:
        return self.loss(sample)

    def commit(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""


class AuxiliaryLoss(Protocol):
    """What an auxiliary learns from a rollout's clean videos. Compared by value: make it a frozen dataclass."""

    def __call__(self, sample: Sample, network: Callable[..., Tensor], update: int) -> LossTerm:
        """`network` carries a gradient: of a `Learned` it is called with (x, sigma_B), of `Heads` with features.
        `update` counts the auxiliary's updates of this cycle from 0."""
        ...


@dataclass(frozen=True)
class Learned:
    """A network that starts as the teacher and learns on rollouts, `updates` times per cycle.

    The recipe's section of the auxiliary's name holds its number of updates and its optimizer.
    """

    name: str
    loss: AuxiliaryLoss

    def passes(self, updates: int) -> tuple[Pass, ...]:
        """Those of a cycle of so many updates."""
        return (Pass(f"{_title(self.name)}, {_times(updates)}", self.name, updates, learns=True),)


@dataclass(frozen=True)
class Heads:
    """Small modules on features of the frozen teacher, which learn on rollouts, `updates` times per cycle.

    One head judges what the teacher has made of a noisy clip after each of `depths`, shares of its blocks, rising. The
    recipe's section of the auxiliary's name holds its number of updates and its optimizer. Every rank has the heads in
    full.
    """

    name: str
    loss: AuxiliaryLoss
    depths: tuple[float, ...]
    width: int
    """Hidden units of each head."""
    inputs: int
    """Inputs that the teacher makes features of in each update, per clip."""

    def passes(self, updates: int) -> tuple[Pass, ...]:
        """Those of a cycle of so many updates: the teacher's, as the heads themselves take next to nothing."""
        title = f"features for the {_title(self.name)}, {_times(updates)}"
        return (Pass(title, "teacher", updates * self.inputs * self.depths[-1]),)


@dataclass(frozen=True)
class Averaged:
    """A network that follows the student: the moving average of its weights with this decay."""

    name: str
    decay: float


Auxiliary = Learned | Heads | Averaged


def _title(name: str) -> str:
    return name.replace("_", " ")


def _times(updates: int) -> str:
    return "1 update" if updates == 1 else f"{updates} updates"


@dataclass(frozen=True)
class Term:
    """The declaration of a term. What depends on the recipe is a function of the term's section."""

    name: str
    about: str
    """One line for people who choose."""
    paper: str
    section: type[TermSection]
    source: Callable[[Any], Source]
    make: Callable[[Any, Setting], Evaluate]
    auxiliaries: Callable[[Any], tuple[Auxiliary, ...]] = lambda section: ()
    passes: Callable[[Any], tuple[Pass, ...]] = lambda section: ()
    """Passes that the term adds to those of its source and its auxiliaries."""
    full_batch: bool = False
    """Whether its loss is one function of the full batch, and not a mean over samples."""
    one_part: Callable[[Any], bool] = lambda section: False
    """Whether a batch must go through the networks in one part."""
    paired: Callable[[Any], bool] = lambda section: False
    """Whether rollouts are on the captions of real clips, which their samples then hold: a conditional comparison of
    the two is one of clips of the same prompt. One such term pairs the rollouts of the method."""
    writes: Callable[[Any], tuple[str, ...]] = lambda section: ()
    """Names of the notes that its loss leaves, in every update, of the samples it judges (`LossTerm.notes`)."""
    reads: tuple[str, ...] = ()
    """Names of notes that it finds in its `Sample`: terms that read come after those that do not."""
    continues: Callable[[Any], bool] = lambda section: False
    """Whether it is for a student that has been distilled before. A run without `student.start` is then refused; the
    term's section has a key `from_scratch` that allows it."""
    check: Callable[[Any, TrainedStages], None] = lambda section, stages: None
    """Raises ValueError for values that do not fit the stages that the run trains."""
    every: Callable[[Any], int] = lambda section: 1
    """It acts in one of so many updates, the first of a run among them, and costs nothing in the others."""
    least_frames: Callable[[Any], int] = lambda section: 1
    """Latent frames below which its loss does not exist."""
    transition: Transition | None = None
    """How a student that it trains is sampled; None: in either way."""
    noisy: bool = False
    """Whether it, and what its auxiliaries learn, is for students whose last stage ends at noise, too."""
    measures_data: Callable[[Any], bool] = lambda section: False
    """Whether it asks for `Setting.real_latents`, whatever its source is."""


@dataclass(frozen=True)
class ActiveTerm:
    """A term of a recipe, with its values there."""

    term: Term
    section: TermSection = field(repr=False)

    @property
    def name(self) -> str:
        return self.term.name

    @property
    def source(self) -> Source:
        return self.term.source(self.section)

    @property
    def every(self) -> int:
        return self.term.every(self.section)
