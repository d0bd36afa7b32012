"""The streaming profiler against the harness's rules in plain Python, closed forms, and itself."""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_close

import dflax as dx
from dflax.inference import efficiency as ipw

KEY = jax.random.key(25)


# Traces of one shape, so that tests share a program.
ROWS, BUFFER = 128, 64


@functools.partial(jax.jit, static_argnames=("nodes", "energy"))
def compiled(source, idle, horizon, nodes, energy):
    algorithm = ipw.streaming_profiler(
        nodes=nodes, buffer=BUFFER, horizon=horizon, energy=energy, idle_watts=idle, gauges=2
    )
    state, metrics = dx.rollout(algorithm, algorithm.init(KEY), source, KEY, source.rows)
    apart = ipw.summary(state.clients, pooled=False)
    return state.clients, ipw.summary(state.clients), apart, metrics


def run(source, idle=0.0, horizon=30.0, nodes=1, energy="counter"):
    """The profile, its summary, that of each node, and the metrics of all rows."""
    return compiled(source, idle, horizon, nodes, energy)


def table(time, power, start, end, **given):
    """One node's telemetry, followed by rows without anything."""
    given = {"gauges": np.full((len(time), 2), np.nan)} | given
    source = ipw.telemetry(time, power, start, end, **given)

    def padded(column):
        width = ((0, ROWS - len(column)), *((0, 0),) * (column.ndim - 1))
        return np.pad(column, width, constant_values=0 if column.dtype == bool else np.nan)

    return dx.Events(jax.tree.map(padded, source.table))


def of_queries(source, metrics):
    """Metrics in the rows where a query ends, of the first node."""
    ended = np.asarray(source.table.ended)[:, 0]
    return {name: np.asarray(values)[ended, 0] for name, values in metrics.items()}


def stream(seed=0, samples=110, queries=12, **options):
    """A random trace: samples some 50 ms apart, some missing, queries with idle time between."""
    rng = np.random.default_rng(seed)
    time = np.cumsum(rng.uniform(0.03, 0.07, samples))
    power = rng.uniform(20, 60, samples)
    counter = 7e6 + np.cumsum(power * np.diff(time, prepend=0))
    cuts = np.sort(rng.uniform(0.2, time[-1] - 0.2, 2 * queries))
    start, end = cuts[::2], cuts[1::2]
    power[rng.random(samples) < 0.1] = np.nan
    given = {
        "counter": counter,
        "accuracy": rng.integers(0, 2, queries).astype(float),
        "perplexity": rng.uniform(1, 5, queries),
        "input_tokens": rng.integers(5, 200, queries).astype(float),
        "output_tokens": rng.integers(0, 100, queries).astype(float),
        "first_token": rng.uniform(0.01, 0.1, queries),
        "gauges": rng.uniform(30, 80, (samples, 2)),
    } | options
    return (time, power, start, end), given


def harness(time, power, start, end, counter, horizon=30.0):
    """Energy and power of each query by the harness's rules, one query after another."""
    base = last = None
    found = []
    for begin, finish in zip(start, end, strict=True):
        newest = max(t for t in time if t <= finish)
        seen = [i for i, t in enumerate(time) if begin <= t <= finish and t >= newest - horizon]
        counted = [counter[i] for i in seen if not math.isnan(counter[i])]
        energy = math.nan
        if counted and all(math.isfinite(v) and v >= 0 for v in (counted[0], counted[-1])):
            base = counted[0] if base is None else base
            if last is None:
                energy = max(counted[-1] - counted[0], 0.0)
            elif counted[-1] < last:
                base = counted[-1]
            else:
                energy = counted[-1] - last
            last = counted[-1]
        watts = [power[i] for i in seen if not math.isnan(power[i])] or [math.nan]
        found.append(
            (energy, statistics.fmean(watts), min(watts), max(watts), statistics.median(watts))
        )
    return np.array(found).T, last, base


