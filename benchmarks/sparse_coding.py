"""An EM step of sparse coding beside ProSper's own, from the same parameters: numbers and times."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from benchmarks import peers
from benchmarks.measure import Row, milliseconds
from dflax import sparse_coding

SIDE, LATENTS, DIMENSION = 5, 10, 25
TEMPERATURE, CUT, NOISE, ACTIVE = 2.0, 0.5, 3.0, 0.15
# The settings of its examples of bars: candidates, most causes, the share of each value of DSC.
MODELS: dict[str, tuple[int, int, list[float] | None]] = {
    "BSC": (8, 5, None),
    "TSC": (7, 5, None),
    "DSC": (7, 5, [0.7, 0.2, 0.1]),
    "MCA": (8, 5, None),
    "MMCA": (7, 5, None),
}
# Largest difference of a parameter, relative to the largest; float64 on both sides. Where ProSper has
# another convention only the parameters that it does not touch are compared.
SAME = 1e-8
COMPARED = {
    "BSC": ("dictionary", "prior", "noise"),
    # Its candidates are the best single states, among which a latent may stand twice, with both signs.
    "TSC": (),
    # Cut by ">" where the others cut by ">=", so it is compared without a cut.
    "DSC": ("dictionary", "prior", "noise"),
    # It weighs the pixels of a single cause by W^2, of several by a derivative that would be 1 for one.
    "MCA": ("prior", "noise"),
    "MMCA": ("dictionary", "prior", "noise"),
}


def rows(quick: bool) -> list[Row]:
    """A step of each model on the thousand images of bars of the examples, or a quarter of them."""
    return [row for name in MODELS for row in step(name, 250 if quick else 1000)]


def bars() -> np.ndarray:
    """Ten bars of a square, `[25, 10]`, each of value 10."""
    shown = np.zeros((2, SIDE, SIDE, SIDE))
    for place in range(SIDE):
        shown[0, place, place], shown[1, place, :, place] = 10, 10
    return shown.reshape(LATENTS, DIMENSION).T


@jax.enable_x64(True)
def step(name: str, count: int) -> list[Row]:
    """One EM step, E and M, in float64."""
    rng, (candidates, most, shares) = np.random.default_rng(0), MODELS[name]
    y = (rng.random((count, LATENTS)) < 0.2) @ bars().T + 2 * rng.standard_normal(
        (count, DIMENSION)
    )
    W = np.abs(bars() + 3 * rng.standard_normal((DIMENSION, LATENTS)))
    make = getattr(sparse_coding, name.lower())
    more = () if shares is None else (np.arange(1.0, len(shares)),)
    model = make(LATENTS, candidates, most, *more)
    values = 2 if name == "TSC" else 1
    prior = shares or [1 - ACTIVE, *[ACTIVE / values] * values]
    coding = sparse_coding.Discrete(jnp.asarray(W), jnp.asarray(prior), jnp.asarray(NOISE))
    cut = 0.0 if name == "DSC" else CUT
    constant = sparse_coding.Annealing(jnp.full(1, TEMPERATURE), jnp.full(1, cut))
    learner = sparse_coding.expectation_truncation(model, constant, batch_size=250)
    source = dx.Federation(
        dx.data.Dataset(jnp.asarray(y), jnp.zeros(count, jnp.int32)),
        dx.data.from_indices([np.arange(count)]),
        local_steps=1,
        batch_size=1,
    )
    key = jax.random.key(0)
    state = learner.init(key, coding)
    work = jax.jit(lambda state, source: dx.rollout(learner, state, source, key, 1)[0])
    own = milliseconds(lambda: work(state, source))
    after = work(state, source).server.params
    theirs = peers.run(
        "prosper",
        "sparse_coding_prosper",
        model=name,
        data=y.tolist(),
        dictionary=W.tolist(),
        active=shares or ACTIVE,
        noise=NOISE,
        candidates=candidates,
        most=most,
        temperature=TEMPERATURE,
        cut=cut,
        steps=3,
        values=None if shares is None else list(range(len(shares))),
    )
    title = (
        f"an EM step of {name}, {count} images of bars, H' = {candidates}, gamma = {most}, float64"
    )
    if theirs is not None:
        require_same(name, after, theirs)
    return Row(title, own).beside(theirs)


def require_same(name: str, after: sparse_coding.Discrete, theirs: dict[str, Any]) -> None:
    """Refuses a peer whose step leads elsewhere."""
    prior = after.prior if name == "DSC" else 1 - after.prior[0]
    ours = {"dictionary": after.dictionary, "prior": prior, "noise": after.noise}
    for what in COMPARED[name]:
        one, other = np.array(ours[what]), np.array(theirs[what])
        apart = np.abs(one - other).max() / np.abs(other).max()
        if apart > SAME:
            raise ValueError(
                f"{what} of {name} must be ProSper's within {SAME}, differs by {apart}."
            )
