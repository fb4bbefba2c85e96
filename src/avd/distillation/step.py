"""One training step of distillation: a student update, then the auxiliaries' updates on what the student makes.

The lean step. A rollout's exit is drawn first and no stage past it is run; every rank draws the same. Terms that judge
one source share one call of the student: its output is held as a leaf, the terms are backpropagated into it one after
the other, and the student's graph is walked once. The student update's sample serves the first update of each
auxiliary, and with a shared rollout all of them; both branches of guidance go through the teacher in one batch. What a
step costs is what its method declares (`Method.passes`): with a backward counted as two forwards, AVD's 1 + 5 updates
on 4 stages cost 24 to 27 forwards with a shared rollout, and 35.5 on average with a fresh one per update.

A batch may go through the networks in several parts, whose gradients are accumulated: the result is that of the full
batch. A rollout's exit stage then runs once more, without a graph, as some terms need the full batch before the first
of its gradients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from avd.distillation.gradients import TermGradients
from avd.distillation.roles import Roles
from avd.engine.loop import UpdateResult
from avd.engine.randomness import UpdateRandom
from avd.engine.ranks import SINGLE_PROCESS, Ranks
from avd.engine.stopping import Between, one_part
from avd.flow import GuidedVelocity, add_noise, subsample
from avd.methods.method import Method
from avd.objectives.source import DataSource, RolloutSource, Stages
from avd.objectives.term import ActiveTerm, Features, Heads, Sample, Setting
from avd.sampling.rollout import FULL, Rollout, falling_levels
from avd.sampling.teacher import guided
from avd.types import Conditions, LossTerm


@dataclass(frozen=True)
class Batch:
    """What one step reads on a rank: real latents with their prompts, and a prompt batch for each rollout."""

    latents_BCFHW: Tensor | None
    """None, as `prompts` is, where no term learns from real data."""
    prompts: Conditions | None
    rollout_prompts: tuple[Conditions, ...]
    """One with a shared rollout; else one per update of an auxiliary, the first also the student's."""
    latent_CFHW: tuple[int, int, int, int]
    """The shape of one clip, which rollouts have."""
    rollout_latents: tuple[Tensor, ...] = ()
    """The real latents whose captions `rollout_prompts` are, where the method pairs them; the first are `latents`."""


