"""Timetables against the values of the papers' rules, worked out by hand."""

import numpy as np
import pytest

from dflax import asynchronous

F80 = asynchronous.hardware(10, 80)


def rows(table, most=99):
    """(time, clients, local steps, staleness) of the first steps of the server."""
    parts = (table.clients, table.steps, table.staleness)
    return [
        (round(float(table.time[t]), 3), *(tuple(p[low:high].tolist()) for p in parts))
        for t, (low, high) in enumerate(zip(table.first[:-1], table.first[1:], strict=True))
    ][:most]


def test_two_clients_of_which_one_is_twice_as_fast():
    times = np.array([1.0, 0.5])
    with pytest.warns(asynchronous.SurrogateWarning, match=r"\[0.333 0.667\]"):
        table = asynchronous.immediate(times, 60, weights="identical")
    np.testing.assert_allclose(table.surrogate(), [1 / 3, 2 / 3], atol=0.003)
    table = asynchronous.immediate(times, 60)
    np.testing.assert_allclose(np.unique(table.weights), [0.75, 1.5])
    np.testing.assert_allclose(table.surrogate(), 0.5, atol=0.005)
    for tick, weights in ((0.5, [0.5, 1.0]), (1.0, [0.5])):
        table = asynchronous.fedfix(times, tick, 60)
        np.testing.assert_allclose(np.unique(table.weights), weights)
        np.testing.assert_allclose(table.surrogate(), 0.5, atol=0.005)


def test_the_number_of_steps_and_what_they_add():
    unbiased = 0.1 * F80 * (1 / F80).sum()
    made = {
        "FedAvg": (asynchronous.synchronous(F80, 2000), 2000),
        "asynchronous": (asynchronous.immediate(F80, 2000, weights=unbiased), 42559),
        "FedFix 0.5": (asynchronous.fedfix(F80, 0.5, 2000), 4000),
        "FedBuff": (asynchronous.fedbuff(F80, 5, 2000, weights="importance"), 6920),
    }
    for name, (table, steps) in made.items():
        assert len(table.time) == steps, name
        # The mean weight that a step applies.
        np.testing.assert_allclose(table.weights.sum() / steps, 1.0, atol=1e-3)
        np.testing.assert_allclose(table.surrogate(), 0.1, atol=1e-4)
    with pytest.warns(UserWarning, match="tick should be at least the shortest time"):
        table = asynchronous.fedfix(F80, 0.1, 3.0)


def test_quotients_that_are_integers_count_as_such():
    table = asynchronous.fedfix(F80, 0.2, 2000)
    ticks = [5, 5, 5, 4, 4, 3, 3, 2, 2, 1]
    np.testing.assert_allclose(1 / table.frequencies(), ticks, rtol=2e-3)
    np.testing.assert_allclose(table.surrogate(), 0.1, rtol=2e-3)


def test_special_cases_are_one_another():
    equal = np.ones(4)
    average = rows(asynchronous.synchronous(F80, 20))
    assert rows(asynchronous.fedfix(F80, 1.0, 20)) == average
    with_buffer = rows(asynchronous.fedbuff(F80, 10, 20))
    assert [(time, sorted(who)) for time, who, _, _ in with_buffer] == [
        (time, list(who)) for time, who, _, _ in average
    ]
    table = asynchronous.immediate(equal, 3.0)
    assert table.clients.tolist() == [0, 1, 2, 3] * 3
    assert table.staleness.tolist() == [0, 1, 2, 3] + [3] * 8
    assert table.idle() == pytest.approx(0.0)
    assert asynchronous.fedfix(np.array([0.5, 1.0]), 1.0, 10).idle() == pytest.approx(0.25)


def test_fedcompass_is_its_authors_schedule_event_for_event():
    with_three = rows(asynchronous.fedcompass(np.array([0.1, 0.2, 0.4]), 80))
    assert with_three == [
        (10.0, (0,), (100,), (0,)),
        (20.0, (0,), (100,), (0,)),
        (20.0, (1,), (100,), (2,)),
        (30.0, (0, 1), (100, 50), (1, 0)),
        (40.0, (0, 1), (100, 50), (0, 0)),
        (40.0, (2,), (100,), (5,)),
        (50.0, (0, 1, 2), (100, 50, 25), (1, 1, 0)),
        *((time, (0, 1, 2), (100, 50, 25), (0, 0, 0)) for time in (60.0, 70.0, 80.0)),
    ]
    table = rows(asynchronous.fedcompass(np.array([0.1, 0.23, 0.9]), 112))
    assert table[3] == (30.0, (0, 1), (100, 30), (1, 0))
    assert table[4] == (40.0, (0, 1), (100, 43), (0, 0))
    assert table[-2][:3] == (110.0, (0,), (100,))
    assert table[-1][:3] == (111.6, (1, 2), (50, 24))
    equal = rows(asynchronous.fedcompass(np.full(4, 0.1), 40))
    assert [row[3] for row in equal[:4]] == [(0,), (1,), (2,), (3,)]
    assert equal[4] == (20.0, (0, 1, 2, 3), (100,) * 4, (3, 2, 1, 0))
    assert equal[5] == (30.0, (0, 1, 2, 3), (100,) * 4, (0,) * 4)


