import sys

import numpy as np
import pytest

import dflax as dx
from dflax.topology import given_rates, optimal_rates, switching, switching_graphs, uniform_rates


def barbell(half):
    clique = [(i, j) for i in range(half) for j in range(i)]
    other = [(i + half, j + half) for i, j in clique]
    return dx.topology.from_edges(2 * half, np.array([*clique, *other, (half - 1, half)]))


def grid(rows, columns):
    points = np.arange(rows * columns).reshape(rows, columns)
    across = np.stack([points[:, :-1], points[:, 1:]], -1).reshape(-1, 2)
    down = np.stack([points[:-1], points[1:]], -1).reshape(-1, 2)
    return dx.topology.from_edges(rows * columns, np.concatenate([across, down]))


TOTALS = {
    "star": (dx.topology.star(8), 7.0, 7.0),
    "path": (dx.topology.path(8), 17.9404, 17.9404),
    "ring": (dx.topology.ring(8), 9.7774, 9.7774),
    "complete": (dx.topology.complete(6), 3.5355, 3.5355),
    "barbell": (barbell(4), 21.8418, 13.2054),
    "grid": (grid(3, 3), 10.0995, 9.8337),
}


@pytest.mark.parametrize("name", list(TOTALS))
def test_solved_programs_have_the_known_totals(name):
    graph, uniform, optimal = TOTALS[name]
    assert uniform_rates(graph).total == pytest.approx(uniform, abs=1e-4)
    solved = optimal_rates(graph)
    assert solved.total == pytest.approx(optimal, abs=1e-3)
    assert 2 * solved.chi_1 * solved.chi_2 == pytest.approx(1.0, abs=1e-9)
    assert solved.admissible
    # Foster, and chi_2 <= chi_1.
    resistances = dx.topology.effective_resistances(graph, solved.rates[0])
    assert resistances @ solved.rates[0] == pytest.approx(graph.nodes - 1)
    assert solved.chi_2 <= solved.chi_1 + 1e-12


def test_the_relaxation_is_between_the_exact_program_and_uniform_rates():
    assert optimal_rates(barbell(4), relaxed=True).total == pytest.approx(16.17, abs=0.01)
    # On the path it would communicate more than uniform rates do (22.45), which are then taken.
    assert optimal_rates(dx.topology.path(8), relaxed=True).total == pytest.approx(
        17.9404, abs=1e-3
    )


def test_random_admissible_rates_are_never_below_the_optimum():
    graph = grid(2, 3)
    best = optimal_rates(graph).total
    generator = np.random.default_rng(0)
    for _ in range(200):
        rates = generator.exponential(size=len(graph.links)) + 1e-3
        assert given_rates(graph, rates).scaled().total >= best * (1 - 1e-6)


def test_switching_takes_the_worst_phase():
    star, ring = uniform_rates(dx.topology.star(8)), uniform_rates(dx.topology.ring(8))
    both = switching([star, ring])
    assert both.chi_1 == max(star.chi_1, ring.chi_1)
    assert both.chi_2 == max(star.chi_2, ring.chi_2)
    assert both.dwell == pytest.approx(1 / both.chi_1)
    assert both.total == pytest.approx((star.total + ring.total) / 2)
    assert both.scaled().admissible


def test_graphs_that_only_connect_over_a_period():
    halves = [
        dx.topology.from_edges(4, np.array(edges), disconnected=True)
        for edges in ([(0, 1), (2, 3)], [(1, 2), (3, 0)])
    ]
    rates = switching_graphs(halves, dwell=0.1)
    # Every link is there half of the time: at twice the rate it is the ring.
    whole = uniform_rates(dx.topology.ring(4))
    np.testing.assert_allclose(rates.rates[0], 2 * whole.rates[0][0])
    assert rates.total == pytest.approx(whole.total)
    assert rates.admissible
    with pytest.raises(ValueError, match=r"union of 1 graphs over a period must be connected"):
        switching_graphs(halves[:1], dwell=0.1)
    with pytest.raises(ValueError, match="graphs must be of one size"):
        switching_graphs([*halves, dx.topology.ring(5)], dwell=0.1)


def test_bad_rates_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="must be connected"):
        uniform_rates(dx.topology.from_edges(4, np.array([(0, 1), (2, 3)]), disconnected=True))
    with pytest.raises(ValueError, match="rates must be a finite number"):
        given_rates(dx.topology.ring(4), -1.0)
    with pytest.raises(ValueError, match="phases must be a list of at least one"):
        switching([])
    with pytest.raises(ValueError, match="same number of nodes"):
        switching([uniform_rates(dx.topology.ring(4)), uniform_rates(dx.topology.ring(5))])
    with pytest.raises(ValueError, match="dwell"):
        switching([uniform_rates(dx.topology.ring(4))], dwell=0.0)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"pip install dflax\[rates\]"):
        optimal_rates(dx.topology.ring(4))
