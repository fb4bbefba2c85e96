"""Phased consistency distillation against Gaussians, whose discrete fixed point is known in every phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avd.config import load_recipe
from avd.flow import add_noise, integrate, many_step_sigmas
from avd.methods.method import Method
from avd.objectives.consistency import OnGrid, consistency, incoherence
from avd.objectives.phased_consistency import TERM, OnPhases, PhasedConsistencyRecipe, PhasedGrid
from avd.objectives.source import Stages
from avd.types import UserError
from helpers.cycles import Cycle, make_batch, make_cycle, networks, update_random
from helpers.gaussian import GaussianVelocity

SHAPE = (4, 2, 3, 2, 2)
EDGES = (1.0, 0.9, 0.757, 0.522, 0.0)
GRID = PhasedGrid(12, 3.0, EDGES)
TEACHER = GaussianVelocity(1.0, 0.5)
Network = Callable[[Tensor, Tensor], Tensor]


def fixed_point(x: Tensor, sigma_B: Tensor) -> Tensor:
    """Leads to where Euler's steps on the grid end at the phase's edge: the optimum on that grid."""
    rows = []
    for row, sigma in zip(x, sigma_B, strict=True):
        place = int((GRID.sigmas - sigma).abs().argmin())
        end = int(GRID.edge(torch.tensor([min(place, GRID.levels - 1)])))
        if place in (end, GRID.levels):
            rows.append(torch.zeros_like(row))
            continue
        there = integrate(TEACHER, row[None], GRID.sigmas[place : end + 1])[0]
        rows.append((row - there) / (GRID.sigmas[place] - GRID.sigmas[end]))
    return torch.stack(rows)


def exact(x: Tensor, sigma_B: Tensor) -> Tensor:
    """Leads to where the exact path is at the edge below."""
    place = (GRID.sigmas[None] - sigma_B[:, None]).abs().argmin(1).clamp_max(GRID.levels - 1)
    edge_B = GRID.at(GRID.edge(place))
    return (x - TEACHER.along(x, sigma_B, edge_B)) / (sigma_B - edge_B).view(-1, 1, 1, 1, 1)


def gradient(student: Network, target: Network, places: list[int], distance: str = "square") -> Tensor:
    index_B = torch.tensor(places)
    edge_B, sigma_B = GRID.edge(index_B), GRID.at(index_B)
    x = add_noise(1 + 0.5 * torch.randn(SHAPE), torch.randn(SHAPE), sigma_B)
    velocity = student(x, sigma_B).requires_grad_()
    term = consistency(
        velocity,
        x_BCFHW=x,
        sigma_B=sigma_B,
        below_B=GRID.at(torch.minimum(index_B + 1, edge_B)),
        teacher=TEACHER,
        target=target,
        distance=distance,  # type: ignore[arg-type]
        edge_B=GRID.at(edge_B),
        name="phased_consistency",
    )
    assert term.name == "phased_consistency" and set(term.metrics) == {"phased_consistency_square"}
    (found,) = torch.autograd.grad(term.per_sample_B.sum(), velocity)
    return found


# -- levels -------------------------------------------------------------------------------------------------------


def test_the_edges_are_in_the_grid_as_they_are() -> None:
    grid, plain = GRID.sigmas.tolist(), many_step_sigmas(12, 3.0).float().tolist()
    edges = torch.tensor(EDGES).tolist()
    assert grid == sorted({*plain, *edges}, reverse=True)
    for place in range(GRID.levels):
        end = GRID.edge(torch.tensor([place]))
        assert GRID.at(end).item() == max(edge for edge in edges if edge < grid[place])


def test_an_edge_that_the_grid_has_is_there_once() -> None:
    grid = PhasedGrid(10, 1.0, (1.0, 0.7, 0.0))  # where 0.7 is 0.7000000000000001
    assert len(grid.sigmas) == 11 and torch.isin(torch.tensor(0.7), grid.sigmas).all()


def test_levels_outside_the_edges_are_not_learnt() -> None:
    upper, lower = (PhasedGrid(12, 3.0, edges) for edges in ((1.0, 0.9), (0.9, 0.0)))
    assert upper.sigmas[0] == 1 and upper.sigmas[-1] == torch.tensor(0.9) == lower.sigmas[0] and lower.sigmas[-1] == 0
    assert upper.edge(torch.arange(upper.levels)).unique().tolist() == [upper.levels]


class Numbers:
    """Integers in turn, whatever they are for."""

    def integers(self, *what: int | str, high: int) -> Tensor:
        return torch.arange(high)


def test_the_edges_are_the_students_stages_and_0_unless_others_are_named() -> None:
    stages = Stages(EDGES[:-1], (1, 1, 1, 1))
    drawn = OnPhases(12, 3.0).draw(Numbers(), stages)  # type: ignore[arg-type]
    assert drawn.sigma_B.tolist() == GRID.sigmas[:-1].tolist()
    named = PhasedConsistencyRecipe(steps=12, shift=3.0, edges=(1000, 500)).phases
    sigma_B = named.draw(Numbers(), stages).sigma_B  # type: ignore[arg-type]
    assert sigma_B.tolist() == PhasedGrid(12, 3.0, (1.0, 0.5)).sigmas[:-1].tolist()


@pytest.mark.parametrize("edges", [(1000,), (500, 900), (900, 900), (1100, 0), (1000, -1)])
def test_edges_that_do_not_fall_are_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least two and fall within 0 to 1000"):
        PhasedConsistencyRecipe(edges=edges)


EDGES_KEY = "objective.phased_consistency.edges"
HIGH_EXPERT = ("experts.train=high", "experts.high_stages=2")


@pytest.mark.parametrize(
    ("recipe", "changes", "wanted"),
    [
        ("pcm", [f"{EDGES_KEY}=[1000, 500, 0]"], r"set edges to \[1000,900,757,522,0\]$"),
        ("pcm", [f"{EDGES_KEY}=[1000, 0]"], r"set edges to \[1000,900,757,522,0\]$"),
        ("pcm", HIGH_EXPERT, r"set edges to \[1000,900,757\], or to \[1000,757\] for one phase"),
        ("dcm-semantic", [f"{EDGES_KEY}=[1000, 500]"], "edges are 1000, 500, and"),
        ("dcm-semantic", [f"{EDGES_KEY}=[950, 757]"], "edges are 950, 757, and"),
        ("dcm-semantic", [f"{EDGES_KEY}=[1000, 950]"], "edges are 1000, 950, and"),
    ],
)
def test_edges_that_the_students_steps_do_not_end_at_are_refused(recipe: str, changes: list[str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        load_recipe(recipe, changes)


def test_an_expert_may_have_a_phase_per_stage() -> None:
    recipe = load_recipe("pcm", [*HIGH_EXPERT, f"{EDGES_KEY}=[1000, 900, 757]"])
    assert [each.name for each in Method.of(recipe).terms] == ["phased_consistency"]


# -- the optimum --------------------------------------------------------------------------------------------------

PLACES = [[0, 1, 3, 5], [6, 8, 10, GRID.levels - 1]]


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("distance", ["huber", "square"])
def test_the_discrete_fixed_point_of_every_phase_has_no_gradient(places: list[int], distance: str) -> None:
    assert gradient(fixed_point, fixed_point, places, distance).abs().max() < 1e-5


def test_the_exact_path_is_not_the_fixed_point_of_a_coarse_grid() -> None:
    assert gradient(exact, exact, [2, 7, 9, 11]).abs().max() > 1e-4


def test_the_fixed_point_is_not_that_of_another_edge() -> None:
    """Its velocity leads straight to the edge; the one that leads to the clean video is another."""
    clean = lambda x, s: (x - TEACHER.clean(x, s)) / s.view(-1, 1, 1, 1, 1)  # noqa: E731
    assert gradient(clean, fixed_point, [0, 1, 3, 5]).abs().max() > 1e-4


def test_off_the_optimum_the_gradient_points_back() -> None:
    """What the student makes at the edge is too high by d: its velocity must rise, as x_e = x - (s - e) v."""
    places = torch.tensor([1, 4, 7, 9])
    down = (GRID.at(places) - GRID.at(GRID.edge(places))).view(-1, 1, 1, 1, 1)
    found = gradient(lambda x, s: fixed_point(x, s) - 0.1 / down, fixed_point, places.tolist())
    torch.testing.assert_close(found, (-2 * 0.1 * down / 24).expand(SHAPE), rtol=1e-3, atol=1e-7)


def test_training_in_closed_form_finds_the_fixed_point_and_euler_steps_sample_it() -> None:
    """A student per level, linear in x, with itself as the target."""
    weights = torch.zeros(GRID.levels, 2, requires_grad=True)  # v = a x + b per level
    optimizer = torch.optim.Adam([weights], lr=0.05)

    def student(x: Tensor, sigma: Tensor) -> Tensor:
        place = (GRID.sigmas[:-1][None] - sigma[:, None]).abs().argmin(1)
        slope, offset = (weights[place, i].view(-1, 1, 1, 1, 1) for i in range(2))
        return slope * x + offset

    generator = torch.Generator().manual_seed(0)
    for update in range(700):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / 700)
        index_B = torch.randint(GRID.levels, (64,), generator=generator)
        edge_B, sigma_B = GRID.edge(index_B), GRID.at(index_B)
        x0, eps = (torch.randn(64, 1, 1, 2, 2, generator=generator) for _ in range(2))
        x = add_noise(1 + 0.5 * x0, eps, sigma_B)
        term = consistency(
            student(x, sigma_B),
            x_BCFHW=x,
            sigma_B=sigma_B,
            below_B=GRID.at(torch.minimum(index_B + 1, edge_B)),
            teacher=TEACHER,
            target=student,
            distance="square",
            edge_B=GRID.at(edge_B),
        )
        optimizer.zero_grad()
        term.per_sample_B.mean().backward()
        optimizer.step()
    noise = torch.randn(SHAPE, generator=generator)
    found = integrate(student, noise, torch.tensor(EDGES))
    torch.testing.assert_close(found, TEACHER.clean_by_euler(noise, GRID.sigmas), rtol=0, atol=0.03)


# -- reductions ---------------------------------------------------------------------------------------------------

VALUES = ("weight=1", "guidance=5", "steps=6", "shift=3", "skip=2", "target_ema=0.9")


def trained(recipe: str, term: str) -> Cycle:
    """Two updates of a student with one stage."""
    cycle = make_cycle("rollout.timesteps=[1000]", *(f"objective.{term}.{value}" for value in VALUES), recipe=recipe)
    for update in range(2):
        cycle.run(make_batch(cycle.recipe), update_random(update))
    return cycle


def test_one_phase_is_lcm_to_the_byte() -> None:
    one = PhasedGrid(6, 3.0, (1.0, 0.0))
    assert torch.equal(one.sigmas, OnGrid(6, 3.0).sigmas(torch.arange(7)))
    lcm, pcm = trained("lcm", "consistency"), trained("pcm", "phased_consistency")
    for name, network in networks(lcm).items():
        for a, b in zip(network.parameters(), networks(pcm)[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_student_of_several_phases_is_another() -> None:
    cycle = make_cycle(recipe="pcm")
    lcm = make_cycle("objective.consistency.shift=2", "objective.consistency.target_ema=0", recipe="lcm")
    for each in (cycle, lcm):
        each.run(make_batch(each.recipe), update_random(0))
    pairs = zip(networks(cycle)["student"].parameters(), networks(lcm)["student"].parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


# -- the experts of DCM ------------------------------------------------------------------------------------------


def test_incoherence_is_the_difference_of_changes_and_blind_to_what_stands_still() -> None:
    found, wanted = torch.randn(2, 2, 3, 5, 2, 2)
    changes = [video[:, :, 2:] - video[:, :, :-2] for video in (found, wanted)]
    expected = (changes[0] - changes[1]).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(incoherence(found, wanted, 2), expected)
    assert incoherence(wanted, wanted, 2).max() == 0
    still = torch.randn(2, 3, 1, 2, 2)
    torch.testing.assert_close(incoherence(found + still, wanted, 2), expected)


def test_coherence_is_added_to_the_loss_and_its_gradient_reaches_the_student_alone() -> None:
    x, velocity = torch.randn(2, *SHAPE)
    velocity.requires_grad_()
    levels = {"sigma_B": torch.full((4,), 0.9), "below_B": torch.full((4,), 0.8), "edge_B": torch.full((4,), 0.757)}
    network = torch.nn.Conv3d(SHAPE[1], SHAPE[1], 1)
    how = {"x_BCFHW": x, "teacher": TEACHER, "target": lambda y, s: network(y), **levels}
    plain, more = (consistency(velocity, **how, coherence=c, lag=1) for c in (0.0, 2.0))
    added_B = more.per_sample_B - plain.per_sample_B
    assert added_B.min() > 0 and "consistency_incoherence" not in plain.metrics
    torch.testing.assert_close(added_B.mean().item(), 2 * more.metrics["consistency_incoherence"])
    (gradient,) = torch.autograd.grad(added_B.sum(), velocity)
    assert gradient.abs().sum() > 0 and all(p.grad is None for p in network.parameters())


def test_coherence_needs_more_latent_frames_than_its_lag() -> None:
    assert [TERM.least_frames(PhasedConsistencyRecipe(coherence=c, lag=3)) for c in (0.0, 1.0)] == [1, 4]


@pytest.mark.parametrize(
    ("name", "high", "low", "levels"),
    [
        ("dcm-semantic", 1.0, 0.757, None),
        ("dcm-detail", 0.757, 0.0, None),
        ("dcm-semantic-wan2.1-1.3b", 1.0, 0.97541, 15),
        ("dcm-detail-wan2.1-1.3b", 0.97541, 0.0, 35),
    ],
)
def test_each_expert_of_dcm_learns_its_own_phase(name: str, high: float, low: float, levels: int | None) -> None:
    section = load_recipe(name).objective.section("phased_consistency")
    assert isinstance(section, PhasedConsistencyRecipe)
    grid = section.phases.grid(())
    assert (grid.sigmas[0].item(), grid.sigmas[-1].item()) == pytest.approx((high, low))
    assert set(grid.edge(torch.arange(grid.levels)).tolist()) == {grid.levels}
    assert levels in (None, grid.levels)  # the published boundary is a level of its grid, and not one more
