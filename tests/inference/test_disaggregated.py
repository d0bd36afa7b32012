"""P/D ratios, transfers, forwarding, decoding and organisation against tables and event by event."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference import queues

from dflax import inference as inf
from dflax.inference.disaggregated import decoding, forwarding, instances, organisation
from dflax.inference.disaggregated.held import held
from dflax.inference.disaggregated.retries import retried

KEY = jax.random.key(11)
A, B, C = inf.profile(0.8, 8.0), inf.profile(1.6, 8.0), inf.profile(0.4, 12.0)
LINK = inf.link()
RNG = np.random.default_rng(4)
N = 300
ARRIVED = np.cumsum(RNG.gamma(0.5, 2.0 / 30.0, N)).astype(np.float32).astype(float)
TAKES = RNG.uniform(0.02, 0.2, N).astype(np.float32).astype(float)
LASTS = RNG.uniform(0.1, 0.6, N).astype(np.float32).astype(float)
SENDS = RNG.uniform(0.0, 0.05, N).astype(np.float32).astype(float)
ROWS = inf.Requests(
    jnp.asarray(ARRIVED, jnp.float32),
    *(jnp.asarray(column, jnp.int32) for column in (RNG.integers(1, 900, N), np.arange(N))),
    *(jnp.asarray(column, jnp.int32) for column in (np.arange(N) % 2, -np.ones(N), np.zeros(N))),
)
# A row's number is its `output`: durations are looked up by it.
WORK = inf.fixed_work(lambda row: jnp.asarray(TAKES, jnp.float32)[row.output])
LIMIT = 0.4


def places(policy, instances, stays=lambda wait, duration: wait <= LIMIT, rows=ROWS):
    place = inf.station(policy, WORK, instances=instances, stays=stays)
    return jax.jit(lambda: place.serve(place.init(), rows.arrived, rows, KEY)[1])()


def test_the_hand_table_of_ratios():
    found = inf.group_throughput(A, jnp.arange(1, 12), jnp.arange(11, 0, -1))
    table = [0.417, 0.833, 1.25, 1.667, 2.083, 2.0, 1.667, 1.333, 1.0, 0.667, 0.333]
    np.testing.assert_allclose(found, table, atol=5e-4)
    assert [int(inf.best_split(one, 12)) for one in (A, B, C)] == [5, 7, 3]
    np.testing.assert_allclose(
        [inf.best_throughput(one) for one in (A, B, C)], [2.2222, 1.5385, 2.1053], atol=5e-5
    )
    np.testing.assert_allclose(
        [inf.group_throughput(C, 5, 7), inf.group_throughput(C, 3, 9)], [1.5556, 2.0], atol=5e-4
    )
    np.testing.assert_allclose(
        [inf.group_throughput(B, 3, 9), inf.group_throughput(B, 7, 5)], [0.625, 1.4583], atol=5e-4
    )
    for one in (A, B, C):
        ratio = inf.best_ratio(one)
        np.testing.assert_allclose(
            inf.group_throughput(one, ratio, 1.0), inf.best_throughput(one), rtol=1e-6
        )
    mixed = inf.mixed_profile([A, B], [1.0, 3.0])
    np.testing.assert_allclose([mixed.prefill, mixed.decode], [1.4, 8.0])


def test_instances_are_dealt_so_that_the_least_supplied_is_supplied_best():
    rates, total = [3.0, 2.0, 4.0], 14
    found = inf.organised([A, B, C], rates, total)
    sides = jnp.arange(1, 10)
    phi = {
        (k, n): np.asarray(inf.group_throughput(one, sides, n - jnp.minimum(sides, n - 1)))
        for k, one in enumerate((A, B, C))
        for n in range(2, 11)
    }
    assert sum(found.prefill) + sum(found.decode) == total

    def supplied(sizes):
        best = [
            max(phi[k, n][: n - 1]) * n / rate
            for k, (rate, n) in enumerate(zip(rates, sizes, strict=True))
        ]
        return min(best)

    sizes = [p + d for p, d in zip(found.prefill, found.decode, strict=True)]
    every = (s for s in itertools.product(range(2, 11), repeat=3) if sum(s) == total)
    np.testing.assert_allclose(supplied(sizes), max(map(supplied, every)), rtol=1e-6)


def test_transfers_are_their_formulas():
    fixed, free = inf.block_fixed(LINK), inf.block_free(LINK)
    layered = inf.block_free(LINK, messages=40)
    np.testing.assert_allclose(LINK.seconds(2000), 65.536e-3, rtol=1e-5)
    found = [1e3 * float(one(2000, 0.0)) for one in (fixed, free, layered)]
    np.testing.assert_allclose(found, [121.536, 65.547, 65.984], atol=2e-3)
    np.testing.assert_allclose(inf.link_utilisation(LINK, fixed, 2000), 0.539, atol=5e-4)
    # A block that holds the whole prompt is a message a layer, and without control costs all are one.
    np.testing.assert_allclose(
        inf.block_fixed(LINK, block=2000)(2000, 0.0), layered(2000, 0.0), rtol=1e-6
    )
    silent = inf.link(control=0.0)
    np.testing.assert_allclose(
        inf.block_fixed(silent)(2000, 0.0), inf.block_free(silent)(2000, 0.0), rtol=1e-6
    )
    visible = inf.block_free(LINK, scatter=1e12)(2000, 0.0) - free(2000, 0.0)
    np.testing.assert_allclose(visible, 2000 * 40 * 20480 / 1e12, rtol=1e-3)


@pytest.mark.parametrize("prefill", [0.0, 0.03, 0.2])
def test_layers_that_are_sent_early_follow_the_recursion(prefill):
    finish, each = 0.0, LINK.control + 2000 * LINK.token_bytes / LINK.bandwidth
    for layer in range(1, 41):
        finish = max(finish, layer * prefill / 40) + each
    np.testing.assert_allclose(inf.per_layer(LINK)(2000, prefill), finish - prefill, rtol=1e-4)


def test_on_demand_is_one_queue_that_never_idles():
    rule = inf.on_demand()
    found = places(rule.policy, 3, lambda wait, d: rule.stays(wait, d, LIMIT))
    starts, served = queues.on_demand(ARRIVED, TAKES, 3, LIMIT)
    np.testing.assert_array_equal(found.served, served)
    np.testing.assert_allclose(found.start, starts, atol=2e-5)
    assert 0.5 < served.mean() < 0.98
    # Between the arrival and the begin, or the last moment that is in time, every slot is busy.
    begins, ends = starts[served], (starts + TAKES)[served]
    for a, until in zip(ARRIVED, np.where(served, starts, ARRIVED + LIMIT - TAKES), strict=True):
        if until > a:
            at = 0.5 * (a + until)
            assert np.sum((begins <= at) & (at < ends)) == 3


@pytest.mark.parametrize("tau", [0.004, 0.05])
def test_offers_that_are_repeated_are_every_offer_in_turn(tau):
    serve = jax.jit(
        lambda tau, waiting=64: retried(
            jnp.zeros((3, 1)), (), ROWS, WORK, inf.on_demand(retry=tau, waiting=waiting), LIMIT
        )[2]
    )
    found, (starts, served) = serve(tau), queues.retried(ARRIVED, TAKES, 3, LIMIT, tau)
    np.testing.assert_array_equal(found.served, served)
    np.testing.assert_allclose(found.start[served], starts[served], atol=2e-5)
    # Some overtake, which a queue does not have.
    assert np.any(np.diff(starts[served]) < 0)


def test_a_gateway_that_is_full_sends_away():
    few = jax.jit(
        lambda: retried(
            jnp.zeros((3, 1)), (), ROWS, WORK, inf.on_demand(retry=0.01, waiting=1), LIMIT
        )[2]
    )()
    _, served = queues.retried(ARRIVED, TAKES, 3, LIMIT, 0.01)
    assert 0.3 < np.mean(few.served) < served.mean()


@pytest.mark.parametrize("decoders", [8, 400])
def test_slots_that_are_held_are_events_in_order(decoders):
    columns = [jnp.asarray(column, jnp.float32) for column in (SENDS, LASTS)]

    @jax.jit
    def serve():
        state = decoding.DecodeState(jnp.zeros((1, decoders)), jnp.zeros(1))
        wire = decoding.Wire(False, 0.0)
        bits = decoding.random_bits(KEY, N)
        return held(
            *(jnp.zeros((3, 1)), (), state, ROWS, WORK),
            *(inf.on_demand(), LIMIT, wire, *columns, bits),
        )[3:]

    placed, went = serve()
    starts, began = queues.held(ARRIVED, TAKES, SENDS, LASTS, 3, decoders, LIMIT)
    served = np.isfinite(starts)
    np.testing.assert_array_equal(placed.served, served)
    np.testing.assert_allclose(placed.start[served], starts[served], atol=3e-5)
    np.testing.assert_allclose(went.began[served], began[served], atol=3e-5)
    assert 0.1 < served.mean() < 0.98


def test_reports_are_as_old_as_they_say():
    memory = {}

    def stale(i, now, free):
        number = np.floor(np.float32(now) / np.float32(0.25))
        if memory.get("number", 0) != number:
            memory.update(number=number, seen=np.maximum(free - number * 0.25, 0.0))
        return int(np.argmin(memory.get("seen", np.zeros(3))))

    found = places(inf.stale_reports(0.25, tie="lowest"), 3)
    to, starts, served = queues.local(ARRIVED, TAKES, 3, LIMIT, stale)
    np.testing.assert_array_equal(found.instance, to)
    np.testing.assert_array_equal(found.served, served)
    np.testing.assert_allclose(found.start[served], starts[served], atol=2e-5)


def test_counted_tokens_are_those_of_prompts_that_are_not_done():
    tokens, own = np.asarray(ROWS.prompt), {}

    def pending(i, now, free):
        number = np.floor(np.float32(now) / np.float32(0.25))
        if own.get("number", 0) != number:
            time = number * 0.25
            seen = [sum(tokens[j] for j, end in own.get(k, []) if end > time) for k in range(3)]
            own.update(number=number, seen=np.array(seen, float))
        seen = own.setdefault("seen", np.zeros(3))
        to = int(np.argmin(seen))
        start = max(now, free[to])
        if start - now <= LIMIT:
            own.setdefault(to, []).append((i, start + TAKES[i]))
            seen[to] += tokens[i]
        return to

    policy = inf.stale_reports(0.25, unit="tokens", tie="lowest", dispatches=True)
    found = places(policy, 3)
    to, _, _ = queues.local(ARRIVED, TAKES, 3, LIMIT, pending)
    np.testing.assert_array_equal(found.instance, to)


def test_fresh_reports_are_the_true_backlog_and_one_instance_leaves_no_choice():
    # No two requests come between two reports.
    rows = ROWS._replace(arrived=jnp.arange(N) * 0.031)
    exact = places(inf.least_work(), 3, rows=rows)
    fresh = places(inf.stale_reports(1e-5, tie="lowest"), 3, rows=rows)
    np.testing.assert_array_equal(fresh.instance, exact.instance)
    alone = [
        places(policy, 1)
        for policy in (inf.least_work(), inf.stale_reports(1.0), inf.round_robin(), inf.at_random())
    ]
    for other in alone[1:]:
        np.testing.assert_array_equal(other.start, alone[0].start)


def test_ties_among_idle_instances_are_random():
    idle = ROWS._replace(arrived=jnp.arange(N, dtype=jnp.float32))
    place = inf.station(inf.stale_reports(0.5), WORK, instances=3)
    found = place.serve(place.init(), idle.arrived, idle, KEY)[1]
    shares = np.bincount(found.instance, minlength=3) / N
    np.testing.assert_allclose(shares, 1 / 3, atol=0.1)


def test_connections_stay_open_for_the_answer():
    def fewest(i, now, free):
        count = [sum(end > now for end in ends) for ends in closing]
        to = int(np.argmin(count))
        start = max(now, free[to])
        if start - now <= LIMIT:
            closing[to].append(start + TAKES[i] + LASTS[i])
        return to

    closing = [[], [], []]
    answers = jnp.asarray(LASTS, jnp.float32)
    found = places(inf.fewest_connections(lambda row: answers[row.output]), 3)
    to, _, _ = queues.local(ARRIVED, TAKES, 3, LIMIT, fewest)
    np.testing.assert_array_equal(found.instance, to)


@pytest.mark.parametrize("policy", [inf.round_robin(), inf.first_free()], ids=["turn", "free"])
def test_groups_are_services_of_their_own(policy):
    found = places(forwarding.within_groups(policy, [2, 1]), 3)
    for scenario, count in ((0, 2), (1, 1)):
        own = jax.tree.map(lambda column, of=scenario: column[of::2], ROWS)
        place = inf.station(
            policy, WORK, instances=count, stays=lambda wait, duration: wait <= LIMIT
        )
        alone = jax.jit(lambda p=place, o=own: p.serve(p.init(), o.arrived, o, KEY)[1])()
        np.testing.assert_array_equal(found.start[scenario::2], alone.start)
        np.testing.assert_array_equal(found.instance[scenario::2], alone.instance + 2 * scenario)


def test_links_carry_one_transfer_after_another():
    wire, key = decoding.Wire(True, 0.0), decoding.random_bits(KEY, 3)
    state = decoding.DecodeState(jnp.zeros((1, 4)), jnp.zeros(1))
    ones, everywhere = jnp.ones(3), jnp.ones((3, 1), bool)
    _, found = decoding.decoded_in_order(
        state, wire, jnp.array([0.0, 0.5, 4.0]), ones, 5.0 * ones, key, everywhere
    )
    np.testing.assert_allclose(found.sent, [0.0, 1.0, 4.0])
    np.testing.assert_allclose(found.last, [6.0, 7.0, 10.0])
    # With conflicts only who meets another is slower: here the second of two at two instances.
    state = decoding.DecodeState(jnp.zeros((2, 4)), jnp.zeros(2))
    wire = decoding.Wire(True, 0.5)
    _, found = decoding.decoded_in_order(
        state, wire, jnp.array([0.0, 0.5, 9.0]), ones, ones, key, jnp.ones((3, 2), bool)
    )
    slower = found.began - found.sent
    np.testing.assert_allclose(slower[jnp.array([0, 2])], 1.0)
    assert slower[1] > 1.0


@pytest.mark.slow
def test_tokens_are_neither_lost_nor_found():
    ready = jnp.asarray(np.append(ARRIVED[:39], np.inf), jnp.float32)
    outputs = jnp.asarray(RNG.integers(5, 40, 40), jnp.int32)
    prompts = jnp.full((40,), 100, jnp.int32)
    sizes = {"instances": 2, "slots": 4}

    @jax.jit
    def run():
        steady = inf.affine_costs((0.0, 0.0, 0.0), (0.01, 0.0, 0.0))
        loaded = inf.affine_costs((0.0, 0.0, 0.0), (0.01, 1e-6, 1e-3))
        return [
            inf.token_decoding(ready, prompts, outputs, costs, tick=0.005, ticks=900, **sizes)
            for costs in (steady, loaded)
        ]

    for found in run():
        done = np.isfinite(found.last)
        np.testing.assert_array_equal(done, np.arange(40) < 39)
        np.testing.assert_allclose(found.tokens[done], outputs[done], rtol=1e-5)
        assert found.tokens[39] == 0
        # In the order in which they came.
        assert np.all(np.diff(found.began[:39]) >= 0)
    steady, loaded = run()
    np.testing.assert_allclose(
        (steady.last - steady.began)[:39], 0.01 * outputs[:39], rtol=1e-3, atol=1e-4
    )
    assert np.all((loaded.last - loaded.began)[:39] > 0.0109 * outputs[:39])


def seen(total, share, *, prefill=3, decode=3, span=40.0, idle=0):
    ends = jnp.linspace(1.0, 39.0, 400)
    values = jnp.full((400,), total)
    numbers = (jnp.float32(span), jnp.float32(400.0), ends, values, share * values)
    return organisation.Observed(*numbers, *(jnp.int32(k) for k in (prefill, decode, idle)))


def test_the_ratio_follows_the_share_of_the_first_token():
    rule = inf.ratio_adjustment(decay=0.9)
    memory, decide = rule.init(), jax.jit(rule.decide)
    for total, share, wanted in (
        (10.0, 0.2, (3, 3)),  # the reference
        (10.5, 0.4, (3, 3)),  # not slow enough
        (12.0, 0.21, (3, 3)),  # slow on both sides alike
        (12.0, 0.3, (4, 2)),
        (12.0, 0.3, (3, 3)),  # the reference now
        (14.0, 0.2, (2, 4)),
    ):
        memory, *found = decide(memory, seen(total, share))
        assert tuple(map(int, found)) == wanted
    # Within the cooldown nothing happens, and one instance of each kind is left.
    quick = inf.ratio_adjustment(decay=0.9, reference=inf.profile(2.0, 8.0))
    decide = jax.jit(quick.decide)
    memory, *found = decide(quick.init(), seen(20.0, 0.5, decode=1))
    assert tuple(map(int, found)) == (3, 1)
    memory, *found = decide(memory, seen(20.0, 0.5, span=5.0, idle=1))
    assert tuple(map(int, found)) == (4, 3)
    memory, *found = decide(memory, seen(20.0, 0.5, span=5.0))
    assert tuple(map(int, found)) == (3, 3)


def test_requests_under_way_count_when_they_end():
    rule = inf.ratio_adjustment(decay=0.5, underway=4)
    late = seen(1.0, 0.5, span=2.0)._replace(
        ends=jnp.array([1.0, 3.0, 5.0]), total=jnp.array([1.0, 2.0, 3.0]), ttft=jnp.ones(3)
    )
    decide = jax.jit(rule.decide)
    memory, *_ = decide(rule.init(), late)
    np.testing.assert_allclose(memory.sums, [1.0, 1.0, 1.0])
    never = late._replace(ends=jnp.full((3,), jnp.inf), span=jnp.float32(3.5))
    memory, *_ = decide(memory, never)
    np.testing.assert_allclose(memory.sums, [1.75, 3 + 1 + 0.25, 1 / 3 + 0.25 + 0.25], rtol=1e-5)


def test_instances_drain_load_and_are_never_lost():
    rule = inf.ratio_adjustment(warm_up=10.0)
    prefill = jnp.array([[5.0, 2.0], [4.0, 1.0], [jnp.inf, jnp.inf]])
    decode = jnp.array([[9.0, 0.0], [jnp.inf, jnp.inf], [jnp.inf, jnp.inf]])
    start = instances.Instances(prefill, decode, jnp.full((3,), jnp.inf))
    move = jax.jit(lambda p, d, now: instances.moved(start, p, d, now, rule))
    after = move(jnp.int32(1), jnp.int32(2), jnp.float32(3.0))
    np.testing.assert_allclose(after.prefill[0], [5.0, 2.0])
    assert np.all(np.isinf(after.prefill[1:]))
    # Its last request ends at 4, and it loads until 14.
    np.testing.assert_allclose(after.decode[:2], [[9.0, 0.0], [14.0, 14.0]])
    assert np.all(np.isinf(after.idle))


def test_tides_are_followed_at_the_best_ratio():
    rule = inf.tidal_scaling(A, 20, start=4, memory=0.0, moves=4)
    for rate, wanted in ((10.0, 6), (30.0, 17), (100.0, 20), (0.01, 2)):
        ended = seen(1.0, 0.5)._replace(arrived=jnp.float32(40.0 * rate))
        _, prefill, decode = rule.decide(rule.init(), ended)
        assert int(prefill + decode) == wanted
        np.testing.assert_allclose(prefill, np.clip(round(wanted * 4 / 9), 1, None), atol=1)
    assert rule.spare == 16
