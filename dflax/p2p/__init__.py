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

__all__ = [
    "ClickLog",
    "GRankState",
    "Search",
    "footrule",
    "g_rank",
    "g_rank_score",
    "joined",
    "local_score",
    "ndcg",
    "popularity_score",
    "random_score",
    "rank_distance",
    "similarities",
    "spammed",
]


def __dir__() -> list[str]:
    return __all__
