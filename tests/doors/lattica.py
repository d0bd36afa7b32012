"""Right calls of the peers' networks, lookups, replicas and blocks."""

import numpy as np

import dflax as dx
from doors.things import KEY, N

p2p = dx.p2p
NAT = np.zeros(N, np.int32)
RTT = np.full((N, N), 0.1)
NETWORK = p2p.connected(KEY, NAT, RTT)
LINK = ~np.eye(N, dtype=bool)
IDS = np.array([3, 9, 200, 4_000_000_000], np.uint32)
ROUTING = p2p.routing(IDS)
COUNTER = p2p.g_counter(N)
STAMP = p2p.stamped(COUNTER, N).bottom()
BLOCKS = np.arange(12, dtype=np.int32).reshape(3, 4)
STORE = p2p.block_store(p2p.content_ids(BLOCKS), 4)
MODEL = p2p.model_blocks({"w": np.zeros(3, np.float32)})
VECTOR = np.zeros(N, np.int32)

CALLS = {
    "p2p.active_neighbours": {
        **{"present": np.ones((3, N), bool), "reached": LINK, "score": RTT},
        **{"most": 2, "inactivity": 2},
    },
    "p2p.block_store": {"ids": STORE.ids, "words": 4},
    "p2p.bucket": {"distance": IDS},
    "p2p.causality": {"a": VECTOR, "b": VECTOR},
    "p2p.connected": {"key": KEY, "nat": NAT, "rtt": RTT},
    "p2p.content_id": {"block": b"block"},
    "p2p.content_ids": {"blocks": BLOCKS},
    "p2p.digest": {"replica": VECTOR},
    "p2p.drawn_ids": {"peers": N, "seed": 0},
    "p2p.drawn_nats": {"key": KEY, "peers": N, "mix": np.full(5, 0.2)},
    "p2p.entry_digests": {"replica": VECTOR},
    "p2p.fetched": {"content": MODEL.content_id, "addresses": ["/ip4/127.0.0.1/tcp/4001"]},
    "p2p.g_counter": {"writers": N},
    "p2p.gossiped": {"crdt": COUNTER},
    "p2p.greedy_lookup": {"routing": ROUTING, "sources": np.zeros(4, np.int32), "keys": IDS},
    "p2p.iterative_lookup": {"routing": ROUTING, "sources": np.zeros(4, np.int32), "keys": IDS},
    "p2p.link_bandwidth": {"network": NETWORK, "up": np.ones(N), "down": np.ones(N)},
    "p2p.lww_map": {"slots": 3},
    "p2p.metropolis_of": {"link": LINK},
    "p2p.model_blocks": {"params": {"w": np.zeros(3, np.float32)}},
    "p2p.model_of": {"content": MODEL.content_id, "blocks": MODEL.blocks},
    "p2p.nat_by_stun": {
        "local": np.zeros((3, 2), np.int32),
        "mapped": np.zeros((3, 2, 2), np.int32),
    },
    "p2p.newer": {"stamp": STAMP, "version": VECTOR},
    "p2p.only": {"crdt": COUNTER, "replica": VECTOR, "entries": VECTOR == 0},
    "p2p.or_set": {"slots": 3, "writers": N},
    "p2p.peer_scores": {},
    "p2p.pn_counter": {"writers": N},
    "p2p.provider_records": {},
    "p2p.received": {"store": STORE, "places": np.arange(3), "blocks": BLOCKS},
    "p2p.routing": {"ids": IDS},
    "p2p.rpc": {},
    "p2p.serving": {"blocks": MODEL},
    "p2p.stamped": {"crdt": COUNTER, "writers": N},
    "p2p.subkey_index": {"slots": 3},
    "p2p.swarm": {},
    "p2p.textbook_nats": {},
    "p2p.topology_of": {"link": LINK},
    "p2p.version_of": {"stamp": STAMP},
    "p2p.version_vector": {"writers": N},
    "p2p.wanted_blocks": {"manifest": MODEL.blocks[MODEL.content_id]},
    "p2p.xor_distance": {"x": IDS, "y": IDS},
}
