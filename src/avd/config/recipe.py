"""What a distillation run does, section by section, validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model, field_validator, model_validator

from avd.config.experts import ExpertsRecipe
from avd.config.rollout import RolloutRecipe
from avd.objectives.registry import terms
from avd.objectives.source import DataSource
from avd.objectives.term import ActiveTerm, TermSection, TrainedStages
from avd.section import MOST_CLIPS, MOST_RANKS, MOST_SEED, MOST_UPDATES, MOST_WEIGHT, MOST_WORLD_CLIPS, Beta, Section


class CacheRecipe(Section):
    """One of several caches."""

    path: str
    """A folder written by `avd prepare`."""
    weight: float = Field(1.0, gt=0, le=MOST_WEIGHT)
    """Its share of the clips that are drawn, in proportion to the other caches'."""


class DataRecipe(Section):
    """Real videos for the regression branch, and the prompts the student is rolled out with."""

    cache: str | None = None
    """A folder written by `avd prepare`; without any data, clips of the built-in world."""
    caches: tuple[CacheRecipe, ...] = Field((), max_length=1000)
    """Several such folders, of one model and clip size, instead of one."""
    prompts: str | None = None
    """A folder written by `avd prepare --prompts`: its list is what the student is rolled out with. None: the captions
    of the clips."""
    world_clips: int = Field(512, ge=1, le=MOST_WORLD_CLIPS)
    """Clips of the built-in world to encode when no data are given."""
    world_level: int = Field(0, ge=0)

    @property
    def weighted(self) -> tuple[CacheRecipe, ...]:
        """All its caches."""
        return self.caches if self.cache is None else (CacheRecipe(path=self.cache),)

    @model_validator(mode="after")
    def _check(self) -> DataRecipe:
        if self.cache is not None and self.caches:
            raise ValueError("it has both cache and caches: give one of them")
        return self


class _Objective(Section):
    """Weighted terms by name: those that `avd.objectives` declares, each with its own section."""

    def section(self, name: str) -> TermSection:
        """The values of the term `name`."""
        section: TermSection = getattr(self, name)
        return section

    @property
    def active(self) -> tuple[ActiveTerm, ...]:
        """The terms that have a weight, in the order of the terms."""
        found = (ActiveTerm(term, self.section(name)) for name, term in terms().items())
        return tuple(term for term in found if term.section.weight)


if TYPE_CHECKING:
    ObjectiveRecipe = _Objective
else:
    ObjectiveRecipe = create_model(
        "ObjectiveRecipe",
        __base__=_Objective,
        **{term.name: (term.section, term.section()) for term in terms().values()},
    )


class AdaptersRecipe(Section):
    """LoRA of the student, its average and the auxiliaries, used with `roles: adapters`."""

    rank: int = Field(64, ge=1, le=65_536)
    alpha: float = Field(64.0, gt=0, le=1e6)
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Endings of the names of the linear layers that get an adapter. None: those that the model's family names."""
    merge: bool = True
    """Export the student as a full model; false: as a LoRA file beside it for its base."""


FULL_WEIGHT_DECAY = 0.01
"""Weight decay of full models. Adapters have none, as it would undo what they have learnt."""


class OptimizerRecipe(Section):
    """AdamW."""

    bits: Literal[32, 8] = 32
    """8: block-wise quantised moments, from torchao (extra `8bit`); a resumed run quantises them again."""

    learning_rate: float = Field(2e-6, gt=0, le=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float | None = Field(None, ge=0, le=100)
    """Decoupled. None: `FULL_WEIGHT_DECAY` for full models and none for adapters, as a `Recipe` fills in."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; None: any."""
    warmup: int = Field(0, ge=0, le=MOST_UPDATES)
    """Updates over which the learning rate rises to its value."""


class FakeScoreRecipe(Section):
    updates: int = Field(5, ge=1, le=1000)
    """Updates of the fake score for each of the student's."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    ida: float | None = Field(None, ge=0, lt=1)
    """Share of its weights that it keeps after each student update; the rest becomes the student's (implicit
    distribution alignment). None: it learns by its own updates alone."""
    start: str | None = None
    """What it begins as: a run, whose fake score it takes over, or a model. None: the run's model."""


class DiscriminatorRecipe(Section):
    """Heads on features of the frozen teacher, which learn to tell the student's clips from real ones."""

    updates: int = Field(1, ge=1, le=1000)
    """Updates of the heads for each of the student's."""
    optimizer: OptimizerRecipe = OptimizerRecipe()


class StudentRecipe(Section):
    start: str | None = None
    """What it begins as: a student's folder or a run. None: the run's model."""
    optimizer: OptimizerRecipe = OptimizerRecipe()
    ema: float = Field(0.99, ge=0, lt=1)


