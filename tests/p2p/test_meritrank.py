"""Walks over trust beside those of a package that nobody here wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import p2p


@pytest.mark.slow
def test_walks_come_by_whom_meritranks_come_by():
    networkx = pytest.importorskip("networkx")
    rank = pytest.importorskip("meritrank_python.rank")
    rng = np.random.default_rng(0)
    friends = np.stack([(np.arange(1, 4) * (user + 1)) % 11 for user in range(11)])
    friends = np.where(friends == np.arange(11)[:, None], (friends + 1) % 11, friends)
    # Edges of one pair of users are one edge.
    trust = np.zeros((11, 11), np.float32)
    np.put_along_axis(trust, friends, rng.random((11, 3)).astype(np.float32) + 0.1, axis=1)
    graph = networkx.DiGraph()
    for source, target in zip(*np.nonzero(trust), strict=True):
        graph.add_edge(str(source), str(target), weight=float(trust[source, target]))
    theirs = rank.IncrementalMeritRank(graph)
    theirs.alpha = 0.8
    theirs.calculate("0", num_walks=10_000)
    found = theirs.get_ranks("0")
    order = np.argsort(-trust, axis=1)[:, :3].astype(np.int32)
    walks = p2p.trust_walks(
        order,
        np.take_along_axis(trust, order, axis=1),
        0,
        jax.random.key(0),
        walks=40_000,
        length=60,
        stop=0.2,
    )
    visited = np.asarray(walks.visited)
    for user in range(11):
        ours = (visited == user).any(1).mean()
        # 10,000 walks of theirs: four standard errors and a half.
        assert abs(ours - found.get(str(user), 0.0) / found["0"]) < 0.025, user
    assert jnp.isfinite(walks.visited).all()
