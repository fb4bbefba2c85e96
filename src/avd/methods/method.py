"""A method, resolved from a recipe: its terms, the sources they judge, the auxiliaries they need, and what it costs.

There is no list of methods. DMD is `distribution_matching` alone, AVD adds `regression` and `temporal`, LCM is
`consistency`; a rival is another combination, or a term in a file of its own. The training step runs what is resolved
here, and planning counts the same passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from avd.config import FakeScoreRecipe, Recipe
from avd.objectives.passes import Pass
from avd.objectives.source import DataSource, RolloutSource, Source
from avd.objectives.term import ActiveTerm, Auxiliary, Averaged, Learned


@dataclass(frozen=True)
class Method:
    """What a recipe trains, and with what: only sources that a term judges, and auxiliaries that one needs."""

    terms: tuple[ActiveTerm, ...]
    auxiliaries: tuple[Auxiliary, ...]
    updates: dict[str, FakeScoreRecipe]
    """How each learned auxiliary is trained."""
    shared: bool
    """Whether one rollout per cycle feeds the student and all auxiliaries."""

    @classmethod
    def of(cls, recipe: Recipe) -> Method:
        """Raises ValueError for terms that do not go together, or an auxiliary that a run cannot make."""
        terms, auxiliaries = recipe.objective.active, dict[str, Auxiliary]()
        for each in terms:
            for auxiliary in each.term.auxiliaries(each.section):
                if auxiliaries.setdefault(auxiliary.name, auxiliary) != auxiliary:
                    raise ValueError(f"{each.name} needs another {auxiliary.name} than the terms before it")
            if each.term.paired(each.section) and each.source != RolloutSource():
                raise ValueError(f"{each.name} compares rollouts with real clips, and judges none")
            if each.term.full_batch and each.source != RolloutSource():
                raise ValueError(f"{each.name} needs the full batch at once, which only rollouts are")
        reserved = auxiliaries.keys() & {"teacher", "student", "average"}
        if reserved:
            raise ValueError(f"an auxiliary is called {min(reserved)}, as another role is")
        learned = [name for name, each in auxiliaries.items() if isinstance(each, Learned)]
        if learned and all(each.source != RolloutSource() for each in terms):
            raise ValueError(f"{learned[0]} learns on rollouts, and no term judges one")
        without = [name for name in learned if not isinstance(getattr(recipe, name, None), FakeScoreRecipe)]
        if without:
            raise ValueError(f"{without[0]} learns, and recipes have no section that says how")
        updates: dict[str, FakeScoreRecipe] = {name: getattr(recipe, name) for name in learned}
        return cls(terms, tuple(auxiliaries.values()), updates, recipe.rollout.shared)

    @property
    def sources(self) -> tuple[Source, ...]:
        """In the order in which they are called."""
        return tuple(dict.fromkeys(each.source for each in self.terms))

    def judging(self, source: Source) -> tuple[ActiveTerm, ...]:
        return tuple(each for each in self.terms if each.source == source)

    @property
    def learned(self) -> tuple[Learned, ...]:
        return tuple(each for each in self.auxiliaries if isinstance(each, Learned))

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
        """Network passes per clip of one cycle. `in_parts`: a rank's clips go through the networks in several parts."""
        found: list[Pass] = []
        for source in self.sources:
            if isinstance(source, DataSource):
                found += source.passes()
            else:
                found += source.passes(self.rollouts, in_parts=in_parts)
            for each in self.judging(source):
                found += each.term.passes(each.section)
        for name, recipe in self.updates.items():
            title = f"{name.replace('_', ' ')}, {recipe.updates} updates"
            found.append(Pass(title, name, recipe.updates, learns=True))
        return tuple(found)

    def forwards(self, stages: int) -> float:
        """Network forwards of one cycle per clip on a rollout of so many stages, on average over its exits."""
        return sum(each.forwards((stages - 1) / 2) for each in self.passes())
