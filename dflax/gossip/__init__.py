"""Mixers: how decentralized clients combine their models."""

from dflax.events.law import Law
from dflax.events.node_events import NodeEvent, NodeEvents
from dflax.events.stream import Groups, Stream, independent_groups, poisson_stream
from dflax.events.thinned import thinned
from dflax.gossip.age_weighted import Aged, age_weighted
from dflax.gossip.by_leaf import weighted_by_leaf
from dflax.gossip.by_part import by_part
from dflax.gossip.chebyshev import chebyshev
from dflax.gossip.choose import mixer
from dflax.gossip.families import (
    erdos_renyi,
    exponential,
    geometric,
    hypercube,
    matcha,
    one_peer_exponential,
    random_matching,
    random_neighbours,
    random_regular,
    random_regular_each_round,
    ring,
    star,
    torus,
)
from dflax.gossip.fixed import complete, dense, edges, identity, shifts, slots
from dflax.gossip.mixer import Known, Mixer, MixerState, Mixing, Models, PerClient, Uncorrected
from dflax.gossip.push_sum import PushSumState, push_sum
from dflax.gossip.repeat import repeat
from dflax.gossip.rules.aggregating import aggregating, combining
from dflax.gossip.rules.bristle.class_tests import ClassTests, class_tests
from dflax.gossip.rules.bristle.draws import Draw, at_random, prioritised
from dflax.gossip.rules.bristle.rule import Trusted, bristle
from dflax.gossip.rules.by_rule import by_rule
from dflax.gossip.rules.calibration import Examples
from dflax.gossip.rules.foolsgold import local_foolsgold
from dflax.gossip.rules.joins import Stamped, greatest, join, least, newest, union
from dflax.gossip.rules.letters import Letters
from dflax.gossip.rules.mozi import mozi
from dflax.gossip.rules.nearest import nna
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule, stateless
from dflax.gossip.rules.self_centred import self_centred_clipping
from dflax.gossip.rules.sybilwall.rule import sybilwall
from dflax.gossip.rules.w_msr import w_msr
from dflax.gossip.sampled import partitioned, sampled
from dflax.gossip.variance import Target, variance_corrected
from dflax.gossip.varying import alternate, every, scheduled, sometimes
from dflax.gossip.whole_models.aligned import aligned
from dflax.gossip.whole_models.anchored import anchored
from dflax.gossip.whole_models.recalibrated import recalibrated

__all__ = [
    "Aged",
    "ClassTests",
    "Draw",
    "Examples",
    "Groups",
    "Known",
    "Law",
    "Letters",
    "Mixer",
    "MixerState",
    "Mixing",
    "Models",
    "NeighbourRule",
    "Neighbourhood",
    "NodeEvent",
    "NodeEvents",
    "PerClient",
    "PushSumState",
    "Stamped",
    "Stream",
    "Target",
    "Trusted",
    "Uncorrected",
    "age_weighted",
    "aggregating",
    "aligned",
    "alternate",
    "anchored",
    "at_random",
    "bristle",
    "by_part",
    "by_rule",
    "chebyshev",
    "class_tests",
    "combining",
    "complete",
    "dense",
    "edges",
    "erdos_renyi",
    "every",
    "exponential",
    "geometric",
    "greatest",
    "hypercube",
    "identity",
    "independent_groups",
    "join",
    "least",
    "local_foolsgold",
    "matcha",
    "mixer",
    "mozi",
    "newest",
    "nna",
    "one_peer_exponential",
    "partitioned",
    "poisson_stream",
    "prioritised",
    "push_sum",
    "random_matching",
    "random_neighbours",
    "random_regular",
    "random_regular_each_round",
    "recalibrated",
    "repeat",
    "ring",
    "sampled",
    "scheduled",
    "self_centred_clipping",
    "shifts",
    "slots",
    "sometimes",
    "star",
    "stateless",
    "sybilwall",
    "thinned",
    "torus",
    "union",
    "variance_corrected",
    "w_msr",
    "weighted_by_leaf",
]


def __dir__() -> list[str]:
    return __all__