def test_nobody_is_late_unless_times_are_random_and_the_late_are_applied_by_the_next_step():
    generator = np.random.default_rng(0)
    speeds = 0.02 + generator.exponential(0.1, 10)
    assert not asynchronous.fedcompass(speeds, 300).keeps
    random = speeds[:, None] * np.exp(0.3 * generator.normal(size=(10, 200)))
    table = asynchronous.fedcompass(random, 300)
    assert 0.1 < table.later.mean() < 0.3
    brought = table.steps == 0
    assert 0 < brought.sum() <= table.later.sum()
    assert (table.weights[table.later] == 0).all()
    assert (table.weights[brought] > 0).all()
    # Steps in which changes are only kept do not age anybody's model.
    assert table.measures()["server_steps"] == len(table.time) - table.later.sum()


def test_waves_start_from_models_that_exist_and_have_each_client_once():
    for table in (
        asynchronous.immediate(F80, 30),
        asynchronous.fedfix(F80, 0.2, 30),
        asynchronous.arrivals(10, 3, 200, delay=5, local_steps=(1, 5), seed=0),
    ):
        cut = asynchronous.waves(table)
        live = {0: {0}}
        for low, high in zip(cut.begins[:-1], cut.begins[1:], strict=True):
            span = slice(table.first[low], table.first[high])
            assert len(set(table.clients[span])) == span.stop - span.start <= cut.width
            assert (table.versions[span] <= low).all()
            for place, version in zip(cut.start[span], table.versions[span], strict=True):
                assert version in live[place]
            for step in range(low, high):
                if cut.write[step] < cut.slots:
                    live[cut.write[step]] = {step + 1}
        assert cut.waste <= 0.1
        assert cut.width % cut.chunk == 0
    assert asynchronous.waves(asynchronous.synchronous(F80, 9)).slots == 1
    assert asynchronous.waves(asynchronous.immediate(F80, 9)).slots <= 10


def test_arrivals_follow_their_probabilities():
    table = asynchronous.arrivals(10, 4, 4000, probabilities=np.linspace(1, 4, 10), delay=5, seed=1)
    inclusion = [0.185, 0.241, 0.294, 0.344, 0.390, 0.434, 0.474, 0.512, 0.547, 0.579]
    np.testing.assert_allclose(table.frequencies(), inclusion, atol=0.03)
    assert table.staleness.max() == 5
    assert table.staleness[: 4 * 1].max() == 0
    table = asynchronous.clocks(np.full(6, 2.0), np.full(6, 0.1), 3, 300.0, local_steps=5, seed=0)
    assert (np.diff(table.first) == 3).all()
    assert table.idle() == pytest.approx(0.8, abs=0.05)


def test_times_that_were_measured_are_read(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("client,seconds\n0,1.5\n1,0.5\n0,2.0\n")
    np.testing.assert_array_equal(asynchronous.from_csv(path), [[1.5, 2.0], [0.5, 0.5]])
    path.write_text("client,seconds\n0,1.5\n1,-2\n")
    with pytest.raises(ValueError, match="line 3 of path must be a client >= 0 and seconds > 0"):
        asynchronous.from_csv(path)
    path.write_text("client,seconds\n0,1.5\n2,2\n")
    with pytest.raises(ValueError, match=r"a line for every client, got none for \[1\]"):
        asynchronous.from_csv(path)


ARRIVAL = asynchronous.Arrival(0, 0, 1, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: asynchronous.collected(2, []), "at least one step of the server, got none"),
        (
            lambda: asynchronous.collected(2, [(1.0, [ARRIVAL._replace(version=1)])]),
            r"names client 0 before it was sent its model: versions must be in \[0, 0\]",
        ),
        (lambda: asynchronous.collected(2, [(2.0, []), (1.0, [])]), "in the order of their times"),
        (lambda: asynchronous.collected(2, [(1.0, [ARRIVAL] * 2)]), "must be distinct"),
        (
            lambda: asynchronous.collected(2, [(1.0, [ARRIVAL._replace(steps=0)])]),
            "a change of client 0 that it never kept",
        ),
        (
            lambda: asynchronous.collected(2, [(1.0, [ARRIVAL._replace(client="0")])]),
            "must have whole numbers of client, version and steps",
        ),
        (
            lambda: asynchronous.collected(2, [(1.0, [ARRIVAL._replace(busy=-1.0)])]),
            "finite weights and busy >= 0",
        ),
        (lambda: asynchronous.immediate([1.0, 0.0], 5), "durations must be"),
        (lambda: asynchronous.immediate(np.ones(2), 5, weights=np.zeros(2)), "not all 0"),
        (
            lambda: asynchronous.immediate(np.ones(2), 5, importance=np.ones(3)),
            "each of the 2 clients of durations",
        ),
        (
            lambda: asynchronous.Scheduler(2, 4, 1.2, 0.9).measure(0, 0.0),
            "time must be seconds after",
        ),
        (lambda: asynchronous.Scheduler(2, 4, 1.2, 0.9).assign(0, 1.0), "measured before, got 0"),
        (lambda: asynchronous.fedbuff(np.ones(3), 4, 5), "buffer must be an integer in"),
        (
            lambda: asynchronous.fedbuff(np.array([1.0, 9.0]), 1, 5, weights="importance"),
            "never do",
        ),
        (lambda: asynchronous.synchronous(np.ones(3), 0.5), "Run for longer"),
        (lambda: asynchronous.fedcompass(np.ones(3), 5, least=9, most=3), "most must be"),
        (lambda: asynchronous.waves(asynchronous.fedfix(F80, 1.0, 5), 3), "width must be"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
