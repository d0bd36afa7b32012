"""Right calls of peer to peer: ranking, recommendation, retrieval."""

import jax.numpy as jnp
import numpy as np

import dflax as dx
from doors.things import KEY

P2P = dx.p2p
TAGS = np.ones((4, 2), bool)
RANKING = P2P.g_rank(P2P.local_score(), peers=3, attackers=1, capacity=20)
STATE = RANKING.init(KEY, TAGS)
VIEW = P2P.view(np.ones((3, 2), np.float32), np.zeros((3, 3), np.float32))
GRAPH = P2P.neighbours(VIEW, items=2, friends=2)
WALKS = P2P.salsa_walks(GRAPH, 0, KEY, walks=2, length=3)
VISITS = P2P.visits(WALKS, 0, vertices=5, first=3)
ONE = jnp.zeros(1, jnp.int32)
SAID = P2P.Statements(ONE, ONE, jnp.ones(1), ONE)
PEER = P2P.web3recommend(items=2, friends=2, walks=2, length=3)
RECOMMENDER = PEER.init(KEY, (0, VIEW, np.ones(2, np.float32)))
NOTHING = np.zeros(2, np.int32)

CALLS = {
    "p2p.configured": {},
    "p2p.crawl": {},
    "p2p.delegation": {
        **{"discovery": P2P.registry(), "learning": P2P.polling(1.0), "share": 0.5},
        **{"change_rate": 0.5, "lifetime": 0.5, "latency": 0.5, "input_chance": 0.5},
        **{"failure": 0.5, "retries": 2, "downtime": 0.5, "outage": 0.5},
    },
    "p2p.distributed_index": {},
    "p2p.flooding": {},
    "p2p.passed_on": {"known": VIEW, "key": KEY, "edges": 2, "window": 3, "step": 0.5},
    "p2p.polling": {"period": 0.5},
    "p2p.push": {"loss": 0.5, "fallback": 0.5},
    "p2p.registry": {},
    "p2p.reply": {"timeout": 0.5},
    "p2p.stream": {"events": 2},
    "p2p.task_stream": {"agents": 3, "skills": 2, "rate": 0.5, "speed": 0.5},
    "p2p.decayed": {"found": VISITS, "beta": 0.5, "threshold": 0.5},
    "p2p.drag": {
        **{"sources": 3, "asked": 2, "kept": 2, "reader": P2P.vote_reader((1.0, 1.5))},
        **{"importance": P2P.leave_one_out(), "trust": P2P.min_max_trust(), "weight": 0.5},
        **{"text_weight": 0.5, "prior_weight": 0.5, "scale": 10.0, "learns": True},
        **{"write_every": 2, "price": P2P.gas(), "start": 100},
    },
    "p2p.footrule": {"ours": np.ones(3), "theirs": np.ones(3), "matches": np.ones(3, bool)},
    "p2p.g_rank": {
        **{"scorer": P2P.local_score(), "peers": 3, "capacity": 20, "attackers": 1},
        **{"exploration": 0.5, "share": 0.5, "gossip": "pull"},
    },
    "p2p.g_rank_score": {"isolation": 0.5, "top": 2, "gate": True, "square": "clicks"},
    "p2p.gas": {"fixed": 1.0, "each": 1.0},
    "p2p.heard": {"known": VIEW, "likes": SAID, "trusts": SAID},
    "p2p.joined": {"state": STATE, "key": KEY, "attackers": 1, "share": 0.5},
    "p2p.joined_views": {"one": VIEW, "other": VIEW},
    "p2p.leave_one_out": {"extra": 2},
    "p2p.ledger": {"sources": 2, "reliability": 3, "usefulness": 3},
    "p2p.local_score": {},
    "p2p.min_max_trust": {},
    "p2p.ndcg": {"scores": np.ones(3), "relevance": np.ones(3), "matches": np.ones(3, bool)},
    "p2p.neighbours": {"known": VIEW, "items": 2, "friends": 2},
    "p2p.polluted_world": {
        **{"pollution": (0.0, 0.5), "documents": 2, "answers": 3, "relevance": (0.5, 0.5)},
        **{"scores": (0.5, 0.5), "deviation": 0.5},
    },
    "p2p.popularity_score": {},
    "p2p.random_score": {},
    "p2p.rank_distance": {"state": STATE, "benign": 3, "scorer": P2P.local_score()},
    "p2p.recommended": {"state": RECOMMENDER, "most": 1},
    "p2p.salsa_walks": {
        **{"graph": GRAPH, "root": 0, "key": KEY, "walks": 2, "length": 3, "stop": 0.5},
        **{"starts": np.ones(3, np.float32), "cold": 0.5},
    },
    "p2p.shapley": {},
    "p2p.similarities": {
        **{"log": STATE.log, "peer": 0, "tags": TAGS, "top": 2, "gate": True, "square": "clicks"},
    },
    "p2p.softmax_trust": {"temperature": 0.5},
    "p2p.spammed": {
        **{"state": STATE, "scorer": P2P.local_score(), "key": KEY, "attackers": 1},
        **{"queries": 2, "attack": "inflation"},
    },
    "p2p.trust_walks": {
        **{"friends": np.zeros((2, 2), np.int32), "trusting": np.ones((2, 2), np.float32)},
        **{"root": 0, "key": KEY, "walks": 2, "length": 3, "stop": 0.5},
    },
    "p2p.view": {
        **{"affinity": np.ones((3, 2)), "trust": np.zeros((3, 3)), "time": 3},
    },
    "p2p.visits": {"walks": WALKS, "root": 0, "vertices": 5, "first": 3},
    "p2p.vote_reader": {"weights": (1.0, 1.5)},
    "p2p.web3recommend": {
        **{"items": 2, "friends": 2, "walks": 2, "length": 3, "stop": 0.5, "beta": 0.5},
        **{"threshold": 0.5, "leaders": 2, "few": 2, "bootstrap": True},
    },
    "p2p.praised_by_sybils": {
        **{"known": VIEW, "attackers": np.array([1]), "attack": "linear", "sybils": 2, "items": 2},
        **{"attacker_liking": 0.5, "sybil_liking": 0.5},
    },
    "p2p.without_root": {"found": VISITS, "root": 0},
    "p2p.written": {
        **{"kept": P2P.ledger(2), "reliability": NOTHING, "usefulness": NOTHING},
        **{"who": np.ones(2, bool), "price": P2P.gas(), "signed": NOTHING},
    },
}
