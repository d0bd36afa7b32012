"""Right calls of the algorithms without a server, of gossip and of matching."""

import jax
import numpy as np

import dflax as dx
from doors.things import (
    AGGREGATOR,
    DATA,
    FEDERATION,
    GRAPH,
    KEY,
    LOSS,
    MATRIX,
    MIXER,
    MODULE,
    NEIGHBOURS,
    NORMALIZED,
    OPTIMIZER,
    PARTITION,
    PEERS,
    RATES,
    STREAM,
    SYMMETRIES,
    WEIGHTS,
    N,
)

METHOD = {"loss": LOSS, "optimizer": OPTIMIZER}
GOSSIP = {**METHOD, "mixer": MIXER}
CONVEX = {"strong_convexity": 1.0, "smoothness": 2.0}
MATCHING = dx.matching.by_weights(SYMMETRIES)
UNITS = {"hidden": np.arange(4)}
VERSION = dx.gossip.Stamped(np.int32(3), np.arange(4))
TESTS = dx.gossip.class_tests(DATA, PARTITION)
PROFIT = np.eye(3, dtype=np.float32)
TIMED = jax.jit(dx.decentralized.dadao(LOSS, RATES, **CONVEX).init)(KEY, WEIGHTS)


def conjugate(y, batch):
    """Of (1/2) |x|^2."""
    return y


def minimise(assignment, own, nearby, data, index):
    return dx.local.Minimised(nearby.center)


