"""Right calls of experts that train apart."""

import optax

import dflax as dx
from doors.things import LOSS, N

MODEL = dx.models.TransformerLM(
    5, length=4, width=4, depth=1, heads=1, mixture=dx.models.MoE(N, active=1, hidden=2)
)
SPES = {"loss": LOSS, "optimizer": optax.sgd(0.1), "experts": N}

CALLS = {
    "experts.merging": {},
    "experts.routed_language_modelling": {"model": MODEL},
    "experts.spes": {**SPES, "nodes": N},
    "experts.spes_gossip": {**SPES, "graph": dx.topology.ring(N)},
}
