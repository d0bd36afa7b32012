import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_close, regression, softmax_loss

import dflax as dx
from dflax import evaluation, participation
from dflax.running.sweep import sweep

KEY = jax.random.key(0)
TASK = regression()
FEDERATION = dx.Federation(
    TASK.data, TASK.partition, batch_size=6, local_steps=2, participation=participation.uniform(4)
)
MEASURE = evaluation.server_model(evaluation.on(softmax_loss, TASK.data))


def fedavg(rate, momentum):
    return dx.server.fedavg(softmax_loss, optax.sgd(rate), optax.sgd(1.0, momentum=momentum))


def start(algorithm, key):
    params = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(key, leaf.shape), TASK.params)
    return algorithm.init(key, params)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_each_element_equals_its_single_run(devices, caplog):
    grid = {"rate": [0.05, 0.2, 0.5], "momentum": [0.0, 0.5]}
    with jax.log_compiles():
        swept = sweep(
            fedavg,
            start,
            FEDERATION,
            grid=grid,
            seeds=3,
            key=KEY,
            rounds=5,
            evaluate=MEASURE,
            every=2,
            devices=jax.devices()[:devices],
        )
    # The points come back laid out as they went in.
    assert caplog.text.count("XLA compilation of jit(advance)") == 1
    assert list(swept.axes) == ["rate", "momentum", "seed"]
    assert swept.metrics["loss"].shape == (3, 2, 3, 5)
    assert swept.evaluations["accuracy"].shape == (3, 2, 3, 3)
    assert swept.evaluated.tolist() == [2, 4, 5]
    for i, j, s in ((0, 0, 0), (1, 1, 2), (2, 0, 1)):
        key = jax.random.fold_in(KEY, s)
        algorithm = fedavg(grid["rate"][i], grid["momentum"][j])
        state, history = dx.run(
            algorithm,
            start(algorithm, key),
            FEDERATION,
            rounds=5,
            key=key,
            evaluate=MEASURE,
            every=2,
        )
        assert_trees_close(
            jax.tree.map(lambda leaf: leaf[i, j, s], swept.states),  # noqa: B023
            state,
            rtol=1e-4,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            swept.metrics["loss"][i, j, s], history.metrics["loss"], rtol=1e-4
        )
        np.testing.assert_allclose(
            swept.evaluations["loss"][i, j, s], history.evaluations["loss"], rtol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("make", [dx.decentralized.dfedavg, dx.decentralized.dpsgd])
def test_decentralized_algorithms_sweep_as_well(make):
    mixer = dx.gossip.ring(8)

    def algorithm_at(rate):
        return make(softmax_loss, optax.sgd(rate, momentum=0.9), mixer)

    swept = sweep(algorithm_at, start, FEDERATION, grid={"rate": [0.1, 0.3]}, key=KEY, rounds=3)
    algorithm, key = algorithm_at(0.3), jax.random.fold_in(KEY, 0)
    state, _ = dx.run(algorithm, start(algorithm, key), FEDERATION, rounds=3, key=key)
    assert_trees_close(
        jax.tree.map(lambda leaf: leaf[1, 0], swept.states.clients.params),
        state.clients.params,
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_table_has_a_row_per_point_with_the_spread_over_seeds():
    swept = sweep(
        fedavg,
        start,
        FEDERATION,
        grid={"rate": [0.1, 0.3], "momentum": [0.5]},
        seeds=2,
        key=KEY,
        rounds=2,
        evaluate=MEASURE,
    )
    rows = swept.table()
    assert [row["rate"] for row in rows] == [0.1, 0.3]
    last = swept.evaluations["accuracy"][1, 0, :, -1]
    np.testing.assert_allclose(rows[1]["mean accuracy"], last.mean(), rtol=1e-6)
    np.testing.assert_allclose(rows[1]["std accuracy"], last.std(), atol=1e-7)


def table_of(evaluations, metrics=None):
    """The table of a sweep over two rates and three seeds that measured this."""
    axes = {"rate": np.array([0.1, 0.3]), "seed": np.arange(3)}
    metrics = {} if metrics is None else metrics
    return dx.Sweep(axes, metrics, np.array([4]), evaluations, None, 0.0, 0.0).table()


def test_no_column_of_the_table_hides_another():
    values = np.arange(6.0).reshape(2, 3, 1)
    # A spread over clients, a metric of the name of what is swept, and one of a composed name.
    row = table_of(
        {"loss": values, "loss_std": 10 * values, "rate": -values, "std loss": 5 + 0 * values}
    )[1]
    assert row["rate"] == 0.3
    assert (row["mean loss"], row["mean loss_std"], row["mean rate"]) == (4.0, 40.0, -4.0)
    np.testing.assert_allclose(row["std loss"], np.std([3, 4, 5]))
    np.testing.assert_allclose(row["std loss_std"], 10 * np.std([3, 4, 5]))
    assert (row["mean std loss"], row["std std loss"]) == (5.0, 0.0)


def test_the_table_keeps_arrays_and_metrics_within_metrics():
    values = np.arange(24.0).reshape(2, 3, 1, 4)
    rows = table_of({"per_client": values, "outer": {"inner": values[..., 0]}})
    np.testing.assert_array_equal(rows[0]["mean per_client"], values[0, :, 0].mean(0))
    np.testing.assert_array_equal(rows[1]["std per_client"], values[1, :, 0].std(0))
    assert rows[1]["mean outer/inner"] == values[1, :, 0, 0].mean()


def test_the_table_refuses_paths_that_read_the_same():
    values = np.zeros((2, 3, 1))
    with pytest.raises(ValueError, match="names of their own, got 'a/b' from both"):
        table_of({"a": {"b": values}, "a/b": values})


def test_the_table_of_no_rounds_has_the_swept_values_alone():
    assert table_of({}, {"loss": np.zeros((2, 3, 0))}) == [{"rate": 0.1}, {"rate": 0.3}]


def own_splits(seeds):
    generator = np.random.default_rng(3)
    lists = [
        np.split(generator.permutation(240), [10 * s + 20, 60, 90, 120, 150, 180, 210])
        for s in range(seeds)
    ]
    return [FEDERATION.replace(partition=dx.data.from_indices(own)) for own in lists]


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_seeds_run_on_splits_of_their_own(devices):
    sources = own_splits(2)
    assert sources[0].largest != sources[1].largest
    swept = sweep(
        fedavg,
        start,
        sources=sources,
        grid={"rate": [0.05, 0.5], "momentum": [0.5]},
        key=KEY,
        rounds=4,
        evaluate=MEASURE,
        devices=jax.devices()[:devices],
    )
    assert swept.axes["seed"].tolist() == [0, 1]
    for seed, source in enumerate(sources):
        key = jax.random.fold_in(KEY, seed)
        algorithm = fedavg(0.5, 0.5)
        state, history = dx.run(
            algorithm, start(algorithm, key), source, rounds=4, key=key, evaluate=MEASURE
        )
        assert_trees_close(
            jax.tree.map(lambda leaf: leaf[1, 0, seed], swept.states),  # noqa: B023
            state,
            rtol=1e-4,
            atol=1e-5,
        )
        found = swept.evaluations["loss"][1, 0, seed]
        np.testing.assert_allclose(found, history.evaluations["loss"], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {}}, "grid must name at least one hyper-parameter"),
        ({"grid": {"rate": []}}, r"grid\['rate'\] must be an array of at least one number"),
        ({"grid": {"rate": [0.1, jnp.nan]}}, r"grid\['rate'\] must be a finite number"),
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"key": 1}, "key must be one typed JAX key, got 1"),
        ({"rounds": -1}, "rounds must be an integer >= 0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"grid": {"rate": [0.1], "momentum": [0.0]}, "key": KEY, "rounds": 1} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(fedavg, start, FEDERATION, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [("rate", 0.1)]}, "grid must be of type Mapping, not list"),
        ({"grid": {"typo": [0.1]}}, r"grid must name the arguments of factory\(rate, momentum\)"),
        ({"grid": {"seed": [0.1]}}, 'grid must not name "seed"'),
        ({"grid": {"mean loss": [0.1]}}, "grid must name arguments.*identifiers, got 'mean loss'"),
        ({"source": None}, "give exactly one of source and sources, got neither"),
        ({"sources": [FEDERATION]}, "give exactly one of source and sources, got both"),
        ({"source": None, "sources": []}, "sources must list at least one source, got none"),
        ({"source": None, "sources": FEDERATION}, "sources must be of type Sequence"),
        (
            {"source": None, "sources": [FEDERATION, 3]},
            r"sources\[1\] must have a method draw.*got int",
        ),
        (
            {"source": None, "sources": [FEDERATION], "seeds": 2},
            "seeds must be the number of sources, 1, got 2",
        ),
        ({"devices": []}, "devices must list at least one device, got none"),
        ({"devices": 3}, "devices must be of type Sequence, not int, got 3"),
        ({"devices": ["a"]}, r"devices\[0\] must be of type Device, not str"),
        ({"source": 3}, "source must have a method draw.*got int"),
        ({"evaluate": 3}, "evaluate must be a function, got 3"),
        ({"every": 2}, "every needs evaluate, got every=2"),
        ({"rounds": -1}, "rounds must be an integer >= 0, got -1"),
        ({"factory": lambda rate, momentum: 3}, "what factory returns must be of type Algorithm"),
        ({"nope": 3}, "nope is no option of a sweep, got 3. Allowed are progress"),
        ({"mesh": 3}, "mesh is no option of a sweep.*not the clients.*pass devices"),
        ({"donate": True}, "donate is no option of a sweep.*always donates"),
    ],
)
def test_what_does_not_fit_a_sweep_is_refused(changes, message):
    arguments = {"factory": fedavg, "source": FEDERATION, "rounds": 1, "key": KEY}
    arguments |= {"grid": {"rate": [0.1], "momentum": [0.0]}} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(arguments.pop("factory"), start, arguments.pop("source"), **arguments)


@pytest.mark.slow
def test_a_sweep_goes_on_from_its_checkpoint(tmp_path):
    settings = {"grid": {"rate": [0.1, 0.2], "momentum": [0.0]}, "key": KEY}
    settings["devices"] = jax.devices()[:1]
    whole = sweep(fedavg, start, FEDERATION, rounds=4, **settings)
    sweep(fedavg, start, FEDERATION, rounds=2, checkpoint=tmp_path, **settings)
    again = sweep(fedavg, start, FEDERATION, rounds=4, checkpoint=tmp_path, **settings)
    np.testing.assert_array_equal(again.metrics["loss"], whole.metrics["loss"])
