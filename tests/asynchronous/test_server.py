"""The server that follows a timetable, against its event loop written out in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import LOSS, federation

import dflax as dx
from dflax import asynchronous

N, KEY = 10, jax.random.key(0)
F80 = asynchronous.hardware(N, 80)
TARGETS = np.arange(N, dtype=np.float64)
CURVATURE = np.linspace(0.5, 1.5, N)
START = np.array([20.0])
RATE = 0.02


@functools.cache
def source(local_steps):
    return federation(local_steps, N, CURVATURE[:, None, None], TARGETS[:, None])


def followed(cut, local_steps=10, **options):
    """The server's model after every round, and the metrics."""
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut, **options)

    @jax.jit
    def run(source):
        def one(state, index):
            state, metrics = algorithm.step(state, source.draw(KEY, index))
            return state, (state.server.params, metrics)

        return jax.lax.scan(one, algorithm.init(KEY, jnp.asarray(START)), jnp.arange(cut.rounds))[1]

    return run(asynchronous.join(source(local_steps), cut))


def expected(table, discount=lambda u: 1.0, *, per_step=False, latest=False, rate=1.0):
    """The model after every step of the server."""
    models, kept, total = [START.copy()], {}, np.zeros(1)
    stale = table.staleness
    for _step, (low, high) in enumerate(zip(table.first[:-1], table.first[1:], strict=True)):
        x, summed, moved = models[-1].copy(), np.zeros(1), False
        for a in range(low, high):
            client, steps = table.clients[a], table.steps[a]
            if steps:
                y = models[table.versions[a]].copy()
                for _ in range(steps):
                    y -= RATE * CURVATURE[client] * (y - TARGETS[client])
                change = (y - models[table.versions[a]]) / (steps if per_step else 1)
                if table.later[a]:
                    kept[client] = change
                    continue
            else:
                change = kept[client]
            old = kept.get(client, 0.0) if latest else 0.0
            if latest:
                kept[client] = change
            summed += table.weights[a] * discount(stale[a]) * (change - old)
            moved = True
        total += summed
        models.append(x + rate * (total if latest else summed) if moved else x)
    return np.stack(models[1:])


def late():
    generator = np.random.default_rng(0)
    speeds = 0.02 + generator.exponential(0.1, N)
    table = asynchronous.fedcompass(
        speeds[:, None] * np.exp(0.4 * generator.normal(size=(N, 90))), 40, least=2, most=10
    )
    assert table.keeps
    assert (table.steps == 0).any()
    return table


TABLES = {
    "FedAvg": lambda: asynchronous.synchronous(F80, 20, local_steps=10),
    "asynchronous": lambda: asynchronous.immediate(F80, 9, local_steps=10),
    "FedFix": lambda: asynchronous.fedfix(F80, 0.2, 8, local_steps=10),
    "FedBuff": lambda: asynchronous.fedbuff(F80, 3, 9, weights="importance", local_steps=10),
    "anarchic": lambda: asynchronous.arrivals(N, 3, 40, delay=5, local_steps=(1, 10), seed=0),
    "FedCompass with late clients": late,
}


@pytest.mark.some(2)
@pytest.mark.parametrize("name", TABLES)
def test_it_is_the_event_loop(name):
    table = TABLES[name]()
    cut = asynchronous.waves(table)
    params, metrics = followed(cut, discount=asynchronous.polynomial(0.5))
    wanted = expected(table, lambda u: (1 + u) ** -0.5)
    np.testing.assert_allclose(params, wanted[cut.begins[1:] - 1], rtol=2e-5)
    np.testing.assert_allclose(metrics["time"], table.time[cut.begins[1:] - 1], rtol=1e-6)
    assert metrics["server_steps"].sum() == table.measures()["server_steps"]
    assert metrics["contributors"].sum() == table.applied.sum()
    assert metrics["largest_staleness"].max() == table.staleness[table.applied].max()