def test_queries_are_measured_as_the_harness_measures_them():
    times, given = stream()
    source = table(*times, **given)
    _, whole, _, metrics = run(source)
    found = of_queries(source, metrics)
    wanted, last, base = harness(*times, given["counter"])
    names = ("energy", "power", "power_least", "power_most", "power_median")
    for name, values in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=2e-4, err_msg=name)
    np.testing.assert_allclose(whole.energy, last - base, rtol=1e-4)
    latency = times[3] - times[2]
    np.testing.assert_allclose(found["latency"], latency, atol=1e-5)
    made = given["output_tokens"]
    some = made > 0
    np.testing.assert_allclose(
        found["per_token"][some], 1e3 * latency[some] / made[some], rtol=1e-3
    )
    assert np.isnan(found["throughput"][~some]).all()
    assert int(whole.zeros["output_tokens"]) == np.sum(~some)


def test_means_deviations_and_lines_are_those_of_all_queries_at_once():
    times, given = stream(1)
    source = table(*times, **given)
    _, whole, _, metrics = run(source)
    found = of_queries(source, metrics)
    accuracy, power, energy = given["accuracy"], found["power"], found["energy"]
    columns = {
        "accuracy": accuracy,
        "power": power,
        "energy": energy,
        "latency": found["latency"],
        "apw": accuracy / power,
        "ppw": 1 / given["perplexity"] / power,
        "apj": accuracy / np.where(energy > 0, energy, np.nan),
        "ppj": 1 / given["perplexity"] / np.where(energy > 0, energy, np.nan),
    }
    for name, values in columns.items():
        known = values[np.isfinite(values)]
        assert int(whole.seen[name]) == known.size
        np.testing.assert_allclose(whole.mean[name], known.mean(), rtol=1e-4)
        np.testing.assert_allclose(whole.deviation[name], known.std(ddof=1), rtol=1e-3)
    np.testing.assert_allclose(whole.ipw, whole.mean["accuracy"] / whole.mean["power"])
    total = given["input_tokens"] + given["output_tokens"]
    points = {
        "first_token": (given["input_tokens"], given["first_token"]),
        "energy": (total, energy),
        "latency": (total, found["latency"]),
        "power": (total, power),
        "power_log": (np.log(total), power),
    }
    for name, (x, y) in points.items():
        known = np.isfinite(y)
        slope, intercept = np.polyfit(x[known], y[known], 1)
        line = whole.lines[name]
        scale = np.abs(y[known]).mean()
        np.testing.assert_allclose(line.intercept, intercept, atol=1e-3 * scale)
        np.testing.assert_allclose(line.slope * x.mean(), slope * x.mean(), atol=1e-3 * scale)
        r2 = np.corrcoef(x[known], y[known])[0, 1] ** 2
        np.testing.assert_allclose(line.r2, r2, atol=1e-3)


def counted(pairs, **options):
    """Queries whose windows hold two samples each, with these counters."""
    counter = np.array(pairs, float).reshape(-1)
    time = np.arange(counter.size, dtype=float)
    return table(
        time, np.full(counter.size, 5.0), time[::2], time[1::2], counter=counter, **options
    )


def test_idle_energy_goes_to_the_next_query_and_a_reset_begins_anew():
    source = counted([(0, 10), (14, 20), (5, 9), (9, 12)])
    profile, whole, _, metrics = run(source)
    energy = of_queries(source, metrics)["energy"]
    np.testing.assert_array_equal(energy, [10.0, 10.0, np.nan, 3.0])
    assert profile.missing.tolist() == [1]
    assert float(whole.energy) == 3.0


def test_a_counter_that_is_none_makes_energy_missing_and_moves_nothing():
    source = counted([(0, 10), (14, np.inf), (-1, 20), (np.nan, 30)])
    *_, metrics = run(source)
    np.testing.assert_array_equal(
        of_queries(source, metrics)["energy"], [10.0, np.nan, np.nan, 20.0]
    )


def test_a_large_counter_loses_nothing():
    source = counted(np.array([(0, 10), (14, 20)]) + 123_456_789.0)
    *_, metrics = run(source)
    assert of_queries(source, metrics)["energy"].tolist() == [10.0, 10.0]


