"""What a distillation run does, section by section, validated."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from avd.flow import few_step_sigmas

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(_Section):
    """Real videos for the regression branch, and the prompts the student is rolled out with."""

    cache: str | None = None
    """A folder written by `avd prepare`; without one, clips of the built-in world."""
    world_clips: int = Field(512, ge=1)
    """Clips of the built-in world to encode when no cache is given."""
    world_level: int = Field(0, ge=0)


class RolloutRecipe(_Section):
    """The student's stages."""

    timesteps: tuple[float, ...] = (1000, 900, 757, 522)
    """Student timesteps, of 1000 (paper, Settings)."""
    half_rate_stages: int = Field(0, ge=0)
    """Stages at half frame rate that training's rollout includes."""
    half_rate_share: float = Field(1.0, gt=0, le=1)
    """Share of the cycles that include them; the others run at full rate, so one student learns both."""
    shared: bool = True
    """One rollout feeds the student update and all fake-score updates of a cycle; false: a fresh one for each."""

    @model_validator(mode="after")
    def _check(self) -> RolloutRecipe:
        few_step_sigmas(self.timesteps)
        if self.half_rate_stages >= len(self.timesteps):
            raise ValueError(f"half_rate_stages must be below the number of timesteps ({len(self.timesteps)})")
        return self


class DistributionMatchingRecipe(_Section):
    weight: float = Field(1.0, ge=0)
    guidance: float = Field(5.0, ge=0)
    """Scale of the teacher's guidance."""
    guidance_form: Literal["standard", "conditional"] = "standard"
    """standard: uncond + g (cond - uncond), as in the paper; conditional: cond + g (cond - uncond), as released."""
    sigma_min: float = Field(0.02, gt=0, lt=1)
    sigma_max: float = Field(0.98, gt=0, le=1)
    shift: float = Field(1.0, gt=0)
    """Shift of the uniformly drawn noise levels at which the two scores are compared."""

    @model_validator(mode="after")
    def _check(self) -> DistributionMatchingRecipe:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max ({self.sigma_max})")
        return self

    @property
    def standard_guidance(self) -> float:
        return self.guidance + (1.0 if self.guidance_form == "conditional" else 0.0)


class RegressionRecipe(_Section):
    """Adaptive regression on real videos; weight 0 leaves the branch out."""

    weight: float = Field(2.0, ge=0)
    adaptive: bool = True
    omega: float = Field(0.95, ge=0, lt=1)
    k: float = Field(3.0, ge=0)
    order: Literal["weight_first", "update_first"] = "weight_first"
    """Whether a sample is weighed by the running mean before it (paper) or after it (released code)."""