@pytest.mark.some(1)
@pytest.mark.parametrize(("width", "chunk"), [(3, 3), (10, 1), (10, 5)])
def test_however_the_timetable_is_cut_the_models_are_the_same(width, chunk):
    table = TABLES["asynchronous"]()
    cut = asynchronous.waves(table, width, chunk)
    params, _ = followed(cut)
    np.testing.assert_allclose(params, expected(table)[cut.begins[1:] - 1], rtol=2e-5)


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["FedAvg", "FedFix"])
def test_changes_of_clients_in_turn_are_added_up_as_they_come(name):
    table = TABLES[name]()
    cut = asynchronous.waves(table)
    assert cut.most_steps == 1
    options = {"discount": asynchronous.polynomial(0.5), "per_step": True}
    params, metrics = followed(cut, at_once=1, **options)
    held, same = followed(cut, **options)
    np.testing.assert_allclose(params, held, rtol=2e-6)
    np.testing.assert_array_equal(metrics["contributors"], same["contributors"])
    np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)

    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut, at_once=1, **options)
    state = algorithm.init(KEY, jnp.asarray(START))
    joined = asynchronous.join(source(10), cut)
    dealt, _ = dx.run(algorithm, state, joined, rounds=cut.rounds, key=KEY, mesh=dx.client_mesh())
    np.testing.assert_allclose(dealt.server.params, held[-1], rtol=2e-5)


def test_the_memory_of_all_clients_latest_changes():
    table = asynchronous.arrivals(N, 3, 60, local_steps=(1, 10), delay=3, memory=True, seed=3)
    cut = asynchronous.waves(table)
    options = {"per_step": True, "latest": True}
    params, _ = followed(cut, server_optimizer=optax.sgd(2.0), **options)
    wanted = expected(table, rate=2.0, **options)
    np.testing.assert_allclose(params, wanted[cut.begins[1:] - 1], rtol=5e-5)


@pytest.mark.slow
def test_momentum_at_the_server_sees_every_step():
    table = TABLES["asynchronous"]()
    cut = asynchronous.waves(table)
    assert cut.most_steps > 1
    one_by_one = asynchronous.waves(table, 1)
    together, _ = followed(cut, server_optimizer=optax.sgd(0.1, momentum=0.9))
    alone, _ = followed(one_by_one, server_optimizer=optax.sgd(0.1, momentum=0.9))
    np.testing.assert_allclose(together, alone[cut.begins[1:] - 1], rtol=2e-5)


def test_after_the_timetables_end_nothing_happens():
    cut = asynchronous.waves(TABLES["asynchronous"]())
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut)
    state = algorithm.init(KEY, jnp.asarray(START))
    run = jax.jit(lambda s, f: dx.rollout(algorithm, s, f, KEY, cut.rounds + 3))
    state, metrics = run(state, asynchronous.join(source(10), cut))
    np.testing.assert_allclose(state.server.params, expected(cut.timetable)[-1], rtol=2e-5)
    np.testing.assert_array_equal(metrics["contributors"][-3:], 0)
    np.testing.assert_array_equal(metrics["server_steps"][-3:], 0)
    np.testing.assert_allclose(metrics["time"][-4:], cut.timetable.time[-1], rtol=1e-6)


@pytest.mark.slow
def test_rates_and_discounts_are_swept():
    table = TABLES["FedFix"]()
    cut = asynchronous.waves(table)

    def made(exponent):
        discount = asynchronous.polynomial(exponent)
        return asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut, discount=discount)

    def begin(algorithm, key):
        return algorithm.init(key, jnp.asarray(START))

    grid, joined = {"exponent": [0.0, 0.5]}, asynchronous.join(source(10), cut)
    result = dx.sweep(made, begin, joined, grid=grid, key=KEY, rounds=cut.rounds)
    for place, exponent in enumerate(grid["exponent"]):
        wanted = expected(table, lambda u, a=exponent: (1.0 + u) ** -a)[-1]
        np.testing.assert_allclose(result.states.server.params[place, 0], wanted, rtol=5e-5)


