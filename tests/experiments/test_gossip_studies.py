"""The studies of the gossip family: their runs are runs of the algorithms, and their claims can fail."""

import jax
import numpy as np
import optax
import pytest

import dflax as dx
from dflax import evaluation
from experiments.studies.decentralized import dfedadmm, dfedsam
from experiments.tasks.paired import Paired, label_priors
from experiments.tools.curves import around, first_round, rounds_to

DATA = dx.data.digits()
LABELS = np.asarray(DATA.labels)


def test_label_priors_deal_so_many_examples_by_a_law_of_the_clients_own():
    partition = label_priors(LABELS, 6, 0.1, 40, seed=3)
    np.testing.assert_array_equal(partition.sizes, 40)
    counts = np.stack([np.bincount(LABELS[own], minlength=10) for own in partition.as_lists()])
    assert (counts.max(1) > 15).any()
    even = label_priors(LABELS, 6, 1000.0, 40, seed=3)
    counts = np.stack([np.bincount(LABELS[own], minlength=10) for own in even.as_lists()])
    assert counts.max() < 15


@pytest.mark.slow
def test_a_paired_run_is_the_algorithms_own():
    splits = [label_priors(LABELS, 4, 0.5, 20, seed) for seed in (0, 1)]
    paired = Paired(
        DATA,
        splits,
        [0, 1],
        dx.models.MLP((), classes=10),
        local_steps=2,
        batch_size=4,
        rounds=4,
        tail=2,
        examples=60,
    )

    def factory(rate):
        return dx.decentralized.dfedavg(paired.loss, optax.sgd(rate), dx.gossip.ring(4))

    found = paired.run(factory, (0.0, 0.3))
    assert found["mean model"].shape == (2, 2, 4)
    key = jax.random.key(1)
    algorithm = factory(0.3)
    source = dx.Federation(DATA, splits[1], local_steps=2, batch_size=4, replacement=True)
    state = algorithm.init(key, paired.start(jax.random.fold_in(key, 0xFFFFFFFE)))
    state, history = dx.run(
        algorithm,
        state,
        source,
        rounds=4,
        key=key,
        every=1,
        evaluate=evaluation.together(paired.mean_model, paired.client_models, evaluation.consensus),
    )
    seen = history.evaluations
    np.testing.assert_allclose(found["mean model"][1, 1], seen["mean_model_accuracy"], atol=0.02)
    np.testing.assert_allclose(found["local"][1, 1], seen["accuracy"][2:].mean(), atol=0.02)
    np.testing.assert_allclose(
        found["distance"][1, 1] ** 2, seen["consensus_distance"], rtol=1e-2, atol=1e-5
    )


def test_rounds_to_a_bar():
    curve = np.array([[0.1, 0.9, 0.8, 0.7, 0.9], [0.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(rounds_to(curve, 0.75), [4, np.inf])
    curves = np.array([[0.0, 0.9, 0.0, 0.9, 0.9, 0.9], [0.0] * 6, [1.0] * 6])
    np.testing.assert_array_equal(rounds_to(curves, 0.9), [6, np.inf, 3])
    np.testing.assert_array_equal(first_round(curves >= 0.9), [2, 7, 1])


def test_accuracy_at_a_round_is_a_mean_up_to_it():
    np.testing.assert_allclose(around(np.arange(10.0)[None], 8, 3), [6.0])


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    config = dfedadmm.Config(seeds=2, alphas=(0.1,), rounds=50)

    def curve(pace, local):
        ramp = np.minimum(1.0, np.arange(50) / pace)
        return {"mean model": np.stack([ramp, ramp]), "local": np.full(2, local)}

    found = {"DFedAvg": curve(30, 0.8)}
    for value, pace, local in ((0.3, 45, 0.7), (1.0, 25, 0.82), (3.0, 15, 0.83), (10.0, 15, 0.84)):
        found[f"DFedADMM, lambda {value:g}"] = curve(pace if good else 30, local if good else 0.8)
    for value in (1, 3):
        admm = found[f"DFedADMM, lambda {value}"]
        found[f"DFedADMM-SAM, lambda {value}"] = admm | {
            "local": admm["local"] + (0.01 if good else -0.02)
        }
    claims = dfedadmm.digits_claims(found, config)
    assert [claim.holds for claim in claims] == [good] * len(claims)

    sweep = {}
    for place, steps in enumerate(dfedsam.STEPS):
        for rho in (0.0, 0.2):
            local = 0.7 + 0.06 * place + 0.1 * rho if good else 0.7 - 0.1 * rho
            sweep["ring", steps, rho] = {"local": np.full(2, local)}
    gaps = {"ring": 0.1, "complete": 1.0}
    for rho in (0.0, 0.2):
        sweep["complete", 1, rho] = {"local": np.full(2, 0.9 if good else 0.1)}
    claims = dfedsam.all_claims(sweep, gaps, dfedsam.Config())
    assert [claim.holds for claim in claims] == [good] * len(claims)