class TemporalRecipe(_Section):
    """Temporal regularization; weight 0 leaves it out."""

    weight: float = Field(0.05, ge=0)
    truncation: float | Literal["data", "never"] = 0.6
    """Loss at which it stops acting: a number (paper: 0.6), or the loss of the real latents themselves ("data")."""

    @field_validator("truncation", mode="wrap")
    @classmethod
    def _check(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:  # a union's own errors are one for each of its kinds
            raise ValueError('must be a number, "data" or "never"') from None


class ObjectiveRecipe(_Section):
    distribution_matching: DistributionMatchingRecipe = DistributionMatchingRecipe()
    regression: RegressionRecipe = RegressionRecipe()
    temporal: TemporalRecipe = TemporalRecipe()


class AdaptersRecipe(_Section):
    """LoRA of the student and of the fake score, used with `roles: adapters`."""

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Endings of the names of the linear layers that get an adapter. None: those that the model's family names."""
    merge: bool = True
    """Export the student as a whole model; false: as a LoRA file beside it for its base."""


class OptimizerRecipe(_Section):
    """AdamW."""

    bits: Literal[32, 8] = 32
    """8: block-wise quantised moments, from torchao (extra `8bit`); a resumed run quantises them anew."""

    learning_rate: float = Field(2e-6, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    warmup: int = Field(0, ge=0)
    """Updates over which the learning rate rises to its value."""


class FakeScoreRecipe(_Section):
    updates: int = Field(5, ge=1)
    """Updates of the fake score for each of the student's."""
    optimizer: OptimizerRecipe = OptimizerRecipe()


class StudentRecipe(_Section):
    optimizer: OptimizerRecipe = OptimizerRecipe()
    ema: float = Field(0.99, ge=0, lt=1)


class ComputeRecipe(_Section):
    """How a run is computed. None of it changes what is learnt, except by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic. Trained weights, their optimizers and all maths on the flow stay in float32."""
    microbatch: int | None = Field(None, ge=1)
    """Clips that go through a network at once on a rank; gradients of several are gathered. None: all of them."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Blocks whose activations are computed again in the backward pass: none, every second one, all."""
    compile: bool = False
    """Compile each block with torch.compile."""
    attention: str | None = None
    """Attention backend by its name in diffusers, such as flash or _native_cudnn; None is diffusers' own choice."""
    shard: int | None = Field(None, ge=1)
    """Ranks that share one copy of the weights (FSDP); the groups replicate it (HSDP). None: all ranks."""
    context: int = Field(1, ge=1)
    """Ranks that share each clip, splitting its sequence between them (Ulysses, through diffusers)."""


class LimitsRecipe(_Section):
    """Where a monitor warns; null: nowhere."""

    saturation: float | None = Field(0.25, gt=0)
    """Saturation above real data's, as a share of it."""
    contrast: float | None = Field(0.25, gt=0)
    """Contrast above real data's, as a share of it."""
    motion: float | None = Field(0.6, gt=0)
    """Motion, as a share of the teacher's, below which it is collapsing."""
    fake_score: float | None = Field(1.0, gt=0)
    """Rise of the fake score's loss above its lowest level, as a share of it."""
    low_weights: float | None = Field(0.5, gt=0, lt=1)
    """Share of the adaptive regression's weights below 0.1, at any timestep."""


class MonitorsRecipe(_Section):
    """What a run watches of itself, and what it does about it. Watching changes nothing that is learnt."""

    every: int = Field(100, ge=0)
    """Student updates between measurements; 0 is never."""
    clips: int = Field(16, ge=1)
    """Prompts, from the run's data, on which student and teacher are sampled."""
    teacher_steps: int | None = Field(None, ge=1)
    """Steps of the teacher's videos. None: as its model's settings say."""
    limits: LimitsRecipe = LimitsRecipe()
    action: Literal["warn", "stop", "roll_back"] = "warn"
    """What follows when a limit is crossed for `patience` measurements in a row, besides a warning."""
    patience: int = Field(3, ge=1)
    roll_backs: int = Field(3, ge=1)
    """After so many the run stops instead."""
    keep_best: Literal["saturation", "motion", "score"] | None = None
    """Keep the student that came nearest to its references in `best/`."""

    @model_validator(mode="after")
    def _check(self) -> MonitorsRecipe:
        if self.action == "roll_back" and self.keep_best is None:
            raise ValueError("action roll_back needs keep_best: saturation, motion or score")
        if self.action != "warn" and not self.every:
            raise ValueError(f"action {self.action} needs measurements: set every to at least 1")
        return self


TrackerName = Literal["tensorboard", "wandb"]


class TrainingRecipe(_Section):
    """How long and how often, in student updates; 0 is never."""

    updates: int = Field(1000, ge=1)
    batch: int = Field(1, ge=1)
    """Clips of an update, over all ranks."""
    checkpoint_every: int = Field(100, ge=0)
    keep_checkpoints: int = Field(2, ge=1)
    sample_every: int = Field(100, ge=0)


class Recipe(_Section):
    """Everything that decides a run."""

    name: str
    model: str = "wan-mini"
    transformer: str | None = None
    """A safetensors file to take the transformer's weights from; None: the model's own."""
    seed: int = Field(0, ge=0)
    roles: Literal["full", "adapters"] = "full"
    """full: three whole models; adapters: one frozen base, the student and the fake score its LoRA adapters."""
    adapters: AdaptersRecipe = AdaptersRecipe()
    data: DataRecipe = DataRecipe()
    rollout: RolloutRecipe = RolloutRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    fake_score: FakeScoreRecipe = FakeScoreRecipe()
    student: StudentRecipe = StudentRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    training: TrainingRecipe = TrainingRecipe()
    monitors: MonitorsRecipe = MonitorsRecipe()
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics, samples and warnings go besides the run's folder."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.compute.microbatch is not None and self.objective.regression.order == "update_first":
            raise ValueError(
                "compute.microbatch must be null where regression.order is update_first: the loss means "
                "take their step before a batch is weighed, so it must come in one piece"
            )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