def test_timetables_of_several_draws_are_one_program():
    tables = [
        asynchronous.fedfix(asynchronous.exponential(N, least=0.3, seed=seed), 0.5, 4 + seed)
        for seed in (0, 1)
    ]
    cuts = asynchronous.alike([asynchronous.waves(table, N) for table in tables])
    assert cuts[0].rounds == cuts[1].rounds
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cuts[0])
    sources = dx.side_by_side([asynchronous.join(source(1), cut) for cut in cuts])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(own, sources):
        state = algorithm.init(KEY, jnp.asarray(START))
        return dx.rollout(algorithm, state, sources.source(own), KEY, cuts[0].rounds)

    states, metrics = run(sources.own, sources)
    for place, table in enumerate(tables):
        np.testing.assert_allclose(states.server.params[place], expected(table)[-1], rtol=2e-5)
        assert metrics["server_steps"][place].sum() == table.measures()["server_steps"]
        np.testing.assert_allclose(metrics["time"][place, -1], table.time[-1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"cuts must have one number of clients and one width"):
        asynchronous.alike(
            [cuts[0], asynchronous.waves(tables[0]._replace(population=N + 1), N + 1)]
        )


def test_normalised_changes_hardly_lean_to_those_who_take_more_steps():
    """A synchronous cycle of 100, 50 and 25 steps on equal curvatures, against the closed form."""
    arrivals = [asynchronous.Arrival(i, 0, k, 1 / 3) for i, k in enumerate((100, 50, 25))]
    steps = [(t + 1.0, [a._replace(version=t) for a in arrivals]) for t in range(60)]
    table = asynchronous.collected(3, steps)
    equal = federation(100, 3, np.ones((3, 1, 1)), np.arange(3.0)[:, None])
    for made, per_step, wanted in (
        (table, False, 0.6709),
        (asynchronous.normalised(table), True, 1.1102),
    ):
        cut = asynchronous.waves(made, 3)
        algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(0.01), cut, per_step=per_step)
        state = algorithm.init(KEY, jnp.ones(1))
        rolled = jax.jit(lambda s, f, a=algorithm, c=cut: dx.rollout(a, s, f, KEY, c.rounds))
        state, _ = rolled(state, asynchronous.join(equal, cut))
        np.testing.assert_allclose(state.server.params, wanted, atol=1e-4)


def test_kept_changes_are_normalised_by_the_steps_with_which_they_were_made():
    table = late()
    made = asynchronous.normalised(table)
    brought = int(np.flatnonzero(table.steps == 0)[0])
    step, client = table.of_step[brought], table.clients[brought]
    before = np.flatnonzero(table.later[:brought] & (table.clients[:brought] == client))[-1]
    of_it = np.flatnonzero(table.of_step == step)
    steps = np.where(table.steps[of_it] > 0, table.steps[of_it], 0).astype(float)
    kept = table.steps[of_it] == 0
    assert kept.sum() == 1
    steps[kept] = table.steps[before]
    np.testing.assert_allclose(made.weights[of_it], table.weights[of_it] * steps.mean())


@pytest.mark.slow
def test_on_eight_devices_and_in_two_halves_it_is_the_same_run():
    cut = asynchronous.waves(late())
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut)
    joined = asynchronous.join(source(10), cut)

    def run(rounds=cut.rounds, **options):
        state = algorithm.init(KEY, jnp.asarray(START))
        return dx.run(algorithm, state, joined, rounds=rounds, key=KEY, **options)[0]

    alone = run()
    wanted = expected(cut.timetable)[-1]
    np.testing.assert_allclose(alone.server.params, wanted, rtol=2e-5)
    dealt = run(mesh=dx.client_mesh())
    np.testing.assert_allclose(dealt.server.params, wanted, rtol=2e-5)
    half = run(cut.rounds // 2)
    resumed, _ = dx.run(
        algorithm, half, joined, rounds=cut.rounds - cut.rounds // 2, key=KEY, start=cut.rounds // 2
    )
    np.testing.assert_array_equal(resumed.server.params, alone.server.params)


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "at_once"),
    [("FedFix", None), ("FedFix", 1), ("asynchronous", None), ("FedCompass with late clients", 1)],
)
def test_hardly_a_gradient_is_taken_in_vain(name, at_once):
    table, taken = TABLES[name](), []

    def loss(params, batch, key):
        jax.debug.callback(taken.append, params[0])
        return LOSS(params, batch, key)

    cut = asynchronous.waves(table)
    algorithm = asynchronous.asynchronous_server(loss, optax.sgd(RATE), cut, at_once=at_once)
    state = algorithm.init(KEY, jnp.asarray(START))
    run = jax.jit(lambda state, joined: dx.rollout(algorithm, state, joined, KEY, cut.rounds))
    jax.block_until_ready(run(state, asynchronous.join(source(10), cut)))
    jax.effects_barrier()
    named = int(table.steps.sum())
    assert named <= len(taken) <= 1.1 * named