class ComputeRecipe(Section):
    """How a run is computed. None of it changes what is learnt, except by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The networks' arithmetic. Trained weights, their optimizers and all maths on the flow stay in float32."""
    tf32: bool = False
    """On a GPU, products of float32 matrices in TF32: several times faster, with factors of 10 bits."""
    microbatch: int | None = Field(None, ge=1, le=MOST_CLIPS)
    """Clips that go through a network at once on a rank; gradients of several are gathered. None: all of them."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Blocks whose activations are computed again in the backward pass: none, every second one, all."""
    compile: bool = False
    """Compile each block with torch.compile."""
    attention: str | None = None
    """Attention backend by its name in diffusers, such as flash or _native_cudnn; None is diffusers' own choice."""
    shard: int | None = Field(None, ge=1, le=MOST_RANKS)
    """Ranks that share one copy of the weights (FSDP); the groups replicate it (HSDP). None: all ranks."""
    context: int = Field(1, ge=1, le=MOST_RANKS)
    """Ranks that share each clip, splitting its sequence between them (Ulysses, through diffusers)."""
    timeout_minutes: float = Field(30.0, gt=0, le=10_080)
    """How long a rank waits for the others before the run fails."""


class LimitsRecipe(Section):
    """Where a monitor warns; null: nowhere."""

    saturation: float | None = Field(0.25, gt=0)
    """Saturation above real data's, as a share of it."""
    contrast: float | None = Field(0.25, gt=0)
    """Contrast above real data's, as a share of it."""
    motion: float | None = Field(0.6, gt=0)
    """Motion, as a share of the teacher's, below which it is collapsing."""
    diversity: float | None = Field(0.5, gt=0)
    """How much the videos of one prompt differ, as a share of the teacher's, below which all seeds look alike. Only the
    suite `native` measures it."""
    fake_score: float | None = Field(1.0, gt=0)
    """Rise of the fake score's loss above its lowest level, as a share of it."""
    low_weights: float | None = Field(0.5, gt=0, lt=1)
    """Share of the adaptive regression's weights below 0.1, at any timestep."""


class MonitorsRecipe(Section):
    """What a run watches of itself, and what it does about it. Watching changes nothing that is learnt."""

    every: int = Field(100, ge=0, le=MOST_UPDATES)
    """Student updates between measurements; 0 is never."""
    clips: int = Field(16, ge=1, le=MOST_CLIPS)
    """Prompts, from the run's data, on which student and teacher are sampled."""
    teacher_steps: int | None = Field(None, ge=1, le=10_000)
    """Steps of the teacher's videos. None: as its model's settings say, but at most 25 for a large model."""
    suite: Literal["pixels", "native"] = "pixels"
    """What is measured of a video. pixels: saturation, contrast and motion; native: every measure that `avd evaluate
    --suite native` has, and diversity."""
    diversity_prompts: int = Field(8, ge=0, le=MOST_CLIPS)
    """With the suite `native`, how many of the prompts have several videos, from other noise; 0 measures no
    diversity."""
    diversity_seeds: int = Field(2, ge=2, le=MOST_CLIPS)
    """How many videos each of these has."""
    limits: LimitsRecipe = LimitsRecipe()
    action: Literal["warn", "stop", "roll_back"] = "warn"
    """What follows when a limit is crossed for `patience` measurements in a row, besides a warning."""
    patience: int = Field(3, ge=1, le=MOST_UPDATES)
    roll_backs: int = Field(3, ge=1, le=MOST_UPDATES)
    """After this many the run stops instead."""
    keep_best: Literal["saturation", "motion", "score"] | None = None
    """Keep the student that came nearest to its references in `best/`."""

    @model_validator(mode="after")
    def _check(self) -> MonitorsRecipe:
        if self.action == "roll_back" and self.keep_best is None:
            raise ValueError("action roll_back needs keep_best: saturation, motion or score")
        if self.action != "warn" and not self.every:
            raise ValueError(f"action {self.action} needs measurements: set every to at least 1")
        return self

    def seeds_of(self, clips: int) -> tuple[int, int]:
        """How many of `clips` prompts have several videos, and how many these have."""
        prompts = min(self.diversity_prompts, clips) if self.suite == "native" else 0
        return prompts, self.diversity_seeds if prompts else 1


TrackerName = Literal["tensorboard", "wandb"]


class TrainingRecipe(Section):
    """How long and how often, in student updates; 0 is never."""

    updates: int = Field(1000, ge=1, le=MOST_UPDATES)
    batch: int = Field(1, ge=1, le=MOST_CLIPS)
    """Clips of an update, over all ranks."""
    checkpoint_every: int = Field(100, ge=0, le=MOST_UPDATES)
    keep_checkpoints: int = Field(2, ge=1, le=MOST_UPDATES)
    sample_every: int = Field(100, ge=0, le=MOST_UPDATES)
    checkpoint_minutes: float | None = Field(None, ge=0, le=1e6)
    """Longest time between checkpoints, by the clock of the first rank; None: as `checkpoint_every` says alone."""
    sample_minutes: float | None = Field(None, ge=0, le=1e6)
    """The same for samples."""
    stop_grace: float = Field(30.0, ge=0, le=1e6)
    """Seconds between SIGTERM and SIGKILL. Where an update takes longer, a run that is asked to end does so within it,
    without saving."""


