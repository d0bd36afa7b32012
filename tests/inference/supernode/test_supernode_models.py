"""The supernode's closed forms against the paper's numbers and references in NumPy."""

import jax
import numpy as np
import pytest

from dflax.inference import supernode as sn

KEY = jax.random.key(11)


def filled(bandwidth, source, destination, endpoints):
    """Progressive filling, one bottleneck after another."""
    rates = np.full(len(source), np.nan)
    while np.isnan(rates).any():
        shares = {}
        for side, ends in (("out", source), ("in", destination)):
            for end in range(endpoints):
                on = ends == end
                rising = on & np.isnan(rates)
                if rising.any():
                    shares[side, end] = (bandwidth - np.nansum(rates[on])) / rising.sum()
        side, end = min(shares, key=shares.get)
        ends = source if side == "out" else destination
        rates[(ends == end) & np.isnan(rates)] = shares[side, end]
    return rates


def test_flows_share_their_endpoints_as_fairly_as_can_be():
    rng = np.random.default_rng(0)
    rates = jax.jit(lambda s, d: sn.fair_rates(sn.plane(0.0, 196.0), s, d, endpoints=6))
    for _ in range(5):
        source, destination = rng.integers(0, 6, (2, 20))
        wanted = filled(196.0, source, destination, 6)
        np.testing.assert_allclose(rates(source, destination), wanted, rtol=1e-5)
    alone = sn.fair_rates(sn.plane(0.0, 196.0), np.arange(3), np.array([1, 2, 0]), endpoints=3)
    np.testing.assert_allclose(alone, 196.0)


def test_a_message_is_its_latency_and_its_bytes():
    planes = sn.cloudmatrix_planes()
    np.testing.assert_allclose(sn.message(planes.within, 196e3), 2.2e-6, rtol=1e-6)
    np.testing.assert_allclose(sn.message(planes.across, 196e3, sharing=3.0), 4.9e-6, rtol=1e-6)


def test_slots_messages_and_buffers_are_the_papers():
    assert sn.spare_slots(320, 1, routed=256, shared=32) == 32
    assert sn.spare_slots(32, 10, routed=256, shared=32) == 32
    assert sn.dispatch_bytes(7168) == 7.5 * 1024
    assert sn.dispatch_bytes(7168, early_int8=False) == 14 * 1024
    assert sn.buffer_bytes(320, 96) == 645 * 1024 * 1024
    assert sn.buffer_bytes(32, 96, slots=10) == 8 * sn.buffer_bytes(32, 96)


def test_exchanges_meet_the_points_that_they_were_fitted_to():
    ours, theirs = sn.cloudmatrix_exchanges(), sn.deepep_exchanges()
    times = [[sn.exchange_time(e, r, 128.0) * 1e6 for r in (8.0, 256.0)] for e in (*ours, *theirs)]
    wanted = [[116, 152], [118, 149], [163, 194], [318, 360]]
    np.testing.assert_allclose(times, wanted, rtol=1e-5)
    # What the paper measures as bandwidth has about 5 % more bytes: what goes with the messages.
    np.testing.assert_allclose(ours.dispatch.bandwidth / 1e9, 71.0, rtol=0.06)
    np.testing.assert_allclose(ours.combine.bandwidth / 1e9, 131.0, rtol=0.06)


def test_every_prefill_rank_serves_ten_decode_ranks():
    ranks = sn.prefill_ranks()
    assert ranks.shape == (320, 1)
    np.testing.assert_array_equal(np.bincount(ranks[:, 0]), np.full(32, 10))
    np.testing.assert_array_equal(ranks[[0, 9, 10, 319], 0], [0, 0, 1, 31])
    both = sn.prefill_ranks(prefill_tensor=8, decode_tensor=2, decode_data=8)
    np.testing.assert_array_equal(both[:, 0], [0, 0, 2, 2, 4, 4, 6, 6])
    np.testing.assert_array_equal(np.bincount(both.ravel()), np.full(8, 2))


def test_decoding_is_the_plane_through_the_published_points():
    points = sn.published_points()
    # Throughput is batch over TPOT, which the paper rounds.
    np.testing.assert_allclose(points.batch / points.tpot, points.throughput, rtol=3e-3)
    guesses = sn.speculation()
    found = sn.fitted_decode(points.batch, points.context, 1.7 * points.tpot)
    np.testing.assert_allclose(found, [22.98e-3, 7.268e-8, 0.3399e-3], rtol=3e-4)
    tpot = sn.time_per_token(sn.cloudmatrix_costs(), points.batch, points.context, guesses)
    np.testing.assert_allclose(tpot * 1e3, [47.5, 46.3, 50.0, 22.6, 16.6], atol=0.06)
    assert np.abs(tpot / points.tpot - 1).max() < 0.12


def test_a_guess_pays_above_the_acceptance_that_it_costs():
    gain = sn.speculation_gain(sn.speculation(np.array([0.7, 0.44]), 1.44))
    np.testing.assert_allclose(gain, [1.7 / 1.44, 1.0], rtol=1e-6)
    costs, points = sn.cloudmatrix_costs(), sn.published_points()
    on, off = (
        sn.time_per_token(costs, points.batch, points.context, sn.speculation(on=on))
        for on in (True, False)
    )
    np.testing.assert_allclose(off / on, sn.speculation_gain(sn.speculation()), rtol=1e-6)


