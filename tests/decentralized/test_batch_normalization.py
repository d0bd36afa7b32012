"""Models with batch normalisation in methods that average: who warns, who refuses, who trains them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close, regression

import dflax as dx
from dflax import decentralized, evaluation, gossip, matching, server, topology

KEY = jax.random.key(0)
N = 8
TASK = regression(N)


class Normed(nn.Module):
    """Inputs under batch normalisation, then a softmax regression."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.7)(x))


MODULE = Normed()
# Far from mean 0 and variance 1, so that a model with statistics that did not move is near chance.
DATA = dx.data.Dataset(4.0 * TASK.data.inputs + 20.0, TASK.data.labels, classes=3)
VARIABLES = jax.jit(MODULE.init)(KEY, DATA.example)
LOSS = dx.losses.classification(MODULE)
SGD = dx.models.with_statistics(optax.sgd(0.2))
RING = gossip.ring(N)
FEDERATION = dx.Federation(DATA, TASK.partition, batch_size=8, local_steps=5)
AFRESH = gossip.recalibrated(RING, MODULE, batches=2, batch_size=16)
NEIGHBOURS = gossip.mixer(
    topology.ring(N), weights=functools.partial(topology.uniform, self_weight=0.0)
)


def end(algorithm, rounds):
    state = algorithm.init(KEY, VARIABLES)
    rollout = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
    return rollout(state, FEDERATION, KEY)[0]


METHODS = {
    "dpsgd": lambda: decentralized.dpsgd(LOSS, SGD, RING),
    "dfedavg": lambda: decentralized.dfedavg(LOSS, SGD, RING),
    "combine first": lambda: decentralized.dfedavg(
        LOSS, SGD, RING, order=decentralized.Order.COMBINE_THEN_ADAPT
    ),
    "dfedsam": lambda: decentralized.dfedsam(LOSS, SGD, RING, gossip_steps=2),
    "dfedadmm": lambda: decentralized.dfedadmm(LOSS, SGD, RING),
    "dispfl": lambda: decentralized.dispfl(LOSS, SGD, RING, rounds=5),
    "single merging": lambda: decentralized.single_merging(LOSS, SGD, N),
    "sgp": lambda: decentralized.sgp(LOSS, SGD, topology.ring(N)),
    "gossip learning": lambda: decentralized.gossip_learning(LOSS, SGD, N),
    "variance corrected": lambda: decentralized.dfedavg(
        LOSS, SGD, gossip.variance_corrected(NEIGHBOURS)
    ),
    "alternating": lambda: decentralized.dfedavg(LOSS, SGD, gossip.alternate([RING, AFRESH])),
    "modest": lambda: decentralized.modest(LOSS, SGD, clients=N, sample=4),
    "fedavg": lambda: server.fedavg(LOSS, SGD),
    "fedprox": lambda: server.fedprox(LOSS, SGD, pull=0.5),
    "fedadmm": lambda: server.fedadmm(LOSS, SGD, N),
    "scaffold": lambda: server.scaffold(LOSS, SGD, N),
}
# Those whose messages are not models alone, or go through no mixer.
NO_MIXER = {"dispfl", "gossip learning", "modest", "fedavg", "fedprox", "fedadmm"}
NO_MIXER |= {"scaffold"}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", METHODS)
def test_averaged_statistics_are_warned_of_once_at_the_start(name):
    algorithm = METHODS[name]()
    with pytest.warns(dx.models.AveragedStatistics, match="GroupNorm") as seen:
        algorithm.init(KEY, VARIABLES)
    (warning,) = seen
    assert warning.filename == __file__
    assert ("gossip.recalibrated" in str(warning.message)) == (name not in NO_MIXER)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: decentralized.dsgt(LOSS, 0.1, RING), ()),
        (lambda: server.fedpage(LOSS, 0.1, 0.5), ()),
        (lambda: server.bvr_l_sgd(LOSS, SGD, 2), ()),
        (lambda: server.mimelite(LOSS, optax.sgd(0.1)), ()),
        (
            lambda: server.fedamd(LOSS, SGD, server.anchors.constant(0.5)),
            (dx.replicate(VARIABLES, N),),
        ),
    ],
)
def test_methods_of_gradients_of_several_models_refuse_statistics(make, given):
    with pytest.raises(ValueError, match=r"params must hold no running statistics.*GroupNorm"):
        make().init(KEY, VARIABLES, *given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: decentralized.dfedavg(LOSS, SGD, AFRESH),
        lambda: decentralized.dfedadmm(LOSS, SGD, AFRESH),
        lambda: decentralized.dfedsam(LOSS, SGD, AFRESH, gossip_steps=2),
        lambda: decentralized.dfedavg(
            LOSS, SGD, gossip.recalibrated(gossip.variance_corrected(NEIGHBOURS), MODULE)
        ),
        lambda: server.partial_averaging(LOSS, SGD, local=server.normalization, clients=N),
    ],
)
def test_where_they_are_estimated_afresh_or_stay_nothing_is_said(make):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        state = make().init(KEY, VARIABLES)
    assert not [str(warning.message) for warning in said]
    assert state.round == 0