def test_trapezoids_integrate_straight_lines_exactly_and_fill_short_windows():
    time = np.arange(0.0, 10.0, 0.5)
    start, end = np.array([0.2, 3.1, 6.55]), np.array([2.9, 3.2, 8.0])
    source = table(time, 2 * time + 1, start, end)
    *_, metrics = run(source, idle=3.0, energy="net")
    found = of_queries(source, metrics)
    wanted = end**2 + end - start**2 - start
    # Beyond the last sample that has come, power is what it was there.
    newest = time[np.searchsorted(time, end, side="right") - 1]
    wanted -= (end - np.maximum(newest, start)) ** 2
    inside = newest >= start
    np.testing.assert_allclose(found["energy_trapezoid"][inside], wanted[inside], rtol=1e-5)
    assert found["energy_trapezoid"][1] == pytest.approx(0.1 * 7.0, rel=1e-4)
    latency = end - start
    np.testing.assert_allclose(
        found["energy"], found["energy_trapezoid"] - 3 * latency, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found["power"], found["energy"] / latency, rtol=1e-5)


def test_a_window_without_samples_is_missing_by_the_harness():
    source = table([0.0, 1.0], [5.0, 7.0], [0.2], [0.4], counter=[0.0, 6.0])
    *_, metrics = run(source)
    found = of_queries(source, metrics)
    assert np.isnan(found["energy"]).all()
    assert np.isnan(found["power"]).all()
    assert found["energy_trapezoid"] == pytest.approx(1.0, rel=1e-5)


def test_samples_beyond_the_horizon_or_the_buffer_are_forgotten():
    time = np.arange(100.0)
    source = table(time, time, [0.0], [99.0])
    *_, by_horizon = run(source, horizon=3.5)
    *_, by_buffer = run(source, horizon=1000.0)
    assert of_queries(source, by_horizon)["power"] == pytest.approx(97.5)
    assert of_queries(source, by_buffer)["power"] == pytest.approx((36 + 99) / 2)


def lines_of(x, y):
    time, first = np.arange(len(x), dtype=float), np.asarray(y, float)
    source = table(
        time, np.ones(len(x)), time, time, input_tokens=np.asarray(x, float), first_token=first
    )
    return run(source)[1].lines["first_token"]


def test_lines_at_their_edges():
    x = [1.0, 2.0, 5.0, 7.0]
    exact = lines_of(x, [2 + 3 * v for v in x])
    np.testing.assert_allclose(exact, [4, 3, 2, 1, 13.25], rtol=1e-5)
    constant = lines_of(x, [4.0] * 4)
    assert float(constant.r2) == 1.0
    assert float(constant.slope) == 0.0
    single = lines_of([3.0] * 4, x)
    assert float(single.seen) == 4
    assert np.isnan([single.slope, single.intercept, single.r2]).all()
    assert float(single.mean) == pytest.approx(3.75)
    alone = lines_of(x[:1], x[:1])
    assert np.isnan(alone.slope)
    assert float(alone.mean) == 1.0


def test_far_from_zero_the_sums_do_not_cancel():
    rng = np.random.default_rng(3)
    time = np.arange(90.0)
    tokens = 100_000 + rng.uniform(0, 10, 30)
    watts = np.repeat(5_000 + 0.3 * (tokens - 100_000) + rng.normal(0, 0.1, 30), 3)
    source = table(
        time, watts, time[::3], time[2::3], input_tokens=tokens, output_tokens=np.zeros(30)
    )
    whole = run(source)[1]
    slope, _ = np.polyfit(tokens, watts[::3], 1)
    np.testing.assert_allclose(whole.lines["power"].slope, slope, rtol=1e-2)
    np.testing.assert_allclose(whole.deviation["power"], watts[::3].std(ddof=1), rtol=1e-2)


@pytest.fixture(scope="module")
def eight():
    """Telemetry of eight nodes, of different lengths, and what is found of them on one device."""
    traces = [stream(10 + node, samples=100 + node) for node in range(8)]
    source = ipw.fleet_telemetry([ipw.telemetry(*times, **given) for times, given in traces])
    return traces, source, run(source, nodes=8)