def test_two_stages_overlap_as_far_as_they_share_nothing():
    # Latency alone: two halves side by side take half the time of four in turn.
    half = sn.stage(0.0, 0.0, 1.0)
    serial = 2.0 * (sn.stage_time(half) + sn.stage_time(half))
    np.testing.assert_allclose(serial / sn.pipelined(half, half), 2.0)
    # Arithmetic alone: nothing to gain, whatever the shares; nothing lost where they fit the work.
    first, second = sn.stage(3.0, 0.0, 0.0), sn.stage(1.0, 0.0, 0.0)
    serial = 2.0 * (sn.stage_time(first) + sn.stage_time(second))
    shares = np.linspace(0.1, 0.9, 17)
    gains = [serial / sn.pipelined(first, second, share=s, other=1.0 - s) for s in shares]
    assert max(gains) <= 1.0 + 1e-6
    np.testing.assert_allclose(
        serial / sn.pipelined(first, second, share=0.75, other=0.25), 1.0, rtol=1e-6
    )
    # Reads are not slowed by fewer cores.
    np.testing.assert_allclose(sn.stage_time(sn.stage([1.0, 1.0], [4.0, 1.0], 0.5), 0.5), 6.5)


def test_a_layer_is_its_operations_by_hand():
    die, sizes = sn.Die(100.0, 50.0, 10.0), sn.Sizes(8.0, 40.0, 6.0, 2.0, 30.0, 2.0)
    attention = sn.attention_stage(3.0, 5.0, queries=2.0, sizes=sizes, die=die)
    np.testing.assert_allclose(attention.compute, [2 * 40 * 6 / 100, 6 * 15 * 2 / 50], rtol=1e-6)
    np.testing.assert_allclose(attention.memory, [4.0, 2 * 15 / 10], rtol=1e-6)
    exchanges = sn.cloudmatrix_exchanges()
    experts = sn.experts_stage(7.0, exchanges, imbalance=1.5, sizes=sizes, die=die)
    np.testing.assert_allclose(experts.compute, [2 * 30 * 7 * 3 * 1.5 / 100], rtol=1e-6)
    np.testing.assert_allclose(experts.memory, [3.0], rtol=1e-6)
    both = sum(sn.exchange_time(e, 320.0, 7.0, active=2.0) for e in exchanges)
    np.testing.assert_allclose(experts.fixed, both, rtol=1e-6)


def test_what_is_cached_is_loaded():
    gains = 1.0 / sn.with_cache(1.0, np.array([0.0, 0.5, 0.9, 1.0]))
    np.testing.assert_allclose(gains, [1.0, 1.44, 2.22, 1 / 0.39], rtol=3e-3)


def test_packed_tokens_take_the_mean_and_others_the_busiest_rank():
    tokens = np.array([5.0, 1.0, 2.0, 4.0, 1.0, 3.0])
    np.testing.assert_allclose(sn.packed_step(tokens, 0.5, ranks=4, exchanges=1.0), 3.0)
    np.testing.assert_allclose(sn.data_parallel_step(tokens, 0.5, ranks=4), 0.5 * 6.0)


def test_replicas_are_the_best_that_there_are():
    rng = np.random.default_rng(3)
    loads = rng.integers(1, 30, 4).astype(np.float32)
    copies = np.asarray(sn.balanced(loads, 3))
    assert copies.sum() == 7
    grid = np.stack(np.meshgrid(*[np.arange(1, 5)] * 4), -1).reshape(-1, 4)
    best = (loads / grid[grid.sum(1) == 7]).max(1).min()
    np.testing.assert_allclose((loads / copies).max(), best)
    np.testing.assert_allclose(sn.imbalance(loads, copies), best * 7 / loads.sum(), rtol=1e-6)


def test_the_busiest_copy_never_gets_busier():
    loads = 1.0 / np.arange(1.0, 257.0)
    busiest = [float(np.max(loads / np.asarray(sn.balanced(loads, r)))) for r in (0, 1, 8, 32, 64)]
    assert (np.diff(busiest) < 0).all()
    np.testing.assert_allclose(sn.imbalance(np.full(4, 3.0), np.ones(4, int)), 1.0)
    np.testing.assert_allclose(sn.imbalance(np.zeros(4), np.ones(4, int)), 1.0)


def test_loads_are_counted():
    chosen = np.array([[0, 2], [2, 1], [2, 0]])
    np.testing.assert_array_equal(sn.routed_loads(chosen, 4), [2, 1, 3, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sn.spare_slots(320, 1, routed=300, shared=32), "slots must hold 332 experts"),
        (lambda: sn.prefill_ranks(decode_tensor=3), "decode_tensor must divide"),
        (lambda: sn.prefill_ranks(decode_data=100), "decode_data must be a multiple of .* 32"),
        (lambda: sn.fair_rates(sn.plane(0, 1.0), [0], [3], endpoints=2), "destination must be"),
        (lambda: sn.with_cache(1.0, 1.1), "reused must be"),
        (lambda: sn.fitted_decode([1, 2], [1, 1], [1, 1]), "batch must hold at least three"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
