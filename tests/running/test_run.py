import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import (
    assert_trees_equal,
    quadratics,
    regression,
    softmax_loss,
)

import dflax as dx
from dflax import evaluation, participation, sinks

KEY = jax.random.key(0)


class Models(NamedTuple):
    params: jax.Array


@pytest.fixture(scope="module")
def setting():
    task = regression()
    federation = dx.Federation(
        task.data,
        task.partition,
        batch_size=6,
        local_steps=2,
        participation=participation.uniform(4),
    )
    algorithm = dx.server.fedavg(softmax_loss, optax.sgd(0.3), optax.adam(0.05))
    return task, federation, algorithm, algorithm.init(KEY, task.params)


def test_chunks_never_change_results(setting):
    _, federation, algorithm, state = setting
    ends, histories = [], []
    for chunk in (1, 4, 7, None):
        end, history = dx.run(
            algorithm, state, federation, rounds=17, key=KEY, chunk=chunk, progress=False
        )
        ends.append(end)
        histories.append(history)
    for end, history in zip(ends[1:], histories[1:], strict=True):
        assert_trees_equal(end, ends[0])
        assert_trees_equal(history.metrics, histories[0].metrics)
    assert histories[0].rounds.tolist() == list(range(1, 18))


def test_two_runs_equal_one_twice_as_long(setting):
    _, federation, algorithm, state = setting
    whole, history = dx.run(algorithm, state, federation, rounds=10, key=KEY)
    half, first = dx.run(algorithm, state, federation, rounds=5, key=KEY)
    end, second = dx.run(algorithm, half, federation, rounds=5, key=KEY)
    assert_trees_equal(end, whole)
    np.testing.assert_array_equal(
        np.concatenate([first.metrics["loss"], second.metrics["loss"]]), history.metrics["loss"]
    )
    assert second.rounds.tolist() == [6, 7, 8, 9, 10]


def test_a_run_equals_its_rollout(setting):
    _, federation, algorithm, state = setting
    end, history = dx.run(algorithm, state, federation, rounds=6, key=KEY)
    rolled, metrics = jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, 6))(state, federation)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, rolled)
    np.testing.assert_allclose(history.metrics["loss"], metrics["loss"], rtol=1e-5)


def test_evaluation_follows_its_schedule_and_the_last_round(setting):
    task, federation, algorithm, state = setting
    measure = evaluation.server_model(evaluation.on(softmax_loss, task.data, batch_size=100))
    end, history = dx.run(
        algorithm, state, federation, rounds=8, key=KEY, evaluate=measure, every=3
    )
    assert history.evaluated.tolist() == [3, 6, 8]
    expected = softmax_loss(end.server.params, task.data.fetch(jnp.arange(240)), None)[1]
    np.testing.assert_allclose(history.evaluations["accuracy"][-1], expected["accuracy"], rtol=1e-5)
    third, _ = dx.run(algorithm, state, federation, rounds=3, key=KEY)
    np.testing.assert_allclose(history.evaluations["loss"][0], measure(third)["loss"], rtol=1e-5)
    _, last = dx.run(algorithm, state, federation, rounds=8, key=KEY, evaluate=measure)
    assert last.evaluated.tolist() == [8]
    np.testing.assert_allclose(last.evaluations["loss"], history.evaluations["loss"][-1:])


def test_the_callers_state_survives_unless_it_is_given_away(setting):
    _, federation, algorithm, state = setting
    dx.run(algorithm, state, federation, rounds=2, key=KEY)
    assert np.isfinite(np.asarray(state.server.params["w"])).all()
    given = jax.tree.map(jnp.copy, state)
    dx.run(algorithm, given, federation, rounds=2, key=KEY, donate=True)
    assert given.server.params["w"].is_deleted()


def test_no_rounds_change_nothing(setting):
    _, federation, algorithm, state = setting
    end, history = dx.run(algorithm, state, federation, rounds=0, key=KEY)
    assert_trees_equal(end, state)
    assert len(history.rounds) == 0
    assert history.metrics["loss"].shape == (0,)