@dataclass(frozen=True)
class _Bound:
    """See `objectives.term.Networks`: the networks of a run, for some samples' prompts and their strides."""

    roles: Roles
    prompt: Conditions
    unconditional: Conditions
    frame_stride: int = 1
    space_stride: int = 1

    def teacher(self, x_BCFHW: Tensor, sigma_B: Tensor, guidance: float) -> GuidedVelocity:
        return guided(self.roles.teacher, x_BCFHW, sigma_B, self.prompt, self.unconditional, guidance, **self._strides)

    def student(self, x_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
        return self.roles.student.network(x_BCFHW, sigma_B, self.prompt, **self._strides)

    def auxiliary(self, name: str, x_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
        return self.roles.auxiliary(name)(x_BCFHW, sigma_B, self.prompt, **self._strides)

    def features(self, name: str, x_BCFHW: Tensor, sigma_B: Tensor) -> Features:
        blocks = self.roles.heads[name].network.blocks
        return self.roles.teacher.features(x_BCFHW, sigma_B, self.prompt, blocks, **self._strides)

    def judge(self, name: str, features: Features) -> Tensor:
        logits: Tensor = self.roles.heads[name].network(features)
        return logits

    @property
    def _strides(self) -> dict[str, int]:
        return {"frame_stride": self.frame_stride, "space_stride": self.space_stride}


class TrainingStep:
    """Owns what the terms remember; everything else belongs to the roles. `microbatch`: clips that go through a network
    at once, None for all of a rank's."""

    def __init__(
        self,
        method: Method,
        roles: Roles,
        unconditional: Conditions,
        setting: Setting,
        *,
        microbatch: int | None = None,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.method, self.roles, self.unconditional = method, roles, unconditional
        self._microbatch, self._ranks = microbatch, ranks
        self.terms = {each.name: each.term.make(each.section, setting) for each in method.terms}
        self._gradients = TermGradients()

    def run(self, batch: Batch, random: UpdateRandom, rollout: Rollout, between: Between = one_part) -> UpdateResult:
        """One student update and all updates of the auxiliaries. `rollout` is the path that samples take this time.

        Terms that start later than this update, and the auxiliaries that only they need, are left out. `between` is
        called after the student's update, each further rollout, and each round of the auxiliaries'.
        """
        result, method = UpdateResult(), self.method.at(random.update)
        samples = self._update_student(batch, random, rollout, result)
        learned, shared = method.learned, method.shared
        rounds = max((method.updates[each.name].updates for each in learned), default=0)
        for i in range(rounds):
            between((1 + i) / (1 + rounds))
            fresh = 0 if shared else i
            if fresh > 0:
                samples = self._roll_out(batch, random, rollout, fresh)
                between((1.5 + i) / (1 + rounds))
            for each in learned:
                if i < method.updates[each.name].updates:
                    self._update_auxiliary(each.name, samples, batch, fresh, random, i, result)
        skipped = {f"skipped_{name}": float(role.skipped) for name, role in self.roles.trained.items()}
        result.metrics = self._ranks.mean_metrics(result.metrics | skipped)
        return result

    def tensors(self) -> dict[str, Tensor]:
        """What the terms remember."""
        return {name: tensor for term in self.terms.values() for name, tensor in term.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for term in self.terms.values():
            term.load_state_dict(tensors)

    def _parts(self, count: int) -> list[slice]:
        """What goes through the networks at once."""
        size = min(self._microbatch or count, count)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _update_student(
        self, batch: Batch, random: UpdateRandom, rollout: Rollout, result: UpdateResult
    ) -> list[Tensor]:
        """Returns the samples it made of its rollout, detached, part by part; none without a rollout."""
        samples: list[Tensor] = []
        method = self.method.at(random.update)
        for source in method.sources:
            if isinstance(source, RolloutSource):
                samples = self._judge_rollout(batch, random, rollout, result)
            else:
                self._judge_data(source, batch, random, rollout, result)
        for active in method.terms:
            self.terms[active.name].commit()
        norm = self.roles.step_student({each.name for each in method.learned})
        result.metrics |= self._gradients.pop_metrics(self._ranks)
        result.metrics["student_grad_norm"] = norm
        return samples

    def _judge_rollout(
        self, batch: Batch, random: UpdateRandom, rollout: Rollout, result: UpdateResult
    ) -> list[Tensor]:
        student, count, prompt = self.roles.student.network, len(random.samples), batch.rollout_prompts[0]
        rollout = self._path(rollout, random, 0)
        exit_stage, noisy = self._run_until(batch, random, rollout, 0)
        result.metrics["exit_stage"] = exit_stage
        if self.method.drawn_shift is not None:
            result.metrics["exit_sigma"] = rollout.stages[exit_stage].sigma
        parts = self._parts(count)
        in_one = len(parts) == 1

        def predict(i: int, gradient: bool) -> Tensor:
            return rollout.predict(student, noisy[i], prompt[parts[i]], exit_stage, gradient=gradient)

        made = [predict(i, gradient=in_one) for i in range(len(parts))]
        leaves = [each.detach().requires_grad_() for each in made]
        notes = defaultdict[tuple[int, int], dict[str, Tensor]](dict)
        for active in self.method.at(random.update).judging(RolloutSource()):
            watched = [self._gradients.on_video(active.name, leaf) for leaf in leaves]
            judged = list(zip(watched, parts, strict=True))
            if active.term.full_batch:
                judged = [(torch.cat(watched), slice(0, count))]
            found = UpdateResult()
            for x, rows in judged:
                sample = replace(self._sample(x, rows, batch, 0, random), notes=notes[rows.start, rows.stop])
                self._backward(active, sample, rows, count, found)
            _merge(result, found)
        for i, leaf in enumerate(leaves):
            (made[i] if in_one else predict(i, gradient=True)).backward(leaf.grad)
        return [leaf.detach() for leaf in leaves]

    def _judge_data(
        self, source: DataSource, batch: Batch, random: UpdateRandom, rollout: Rollout, result: UpdateResult
    ) -> None:
        trained = [rollout.stages[i] for i in rollout.trained]
        stages = Stages(tuple(stage.sigma for stage in trained), tuple(stage.strides for stage in trained))
        latents_BCFHW, prompts = batch.latents_BCFHW, batch.prompts
        assert latents_BCFHW is not None and prompts is not None
        count, judging = len(random.samples), self.method.at(random.update).judging(source)
        found = {active.name: UpdateResult() for active in judging}
        for rows in self._parts(count):
            own, prompt = random.part(rows), prompts[rows]
            levels = source.law.draw(own, stages)
            frame_stride, space_stride = levels.frame_stride, levels.space_stride
            x0 = subsample(latents_BCFHW[rows], frame_stride, space_stride)
            eps = own.normal(source.law.name, "noise", shape=x0.shape[1:])
            x = add_noise(x0, eps, levels.sigma_B)
            velocity = self.roles.student.network(
                x, levels.sigma_B, prompt, frame_stride=frame_stride, space_stride=space_stride
            )
            leaf, notes = velocity.detach().requires_grad_(), dict[str, Tensor]()
            for active in judging:
                watched = self._gradients.on_velocity(active.name, leaf, levels.sigma_B)
                bound = self._bound(prompt, frame_stride, space_stride)
                sample = Sample(watched, own, bound, x0, eps, x, levels.sigma_B, levels.index_B, notes)
                self._backward(active, sample, rows, count, found[active.name])
            velocity.backward(leaf.grad)
        for each in found.values():
            _merge(result, each)

    def _update_auxiliary(
        self,
        name: str,
        samples: list[Tensor],
        batch: Batch,
        rollout: int,
        random: UpdateRandom,
        i: int,
        result: UpdateResult,
    ) -> None:
        """Its update `i`, on the clean videos `samples` of a rollout of the batch."""
        auxiliary = next(each for each in self.method.learned if each.name == name)
        count, found = len(random.samples), UpdateResult()
        for x, rows in zip(samples, self._parts(count), strict=True):
            sample = self._sample(x, rows, batch, rollout, random)
            call = sample.networks.judge if isinstance(auxiliary, Heads) else sample.networks.auxiliary
            term = auxiliary.loss(sample, partial(call, name), i)
            _backpropagate(term, 1.0, rows, count, found)
        _merge(result, found)
        result.metrics[f"{name}_grad_norm"] = self.roles.trained[name].step()

    def _roll_out(self, batch: Batch, random: UpdateRandom, rollout: Rollout, i: int) -> list[Tensor]:
        """The samples of rollout `i`, part by part, without gradient."""
        rollout = self._path(rollout, random, i)
        stage, noisy = self._run_until(batch, random, rollout, i)
        prompt, student = batch.rollout_prompts[i], self.roles.student.network
        return [
            rollout.predict(student, x, prompt[rows], stage)
            for x, rows in zip(noisy, self._parts(len(random.samples)), strict=True)
        ]

    def _path(self, rollout: Rollout, random: UpdateRandom, i: int) -> Rollout:
        """What rollout `i` goes through: the student's stages, at noise levels of its own where the method draws them.

        They are the same for the full batch, as the exit is.
        """
        shift = self.method.drawn_shift
        if shift is None:
            return rollout
        uniform = [random.shared_uniform("rollout", i, "level", stage) for stage in range(1, len(rollout.stages))]
        return rollout.at(falling_levels(rollout.stages[0].sigma, uniform, shift))

    def _run_until(self, batch: Batch, random: UpdateRandom, rollout: Rollout, i: int) -> tuple[int, list[Tensor]]:
        """The exit stage of rollout `i`, random and the same for the full batch, and what that stage starts from."""
        strided = rollout.stages[0].strides != FULL
        stage = rollout.trained[self.method.exits.draw(random, i, len(rollout.trained), strided=strided)]
        shape, prompt = batch.latent_CFHW, batch.rollout_prompts[i]
        noisy = []
        for rows in self._parts(len(random.samples)):
            normal = partial(random.part(rows).normal, "rollout", i, shape=shape)
            path = self.roles.path_of(self.roles.student.network)
            noisy.append(rollout.run_until(path, normal("start"), prompt[rows], normal, stage))
        return stage, noisy

    def _sample(self, x: Tensor, rows: slice, batch: Batch, rollout: int, random: UpdateRandom) -> Sample:
        """The samples `rows` of a rollout, whose video is `x`."""
        bound = self._bound(batch.rollout_prompts[rollout][rows])
        real = batch.rollout_latents[rollout][rows] if batch.rollout_latents else None
        return Sample(x, random.part(rows), bound, x0_BCFHW=real, end=self.method.end)

    def _bound(self, prompt: Conditions, frame_stride: int = 1, space_stride: int = 1) -> _Bound:
        return _Bound(self.roles, prompt, self.unconditional, frame_stride, space_stride)

    def _backward(self, active: ActiveTerm, sample: Sample, rows: slice, count: int, found: UpdateResult) -> None:
        """Backpropagate a part of a term into its source's leaf; keep the parts of its gradient, and its notes."""
        term, weight = self.terms[active.name](sample), active.section.weight
        _backpropagate(term, weight, rows, count, found)
        sample.notes.update(term.notes)
        for part, square_B in term.gradient_parts.items():
            self._gradients.add_part(part, weight**2 * square_B, count)


def _backpropagate(term: LossTerm, weight: float, rows: slice, count: int, found: UpdateResult) -> None:
    """Backpropagate the loss of the samples `rows` of `count` as their share of the batch's; add it to `found`."""
    share = (rows.stop - rows.start) / count
    loss = term.per_sample_B.mean() * share
    (weight * loss).backward()
    for key, value in {term.name: loss.item(), **{k: v * share for k, v in term.metrics.items()}}.items():
        found.metrics[key] = found.metrics.get(key, 0.0) + value
    known = found.values.setdefault(term.name, {})
    for key, value_B in term.values.items():
        known[key] = torch.cat([known[key], value_B]) if key in known else value_B


def _merge(result: UpdateResult, later: UpdateResult) -> None:
    """Take over what was measured later; of a name that is there already, the later value counts."""
    result.metrics |= later.metrics
    result.values |= later.values