@pytest.mark.slow
def test_nodes_side_by_side_are_each_alone_and_pooled_they_are_all_queries(eight):
    traces, _, (_, whole, apart, _) = eight
    times, given = traces[3]
    own = run(table(*times, **given))[1]
    third = jax.tree.map(lambda leaf: leaf[3], apart)
    assert_trees_close(third._asdict(), own._asdict(), rtol=1e-4, atol=1e-5)
    energy = np.nansum(apart.seen["energy"] * apart.mean["energy"])
    np.testing.assert_allclose(whole.mean["energy"], energy / apart.seen["energy"].sum(), rtol=1e-5)
    assert int(whole.seen["accuracy"]) == 8 * 12
    x, y = (
        np.concatenate([given[name] for _, given in traces])
        for name in ("input_tokens", "first_token")
    )
    slope, intercept = np.polyfit(x, y, 1)
    line = whole.lines["first_token"]
    np.testing.assert_allclose([line.slope, line.intercept], [slope, intercept], rtol=1e-3)
    np.testing.assert_allclose(line.r2, np.corrcoef(x, y)[0, 1] ** 2, rtol=1e-3)


@pytest.mark.slow
def test_nodes_dealt_over_devices_are_profiled_as_on_one(eight):
    _, source, (profile, _, _, metrics) = eight
    algorithm = ipw.streaming_profiler(nodes=8, gauges=2, buffer=BUFFER)
    start = algorithm.init(KEY)
    mesh = dx.client_mesh()
    many, also = dx.run(
        algorithm, start, source, rounds=source.rows, key=KEY, mesh=mesh, progress=False
    )
    assert_trees_close(profile, many.clients, rtol=1e-6, atol=0)
    np.testing.assert_allclose(also.metrics["energy"], metrics["energy"], rtol=1e-6)
    assert many.clients.base.sharding.spec[0] == "clients"


@pytest.mark.slow
def test_idle_watts_and_horizons_are_one_sweep():
    times, given = stream(2)
    source = table(*times, **given)
    swept = dx.sweep(
        lambda idle, horizon: ipw.streaming_profiler(
            energy="net", idle_watts=idle, horizon=horizon, buffer=BUFFER, gauges=2
        ),
        lambda algorithm, key: algorithm.init(key),
        source,
        grid={"idle": [0.0, 10.0], "horizon": [30.0]},
        key=KEY,
        rounds=source.rows,
        progress=False,
    )
    energy = swept.metrics["energy"][:, 0, 0, :, 0]
    ended = np.asarray(source.table.ended)[:, 0]
    latency = times[3] - times[2]
    np.testing.assert_allclose((energy[0] - energy[1])[ended], 10 * latency, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [1.0, 0.5]}, "time must not fall, got 0.5 s at row 1"),
        ({"start": [0.9]}, "start must not lie after end, got 0.9 s"),
        ({"end": [np.nan]}, "end must be finite"),
        ({"power": [-1.0, 2.0]}, "power must be finite numbers in"),
        ({"counter": [1.0]}, r"counter must be real numbers of shape \[2\]"),
        ({"input_tokens": [-3.0]}, "input_tokens must be finite numbers in"),
        ({"accuracy": [1.5]}, "accuracy must be finite numbers in"),
        ({"gauges": np.ones(2)}, "gauges must be real numbers of shape"),
    ],
)
def test_bad_telemetry_is_refused_by_name(change, message):
    given = {"time": [0.0, 1.0], "power": [1.0, 2.0], "start": [0.0], "end": [0.5]} | change
    with pytest.raises(ValueError, match=message):
        ipw.telemetry(**given)


def test_a_profiler_of_other_nodes_is_refused():
    source = counted([(0, 10)])
    algorithm = ipw.streaming_profiler(nodes=2)
    with pytest.raises(ValueError, match="nodes and gauges must be those of the telemetry"):
        jax.eval_shape(algorithm.step, algorithm.init(KEY), source.draw(KEY, jnp.int32(0)))
    with pytest.raises(ValueError, match="energy must be one of"):
        ipw.streaming_profiler(energy="joules")
