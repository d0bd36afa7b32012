"""Aggregation, merging and balance against numbers of the authors' own code, PyTorch 2.13.

Printed by `spes_server_knowledge_transfer.py` (`aggregate_step`, and the merge alone on its result)
and by `decayed_load_balance_loss.py` of github zjr2000/SPES at 2cbcd96, on the arrays drawn here. The
merge got its dictionary sorted by name: `aggregate_step` walks a set of names, so that the matrices of
two experts stand in different orders, and the merge, which joins them end to end, mixes gates and downs.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dflax import experts
from dflax.aggregation.aggregator import Combining
from dflax.experts.spes import warmed_up
from dflax.experts.spes_ownership import collected, ownership
from dflax.models import Load, balance_loss

E, L, N, Q = 6, 2, 3, 2
SHAPE = (2, 2)
NAMES = {"gate": "w1", "up": "v1", "down": "w2"}
# alpha = 0.05 (1 - 400 / 2000), step 400 of decay_steps 2000; [layer, expert, 2, 2].
MERGED = {
    "w1": """
    1.5235801 -0.0960200 0.6332800 -0.1376500 0.3951900 -0.6244800 -1.8601999 -0.7811800
    0.5023300 -0.5007200 1.0189800 0.5672500 -0.9474600 1.2028600 -1.2310400 0.5381899
    0.0408400 0.8860200 -0.4352000 0.3037200 0.9860899 -0.0934300 -0.6993000 -0.7032800
    0.6882000 -0.2775500 0.5419300 1.0128499 -1.6647600 0.1314100 0.5256100 -0.6978700
    -0.5543200 0.6903600 1.5343699 0.4025000 -0.2234400 -1.2228800 -0.4380200 1.1667500
    0.2056800 1.0513600 0.5834200 -0.6092500 0.5390500 0.5223500 0.2160800 0.1873000
    """,
    "v1": """
    -0.3965600 0.4130700 0.7921700 -0.1834300 -0.4663100 -1.1824499 -1.4246100 0.0135700
    -0.2056100 0.5736200 1.2054200 1.7108700 1.2172000 -1.5674100 -0.2907100 -1.2451900
    -2.0528100 -1.4266001 0.7489900 -0.5820799 -0.4853100 -1.1226000 -0.5268600 -0.1099300
    -0.2303500 -0.7744100 0.3473400 0.2609100 1.2989300 0.7961500 0.6151800 0.4087500
    -0.7266300 0.3036600 -0.0064800 -0.1697700 -0.1940500 -1.3810000 1.2827400 0.5145200
    -0.7057300 1.9319599 0.7288200 1.7634799 -1.4606000 -0.1578600 -0.6938601 0.1450100
    """,
    "w2": """
    -0.1453300 0.6670900 -0.8440100 -1.4431300 0.8703500 -0.1996500 -0.7087200 0.3440800
    -1.4952800 0.8542400 0.4242400 -0.0941300 0.2357900 1.4619701 1.9342300 -1.6965700
    0.5692000 0.5366000 1.2539800 0.7497300 0.2576000 -0.3003500 -1.8297200 -0.0900700
    1.0853900 -1.2310899 -0.6250100 -0.8122200 0.9481100 -1.2762101 0.5999500 0.5711400
    -0.6674800 0.3433600 0.3072400 -0.0839600 2.0322101 0.0443700 -0.4317700 -1.3902700
    2.0523701 -0.8013900 0.3803900 0.4394900 -0.4032600 0.5777100 0.7819400 0.2774300
    """,
}
EMBEDDING = """
    -0.1366667 1.4256667 0.0513333 -0.1250000 -0.0470000 -0.4583333
    """
ROUTER = """
    0.2140000 -0.4273333 0.5126666 -0.2856667
    """


def numbers(text, *shape):
    return np.array(text.split(), float).reshape(shape)


def draw():
    """Each peer's upload in the order in which the numbers were drawn for the authors' code."""
    generator = np.random.default_rng(11)

    def drawn(*shape):
        return np.round(generator.normal(size=shape), 3).astype(np.float32)

    peers = []
    for _ in range(N):
        shared = {"embedding": drawn(2, 3), "router": drawn(2, 2)}
        own = [[[drawn(*SHAPE) for _ in range(3)] for _ in range(Q)] for _ in range(L)]
        layers = {
            f"layer{place}": {
                name: np.stack([expert[k] for expert in layer]) for k, name in enumerate(NAMES)
            }
            for place, layer in enumerate(own)
        }
        peers.append(experts.Upload(shared, layers))
    scores = [drawn(8, E) for _ in range(L)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *peers), scores


def test_an_aggregation_with_a_merge_is_the_authors():
    uploads, _ = draw()

    @jax.jit
    def aggregated(uploads):
        combining = Combining(jax.random.key(0), senders=jnp.arange(N))
        sent, _, _ = collected(ownership(E, N)).apply(uploads, jnp.ones(N), (), combining)
        made = experts.merging(0.05, every=2, until=20.0, donors=4)
        return sent, *(warmed_up(made, sent.experts, jnp.int32(t))[0] for t in (1, 4))

    sent, plain, merged = aggregated(uploads)
    np.testing.assert_allclose(
        sent.shared["embedding"], numbers(EMBEDDING, 2, 3), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(sent.shared["router"], numbers(ROUTER, 2, 2), rtol=1e-6, atol=1e-6)
    for layer in range(L):
        for name, theirs in NAMES.items():
            wanted = numbers(MERGED[theirs], L, E, *SHAPE)[layer]
            np.testing.assert_allclose(merged[f"layer{layer}"][name], wanted, rtol=1e-6, atol=1e-6)
            # At a step without a merge their experts are their owners', bit for bit, and so are ours.
            own = np.asarray(uploads.experts[f"layer{layer}"][name]).reshape(E, *SHAPE)
            np.testing.assert_array_equal(plain[f"layer{layer}"][name], own)


def test_the_balance_loss_is_the_authors_with_and_without_the_decayed_factor():
    _, scores = draw()
    probabilities = jax.nn.softmax(jnp.stack(scores), axis=-1)
    _, chosen = jax.lax.top_k(probabilities, 2)
    counts = jnp.sum(chosen[..., None] == jnp.arange(E), axis=(1, 2)).astype(jnp.float32)
    load = Load(counts, probabilities.mean(1), jnp.zeros(L), jnp.zeros(L), jnp.zeros(L))
    np.testing.assert_allclose(balance_loss(load), 1.1421983242034912, rtol=1e-6)
    # Of node 1's experts, at step 1000 of 50,000: 0.7 + 0.3 * 1000 / 10,000.
    factor = jnp.ones(E).at[2:4].set(0.73)
    np.testing.assert_allclose(balance_loss(load, factor), 1.0408881902694702, rtol=1e-6)
