"""One EM step against numbers that ProSper 0.1.0 printed for the same data and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import sparse_coding as sc

KEY = jax.random.key(0)
# H' = 3, gamma = 2, temperature 2; a cut of a half, of DSC none: it cuts one example more.
NUMBERS = {
    "bsc": (
        [
            [1.8870769081, 1.0086069243, 2.9897555748, 5.2599587764],
            [7.4110807233, 5.2458917649, 2.1384916307, 1.0108418088],
            [6.363369168, 8.9821773742, 4.6227738503, 0.1162804157],
            [0.9537846022, 8.3685383838, 4.4853359791, 1.4268438971],
        ],
        [0.5582276276, 0.4417723724],
        1.3085339699,
    ),
    "dsc": (
        [
            [1.9820078305, 0.6090516215, 2.8330563758, 5.1225150795],
            [7.1843157773, 5.2733160048, 2.4113318603, 0.9041676012],
            [6.2879704716, 8.7471366474, 4.680037123, 0.1350085133],
            [0.8542974746, 8.0895127243, 4.7556452162, 1.2949837549],
        ],
        [0.63248966, 0.3345775166, 0.0329328234],
        1.2647625292,
    ),
    "mmca": (
        [
            [3.1440553633, 0.4206697319, 4.934640205, 6.4509840813],
            [8.3870860664, 5.4063930404, 3.5453431408, 2.1731728009],
            [8.1847695171, 9.4174792499, 6.4651366399, 0.1676252137],
            [2.120832907, 8.4161246833, 5.6807163185, 2.0884201395],
        ],
        [0.5137521352, 0.4862478648],
        1.6357929876,
    ),
}


@pytest.mark.some(1)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_step_is_prospers(name):
    rng = np.random.default_rng(5)
    W = np.abs(rng.normal(4, 3, (4, 4)))
    y = (rng.random((12, 4)) < 0.4) @ W.T + rng.standard_normal((12, 4))
    model = sc.dsc(4, 3, 2, [1.0, 2.0]) if name == "dsc" else getattr(sc, name)(4, 3, 2)
    prior = [0.6, 0.3, 0.1] if name == "dsc" else [0.7, 0.3]
    with jax.enable_x64(True):
        schedule = sc.Annealing(jnp.full(1, 2.0), jnp.full(1, 0.0 if name == "dsc" else 0.5))
        learner = sc.expectation_truncation(model, schedule, batch_size=12)
        coding = sc.Discrete(jnp.asarray(W), jnp.asarray(prior), jnp.asarray(1.5))
        source = dx.Federation(
            dx.data.Dataset(jnp.asarray(y), jnp.zeros(12, jnp.int32)),
            dx.data.from_indices([np.arange(12)]),
            local_steps=1,
            batch_size=1,
        )
        state, _ = jax.jit(learner.step)(learner.init(KEY, coding), source.draw(KEY, 0))
        after = jax.tree.map(np.asarray, state.server.params)
    dictionary, shares, noise = NUMBERS[name]
    np.testing.assert_allclose(after.dictionary, dictionary, atol=2e-8)
    np.testing.assert_allclose(after.prior, shares, atol=1e-9)
    np.testing.assert_allclose(after.noise, noise, atol=1e-9)
