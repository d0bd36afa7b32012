"""Arrivals, lengths, traces and traffic: laws, blocks, files, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import inference as inf

KEY = jax.random.key(3)
TRACE = inf.trace([0.0, 0.5, 0.5, 2.0], [5, 6, 7, 8], [1, 2, 3, 4])


def test_gaps_have_the_mean_and_the_variation_that_are_asked_for():
    rates = jnp.array([2.0, 50.0])

    @jax.jit
    @jax.vmap
    def gaps(rate):
        drawn = [inf.evenly(rate), inf.poisson(rate), inf.gamma(rate, 1.5)]
        return jnp.stack([jnp.diff(arrivals(KEY, 20_000)) for arrivals in drawn])

    found = np.asarray(gaps(rates), np.float64)
    np.testing.assert_allclose(found.mean(-1) * rates[:, None], 1.0, atol=0.04)
    variation = found.std(-1) / found.mean(-1)
    np.testing.assert_allclose(variation[0], [0.0, 1.0, 1.5], atol=0.08)


def test_tides_have_the_expected_counts_of_their_rate():
    period, n = 100.0, 40_000
    arrived = np.asarray(jax.jit(lambda: inf.tidal(40.0, amplitude=0.8, period=period)(KEY, n))())
    assert (np.diff(arrived) >= 0).all()
    # Counts of the two halves of a period: rate (P / 2 +- amplitude P / pi).
    counted = np.histogram(arrived % period, bins=[0, period / 2, period])[0]
    whole = np.floor(arrived[-1] / period) * period
    counted = np.histogram(arrived[arrived < whole] % period, bins=[0, period / 2, period])[0]
    np.testing.assert_allclose(
        counted / counted.sum(), [0.5 + 0.8 / np.pi, 0.5 - 0.8 / np.pi], atol=0.01
    )


def test_lengths_keep_their_bounds_and_their_law():
    drawn = np.asarray(inf.zipf(1.0, low=3, high=12)(KEY, 50_000))
    shares = np.bincount(drawn, minlength=13)[3:] / len(drawn)
    law = 1.0 / np.arange(1, 11)
    np.testing.assert_allclose(shares, law / law.sum(), atol=0.01)
    drawn = np.asarray(inf.log_normal(6.0, 0.5, low=300, high=900)(KEY, 5_000))
    assert drawn.min() == 300
    assert drawn.max() == 900
    assert abs(np.log(np.median(drawn)) - 6.0) < 0.03


@pytest.mark.slow
def test_scenarios_have_prefixes_of_their_own():
    chat = inf.scenario(inf.constant(100), inf.constant(7), prefixes=3, reused=0.8, probability=0.5)
    code = inf.scenario(inf.constant(200), inf.constant(9), prefixes=2, reused=0.25)
    source = inf.traffic(inf.poisson(1.0), [chat, code], 4_000, weights=[3.0, 1.0])
    requests, _ = jax.jit(source.draw)(KEY, 0)
    of_code = np.asarray(requests.scenario) == 1
    assert abs(of_code.mean() - 0.25) < 0.03
    assert set(np.unique(requests.prefix[~of_code])) == {-1, 0, 1, 2}
    assert set(np.unique(requests.prefix[of_code])) == {3, 4}
    assert source.prefixes == 5
    has = np.asarray(requests.prefix) >= 0
    np.testing.assert_array_equal(requests.shared, np.where(has, np.where(of_code, 50, 80), 0))
    again, _ = source.draw(KEY, 1)
    assert not np.array_equal(requests.arrived, again.arrived)


def test_blocks_keep_a_long_trace_exact():
    # A month at a millisecond's resolution, which float32 seconds cannot hold.
    times = 2.6e6 + np.arange(6) * 1e-3
    cut = inf.blocks(inf.trace(times, np.ones(6, int), np.ones(6, int)), 3)
    assert cut.arrived.dtype == np.float32
    np.testing.assert_allclose(cut.arrived, [[0, 1e-3, 2e-3], [1e-3, 2e-3, 3e-3]], atol=1e-9)
    (row, _) = dx.Events(cut).draw(KEY, 1)
    assert isinstance(row, inf.Requests)
    np.testing.assert_allclose(row.arrived, [1e-3, 2e-3, 3e-3], atol=1e-9)


def test_a_faster_rate_divides_the_times():
    seen = dx.Algorithm(
        lambda key, params: (), lambda state, round: (state, {"t": round[0].arrived})
    )
    _, metrics = inf.at_rate(seen, 4.0).step((), (TRACE, KEY))
    np.testing.assert_allclose(metrics["t"], TRACE.arrived / 4.0)


def test_a_file_returns_what_was_written(tmp_path):
    whole = inf.trace(
        [0.0, 0.25, 86_400.000001], [5, 6, 7], [1, 2, 3], prefix=[0, -1, 1], shared=[2, 0, 3]
    )
    inf.write_trace(tmp_path / "trace.csv", whole)
    for wrote, read in zip(whole, inf.read_trace(tmp_path / "trace.csv"), strict=True):
        np.testing.assert_array_equal(wrote, read)


@pytest.mark.parametrize(
    "text",
    [
        "arrived_at,num_prefill_tokens,num_decode_tokens,num_total_tokens\n3,5,1,6\n4.5,6,2,8\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,5,1\n2023-11-16 18:17:05.4799600,6,2\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "3,ChatGPT,5,1,6,API log\n4.5,GPT-4,6,2,8,API log\n",
    ],
    ids=["Vidur", "Azure", "BurstGPT"],
)
def test_public_traces_are_read(tmp_path, text):
    (tmp_path / "trace.csv").write_text(text)
    requests = inf.read_trace(tmp_path / "trace.csv")
    np.testing.assert_allclose(requests.arrived, [0.0, 1.5], atol=1e-6)
    np.testing.assert_array_equal(requests.prompt, [5, 6])
    np.testing.assert_array_equal(requests.output, [1, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "columns"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n", "rows"),
        (
            "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5.5,1\n",
            "whole numbers as num_prefill",
        ),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\nsoon,5,1\n", "seconds or dates"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,-1\n", "output must be"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n1,5,1\n0,5,1\n", "arrived must not"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, message):
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        inf.read_trace(tmp_path / "trace.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrived": [0.0, 2.0, 1.0]}, "arrived must not decrease, got 1 after 2 in row 2"),
        ({"prompt": [5, -1, 5]}, "prompt must be"),
        ({"output": [5, 0, 5]}, "output must be"),
        ({"shared": [0, 6, 0], "prefix": [0, 0, 0]}, "shared must not exceed"),
        ({"shared": [0, 3, 0]}, "prefix must name"),
    ],
)
def test_wrong_traces_are_refused(arguments, message):
    right = {"arrived": [0.0, 1.0, 2.0], "prompt": [5, 5, 5], "output": [1, 1, 1]}
    with pytest.raises(ValueError, match=message):
        inf.trace(**(right | arguments))


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"size must divide the 4 requests, got 3.*first 3 rows"):
        inf.blocks(TRACE, 3)
