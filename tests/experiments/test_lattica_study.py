"""The networks and programs of Lattica's study."""

import jax
import numpy as np
import pytest

from dflax import p2p
from experiments.studies.p2p import _lattica_protocols as protocols
from experiments.studies.p2p import _lattica_training as training
from experiments.studies.p2p._lattica_wire import corrupted, documents


def test_relays_make_the_graph_complete_and_closed_nats_without_them_cut_it():
    links = training.graphs([3, 4], 8, training.CLOSED)
    full = ~np.eye(8, dtype=bool)
    for place, seed in enumerate([3, 4]):
        assert (links[training.RELAYED][place] == full).all()
        types = np.asarray(training.network(jax.random.key(seed), 8, training.CLOSED).state)
        direct = links[training.PUNCHED][place]
        np.testing.assert_array_equal(direct, types == 2)
        assert not links[training.DIALLED][place].any()
        # Whoever has a symmetric NAT has no direct link at all.
        assert (direct.sum(1) == 0).any()


def test_a_round_waits_for_its_slowest_link():
    apart = np.full((3, 3), 0.1) * ~np.eye(3, dtype=bool)
    network = jax.jit(p2p.connected)(jax.random.key(0), np.zeros(3, np.int32), apart)
    # Two others share the uplink of 2.5 MB/s.
    expected = 0.1 + training.MODEL / (training.UP / 2)
    np.testing.assert_allclose(training.seconds_of_round(network, 3), expected, rtol=1e-5)


def test_tables_of_several_seeds_have_one_width_and_find_what_theirs_find():
    made = protocols._tables([0, 1, 2], 40, 2)
    assert len({one.contacts.shape for one in made}) == 1
    alone = p2p.routing(p2p.drawn_ids(40, 1), bucket_size=2, seed=1)
    sources, keys = np.arange(6, dtype=np.int32), np.arange(6, dtype=np.uint32) << 29
    for table in (made[1], alone):
        found = jax.jit(p2p.greedy_lookup)(table, sources, keys)
        np.testing.assert_array_equal(
            found.hops, jax.jit(p2p.greedy_lookup)(alone, sources, keys).hops
        )


def test_documents_agree():
    pytest.importorskip("pycrdt", reason="needs the extra p2p")
    assert documents("abc")


def test_what_is_corrupted_keeps_its_name_and_loses_its_hash():
    model = p2p.model_blocks({"w": np.arange(9.0, dtype=np.float32)}, block_bytes=8)
    wrong = corrupted(model)
    assert wrong.blocks.keys() == model.blocks.keys()
    fits = [p2p.content_id(block) == name for name, block in wrong.blocks.items()]
    assert sum(fits) == 1
