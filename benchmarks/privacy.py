"""A round of DP-SGD: the CNN 28x28, 16 clients, 5 local steps of 20 examples, each gradient clipped."""

import jax
import jax.numpy as jnp
import optax

import dflax as dx
from benchmarks import images, peers
from benchmarks.measure import Row, alternately
from benchmarks.tasks import CNN

SHAPE = (28, 28, 1)
NORM, NOISE = 1.0, 1.0


def rows(quick: bool) -> list[Row]:
    """Clipped gradients with noise beside the plain round, in turns, and beside Opacus's loop."""
    module = dx.models.CNN(CNN.classes)
    loss = dx.losses.classification(module)
    source = images.federation(CNN, SHAPE)
    params = module.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    clipped = dx.privacy.clipped_per_example(loss, NORM)
    private = dx.privacy.noisy_gradient(clipped, NOISE * NORM / CNN.batch)
    # As much noise as in all local steps together, put on the mean once.
    deviation = CNN.rate * NOISE * NORM / CNN.batch * (CNN.steps / CNN.cohort) ** 0.5
    at_server = dx.privacy.noisy(dx.aggregation.mean(), deviation)
    key = jax.random.key(1)

    def one(seen: object, rule: object = None) -> object:
        algorithm = dx.server.fedavg(seen, optax.sgd(CNN.rate), aggregator=rule)  # type: ignore[arg-type]
        state = algorithm.init(key, params)
        return jax.jit(lambda: dx.rollout(algorithm, state, source, key, 1)[0])

    repeats = 3 if quick else 9
    plain, cut, once, both = alternately(
        *(one(loss), one(clipped), one(clipped, at_server), one(private)),  # type: ignore[arg-type]
        repeats=repeats,
    )
    name = "DP-SGD round, CNN, 16 clients, 5 local steps"
    found = [
        Row(f"{name}, no noise", cut, "FedAvg's round", plain),
        Row(f"{name}, noise once, at the server", once, "FedAvg's round", plain),
        Row(name, both, "FedAvg's round", plain),
    ]
    if quick:
        return found
    return found + Row(name, both).beside(
        peers.run("opacus", "private_opacus", task=CNN, rounds=1, norm=NORM, noise=NOISE)
    )
