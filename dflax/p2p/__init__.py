"""Peer to peer: ranking, recommendation, retrieval, networks, protocols."""

from dflax.p2p.blocks.content import BlockStore, block_store, content_ids, received
from dflax.p2p.blocks.models import ModelBlocks, content_id, model_blocks, model_of, wanted_blocks
from dflax.p2p.blocks.over_libp2p import Fetched, fetched, serving
from dflax.p2p.blocks.peer_score import PeerScores, PeerStats, peer_scores
from dflax.p2p.blocks.swarm import swarm
from dflax.p2p.crdt.counters import PnCounter, causality, g_counter, pn_counter, version_vector
from dflax.p2p.crdt.deltas import (
    Stamped,
    digest,
    entry_digests,
    newer,
    only,
    stamped,
    version_of,
)
from dflax.p2p.crdt.gossiped import gossiped
from dflax.p2p.crdt.lww_map import LwwMap, SubkeyIndex, lww_map, subkey_index
from dflax.p2p.crdt.or_set import OrSet, or_set
from dflax.p2p.crdt.protocol import Crdt
from dflax.p2p.g_rank.attacks import joined, spammed
from dflax.p2p.g_rank.click_log import ClickLog
from dflax.p2p.g_rank.distance import footrule, ndcg, rank_distance
from dflax.p2p.g_rank.g_rank import GRankState, g_rank
from dflax.p2p.g_rank.ranking import (
    Search,
    g_rank_score,
    local_score,
    popularity_score,
    random_score,
    similarities,
)
from dflax.p2p.kademlia.lookup import Hops, Lookups, greedy_lookup, iterative_lookup
from dflax.p2p.kademlia.records import Providers, Records, provider_records
from dflax.p2p.kademlia.routing import Routing, bucket, drawn_ids, routing, xor_distance
from dflax.p2p.network.connect import Network, connected, metropolis_of
from dflax.p2p.network.graph import topology_of
from dflax.p2p.network.nat import Nat, drawn_nats, nat_by_stun, textbook_nats
from dflax.p2p.network.rpc import Rpc, link_bandwidth, rpc

__all__ = [
    "BlockStore",
    "ClickLog",
    "Crdt",
    "Fetched",
    "GRankState",
    "Hops",
    "Lookups",
    "LwwMap",
    "ModelBlocks",
    "Nat",
    "Network",
    "OrSet",
    "PeerScores",
    "PeerStats",
    "PnCounter",
    "Providers",
    "Records",
    "Routing",
    "Rpc",
    "Search",
    "Stamped",
    "SubkeyIndex",
    "block_store",
    "bucket",
    "causality",
    "connected",
    "content_id",
    "content_ids",
    "digest",
    "drawn_ids",
    "drawn_nats",
    "entry_digests",
    "fetched",
    "footrule",
    "g_counter",
    "g_rank",
    "g_rank_score",
    "gossiped",
    "greedy_lookup",
    "iterative_lookup",
    "joined",
    "link_bandwidth",
    "local_score",
    "lww_map",
    "metropolis_of",
    "model_blocks",
    "model_of",
    "nat_by_stun",
    "ndcg",
    "newer",
    "only",
    "or_set",
    "peer_scores",
    "pn_counter",
    "popularity_score",
    "provider_records",
    "random_score",
    "rank_distance",
    "received",
    "routing",
    "rpc",
    "serving",
    "similarities",
    "spammed",
    "stamped",
    "subkey_index",
    "swarm",
    "textbook_nats",
    "topology_of",
    "version_of",
    "version_vector",
    "wanted_blocks",
    "xor_distance",
]


def __dir__() -> list[str]:
    return __all__
