"""A method, resolved from a recipe: its terms, the sources they judge, the auxiliaries they need, and what it costs.

There is no list of methods. DMD is `distribution_matching` alone, AVD adds `regression` and `temporal`, LCM is
`consistency`; a rival is another combination, or a term in a file of its own. The training step runs what is resolved
here, and planning counts the same passes. A term may start later than a run does, or act in every so many updates only;
in the other updates the method is that of the other terms (`Method.at`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from avd.config import DiscriminatorRecipe, FakeScoreRecipe, Recipe
from avd.flow import TIMESTEPS
from avd.methods.exits import Exits
from avd.objectives.passes import Pass
from avd.objectives.source import DataSource, RolloutSource, Source
from avd.objectives.term import ActiveTerm, Auxiliary, Averaged, Heads, Learned


@dataclass(frozen=True)
class Method:
    """What a recipe trains, and with what: only sources that a term judges, and auxiliaries that one needs."""

    terms: tuple[ActiveTerm, ...]
    auxiliaries: tuple[Auxiliary, ...]
    updates: Mapping[str, FakeScoreRecipe | DiscriminatorRecipe]
    """How each learned auxiliary is trained."""
    shared: bool
    """Whether one rollout per cycle feeds the student and all auxiliaries."""
    exits: Exits
    drawn_shift: float | None = None
    """Timestep shift of the noise levels that rollouts draw; None: they go through the student's own."""
    stages_before: int = 0
    """Stages of a rollout that a frozen expert of high noise takes before the student."""
    end: float = 0.0
    """The noise level of the videos that rollouts make."""

    @classmethod
    def of(cls, recipe: Recipe) -> Method:
        """Raises ValueError for terms that do not go together, or an auxiliary that a run cannot make."""
        terms, auxiliaries = recipe.objective.active, dict[str, Auxiliary]()
        if all(each.section.start or each.every > 1 for each in terms):
            raise ValueError("no term acts in every update from the first on: nothing is learnt in the others")
        for each in terms:
            for auxiliary in each.term.auxiliaries(each.section):
                if auxiliaries.setdefault(auxiliary.name, auxiliary) != auxiliary:
                    raise ValueError(f"{each.name} needs another {auxiliary.name} than the terms before it")
            if each.term.paired(each.section) and each.source != RolloutSource():
                raise ValueError(f"{each.name} compares rollouts with real clips, and judges none")
            if recipe.end_timestep and not each.term.noisy:
                raise ValueError(f"{each.name} trains students of clean videos, and an expert of high noise makes none")
            if each.term.full_batch and each.source != RolloutSource():
                raise ValueError(f"{each.name} needs the full batch at once, which only rollouts are")
            _check_notes(each, terms)
        reserved = auxiliaries.keys() & {"teacher", "student", "average", "high_expert"}
        if reserved:
            raise ValueError(f"an auxiliary is called {min(reserved)}, as another role is")
        kinds: dict[type, type] = {Learned: FakeScoreRecipe, Heads: DiscriminatorRecipe}
        learned = {name: kinds[type(each)] for name, each in auxiliaries.items() if type(each) in kinds}
        without = [name for name, kind in learned.items() if not isinstance(getattr(recipe, name, None), kind)]
        if without:
            raise ValueError(f"{without[0]} learns, and recipes have no section that says how")
        updates = {name: getattr(recipe, name) for name in learned}
        rollout = recipe.rollout
        balanced, strided = rollout.exits == "balanced", max(rollout.strided_stages)
        exits = Exits(balanced, strided, rollout.half_rate_share, rollout.first_exit)
        made = tuple(auxiliaries.values())
        before, end = recipe.trained_stages.start, recipe.end_timestep / TIMESTEPS
        method = cls(terms, made, updates, rollout.shared, exits, rollout.drawn_shift, before, end)
        updates_to_check = {each.section.start + i for each in terms for i in range(method._period)}
        for update in sorted(updates_to_check):
            now = method.at(update)
            if now.learned and RolloutSource() not in now.sources:
                when = f" at update {update}" if now is not method else ""
                raise ValueError(f"{now.learned[0].name} learns on rollouts, and no term judges one{when}")
        return method

    def at(self, update: int) -> Method:
        """What update `update` of a run, from 0, trains: the terms that act in it, and what they need."""
        return self._started(update)._acting(update)

    def _started(self, update: int) -> Method:
        return self._with(tuple(each for each in self.terms if each.section.start <= update))

    def _acting(self, update: int) -> Method:
        return self._with(tuple(each for each in self.terms if update % each.every == 0))

    def _with(self, terms: tuple[ActiveTerm, ...]) -> Method:
        """Some of its terms, and what these need."""
        if len(terms) == len(self.terms):
            return self
        needed = {auxiliary.name for each in terms for auxiliary in each.term.auxiliaries(each.section)}
        auxiliaries = tuple(each for each in self.auxiliaries if each.name in needed)
        updates = {each.name: self.updates[each.name] for each in auxiliaries if each.name in self.updates}
        return replace(self, terms=terms, auxiliaries=auxiliaries, updates=updates)

    @property
    def _period(self) -> int:
        """Updates after which the same terms act again, once all have started."""
        return math.lcm(*(each.every for each in self.terms))

    @property
    def sources(self) -> tuple[Source, ...]:
        """In the order in which they are called."""
        return tuple(dict.fromkeys(each.source for each in self.terms))

    def judging(self, source: Source) -> tuple[ActiveTerm, ...]:
        return tuple(each for each in self.terms if each.source == source)

    @property
    def networks(self) -> dict[str, FakeScoreRecipe]:
        """How each learned auxiliary is trained that is a network like the teacher."""
        return {name: each for name, each in self.updates.items() if isinstance(each, FakeScoreRecipe)}

    @property
    def heads(self) -> tuple[Heads, ...]:
        """The learned auxiliaries that are heads on the teacher's features."""
        return tuple(each for each in self.auxiliaries if isinstance(each, Heads))

    @property
    def learned(self) -> tuple[Learned | Heads, ...]:
        return tuple(each for each in self.auxiliaries if isinstance(each, Learned | Heads))

    @property
    def averaged(self) -> tuple[Averaged, ...]:
        return tuple(each for each in self.auxiliaries if isinstance(each, Averaged))

    @property
    def rollouts(self) -> int:
        """Rollouts per cycle: the one that is judged, and where they are not shared one for each further update."""
        if RolloutSource() not in self.sources:
            return 0
        return 1 if self.shared else max([1, *(each.updates for each in self.updates.values())])

    @property
    def paired(self) -> bool:
        """Whether rollouts are on the captions of real clips, which come with them."""
        return any(each.term.paired(each.section) for each in self.terms)

    @property
    def learns_from_clips(self) -> bool:
        """Whether a batch holds real clips."""
        return self.paired or any(isinstance(source, DataSource) for source in self.sources)

    def passes(self, *, in_parts: bool = False) -> tuple[Pass, ...]:
        """Network passes per clip of one cycle in which all terms act. `in_parts`: a rank's clips go through the
        networks in several parts."""
        found: list[Pass] = []
        for source in self.sources:
            if isinstance(source, DataSource):
                found += source.passes()
            else:
                if self.stages_before:
                    count = self.rollouts * self.stages_before
                    found.append(Pass("rollouts, stages of the high expert", "high_expert", count))
                found += source.passes(self.rollouts, in_parts=in_parts)
            for each in self.judging(source):
                found += each.term.passes(each.section)
        for auxiliary in self.learned:
            found += auxiliary.passes(self.updates[auxiliary.name].updates)
        return tuple(found)

    def mean_passes(self, *, in_parts: bool = False) -> tuple[Pass, ...]:
        """The same of one cycle on average, once all terms have started."""
        totals: dict[Pass, float] = {}
        for update in range(self._period):
            for each in self._acting(update).passes(in_parts=in_parts):
                kind = replace(each, count=1.0)
                totals[kind] = totals.get(kind, 0.0) + each.count
        return tuple(replace(kind, count=total / self._period) for kind, total in totals.items())

    def forwards(self, stages: int) -> float:
        """Network forwards of one cycle per clip on a rollout of so many stages, on average over its exits and over
        cycles, once all terms have started."""
        return sum(each.forwards(self.exits.mean(stages)) for each in self.mean_passes())

    def updates_for(self, forwards: float, stages: int) -> int:
        """Updates that a run makes of so many network forwards per clip, at least one; those before the start of a
        term cost less than later ones."""
        updates = 0.0
        for each, length in self._costs(stages):
            count = min(forwards / each, length)
            updates, forwards = updates + count, forwards - count * each
        return max(1, round(updates))

    def forwards_of(self, updates: int, stages: int) -> float:
        """Network forwards per clip of so many updates of a run, from its first."""
        total, left = 0.0, float(updates)
        for each, length in self._costs(stages):
            count = min(left, length)
            total, left = total + count * each, left - count
        return total

    def _costs(self, stages: int) -> Iterator[tuple[float, float]]:
        """Forwards of one update, and how many such updates there are: from each start of a term to the next."""
        starts = sorted({each.section.start for each in self.terms})
        for start, end in zip(starts, [*starts[1:], math.inf], strict=True):
            yield self._started(start).forwards(stages), end - start


def _check_notes(reader: ActiveTerm, terms: tuple[ActiveTerm, ...]) -> None:
    """Raise ValueError if one of `terms` reads what none of them leaves by the time that it starts."""
    for note in reader.term.reads:
        beside = [each for each in terms if each.source == reader.source]
        writers = [each for each in beside if note in each.term.writes(each.section)]
        unable = [each.name for each in beside if note in each.term.writes(each.term.section())]
        if not writers:
            who = f"{unable[0]}, as it is set, does not leave" if unable else "no term with a weight leaves"
            raise ValueError(f"{reader.name} reads {note}, which {who}")
        if all(each.section.start > reader.section.start or reader.every % each.every for each in writers):
            raise ValueError(
                f"{reader.name} acts in updates in which {writers[0].name}, which leaves it {note}, does not"
            )
