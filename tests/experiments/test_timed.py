"""The studies of servers that do not wait: their runs, what is read off them, claims that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import dflax as dx
from dflax import asynchronous
from experiments.studies.asynchronous import _fedfix_digits, anarchic, fedcompass
from experiments.tasks import timed
from experiments.tools.curves import held, seconds_to, span
from experiments.tools.report import Report


def test_values_hold_until_the_next_and_targets_are_reached_in_seconds():
    times = np.array([[0.0, 1.0, 2.5], [0.0, 2.0, 2.0]])
    values = np.array([[5.0, 6.0, 7.0], [1.0, 2.0, 3.0]])
    at = np.array([0.0, 1.0, 2.0, 9.0])
    np.testing.assert_array_equal(held(times, values, at), [[5, 6, 6, 7], [1, 1, 3, 3]])
    np.testing.assert_array_equal(seconds_to(times, values >= 6), [1.0, np.inf])
    assert span(np.array([1.0, 2.0]), 1) == "1.5 (1.0 to 2.0)"


def test_classes_are_dealt_evenly():
    labels = np.repeat(np.arange(10), 31)
    partition = timed.with_classes(labels, 10, 3, seed=1)
    np.testing.assert_array_equal(partition.sizes, 30)
    owned = partition.as_lists()
    assert [len(np.unique(labels[rows])) for rows in owned] == [3] * 10
    assert len(np.unique(np.concatenate(owned))) == 300
    with pytest.raises(
        ValueError, match="classes must let 3 clients share 10 classes evenly, got 2"
    ):
        timed.with_classes(labels, 3, 2, seed=1)


@pytest.mark.slow
def test_what_is_followed_is_the_run_of_its_seed_over_its_own_timetable():
    draws = [np.array([1.0, 0.4, 0.7]), np.array([0.5, 0.9, 0.3])]
    tables = [asynchronous.immediate(times, 4.0, local_steps=2) for times in draws]
    source = timed.quadratics(np.arange(3.0), 2)
    found = timed.follow(
        timed.plain(dx.data.quadratic_loss),
        [source] * 2,
        tables,
        lambda key: jnp.ones(1),
        Partial(timed.distance),
        [0.05, 0.1],
    )
    assert found["model"].shape == found["time"].shape
    cut = asynchronous.waves(tables[1], 3)
    algorithm = asynchronous.asynchronous_server(dx.data.quadratic_loss, optax.sgd(0.1), cut)
    key = jax.random.key(7)
    _, history = dx.run(
        algorithm,
        algorithm.init(key, jnp.ones(1)),
        asynchronous.join(source, cut),
        rounds=cut.rounds,
        key=key,
        evaluate=lambda state: {"model": state.server.params[0]},
        every=2,
    )
    np.testing.assert_array_equal(
        history.at("time"), history.metrics["time"][history.evaluated - 1]
    )
    with pytest.raises(
        ValueError, match=r"name must be one of the metrics .*'time'.*, got 'seconds'"
    ):
        history.at("seconds")
    model, time = found["model"][1, 1], found["time"][1, 1]
    assert model[0] == 1.0
    np.testing.assert_allclose(model[history.evaluated], history.evaluations["model"], rtol=1e-6)
    np.testing.assert_allclose(time[history.evaluated], history.at("time"))


@pytest.mark.parametrize("good", [True, False])
def test_claims_on_digits_can_fail(good):
    half = np.array([False, True])
    level = {"asynchronous, identical": 0.02, "asynchronous, weighted": 0.004 if good else 0.05}
    found = {}
    for method, rates in _fedfix_digits.RATES.items():
        for rate in rates:
            unstable = rate == 0.02 and method in level
            excess = 0.9 if unstable and good else level.get(method, rate / 3)
            found[f"{method}, rate {rate}"] = {
                "excess": np.full((2, 2), excess),
                "surrogate": np.full((2, 2), 0.001 if "identical" in method else 0.01 * good),
                "reached": np.full(2, {"FedAvg": 50.0, "FedFix 0.5": 25.0}.get(method, 10.0)),
            }
    if not good:
        found["FedAvg, rate 0.1"]["reached"] = np.full(2, 20.0)
        found["FedFix 0.2, rate 0.1"]["reached"] = np.full(2, 30.0)
    report = Report()
    _fedfix_digits.judge(report, found, half)
    assert [claim.holds for claim in report.claims] == [good] * 5


@pytest.mark.parametrize("good", [True, False])
def test_claims_on_anarchy_can_fail(good):
    def quantities(loss, gradient, rare):
        return {
            "loss": np.full(3, loss),
            "gradient": np.full(3, gradient),
            "rare": np.full(3, rare),
        }

    without = quantities(0.7, 0.17, 0.6)
    last = {}
    for rate in anarchic.SERVER_RATES:
        last["FedAvg", False, rate] = quantities(0.24, 0.01, 0.9)
        for law in anarchic.ARRIVALS:
            last[law, True, rate] = quantities(0.24, 0.002, 0.95) if good else without
            last[law, False, rate] = without
        if good:
            last["uniform", False, rate] = quantities(0.24, 0.01, 0.9)
    report = Report()
    anarchic.judge(report, last)
    assert [claim.holds for claim in report.claims] == [good] * 5


def test_the_scheduler_alone_bears_its_claims_out():
    summary = fedcompass.scheduler(fedcompass.Config(draws=1))
    assert [claim.holds for claim in summary.claims] == [True] * 4
    assert set(summary.methods) == {"5 clients", "10 clients", "20 clients"}