def test_memory_does_not_grow_with_the_number_of_rounds(setting):
    _, federation, algorithm, state = setting

    def live():
        return sum(array.nbytes for array in jax.live_arrays())

    dx.run(algorithm, state, federation, rounds=5, key=KEY, chunk=5)
    before = live()
    end, _ = dx.run(algorithm, state, federation, rounds=5, key=KEY, chunk=5)
    short = live() - before
    del end
    _ = dx.run(algorithm, state, federation, rounds=400, key=KEY, chunk=5)
    assert live() - before == short


def test_sinks_receive_every_round_once(setting, tmp_path):
    task, federation, algorithm, state = setting
    measure = evaluation.server_model(evaluation.on(softmax_loss, task.data))
    path = tmp_path / "logs" / "metrics.jsonl"
    _, history = dx.run(
        algorithm,
        state,
        federation,
        rounds=7,
        key=KEY,
        chunk=3,
        evaluate=measure,
        every=4,
        sinks=[sinks.jsonl(path), sinks.tensorboard(tmp_path / "board")],
    )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, 8))
    np.testing.assert_allclose([row["loss"] for row in rows], history.metrics["loss"], rtol=1e-6)
    evaluated = [row["round"] for row in rows if row["evaluation/loss"] is not None]
    assert evaluated == [4, 7]
    (board,) = (tmp_path / "board").iterdir()
    assert b"clients_reporting" in board.read_bytes()


def test_arrays_and_numbers_that_are_not_finite_reach_json(tmp_path):
    sink = sinks.jsonl(tmp_path / "m.jsonl")
    sink(np.array([3]), {"a": {"b": np.array([[1.0, np.nan]])}, "c": np.array([np.inf])})
    written = json.loads((tmp_path / "m.jsonl").read_text())
    assert written == {"round": 3, "a/b": [1.0, None], "c": None}


def test_the_bar_shows_speed_and_metrics_and_is_quiet_without_a_terminal(
    setting, capsys, monkeypatch
):
    _, federation, algorithm, state = setting
    dx.run(algorithm, state, federation, rounds=2, key=KEY)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("COLUMNS", "160")
    dx.run(algorithm, state, federation, rounds=2, key=KEY, progress=True, title="demo")
    shown = capsys.readouterr().err
    for part in ("demo", "2/2", "rounds/s", "loss"):
        assert part in shown


def test_measures_of_clients_summarise_over_clients():
    task = quadratics(clients=4)
    state = dx.FederatedState(jnp.int32(0), (), Models(jnp.asarray(task.centers)))

    def norm(params):
        return {"norm": jnp.sum(jnp.square(params))}

    measured = evaluation.together(
        evaluation.client_models(norm), evaluation.mean_model(norm), evaluation.consensus
    )(state)
    norms = np.sum(task.centers**2, 1)
    np.testing.assert_allclose(measured["norm"], norms.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["norm_min"], norms.min(), rtol=1e-5)
    np.testing.assert_allclose(measured["norm_max"], norms.max(), rtol=1e-5)
    np.testing.assert_allclose(measured["norm_std"], norms.std(), rtol=1e-5)
    center = task.centers.mean(0)
    np.testing.assert_allclose(measured["mean_model_norm"], np.sum(center**2), rtol=1e-4)
    np.testing.assert_allclose(
        measured["consensus_distance"], np.sum((task.centers - center) ** 2) / 4, rtol=1e-5
    )


@pytest.mark.some(2)
@pytest.mark.parametrize("batch_size", [7, 100, 240, 1000])
def test_measures_on_a_data_set_are_exact_means(batch_size):
    task = regression()
    params = {"w": jnp.ones((5, 3)).at[0].set(2.0), "b": jnp.arange(3.0)}
    measured = evaluation.on(softmax_loss, task.data, batch_size=batch_size)(params)
    exact = softmax_loss(params, task.data.fetch(jnp.arange(240)), None)[1]
    np.testing.assert_allclose(measured["loss"], exact["loss"], rtol=1e-5)
    np.testing.assert_allclose(measured["accuracy"], exact["accuracy"], rtol=1e-5)
    first = evaluation.on(softmax_loss, task.data, batch_size=batch_size, examples=50)(params)
    exact = softmax_loss(params, task.data.fetch(jnp.arange(50)), None)[1]
    np.testing.assert_allclose(first["loss"], exact["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": -1}, "rounds must be an integer >= 0, got -1"),
        ({"key": 0}, "key must be one typed JAX key, got 0"),
        ({"chunk": 0}, r"chunk must be an integer in \[1, 1024\], got 0"),
        ({"every": 0}, "every must be an integer >= 1, got 0"),
        ({"evaluate": 3}, "evaluate must be a function, got 3"),
        ({"algorithm": 3}, "algorithm must be of type Algorithm, not int, got 3"),
    ],
)
def test_bad_arguments_are_refused(setting, changes, message):
    _, federation, algorithm, state = setting
    arguments = {"algorithm": algorithm, "rounds": 1, "key": KEY} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        dx.run(arguments.pop("algorithm"), state, federation, **arguments)


