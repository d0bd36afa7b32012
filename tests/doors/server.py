"""Right calls of the algorithms with a server, and of what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from doors.things import (
    AGGREGATOR,
    CHANNEL,
    DATA,
    FEDERATION,
    KEY,
    LOSS,
    OPTIMIZER,
    PARAMS,
    PARTITION,
    STACKED,
    N,
    attack,
    score,
)

METHOD = {"loss": LOSS, "optimizer": OPTIMIZER}
OPTIONS = {"aggregator": AGGREGATOR, "channel": CHANNEL, "at_once": 1}
KEEPING = {**METHOD, "clients": N, **OPTIONS}
FORGETTING = {**METHOD, **OPTIONS, "clients": N}
LINKS = {"uplink": CHANNEL, "downlink": CHANNEL, "at_once": 1}
FOUR = np.ones(N, np.float32)
ROWS = np.ones((N, 3), np.float32)
REGRESSION = dx.data.Dataset(DATA.inputs, jnp.ones(len(DATA)))
OBJECTIVES = dx.local.quadratic_objectives(REGRESSION, PARTITION)
PERSONAL = dx.server.partial_averaging(
    LOSS, OPTIMIZER, local=lambda path: path == "b", clients=N
).init(KEY, PARAMS)

CALLS = {
    "aggregation.geometric_median": {},
    "aggregation.gram": {"stacked": STACKED},
    "aggregation.kernels": {"path": (), "leaf": FOUR},
    "aggregation.weighted_median_rows": {"values": ROWS, "weights": FOUR},
    "aggregation.majority_vote": {},
    "aggregation.map_coordinates": {"rule": lambda values: values[0], "stacked": STACKED},
    "aggregation.mean": {},
    "aggregation.median": {},
    "aggregation.median_rows": {"values": ROWS},
    "aggregation.rescaled": {"mixed": STACKED, "target": np.ones((N, 1), np.float32)},
    "aggregation.sorted_rows": {"values": ROWS},
    "aggregation.squared_distances": {"stacked": STACKED},
    "aggregation.sum_coordinates": {"function": lambda values: values.sum(), "stacked": STACKED},
    "aggregation.trimmed_mean": {"trim": 1},
    "aggregation.trimmed_mean_rows": {"values": ROWS, "trim": 1},
    "aggregation.variance_corrected": {},
    "aggregation.variances": {"stacked": STACKED},
    "channel.broadcast": {"channel": CHANNEL, "message": PARAMS, "receivers": N, "key": KEY},
    "channel.chain": {"channels": CHANNEL},
    "channel.compression": {
        "compress": lambda message, state, key: (message, state),
        "bits": lambda message: 32,
    },
    "channel.differences": {"channel": CHANNEL},
    "channel.error_feedback": {"channel": CHANNEL},
    "channel.finite_only": {},
    "channel.gaussian_noise": {"deviation": 0.1},
    "channel.largest": {"values": np.ones(3, np.float32), "count": 2},
    "channel.lossy": {"rate": 0.1},
    "channel.perfect": {},
    "channel.powersgd": {"rank": 2},
    "channel.qsgd": {"levels": 4},
    "channel.random_k": {"share": 0.5},
    "channel.sign": {},
    "channel.top_k": {"share": 0.5},
    "channel.uncompressed": {},
    "local.adversarial": {"loss": LOSS, "attack": attack},
    "local.check_no_value": {"name": "optimizer", "optimizer": OPTIMIZER},
    "local.check_optimizer": {"name": "optimizer", "optimizer": OPTIMIZER},
    "local.check_pull": {"name": "pull", "pull": 0.1, "optimizer": OPTIMIZER},
    "local.client_gradients": {"loss": LOSS, "federation": FEDERATION, "params": PARAMS},
    "local.clipped": {"loss": LOSS, "norm": 1.0},
    "local.distances": {"first": ROWS, "second": ROWS},
    "local.fast_gradient_sign": {"loss": LOSS, "radius": 0.1},
    "local.gradient": {"loss": LOSS},
    "local.large_gradient": {
        "oracle": dx.local.gradient(LOSS),
        "params": PARAMS,
        "batch": jax.tree.map(
            lambda leaf: leaf[0],
            dx.local.large_batches(FEDERATION.draw(KEY, 0), KEY, examples=2),
        ),
        "data": DATA,
    },
    "local.large_batches": {"round": FEDERATION.draw(KEY, 0), "key": KEY, "examples": 2},
    "local.optimizer_at": {"optimizer": OPTIMIZER, "index": 0},
    "local.perturbed": {"params": PARAMS, "direction": PARAMS, "radius": 0.1},
    "local.projected_gradient": {"loss": LOSS, "radius": 0.1, "steps": 2},
    "local.proximal_points": {
        "objectives": OBJECTIVES,
        "center": np.ones(5, np.float32),
        "penalty": 1.0,
    },
    "local.quadratic_objectives": {
        "data": REGRESSION,
        "partition": PARTITION,
    },
    "local.recursive": {"loss": LOSS},
    "local.remembering": {"loss": LOSS},
    "local.sam": {"loss": LOSS, "radius": 0.1},
    "local.solver": {"loss": LOSS, "optimizer": OPTIMIZER},
    "local.trades": {"loss": LOSS, "model": score, "radius": 0.1, "steps": 2},
    "local.travel": {"optimizer": OPTIMIZER, "steps": 2, "done": 1},
    "server.anchors.constant": {"probability": 0.5},
    "server.anchors.decaying": {},
    "server.anchors.periodic": {"period": 2},
    "server.anchors.recommended": {"clients": N, "cohort": 2},
    "server.bvr_l_sgd": {**METHOD, "period": 2},
    "server.consensus_admm": {"penalty": 1.0, **LINKS},
    "server.descent": {},
    "server.dual_free_admm": {**METHOD, "penalty": 1.0, "clients": N, **LINKS},
    "server.fal": {**METHOD, "attack": attack},
    "server.fedadagrad": {**FORGETTING, "rate": 0.1},
    "server.fedadam": {**FORGETTING, "rate": 0.1},
    "server.fedadmm": KEEPING,
    "server.fedamd": {**METHOD, "anchors": dx.server.anchors.constant(0.5)},
    "server.fedavg": METHOD,
    "server.fedavg_m_vr": FORGETTING,
    "server.feddyn": KEEPING,
    "server.fedgamma": KEEPING,
    "server.fednova": FORGETTING,
    "server.fedpage": {"loss": LOSS, "rate": 0.1, "full": 0.5},
    "server.fedprox": FORGETTING,
    "server.fedsam": FORGETTING,
    "server.fedsmoo": KEEPING,
    "server.fedspeed": KEEPING,
    "server.fedyogi": {**FORGETTING, "rate": 0.1},
    "server.fixed_adam": {},
    "server.fixed_momentum": {},
    "server.layers": {"names": "w"},
    "server.local_change": METHOD,
    "server.mimelite": {"loss": LOSS, "optimizer": OPTIMIZER, **OPTIONS, "clients": N},
    "server.mofedsam": FORGETTING,
    "server.normalization": {"path": "params/w"},
    "server.own_models": {"state": PERSONAL},
    "server.partial_averaging": {**METHOD, "local": lambda path: path == "b", "clients": N},
    "server.rerce_fed": {"penalty": 1.0, **LINKS},
    "server.rerce_fed_continual": {"penalty": 1.0, **LINKS},
    "server.scaffold": KEEPING,
    "server.scaffold_m": KEEPING,
    "server.scaffold_m_vr": KEEPING,
    "server.with_server": {
        "start": lambda params: (params, ()),
        "work": lambda *given: given,
        "update": lambda *given: given,
    },
}