@pytest.mark.parametrize("make", [decentralized.dfedavg, server.fedavg])
def test_models_without_statistics_are_none_of_this(make):
    given = (RING,) if make is decentralized.dfedavg else ()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make(LOSS, optax.sgd(0.1), *given).init(KEY, VARIABLES["params"])
    assert not [str(warning.message) for warning in said]


def test_a_mean_model_is_warned_of_when_traced_unless_it_is_recalibrated():
    state = dx.FederatedState(jnp.int32(0), (), decentralized.Clients(dx.replicate(VARIABLES, N)))
    measure = evaluation.on(LOSS, DATA)
    evaluate = jax.jit(evaluation.mean_model(measure))
    with pytest.warns(dx.models.AveragedStatistics, match=r"evaluation\.recalibrated"):
        evaluate(state)
    afresh = evaluation.mean_model(evaluation.recalibrated(measure, MODULE, DATA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(state)
        found = jax.jit(lambda evaluate, state: evaluate(state))(afresh, state)
    assert np.isfinite(found["mean_model_loss"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dflax.models.AveragedStatistics")
@pytest.mark.parametrize(
    "make",
    [
        lambda: decentralized.dfedadmm(LOSS, SGD, RING),
        lambda: decentralized.dfedadmm(LOSS, SGD, AFRESH),
        lambda: decentralized.dfedadmm_sam(LOSS, SGD, RING, radius=0.05),
        lambda: server.fedprox(LOSS, SGD, pull=4.0),
        lambda: server.fedadmm(LOSS, SGD, N, pull=4.0),
        lambda: server.feddyn(LOSS, SGD, N, pull=4.0),
        lambda: server.fedspeed(LOSS, SGD, N),
        lambda: server.fednova(LOSS, SGD, pull=4.0),
    ],
)
def test_pulls_and_duals_train_the_weights_and_let_statistics_follow_the_data(make):
    """The pull times the statistics' rate 1 is beyond 1 for some: it must not reach them."""
    state = end(make(), 30)
    if hasattr(state.clients, "params"):
        measured = evaluation.client_models(evaluation.on(LOSS, DATA))(state)
        statistics = state.clients.params["batch_stats"]["BatchNorm_0"]
    else:
        measured = evaluation.server_model(evaluation.on(LOSS, DATA))(state)
        statistics = state.server.params["batch_stats"]["BatchNorm_0"]
    assert measured["accuracy"] > 0.85
    np.testing.assert_allclose(statistics["mean"], np.full_like(statistics["mean"], 20), atol=2.5)
    assert (np.asarray(statistics["var"]) > 4).all()


@pytest.mark.filterwarnings("ignore::dflax.models.AveragedStatistics")
def test_statistics_of_one_round_of_dfedadmm_are_those_of_dfedavg():
    """With K = 1 the dual moves weights alone; the second round starts from a dual that is not 0."""
    once = dx.Federation(DATA, TASK.partition, batch_size=8, local_steps=1)
    ends = []
    for algorithm in (
        decentralized.dfedadmm(LOSS, SGD, RING),
        decentralized.dfedavg(LOSS, SGD, RING),
    ):
        state, step = algorithm.init(KEY, VARIABLES), jax.jit(algorithm.step)
        for t in range(2):
            state, _ = step(state, once.draw(KEY, t))
        ends.append(state.clients.params["batch_stats"])
    # The inputs' own statistics do not depend on the weights.
    assert_trees_close(*ends, rtol=1e-5)


UNITS = {"a": [("Dense_0/bias", 0), ("Dense_1/kernel", 0)]}
ALIGNED = gossip.aligned(topology.ring(N), matching.by_weights(UNITS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: decentralized.dsgt(LOSS, 0.1, AFRESH),
            "gradient tracking mixes trackers.*GroupNorm",
        ),
        (
            lambda: decentralized.dispfl(LOSS, SGD, AFRESH, rounds=5),
            "DisPFL mixes masks.*models.recalibrate",
        ),
        (
            lambda: decentralized.dispfl(LOSS, SGD, ALIGNED, rounds=5),
            "DisPFL mixes masks.*models.recalibrate",
        ),
        (
            lambda: gossip.variance_corrected(AFRESH),
            r"inside, recalibrated\(variance_corrected\(mixer\), module\)",
        ),
        (lambda: gossip.variance_corrected(ALIGNED), "gossip.aligned takes none"),
        (
            lambda: gossip.variance_corrected(gossip.anchored(RING, matching.by_weights(UNITS))),
            r"anchored\(variance_corrected\(mixer\), matching\)",
        ),
        (lambda: gossip.sampled(AFRESH, 0.5), r"recalibrated\(sampled\(mixer, share\), module\)"),
        (
            lambda: AFRESH.init({"model": dx.replicate(VARIABLES, N), "tracker": jnp.ones((N, 2))}),
            r"models must be mixed alone.*dict of \['model', 'tracker'\].*outermost",
        ),
    ],
)
def test_mixers_of_whole_models_refuse_what_is_mixed_beside_them(make, message):
    with pytest.raises(ValueError, match=message):
        make()