def test_what_a_channel_loses_is_left_out_and_a_step_without_any_leaves_the_server():
    cut = asynchronous.waves(TABLES["asynchronous"]())
    lossy = dx.channel.lossy(1.0)
    params, metrics = followed(cut, channel=lossy, server_optimizer=optax.adam(0.1))
    np.testing.assert_array_equal(params, np.broadcast_to(START, params.shape))
    assert not metrics["contributors"].any()


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["asynchronous", "FedFix"])
def test_what_is_lost_or_dropped_may_hold_nan(name):
    """Client 3 sends NaN: unless it arrives, the others' run is the one in which its weight is 0."""
    table = TABLES[name]()
    cut = asynchronous.waves(table)
    broken = TARGETS.copy()
    broken[3] = np.nan
    joined = asynchronous.join(federation(10, N, CURVATURE[:, None, None], broken[:, None]), cut)
    silent = table._replace(weights=np.where(table.clients == 3, 0.0, table.weights))
    wanted = expected(silent)[cut.begins[1:] - 1]

    def lose(messages, weights, state, sending):
        return messages, jnp.where(sending.senders == 3, 0.0, weights), state, {}

    lossy = dx.channel.Channel(lambda message: (), lose)
    for link in (lossy, dx.channel.finite_only()):
        algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut, channel=link)
        run = jax.jit(lambda source, a=algorithm: rolled(a, source, cut.rounds))
        np.testing.assert_allclose(run(joined), wanted, rtol=2e-5, atol=2e-5)
    plain = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut)
    params = jax.jit(lambda source: rolled(plain, source, cut.rounds))(joined)
    first = int(table.of_step[table.clients == 3][0])
    spoilt = cut.begins[1:] > first
    assert np.isnan(params[spoilt]).all()
    assert np.isfinite(params[~spoilt]).all()


def rolled(algorithm, source, rounds):
    def one(state, index):
        state, _ = algorithm.step(state, source.draw(KEY, index))
        return state, state.server.params

    return jax.lax.scan(one, algorithm.init(KEY, jnp.asarray(START)), jnp.arange(rounds))[1]


def test_what_does_not_fit_is_refused():
    cut = asynchronous.waves(TABLES["FedAvg"]())
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), cut)
    state = algorithm.init(KEY, jnp.asarray(START))
    with pytest.raises(ValueError, match=r"joined with the algorithm's own timetable.*got none"):
        algorithm.step(state, source(10).draw(KEY, 0))
    other = asynchronous.join(source(10), asynchronous.fedbuff(F80, 3, 9, weights="importance"))
    with pytest.raises(ValueError, match="joined with the algorithm's own timetable"):
        algorithm.step(state, other.draw(KEY, 0))
    # Two draws of times whose waves have equal places and steps, but not equally many models to keep.
    one, two = (
        asynchronous.waves(asynchronous.arrivals(N, 3, 40, delay=delay, seed=0), 3)
        for delay in (1, 5)
    )
    assert one.room[:3] == two.room[:3]
    algorithm = asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), one)
    state = algorithm.init(KEY, jnp.asarray(START))
    with pytest.raises(ValueError, match=r"joined with the algorithm's own timetable.*see `alike`"):
        algorithm.step(state, asynchronous.join(source(10), two).draw(KEY, 0))
    with pytest.raises(ValueError, match="local_steps >= 10 for all clients"):
        asynchronous.join(source(3), cut)
    with pytest.raises(ValueError, match="the 3 clients of the timetable, got 10"):
        asynchronous.join(source(3), asynchronous.synchronous(np.ones(3), 5))
    with pytest.raises(ValueError, match="latest must be False"):
        asynchronous.asynchronous_server(LOSS, optax.sgd(RATE), late(), latest=True)
