"""Methods that want a timetable, pools or a model in parts, for the gallery."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import asynchronous, participation, recipes, server

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
N, STEPS = 8, 2
RING = dx.gossip.ring(N)
VIEW = dx.models.TransformerClassifier(classes=10, patch=7, width=32, depth=2, heads=2)


def timetable():
    """Eight arrivals a step of models up to two steps old, two local steps each."""
    return asynchronous.arrivals(N, N, 6, delay=2, local_steps=STEPS, seed=0)


def each_at_once():
    """A step of the server for every arrival, clients of four speeds."""
    seconds = np.repeat([1.0, 1.3, 1.7, 2.9], N // 4)
    return asynchronous.immediate(seconds, 12.0, local_steps=STEPS)


def one_by_one():
    """One arrival a round, of changing age."""
    ids = np.arange(3 * N)[:, None] % N
    return participation.from_table(ids, staleness=np.arange(3 * N) % 3)


RECIPES = {
    "diloco": lambda loss: recipes.diloco(loss, N),
    "ditto": lambda loss: recipes.ditto(loss, SGD, N),
    "exact_diffusion": lambda loss: recipes.exact_diffusion(loss, SGD, RING),
    "fedexp": lambda loss: recipes.fedexp(loss, SGD),
    "k_gt": lambda loss: recipes.k_gt(loss, 0.1, RING, STEPS),
    "learn": lambda loss: recipes.learn(loss, 0.1, RING),
    "monna": lambda loss: recipes.monna(
        loss, 0.1, dx.gossip.by_rule(dx.topology.ring(N), dx.gossip.nna(1))
    ),
    "scaffnew": lambda loss: recipes.scaffnew(loss, 0.1, N, 0.5),
}
BY_TIMETABLE = {
    "asynchronous_server": (timetable, asynchronous.asynchronous_server, (SGD,), {}),
    "asynchronous_server, a step an arrival": (
        each_at_once,
        asynchronous.asynchronous_server,
        (SGD,),
        {},
    ),
    "afa": (timetable, recipes.afa, (0.1, 0.1), {}),
    "afa, all clients' latest": (timetable, recipes.afa, (0.1, 0.1), {"memory": True}),
}
NAMES = (*RECIPES, *BY_TIMETABLE, "fedbuff", "kcfu", "sfprompt")


def case(name, loss, network, params, source):
    """Algorithm, source and shapes of the state of a method, on the gallery's network and federation."""
    if name in RECIPES:
        algorithm = RECIPES[name](loss)
    elif name in BY_TIMETABLE:
        table, make, given, options = BY_TIMETABLE[name]
        algorithm = make(loss, *given, table(), **options)
        source = asynchronous.join(source, table())
    elif name == "fedbuff":
        algorithm = recipes.fedbuff(loss, SGD, N, 4)
        source = source.replace(participation=one_by_one())
    elif name == "kcfu":
        algorithm = server.kcfu(network, SGD, N)
        source = source.replace(partition=dx.data.pools(source.partition, 4))
    else:
        return in_parts(N)
    return algorithm, source, jax.eval_shape(algorithm.init, KEY, params)


def in_parts(clients):
    """SFPrompt on a vision transformer whose body the server holds."""
    images, labels = jnp.zeros((8 * clients, 28, 28, 1)), jnp.zeros(8 * clients, jnp.int32)
    owned = np.arange(8 * clients).reshape(clients, 8).tolist()
    data = dx.data.Dataset(images, labels, classes=10)
    source = dx.Federation(data, dx.data.from_indices(owned), local_epochs=1, batch_size=4)
    split = dx.models.split_transformer(VIEW, (1, 0), prompts=4)
    algorithm = server.sfprompt(split, dx.losses.classification, SGD)
    params = jax.eval_shape(VIEW.init, KEY, images[:1])["params"]
    return algorithm, source, jax.eval_shape(algorithm.init, KEY, params)
