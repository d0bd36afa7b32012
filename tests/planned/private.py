"""Private methods, for the gallery: one noisy step a round, or clipped changes of several."""

import jax
import optax

from dflax import privacy, recipes, server

SGD = optax.sgd(0.1)
RECORDS = {"rate": 0.1, "record_clip": 1.0, "noise": 0.5}
WHOLE = {"norm": 1.0, "noise_multiplier": 0.5}


def dp_brem_plus(loss, clients):
    secure = privacy.secure_aggregation(jax.random.key(1), clients, bound=4.0)
    return server.dp_brem_plus(loss, clients, secure, radius=1.0, **RECORDS)


# Of so many clients; a client alone is what a round of one needs.
ONE_STEP = {
    "distributed_dp": lambda loss, n: recipes.distributed_dp(loss, n, **RECORDS),
    "dp_brem": lambda loss, n: server.dp_brem(loss, n, radius=1.0, **RECORDS),
    "dp_brem_plus": dp_brem_plus,
    "dp_fedsgd": lambda loss, n: recipes.dp_fedsgd(loss, n, radius=1.0, **RECORDS),
    "dp_median": lambda loss, n: recipes.dp_median(loss, n, **RECORDS),
    "dp_momentum": lambda loss, n: recipes.dp_momentum(loss, n, **RECORDS),
    "dp_rsa": lambda loss, n: server.dp_rsa(loss, n, **RECORDS),
    "local_dp_momentum": lambda loss, n: recipes.local_dp_momentum(loss, n, radius=1.0, **RECORDS),
}
WHOLE_CLIENTS = {
    "dp_fedavg": lambda loss, n: recipes.dp_fedavg(loss, SGD, expected=float(n), **WHOLE),
    "dp_ftrl": lambda loss, n: recipes.dp_ftrl(
        loss, SGD, privacy.tree_noise(64), expected=float(n), **WHOLE
    ),
}
METHODS = ONE_STEP | WHOLE_CLIENTS
