import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import pickle
import random
import shutil
import signal
import threading
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import killed_run
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, regression, softmax_loss

import dflax as dx
from dflax import evaluation, participation
from dflax.algorithm import Algorithm, FederatedState
from dflax.running import history, rounds
from dflax.running.checkpoints import fingerprint, manifest
from dflax.running.checkpoints.checkpoint import Checkpoints
from dflax.running.checkpoints.store import Store
from dflax.running.interrupt import Terminated

KEY = jax.random.key(3)


class Setting(NamedTuple):
    federation: Any
    algorithm: Algorithm
    state: Any
    measure: Any

    def run(self, rounds=12, **options):
        options = {"key": KEY, "evaluate": self.measure, "every": 5, "chunk": 1} | options
        algorithm, state = (
            options.pop("algorithm", self.algorithm),
            options.pop("state", self.state),
        )
        federation = options.pop("federation", self.federation)
        return dx.run(algorithm, state, federation, rounds=rounds, **options)


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
    algorithm = fedavg()
    measure = evaluation.server_model(evaluation.on(softmax_loss, task.data))
    return Setting(federation, algorithm, algorithm.init(KEY, task.params), measure)


@pytest.fixture(scope="module")
def whole(setting):
    return setting.run()


@pytest.fixture(scope="module")
def stored(setting, tmp_path_factory):
    """A folder with the checkpoints 6, 9 and 12 of a whole run; tests work on copies."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    setting.run(checkpoint=Checkpoints(folder, every_rounds=3))
    return folder


@pytest.fixture
def copied(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "run")


def fedavg(rate=0.3):
    return dx.server.fedavg(softmax_loss, optax.sgd(rate), optax.adam(0.05))


def half_loss(params, batch, key):
    loss, metrics = softmax_loss(params, batch, key)
    return loss / 2, metrics


def same(first, second):
    """Bit for bit but for the times."""
    assert_trees_equal(first[0], second[0])
    assert jax.tree.structure(first[0]) == jax.tree.structure(second[0])
    untimed = [end[1]._replace(seconds=0, compile_seconds=0) for end in (first, second)]
    assert_trees_equal(*untimed)


def checkpoints(folder):
    return sorted(int(path.name[6:]) for path in folder.glob("round_*"))


class StopError(Exception):
    pass


def stop_at(number):
    def sink(rounds, metrics):
        if number in rounds:
            raise StopError

    return [sink]


def test_a_run_with_checkpoints_is_the_run_without(setting, whole, tmp_path):
    same(setting.run(checkpoint=str(tmp_path / "deep" / "run")), whole)
    assert checkpoints(tmp_path / "deep" / "run") == [12]


@pytest.mark.some(2)
@pytest.mark.parametrize("number", [1, 4, 5, 12])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(setting, whole, tmp_path, number):
    settings = Checkpoints(tmp_path, every_rounds=2)
    with pytest.raises(StopError):
        setting.run(checkpoint=settings, sinks=stop_at(number))
    seen = []
    resumed = setting.run(checkpoint=settings, sinks=[lambda rounds, metrics: seen.extend(rounds)])
    same(resumed, whole)
    assert seen == list(range(1 + (number - 1) // 2 * 2, 13))


def test_a_finished_run_returns_at_once_with_its_times(setting, stored, copied, monkeypatch):
    first = setting.run(checkpoint=copied)
    monkeypatch.setattr(rounds, "advance", lambda *_: pytest.fail("something ran"))
    second = setting.run(checkpoint=copied)
    assert_trees_equal(first, second)
    assert first[1].compile_seconds > 0


def test_more_rounds_go_on_and_keep_the_evaluation_of_the_earlier_end(setting, copied):
    longer, history = setting.run(rounds=16, checkpoint=copied)
    reference, expected = setting.run(rounds=16)
    assert_trees_equal(longer, reference)
    assert_trees_equal(history.metrics, expected.metrics)
    assert expected.evaluated.tolist() == [5, 10, 15, 16]
    assert history.evaluated.tolist() == [5, 10, 12, 15, 16]
    others = history.evaluated != 12
    np.testing.assert_array_equal(history.evaluations["loss"][others], expected.evaluations["loss"])


def test_times_add_up(setting, tmp_path):
    _, first = setting.run(rounds=4, checkpoint=tmp_path)
    _, second = setting.run(rounds=8, checkpoint=tmp_path)
    assert second.seconds > first.seconds
    assert second.compile_seconds > first.compile_seconds


def test_the_last_few_are_kept(setting, tmp_path):
    setting.run(rounds=7, checkpoint=Checkpoints(tmp_path, every_rounds=1, keep=2))
    assert checkpoints(tmp_path) == [6, 7]
    setting.run(rounds=10, checkpoint=Checkpoints(tmp_path, every_rounds=2, keep=2, strict=False))
    assert checkpoints(tmp_path) == [8, 10]


def test_seconds_between_checkpoints(setting, tmp_path):
    setting.run(rounds=3, checkpoint=Checkpoints(tmp_path / "often", every_seconds=1e-6, keep=9))
    assert len(checkpoints(tmp_path / "often")) >= 2
    setting.run(rounds=3, checkpoint=Checkpoints(tmp_path / "rarely", every_seconds=1e6))
    assert checkpoints(tmp_path / "rarely") == [3]


def test_checkpoints_at_round_numbers_cut_chunks(setting, whole, tmp_path):
    settings = Checkpoints(tmp_path, every_rounds=5, keep=9)
    same(setting.run(checkpoint=settings, chunk=1024), whole)
    assert checkpoints(tmp_path) == [5, 10, 12]


def test_no_rounds_store_the_first_state(setting, whole, tmp_path):
    end, _ = setting.run(rounds=0, checkpoint=tmp_path)
    assert_trees_equal(end, setting.state)
    assert checkpoints(tmp_path) == [0]
    same(setting.run(checkpoint=tmp_path), whole)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncate, flip, pathlib.Path.unlink])
def test_any_damage_to_the_newest_is_noticed_and_the_one_before_is_used(
    setting, whole, stored, tmp_path, harm
):
    names = [p.relative_to(stored) for p in (stored / "round_000000012").rglob("*") if p.is_file()]
    harmed = [name for name in names if (stored / name).stat().st_size]
    assert len(harmed) > 5
    for number, name in enumerate(harmed):
        folder = shutil.copytree(stored, tmp_path / str(number))
        harm(folder / name)
        with pytest.warns(RuntimeWarning, match="round_000000012 is skipped") as caught:
            saved = newest(setting, folder)
        assert saved.done == 9
        assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    with pytest.warns(RuntimeWarning, match="is skipped"):
        resumed = setting.run(checkpoint=folder)
    same(resumed, whole)
    same(setting.run(checkpoint=folder), whole)


def newest(setting, folder):
    """What `run` would resume from."""
    run = fingerprint.run(
        setting.algorithm,
        setting.state,
        setting.federation,
        setting.measure,
        key=KEY,
        start=0,
        every=5,
    )
    _, metrics = rounds.one_round.eval_shape(
        setting.algorithm, setting.state, setting.federation, KEY, np.int32(0)
    )
    evaluation = jax.eval_shape(setting.measure, setting.state)
    store = Store(Checkpoints(folder), run, history.row(metrics), history.row(evaluation))
    try:
        return store.newest(setting.state, [None] * len(jax.tree.leaves(setting.state)))
    finally:
        store.close()


def test_a_damaged_history_makes_later_checkpoints_useless_but_not_earlier_ones(
    setting, whole, copied
):
    size = (copied / "history.bin").stat().st_size
    assert size % 12 == 0
    os.truncate(copied / "history.bin", size * 7 // 12)
    with pytest.warns(RuntimeWarning, match=r"history\.bin was changed or cut short") as caught:
        same(setting.run(checkpoint=copied), whole)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 2


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """(bytes that make a file when they are unpickled, that file)."""
    made = tmp_path / "made"
    code = pickle.dumps(Touch(made))
    pickle.loads(code)
    assert made.exists()
    made.unlink()
    return code, made


def seal_again(folder, **facts):
    """Makes the manifest fit to what lies there now."""
    content = json.loads((folder / manifest.MANIFEST).read_bytes())["content"]
    (folder / manifest.MANIFEST).unlink()
    manifest.seal(folder, content["facts"] | facts)


# Orbax closes its event loop while reads beside the one that fails are still on their way.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_code_in_place_of_stored_arrays_is_not_executed(setting, stored, trap, tmp_path):
    code, made = trap
    kept = newest(setting, stored)
    state = stored / "round_000000012" / "state"
    names = [path.relative_to(stored) for path in state.rglob("*") if path.is_file()]
    refused = 0
    for number, name in enumerate(names):
        folder = shutil.copytree(stored, tmp_path / str(number))
        (folder / name).write_bytes(code)
        seal_again(folder / "round_000000012")
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found = newest(setting, folder)
        if found.done == 12:
            # Read by nobody.
            assert_trees_equal(found.state, kept.state)
        refused += found.done == 9
        assert not made.exists()
    assert refused > 0


def test_code_in_place_of_the_history_is_not_executed(setting, copied, trap):
    code, made = trap
    size = (copied / "history.bin").stat().st_size
    assert len(code) <= size
    content = code.ljust(size, b"\0")
    (copied / "history.bin").write_bytes(content)
    written = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal_again(copied / "round_000000012", history=written)
    read = newest(setting, copied)
    assert read.done == 12
    assert {len(leaf) for leaf in jax.tree.leaves(read.rows)} == {12}
    assert not made.exists()


def test_code_in_place_of_the_manifest_or_in_it_is_not_executed(setting, copied, trap):
    code, made = trap
    folder = copied / "round_000000012"
    seal_again(folder, run={"start": code.decode("latin-1")})
    with pytest.raises(ValueError, match="is of another run: start: stored"):
        newest(setting, copied)
    (folder / manifest.MANIFEST).write_bytes(code)
    with pytest.warns(RuntimeWarning, match=r"its manifest\.json cannot be read"):
        assert newest(setting, copied).done == 9
    assert not made.exists()


def test_without_any_good_checkpoint_the_run_starts_again(setting, whole, copied):
    (copied / "history.bin").unlink()
    with pytest.warns(RuntimeWarning, match="is skipped"):
        same(setting.run(checkpoint=copied), whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(setting.run(checkpoint=copied), whole)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": fedavg(0.2)}, r"algorithm\.step\..*step_size: stored -0\.3, wanted -0\.2\."),
        ({"algorithm": fedavg(jnp.float32(0.2))}, r"step_size: stored -0\.3, wanted -0\.2"),
        (
            {"algorithm": dx.server.fedavg(softmax_loss, optax.sgd(0.3))},
            r"stored .*scale_by_adam.*, wanted optax",
        ),
        (
            {"algorithm": dx.server.fedavg(half_loss, optax.sgd(0.3), optax.adam(0.05))},
            r"algorithm\.step.*: stored tasks\.softmax_loss, wanted .*half_loss",
        ),
        ({"key": jax.random.key(4)}, r"key: stored threefry2x32 \[0, 3\], wanted .* \[0, 4\]"),
        ({"every": 4}, "every: stored 5, wanted 4"),
        ({"start": 1}, "start: stored 0, wanted 1"),
        (
            {"evaluate": None, "every": None},
            r"evaluations\['accuracy'\]: stored float32\[\], wanted None",
        ),
        ({"rounds": 11}, "rounds must be an integer >= 12, got 11. So many are done"),
    ],
)
def test_another_run_is_refused(setting, stored, change, message):
    with pytest.raises(ValueError, match=message):
        setting.run(checkpoint=stored, **change)


def test_another_shape_another_start_and_other_data_are_refused(setting, stored):
    wider = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3)}
    inputs = jnp.zeros((240, 6))
    data = dataclasses.replace(setting.federation.data, inputs=inputs)
    task = regression()
    federation = dx.Federation(
        data,
        task.partition,
        batch_size=6,
        local_steps=2,
        participation=participation.uniform(4),
    )
    with pytest.raises(
        ValueError,
        match=r"state\.server\.params\['w'\]: stored float32\[5,3\], wanted float32\[6,3\]",
    ):
        setting.run(
            state=setting.algorithm.init(KEY, wider),
            federation=federation,
            evaluate=lambda state: {"accuracy": 0.0, "loss": 0.0},
            checkpoint=stored,
        )
    moved = jax.tree.map(lambda leaf: leaf + 1, setting.state)
    with pytest.raises(
        ValueError, match=r"values in state at the start\.round: stored 0, wanted 1"
    ):
        setting.run(state=moved, start=0, checkpoint=stored)
    other = dx.Federation(
        dataclasses.replace(task.data, inputs=task.data.inputs.at[3, 2].add(1e-6)),
        task.partition,
        batch_size=6,
        local_steps=2,
        participation=participation.uniform(4),
    )
    with pytest.raises(ValueError, match=r"values in source.*inputs: other values .* strict=False"):
        setting.run(federation=other, checkpoint=stored)


def test_a_changed_source_is_told_by_its_arguments_and_nothing_else(setting, stored):
    task = regression()
    federation = dx.Federation(
        task.data,
        task.partition,
        batch_size=6,
        local_steps=3,
        participation=participation.uniform(4),
    )
    with pytest.raises(
        ValueError, match=r"run: source\.local_steps: stored 2, wanted 3; "
    ) as refused:
        setting.run(federation=federation, checkpoint=stored)
    assert "algorithm" not in str(refused.value)


def test_settings_may_change_on_request_but_shapes_may_not(setting, copied):
    loose = Checkpoints(copied, strict=False)
    end, history = setting.run(rounds=14, algorithm=fedavg(0.0), checkpoint=loose)
    half, _ = setting.run(rounds=12)
    expected, _ = setting.run(rounds=2, start=12, state=half, algorithm=fedavg(0.0))
    assert_trees_equal(end, expected)
    assert len(history.rounds) == 14
    with pytest.raises(ValueError, match=r"evaluations\['loss'\]: stored") as refused:
        setting.run(evaluate=None, every=None, checkpoint=loose)
    assert "strict" not in str(refused.value)


class Mixed(NamedTuple):
    key: Any
    keys: Any
    half: Any
    whole: Any
    flag: Any
    nothing: Any
    empty: Any
    none: Any
    weak: Any
    late: Any


class Empty(NamedTuple):
    pass


def walk():
    """Uses every kind of leaf there is, and draws randomness from a key that it carries."""

    def init(key, params):
        return Mixed(
            key,
            (jax.random.split(key, 4), jax.random.key(1, impl="rbg")),
            jnp.ones(3, jnp.bfloat16),
            {"a/b.c": jnp.arange(4, dtype=jnp.int8), "d": [jnp.uint32(7)]},
            jnp.array([True, False]),
            Empty(),
            jnp.zeros((0, 3)),
            None,
            jnp.asarray(0.5),
            jnp.asarray(0),
        )

    def step(state, round):
        key, draw = jax.random.split(state.key)
        half = state.half * state.weak + jax.random.normal(draw, (3,), jnp.bfloat16)
        keys = (jax.vmap(lambda key: jax.random.fold_in(key, 1))(state.keys[0]), state.keys[1])
        new = state._replace(
            key=key, keys=keys, half=half, flag=~state.flag, late=state.late + 0.25
        )
        return new, {"half": half, "flag": new.flag, "none": jnp.zeros((0, 2)), "late": new.late}

    return Algorithm(init, step)


def data_of(state):
    def plain(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(plain, state)


def test_every_kind_of_leaf_comes_back_as_it_was(tmp_path):
    algorithm = walk()
    state = algorithm.init(KEY, None)
    assert state.weak.weak_type
    assert state.late.dtype == jnp.int32
    source = dx.Events(jnp.zeros(8))
    run = {"key": KEY, "chunk": 1}
    whole, expected = dx.run(algorithm, state, source, rounds=7, **run)
    assert whole.late.dtype == jnp.float32
    with pytest.raises(StopError):
        dx.run(
            algorithm,
            state,
            source,
            rounds=7,
            sinks=stop_at(5),
            checkpoint=Checkpoints(tmp_path, every_rounds=2),
            **run,
        )
    end, history = dx.run(algorithm, state, source, rounds=7, checkpoint=tmp_path, **run)
    stored, _ = dx.run(algorithm, state, source, rounds=7, checkpoint=tmp_path, **run)
    for found in (end, stored):
        assert jax.tree.structure(found) == jax.tree.structure(whole)
        assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, whole)
        assert_trees_equal(data_of(found), data_of(whole))
    assert_trees_equal(history.metrics, expected.metrics)
    assert history.metrics["half"].dtype == jnp.bfloat16
    assert history.metrics["none"].shape == (7, 0, 2)


class Rows(NamedTuple):
    rows: Any


def rows_of_clients(clients=16):
    """Per-client work that no reduction takes part in: the same bits on any number of devices."""

    def init(key, params):
        rows = jax.random.normal(key, (clients, 3))
        keys = jax.random.split(key, clients)
        return FederatedState(jnp.int32(0), Rows(jnp.zeros(3)), Rows((rows, keys)))

    def step(state, round):
        rows, keys = state.clients.rows
        rows = dx.map_clients(lambda row, key: row * 1.5 - jax.random.normal(key, (3,)), rows, keys)
        server = Rows(state.server.rows + round[0])
        return FederatedState(state.round + 1, server, Rows((rows, keys))), {"row": rows[1]}

    return Algorithm(init, step)


@pytest.mark.slow
def test_a_run_moves_between_meshes(tmp_path):
    algorithm = rows_of_clients()
    state = algorithm.init(KEY, None)
    source = dx.Events(jnp.arange(12.0))
    whole, history = dx.run(algorithm, state, source, rounds=12, key=KEY)
    for last, devices in ((3, 8), (6, None), (9, 2), (10, 1), (12, 8)):
        mesh = None if devices is None else dx.client_mesh(jax.devices()[:devices])
        end, found = dx.run(
            algorithm, state, source, rounds=last, key=KEY, mesh=mesh, checkpoint=tmp_path
        )
        again, _ = dx.run(
            algorithm, state, source, rounds=last, key=KEY, mesh=mesh, checkpoint=tmp_path
        )
        for leaf in jax.tree.leaves((end.clients, again.clients)):
            assert len(leaf.sharding.device_set) == (devices or 1)
            assert leaf.addressable_shards[0].data.shape[0] == 16 // (devices or 1)
    assert_trees_equal(data_of(end), data_of(whole))
    assert_trees_equal(data_of(again), data_of(whole))
    assert_trees_equal(found.metrics, history.metrics)


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    identity = {"start": 5, "state": None, "metrics": None, "evaluations": None}
    run = fingerprint.Fingerprint(identity, {})
    store = Store(Checkpoints(tmp_path), run, history.row({}), history.row({}))
    change = jax.jit(lambda leaf: leaf * 0 - 1, donate_argnums=0)
    state = jnp.arange(3_000_000.0)
    store.save(state, 5, 0.0, 0.0)
    for _ in range(5):
        state = change(state)
    state.block_until_ready()
    store.wait()
    np.testing.assert_array_equal(store.newest(state, [None]).state, np.arange(3_000_000.0))
    store.close()


def test_a_failure_to_write_is_raised(setting, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dflax.running.checkpoints.manifest.seal", fail)
    with pytest.raises(OSError, match="disk full"):
        setting.run(checkpoint=tmp_path)


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT, which a shell's background jobs are started without."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_run_with_a_checkpoint(setting, whole, tmp_path, number, error):
    usual = signal.getsignal(number)

    def send(rounds, metrics):
        if 6 in rounds:
            os.kill(os.getpid(), number)

    with pytest.raises(error) as raised:
        setting.run(checkpoint=tmp_path, sinks=[send], chunk=3)
    assert checkpoints(tmp_path) == [6]
    assert signal.getsignal(number) is usual
    if error is Terminated:
        assert raised.value.code == 143
    same(setting.run(checkpoint=tmp_path), whole)
    assert signal.getsignal(number) is usual


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_not_held_back(setting, tmp_path):
    def send(rounds, metrics):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        setting.run(checkpoint=tmp_path, sinks=[send])
    assert checkpoints(tmp_path) == []


def test_outside_of_the_main_thread_signals_are_left_alone(setting, whole, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        same(threads.submit(setting.run, checkpoint=tmp_path).result(), whole)
    assert threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "runs", "strict": "no"}, "strict must be True or False, got 'no'"),
        ({"keep": 0}, "keep must be an integer >= 1, got 0"),
        ({"every_seconds": 0.0}, "every_seconds must be a finite number in .*, got 0.0"),
        ({"every_seconds": "soon"}, "every_seconds must be a real number"),
        ({"every_rounds": 0}, "every_rounds must be an integer >= 1, got 0"),
        ({"every_rounds": 2.0}, "every_rounds must be an integer >= 1, got 2.0"),
        ({"folder": 3}, "checkpoint must be a folder's path or a Checkpoints, got 3"),
        ({"folder": ""}, "checkpoint must be a folder on a local or mounted disk, got ''"),
        ({"folder": "gs://a/b"}, "local or mounted disk, got 'gs://a/b'"),
        ({"folder": __file__}, "checkpoint must be a folder, got .* is a file"),
        ({"folder": f"{__file__}/deeper"}, "checkpoint must be a folder, got .* is a file"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Checkpoints(**({"folder": "unused"} | settings))


def test_run_refuses_what_is_no_folder(setting):
    with pytest.raises(ValueError, match="is a file"):
        setting.run(checkpoint=__file__)
    with pytest.raises(TypeError, match="checkpoint must be a folder's path"):
        setting.run(checkpoint=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts processes that do runs of `killed_run.py`, with imports and compilations done once."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["killed_run"])
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Python 3.11 does not hand its path to the server of forks, which then imports nothing.
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
        # Threads do not survive a fork.
        "OPENBLAS_NUM_THREADS": "1",
    }

    def start(make, checkpoint, result):
        running = processes.Event()
        arguments = (make, checkpoint, result, running)
        process = processes.Process(target=killed_run.main, args=arguments)
        process.start()
        return process, running

    # The server of forks is started by the first process, and keeps the variables of that moment.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        first = tmp_path_factory.mktemp("first") / "end.npz"
        for make in killed_run.RUNS:
            process, _ = start(make, None, first)
            process.join()
    return start


def loaded(path):
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [2, 10])
def test_kills_at_random_moments_change_nothing(start, tmp_path, wanted):
    # Who starts a process asks how all others ended. One may be told: a second answer is 255.
    alone = threading.Lock()

    def started(*args):
        with alone:
            return start(*args)

    def ended(process):
        while True:
            with alone:
                code = process.exitcode
            if code is not None:
                return code
            time.sleep(0.02)

    def killed(chain):
        make, draw = killed_run.RUNS[chain], random.Random(chain)
        reference = tmp_path / f"reference {chain}.npz"
        uninterrupted, _ = started(make, None, reference)
        assert ended(uninterrupted) == 0
        folder, result = tmp_path / f"run {chain}", tmp_path / f"{chain}.npz"
        kills = 0
        while kills < wanted:
            process, running = started(make, folder, result)
            # Within rounds and the checkpoint after each of them, or in setting out.
            if draw.random() < 0.8:
                running.wait(timeout=60)
                time.sleep(draw.uniform(0.0, 0.3))
            else:
                time.sleep(draw.uniform(0.0, 1.0))
            with alone:
                process.kill()
            code = ended(process)
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                # Too fast for so many kills: from the start again.
                assert_trees_equal(loaded(result), loaded(reference))
                shutil.rmtree(folder)
            kills += code == -signal.SIGKILL
        process, _ = started(make, folder, result)
        assert ended(process) == 0
        return loaded(result), loaded(reference)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for end, expected in threads.map(killed, range(2)):
            assert len(end) == len(expected) > 5
            assert_trees_equal(end, expected)


@pytest.mark.slow
def test_sigterm_ends_the_process_with_143_and_the_next_one_goes_on(start, tmp_path):
    folder, result = tmp_path / "run", tmp_path / "end.npz"
    process, running = start(killed_run.descent, folder, result)
    assert running.wait(timeout=60)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    assert not result.exists()
    assert checkpoints(folder)
    process, _ = start(killed_run.descent, folder, result)
    process.join()
    assert process.exitcode == 0