class Recipe(Section):
    """Everything that decides a run."""

    name: str
    """The run's, and its folder's unless another is named: no path."""
    model: str = "wan-mini"
    transformer: str | None = None
    """A safetensors file to take the transformer's weights from; None: the model's own."""
    teacher: str | None = None
    """A many-step model of the same latents and prompts that teaches; None: the model itself."""
    negative_prompt: str | None = None
    """What the teacher's guidance leads away from; "" is the null prompt. None: as its model's settings say."""
    interpolator: str | None = None
    """A run of `avd train interpolator`, or its `interpolator/` folder; None: the model's own, if it has one."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    roles: Literal["full", "adapters"] = "full"
    """full: a full model per role; adapters: one frozen base, of which every other role is a LoRA adapter."""
    adapters: AdaptersRecipe = AdaptersRecipe()
    data: DataRecipe = DataRecipe()
    rollout: RolloutRecipe = RolloutRecipe()
    experts: ExpertsRecipe = ExpertsRecipe()
    objective: ObjectiveRecipe = ObjectiveRecipe()
    fake_score: FakeScoreRecipe = FakeScoreRecipe()
    discriminator: DiscriminatorRecipe = DiscriminatorRecipe()
    student: StudentRecipe = StudentRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    training: TrainingRecipe = TrainingRecipe()
    monitors: MonitorsRecipe = MonitorsRecipe()
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics, samples and warnings go besides the run's folder."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.strip(". ") or any(letter in name for letter in "/\\\0"):
            raise ValueError("it names the run's folder, so it must be a word, not a path")
        return name

    @model_validator(mode="after")
    def _fill_in_weight_decay(self) -> Recipe:
        """A recipe leaves nothing implicit, so that its file says what was trained."""
        for role in ("student", "fake_score", "discriminator"):
            section: StudentRecipe | FakeScoreRecipe | DiscriminatorRecipe = getattr(self, role)
            decay = 0.0 if self.roles == "adapters" and role != "discriminator" else FULL_WEIGHT_DECAY
            if section.optimizer.weight_decay is None:
                optimizer = section.optimizer.model_copy(update={"weight_decay": decay})
                # past the lock of a frozen section, while it is being made
                object.__setattr__(self, role, section.model_copy(update={"optimizer": optimizer}))
        return self

    @property
    def trained_stages(self) -> range:
        """The stages, of the rollout's, that this run's student takes."""
        return self.experts.trained_of(len(self.rollout.timesteps))

    @property
    def trained_timesteps(self) -> tuple[float, ...]:
        """Their timesteps."""
        return tuple(self.rollout.timesteps[i] for i in self.trained_stages)

    @property
    def end_timestep(self) -> float:
        """Where the student's last stage ends: at 0, or where an expert of low noise takes over."""
        high = self.experts.train == "high"
        return self.rollout.timesteps[self.experts.high_stages] if high else 0.0

    @model_validator(mode="after")
    def _check_experts(self) -> Recipe:
        self.experts.check(self.rollout.timesteps, self.rollout.transition)
        if self.rollout.first_exit >= len(self.trained_stages):
            raise ValueError(
                f"rollout.first_exit must be below the number of timesteps that the run trains "
                f"({len(self.trained_stages)})"
            )
        if self.experts.train == "low" and self.roles == "adapters" and not self.adapters.merge:
            raise ValueError("two experts are written as full models: set adapters.merge to true")
        return self

    def _check_taught(self, active: tuple[ActiveTerm, ...]) -> None:
        """Refuse a stage that is sampled, at the strides that it may have, and that no term trains."""
        stages = self.rollout.stages(self.trained_stages)
        taught: set[int] = set()
        for each in active:
            source = each.source
            at_exits = range(self.rollout.first_exit, len(stages.sigmas))
            taught |= source.law.teaches(stages) if isinstance(source, DataSource) else set(at_exits)
        for i, timestep in enumerate(self.trained_timesteps):
            if i in taught:
                continue
            if i in stages.full:
                fault, remedy = "", "rollout.first_exit to 0"
            else:
                fault, remedy = " at half rate or resolution", "half_rate_stages and half_resolution_stages to 0"
            raise ValueError(
                f"no term of its objective trains the student at timestep {timestep:g}{fault}: set {remedy}, or give "
                "a term a weight that does"
            )

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        active = self.objective.active
        if not active:
            raise ValueError("every weight of its objective is 0: give one of its terms a weight")
        stages = TrainedStages(self.trained_timesteps, self.end_timestep, self.experts.train is not None)
        for each in active:
            try:
                each.term.check(each.section, stages)
            except ValueError as error:
                raise ValueError(f"objective.{each.name}: {error}") from None
        self._check_taught(active)
        if all(each.section.start for each in active):
            raise ValueError("every term of its objective has a start above 0: set one of them to 0")
        other = [each for each in active if each.term.transition not in (None, self.rollout.transition)]
        if other:
            raise ValueError(
                f"objective.{other[0].name} trains a student that is sampled in another way: set "
                f"rollout.transition={other[0].term.transition}"
            )
        in_one = [each.name for each in active if each.term.one_part(each.section)]
        if self.compute.microbatch is not None and in_one:
            raise ValueError(
                f"compute.microbatch must be null: objective.{in_one[0]}, as it is set, needs a batch in one part"
            )
        return self
