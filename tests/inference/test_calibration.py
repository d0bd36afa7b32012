"""Fitted cost models: exact on exact times, never negative, refusals."""

import numpy as np
import pytest
from scipy import optimize

from dflax import inference

PREFILL, DECODE = (0.0121, 3.8e-5, 5.2e-10), (0.0103, 1.9e-7, 3.3e-5)


def measured(noise=0.0, seed=0, prefill=PREFILL, decode=DECODE):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 2000, (30, 4))
    tokens, squares = lengths.sum(1), np.square(lengths).sum(1)
    batch = draw.integers(1, 64, 40)
    context = batch * draw.integers(10, 3000, 40)

    def noisy(x):
        return x * np.exp(noise * draw.normal(size=x.shape))

    a, b, c = prefill
    u, v, w = decode
    return inference.Measured(
        tokens,
        squares,
        noisy(a + b * tokens + c * squares),
        batch,
        context,
        noisy(u + v * context + w * batch),
    )


def test_coefficients_come_back_to_machine_precision():
    prefill, decode = inference.fitted_coefficients(measured())
    np.testing.assert_allclose(prefill, PREFILL, rtol=1e-10)
    np.testing.assert_allclose(decode, DECODE, rtol=1e-10)
    costs = inference.fitted_costs(measured())
    given = inference.affine_costs(PREFILL, DECODE)
    np.testing.assert_allclose(costs.prefill(1e3, 1e6), given.prefill(1e3, 1e6), rtol=1e-6)
    np.testing.assert_allclose(costs.decode(8.0, 1e4), given.decode(8.0, 1e4), rtol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_noisy_times_give_the_nonnegative_least_squares(noise):
    """Large noise pulls coefficients to zero, never below; scipy solves the same problem."""
    for seed in range(5):
        known = measured(noise, seed, decode=(0.0, 1.9e-7, 3.3e-5))
        prefill, decode = inference.fitted_coefficients(known)
        for found, features, seconds in (
            (prefill, (known.tokens, known.squares), known.prefill),
            (decode, (known.context, known.batch), known.decode),
        ):
            design = np.stack([np.ones(len(seconds)), *features], 1)
            scale = design.max(0)
            expected, _ = optimize.nnls(design / scale / seconds[:, None], np.ones(len(seconds)))
            np.testing.assert_allclose(found, expected / scale, rtol=1e-7, atol=1e-15)
            assert min(found) >= 0


def test_what_cannot_be_fitted_is_refused():
    known = measured()
    with pytest.raises(ValueError, match=r"decode must be times > 0 s"):
        inference.fitted_costs(known._replace(decode=np.zeros(40)))
    with pytest.raises(ValueError, match=r"prefill must be measured at three points or more"):
        inference.fitted_costs(known._replace(squares=3 * known.tokens))
    with pytest.raises(ValueError, match=r"squares must be real numbers of shape \[30\]"):
        inference.fitted_costs(known._replace(squares=np.ones(3)))