def test_evaluation_refuses_what_it_cannot_measure_on():
    task = regression()
    with pytest.raises(TypeError, match="data must be a Dataset"):
        evaluation.on(softmax_loss, np.ones(3))
    with pytest.raises(ValueError, match=r"examples must be an integer in \[1, 240\], got 241"):
        evaluation.on(softmax_loss, task.data, examples=241)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 3}, "source must have a method draw.*got int.*dflax.Federation"),
        ({"source": regression().partition}, "source must have a method draw.*got Partition"),
        ({"state": None}, "state must be a pytree of arrays, got NoneType"),
        ({"state": 3}, r"algorithm.step does not fit the state and source.*algorithm's init"),
        ({"state": (jnp.ones(3), print)}, "state .* with a leaf of type builtin_function"),
        ({"sinks": 3}, r"sinks must be of type Sequence, not int, got 3"),
        ({"sinks": print}, "sinks must be of type Sequence"),
        ({"sinks": [3]}, r"sinks\[0\] must be a function, got 3"),
        ({"mesh": 3}, "mesh must be of type Mesh, not int, got 3.*client_mesh"),
        ({"donate": "yes"}, "donate must be True or False, got 'yes'"),
        ({"progress": "yes"}, "progress must be True or False, got 'yes'"),
        ({"title": 3}, "title must be of type str"),
        ({"every": 2}, "every needs evaluate, got every=2"),
        ({"start": 2**31 - 1}, r"start \+ rounds must be at most 2\^31 - 1, got 2147483647 \+ 1"),
        (
            {"evaluate": evaluation.on(softmax_loss, regression().data)},
            "evaluate must measure a state, got a measure of one model.*server_model",
        ),
        (
            {"evaluate": evaluation.client_models(lambda params: {})},
            "must have models at state.clients.params, got FederatedState",
        ),
    ],
)
def test_what_does_not_fit_a_run_is_refused(setting, changes, message):
    _, federation, algorithm, state = setting
    arguments = {"state": state, "source": federation, "rounds": 1, "key": KEY} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        dx.run(algorithm, arguments.pop("state"), arguments.pop("source"), **arguments)


def test_the_state_of_another_algorithm_is_refused_and_the_cause_told(setting, tmp_path):
    task, federation, algorithm, _ = setting
    other = dx.decentralized.dpsgd(softmax_loss, optax.sgd(0.1), dx.gossip.ring(8))
    for checkpoint in (None, tmp_path):
        with pytest.raises(TypeError, match=r"algorithm.step .*does not fit") as refused:
            dx.run(
                algorithm,
                other.init(KEY, task.params),
                federation,
                rounds=1,
                key=KEY,
                checkpoint=checkpoint,
            )
        assert isinstance(refused.value.__cause__, AttributeError)


def test_errors_of_value_checks_come_through_unchanged(setting):
    _, federation, algorithm, state = setting

    def step(state, round):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine"):
        dx.run(algorithm._replace(step=step), state, federation, rounds=1, key=KEY)


def test_evaluations_and_sinks_refuse_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="at_once must be an integer >= 1, got 0"):
        evaluation.client_models(lambda params: {}, at_once=0)
    with pytest.raises(ValueError, match="measures must name at least one evaluation"):
        evaluation.together()
    with pytest.raises(TypeError, match="folder must be of type str or PathLike, not int, got 3"):
        sinks.tensorboard(3)
    with pytest.raises(TypeError, match="path must be of type str or PathLike, not int, got 3"):
        sinks.jsonl(3)
    with pytest.raises(ValueError, match="path must be a file's, got the folder"):
        sinks.jsonl(tmp_path)
