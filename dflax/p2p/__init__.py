"""Peer to peer: ranking, recommendation, retrieval, networks, protocols."""

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
from dflax.p2p.rag.candidates import Candidates, PollutedWorld, polluted_world
from dflax.p2p.rag.drag import DragState, drag, min_max_trust, softmax_trust, vote_reader
from dflax.p2p.rag.importance import Importance, leave_one_out, shapley
from dflax.p2p.rag.ledger import Gas, Ledger, gas, ledger, written
from dflax.p2p.recommendation.decay import Visits, decayed, visits, without_root
from dflax.p2p.recommendation.sybils import with_sybils
from dflax.p2p.recommendation.view import (
    Neighbours,
    Statements,
    View,
    heard,
    joined_views,
    neighbours,
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
    "Candidates",
    "ClickLog",
    "DragState",
    "GRankState",
    "Gas",
    "Heard",
    "Importance",
    "Ledger",
    "Neighbours",
    "PollutedWorld",
    "RecommenderState",
    "Search",
    "Statements",
    "View",
    "Visits",
    "Walks",
    "decayed",
    "drag",
    "footrule",
    "g_rank",
    "g_rank_score",
    "gas",
    "heard",
    "joined",
    "joined_views",
    "leave_one_out",
    "ledger",
    "local_score",
    "min_max_trust",
    "ndcg",
    "neighbours",
    "polluted_world",
    "popularity_score",
    "random_score",
    "rank_distance",
    "recommended",
    "salsa_walks",
    "shapley",
    "similarities",
    "softmax_trust",
    "spammed",
    "trust_walks",
    "view",
    "visits",
    "vote_reader",
    "web3recommend",
    "with_sybils",
    "without_root",
    "written",
]


def __dir__() -> list[str]:
    return __all__
