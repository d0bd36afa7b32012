"""Neighbours by MoDeST's clock against a walk through every peer's book, and who is found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import p2p

N, ROUNDS = 12, 40


def by_hand(present, reached, score, most, inactivity):
    """Everyone's book as a dictionary, peer by peer."""
    nodes = len(reached)
    books = [dict.fromkeys(range(nodes), 0) for _ in range(nodes)]
    asked = []
    for t, there in enumerate(present, start=1):
        chosen = []
        for i in range(nodes):
            clock = max(seen for j, seen in books[i].items() if j != i)
            candidates = [
                j
                for j in range(nodes)
                if j != i and reached[i, j] and books[i][j] >= clock - inactivity
            ]
            candidates.sort(key=lambda j: (-score[i, j], j))
            chosen.append(candidates[:most] if there[i] else [])
        before = [dict(book) for book in books]
        for i in range(nodes):
            if there[i]:
                before[i][i] = t
            for j in chosen[i]:
                if there[j]:
                    before[i][j] = before[j][i] = t
        books = [dict(book) for book in before]
        for i in range(nodes):
            for j in chosen[i]:
                if there[j]:
                    for k, seen in before[j].items():
                        books[i][k] = max(books[i][k], seen)
        asked.append(chosen)
    return asked


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(4)
    present = rng.random((ROUNDS, N)) < 0.7
    reached = rng.random((N, N)) < 0.8
    return present, reached, rng.normal(size=(N, N)).astype(np.float32)


def test_everyone_asks_whom_its_book_says(world):
    present, reached, score = world
    schedule, metrics = p2p.active_neighbours(present, reached, score, most=3, inactivity=4)
    neighbours, weights = schedule.tables
    expected = by_hand(present, reached, score, 3, 4)
    stale = 0
    for t in range(ROUNDS):
        for i in range(N):
            used = weights[t, i] > 0
            assert neighbours[t, i][used].tolist() == expected[t][i]
            np.testing.assert_allclose(weights[t, i][used], 1 / (1 + used.sum()), rtol=1e-6)
            stale += sum(not present[t, j] for j in expected[t][i])
    asked = sum(len(some) for row in expected for some in row)
    whole = float(metrics["asked"] @ present.sum(1))
    np.testing.assert_allclose(whole, asked, rtol=1e-5)
    np.testing.assert_allclose(
        float(metrics["away"] @ (np.asarray(metrics["asked"]) * present.sum(1))), stale, rtol=1e-5
    )


def test_who_is_away_is_forgotten_and_found_again(world):
    everyone = np.ones((30, N), bool)
    everyone[5:20, 0] = False
    reached = np.ones((N, N), bool)
    schedule, metrics = p2p.active_neighbours(
        everyone, reached, np.zeros((N, N)), most=N - 1, inactivity=3
    )
    neighbours, weights = schedule.tables
    asks_0 = ((neighbours[:, 1:] == 0) & (weights[:, 1:] > 0)).any(-1)
    assert asks_0[:9].all()
    assert not asks_0[9:20].any()
    # In its first round back it asks those whom it knew; they know it in the next.
    assert (weights[20, 0] > 0).all()
    assert asks_0[21:].all()
    assert float(metrics["unknown"][20]) > 0


def test_a_mixer_follows_the_schedule(world):
    present, reached, score = world
    schedule, _ = p2p.active_neighbours(present, reached, score, most=3, inactivity=4)
    neighbours, weights = (table[7] for table in schedule.tables)
    mixer = dx.gossip.mixer(schedule)
    models = {"w": np.arange(N, dtype=np.float32)}
    mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(7), present[7])
    mixed, _, _ = mixer.apply(models, mixer.init(models), mixing)
    for i in range(N):
        wanted = float(i)
        for j, weight in zip(neighbours[i], weights[i], strict=True):
            if present[7, i] and present[7, j]:
                wanted += float(weight) * (int(j) - i)
        np.testing.assert_allclose(mixed["w"][i], wanted, rtol=1e-5, atol=1e-5)
