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
from dflax.p2p.delegation.agents import DelegationState
from dflax.p2p.delegation.delegation import delegation
from dflax.p2p.delegation.discovery import (
    Asked,
    Found,
    configured,
    crawl,
    distributed_index,
    flooding,
    registry,
)
from dflax.p2p.delegation.learning import Learnt, polling, push, reply, stream
from dflax.p2p.delegation.tasks import Task, TaskStream, task_stream
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
from dflax.p2p.network.activity import active_neighbours
from dflax.p2p.network.connect import Network, connected, metropolis_of
from dflax.p2p.network.graph import topology_of
from dflax.p2p.network.nat import Nat, drawn_nats, nat_by_stun, textbook_nats
from dflax.p2p.network.rpc import Rpc, link_bandwidth, rpc
from dflax.p2p.rag.candidates import Candidates, PollutedWorld, polluted_world
from dflax.p2p.rag.drag import DragState, drag, min_max_trust, softmax_trust, vote_reader
from dflax.p2p.rag.importance import Importance, leave_one_out, shapley
from dflax.p2p.rag.ledger import Gas, Ledger, gas, ledger, written
from dflax.p2p.recommendation.decay import Visits, decayed, visits, without_root
from dflax.p2p.recommendation.sybils import praised_by_sybils
from dflax.p2p.recommendation.view import (
    Neighbours,
    Statements,
    View,
    heard,
    joined_views,
    neighbours,
    passed_on,
    view,
)
from dflax.p2p.recommendation.walks import Walks, salsa_walks, trust_walks
from dflax.p2p.recommendation.web3recommend import (
    Heard,
    RecommenderState,
    recommended,
    web3recommend,
)

__all__ = [
    "Asked",
    "BlockStore",
    "Candidates",
    "ClickLog",
    "Crdt",
    "DelegationState",
    "DragState",
    "Fetched",
    "Found",
    "GRankState",
    "Gas",
    "Heard",
    "Hops",
    "Importance",
    "Learnt",
    "Ledger",
    "Lookups",
    "LwwMap",
    "ModelBlocks",
    "Nat",
    "Neighbours",
    "Network",
    "OrSet",
    "PeerScores",
    "PeerStats",
    "PnCounter",
    "PollutedWorld",
    "Providers",
    "RecommenderState",
    "Records",
    "Routing",
    "Rpc",
    "Search",
    "Stamped",
    "Statements",
    "SubkeyIndex",
    "Task",
    "TaskStream",
    "View",
    "Visits",
    "Walks",
    "active_neighbours",
    "block_store",
    "bucket",
    "causality",
    "configured",
    "connected",
    "content_id",
    "content_ids",
    "crawl",
    "decayed",
    "delegation",
    "digest",
    "distributed_index",
    "drag",
    "drawn_ids",
    "drawn_nats",
    "entry_digests",
    "fetched",
    "flooding",
    "footrule",
    "g_counter",
    "g_rank",
    "g_rank_score",
    "gas",
    "gossiped",
    "greedy_lookup",
    "heard",
    "iterative_lookup",
    "joined",
    "joined_views",
    "leave_one_out",
    "ledger",
    "link_bandwidth",
    "local_score",
    "lww_map",
    "metropolis_of",
    "min_max_trust",
    "model_blocks",
    "model_of",
    "nat_by_stun",
    "ndcg",
    "neighbours",
    "newer",
    "only",
    "or_set",
    "passed_on",
    "peer_scores",
    "pn_counter",
    "polling",
    "polluted_world",
    "popularity_score",
    "praised_by_sybils",
    "provider_records",
    "push",
    "random_score",
    "rank_distance",
    "received",
    "recommended",
    "registry",
    "reply",
    "routing",
    "rpc",
    "salsa_walks",
    "serving",
    "shapley",
    "similarities",
    "softmax_trust",
    "spammed",
    "stamped",
    "stream",
    "subkey_index",
    "swarm",
    "task_stream",
    "textbook_nats",
    "topology_of",
    "trust_walks",
    "version_of",
    "version_vector",
    "view",
    "visits",
    "vote_reader",
    "wanted_blocks",
    "web3recommend",
    "without_root",
    "written",
    "xor_distance",
]


def __dir__() -> list[str]:
    return __all__