CALLS = {
    "decentralized.adapt_then_combine": {"work": lambda *given: given, "mixer": MIXER},
    "decentralized.adom_plus": {"loss": LOSS, "graph": GRAPH, **CONVEX},
    "decentralized.bristle": {**METHOD, "topology": GRAPH, "model": MODULE, "tests": TESTS},
    "decentralized.combine_then_adapt": {"work": lambda *given: given, "mixer": MIXER},
    "decentralized.continuized": {"conjugate": conjugate, "graph": GRAPH, **CONVEX},
    "decentralized.dadao": {"loss": LOSS, "rates": RATES, **CONVEX},
    "decentralized.consensus": {"minimise": minimise, "penalty": 1.0, "mixer": MIXER},
    "decentralized.dfedadmm": GOSSIP,
    "decentralized.dfedadmm_sam": GOSSIP,
    "decentralized.dfedavg": GOSSIP,
    "decentralized.dfedsam": GOSSIP,
    "decentralized.dimat": {**METHOD, "topology": GRAPH, "matching": MATCHING},
    "decentralized.dimat_mixer": {"topology": GRAPH, "matching": MATCHING},
    "decentralized.dispfl": {**GOSSIP, "rounds": 2},
    "decentralized.dpsgd": GOSSIP,
    "decentralized.dsgt": {"loss": LOSS, "rate": 0.1, "mixer": MIXER},
    "decentralized.gossip_learning": {**METHOD, "clients": N},
    "decentralized.gossip_steps": {"graph": GRAPH},
    "decentralized.md5_ranks": {"nodes": N, "rounds": 2},
    "decentralized.mean_dual": {
        "state": dx.decentralized.dfedadmm(LOSS, OPTIMIZER, MIXER).init(KEY, WEIGHTS)
    },
    "decentralized.merge": {"state": PEERS},
    "decentralized.mixed": {"mixer": MIXER, "state": PEERS, "round": FEDERATION.draw(KEY, 0)},
    "decentralized.modest": {**METHOD, "clients": N, "sample": 2},
    "decentralized.msda": {"conjugate": conjugate, "graph": GRAPH, **CONVEX},
    "decentralized.probe": {
        "keys": np.arange(N),
        "candidates": np.ones(N, bool),
        "online": np.ones(N, bool),
        "wanted": 2,
    },
    "decentralized.sgp": {**METHOD, "topology": GRAPH},
    "decentralized.single_merging": {**METHOD, "clients": N},
    "decentralized.synchronized": {"state": TIMED, **CONVEX},
    "decentralized.unit_rates": {"graph": GRAPH},
    "gossip.Law": {"rates": RATES, "gradient_rate": 1.0},
    "gossip.NodeEvents": {"data": DATA, "partition": PARTITION, "events": STREAM},
    "gossip.age_weighted": {"clients": N},
    "gossip.aggregating": {"aggregator": AGGREGATOR},
    "gossip.aligned": {"topology": GRAPH, "matching": MATCHING},
    "gossip.alternate": {"mixers": [MIXER, MIXER]},
    "gossip.anchored": {"mixer": MIXER, "matching": MATCHING},
    "gossip.at_random": {},
    "gossip.bristle": {"model": MODULE, "tests": TESTS},
    "gossip.by_part": {"mixers": {"all": MIXER}, "of": lambda path: "all"},
    "gossip.by_rule": {"topology": GRAPH, "rule": dx.gossip.aggregating(AGGREGATOR)},
    "gossip.chebyshev": {"topology": GRAPH, "steps": 2},
    "gossip.combining": {"shares": lambda products, weights, key: (weights, {})},
    "gossip.class_tests": {"data": DATA, "partition": PARTITION},
    "gossip.complete": {"clients": N},
    "gossip.dense": {"matrix": MATRIX},
    "gossip.edges": {"matrix": MATRIX},
    "gossip.erdos_renyi": {"nodes": 6, "probability": 0.9},
    "gossip.every": {"mixer": MIXER, "rounds": 2},
    "gossip.exponential": {"nodes": N},
    "gossip.geometric": {"nodes": 6, "radius": 0.9},
    "gossip.greatest": {"one": UNITS, "other": UNITS},
    "gossip.hypercube": {"nodes": N},
    "gossip.identity": {"clients": N},
    "gossip.independent_groups": {"stream": STREAM, "nodes": N},
    "gossip.join": {"merge": dx.gossip.greatest},
    "gossip.least": {"one": UNITS, "other": UNITS},
    "gossip.local_foolsgold": {},
    "gossip.matcha": {"graph": GRAPH, "budget": 0.5},
    "gossip.mixer": {"topology": GRAPH},
    "gossip.mozi": {"loss": LOSS},
    "gossip.newest": {"one": VERSION, "other": VERSION},
    "gossip.nna": {"faulty": 1},
    "gossip.one_peer_exponential": {"nodes": N},
    "gossip.partitioned": {"mixer": MIXER, "parts": 2},
    "gossip.poisson_stream": {"rates": RATES, "events": 8, "seed": 0},
    "gossip.prioritised": {},
    "gossip.push_sum": {"topology": GRAPH},
    "gossip.random_matching": {"nodes": N},
    "gossip.random_neighbours": {"nodes": N, "r": 1.0},
    "gossip.random_regular": {"nodes": 6, "degree": 3},
    "gossip.random_regular_each_round": {"nodes": 6, "degree": 3},
    "gossip.recalibrated": {"mixer": MIXER, "model": NORMALIZED},
    "gossip.repeat": {"mixer": MIXER, "steps": 2},
    "gossip.ring": {"nodes": N},
    "gossip.sampled": {"mixer": MIXER, "share": 0.5},
    "gossip.scheduled": {"schedule": dx.topology.random_matching(N)},
    "gossip.self_centred_clipping": {"radius": 1.0},
    "gossip.shifts": {"matrix": MATRIX},
    "gossip.slots": {"matrix": MATRIX},
    "gossip.sometimes": {"mixer": MIXER, "probability": 0.5},
    "gossip.thinned": {"stream": STREAM, "loss": 0.5},
    "gossip.star": {"nodes": N},
    "gossip.stateless": {"function": lambda own, others, weights, here: (own, {})},
    "gossip.sybilwall": {"capacity": N},
    "gossip.torus": {"rows": 2, "columns": 3},
    "gossip.union": {"one": UNITS, "other": UNITS},
    "gossip.w_msr": {"f": 1},
    "gossip.variance_corrected": {"neighbours": NEIGHBOURS},
    "gossip.weighted_by_leaf": {"mixer": MIXER},
    "matching.activations": {"model": MODULE, "symmetries": SYMMETRIES},
    "matching.assign": {"profit": PROFIT},
    "matching.assign_by_optax": {"profit": PROFIT},
    "matching.assign_on_host": {"profit": PROFIT},
    "matching.by_activations": {"model": MODULE, "symmetries": SYMMETRIES},
    "matching.by_weights": {"symmetries": SYMMETRIES},
    "matching.fixed_units": {"permutations": UNITS},
    "matching.identity": {"widths": {"hidden": 4}},
    "matching.permute": {
        "params": WEIGHTS,
        "symmetries": SYMMETRIES,
        "permutations": UNITS,
    },
    "matching.random_permutations": {"key": KEY, "widths": {"hidden": 4}},
    "matching.symmetries": {"model": MODULE, "params": WEIGHTS, "inputs": DATA.inputs[:2]},
    "matching.verify": {
        "model": MODULE,
        "params": WEIGHTS,
        "inputs": DATA.inputs[:2],
        "symmetries": SYMMETRIES,
        "key": KEY,
    },
    "matching.widths_of": {"symmetries": SYMMETRIES, "params": WEIGHTS},
}
