"""The exact optimum of penalised softmax regression, in float64 on the host."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

GRADIENT_TOLERANCE = 1e-10
NEWTON_STEPS = 100


def softmax_optimum(
    rows: Float[np.ndarray, "N p"], targets: Float[np.ndarray, "N C"], l2: float
) -> tuple[Float[np.ndarray, "p C"], float]:
    """The minimiser of the penalised cross-entropy and its value, in float64.

    Newton's method with backtracking; each step solves its system by conjugate gradients on products
    with the Hessian, so that nothing of size (p C)^2 is formed.

    Args:
      rows: `[N, p]` float64 inputs.
      targets: `[N, C]` one-hot labels.
      l2: > 0, the penalty (l2/2) |x|^2.

    Returns:
      The minimiser `[p, C]`, with a gradient of norm <= 1e-10, and its value.

    Raises:
      ValueError: not found in 100 steps, because l2 is too small for float64.
    """
    count = len(rows)

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        logits = rows @ x
        logits -= logits.max(1, keepdims=True)
        exponentials = np.exp(logits)
        totals = exponentials.sum(1)
        losses = np.log(totals) - np.sum(targets * logits, axis=1)
        probabilities = exponentials / totals[:, None]
        gradient = rows.T @ (probabilities - targets) / count + l2 * x
        return float(losses.mean() + 0.5 * l2 * np.sum(x * x)), gradient, probabilities

    x = np.zeros((rows.shape[1], targets.shape[1]))
    value, gradient, probabilities = evaluate(x)
    for _ in range(NEWTON_STEPS):
        norm = float(np.linalg.norm(gradient))
        if norm <= GRADIENT_TOLERANCE:
            return x, value

        def curvature(v: np.ndarray, p: np.ndarray = probabilities) -> np.ndarray:
            change = p * (rows @ v)
            change -= p * change.sum(1, keepdims=True)
            return rows.T @ change / count + l2 * v

        direction = _conjugate_gradients(curvature, -gradient, min(0.1, norm) * norm)
        slope, step = float(np.sum(gradient * direction)), 1.0
        # Near the optimum the decrease drowns in rounding: there the gradient's norm must fall.
        while True:
            trial = evaluate(x + step * direction)
            enough = trial[0] <= value + 1e-4 * step * slope
            if enough or np.linalg.norm(trial[1]) < 0.5 * norm or step < 1e-10:
                break
            step /= 2
        x = x + step * direction
        value, gradient, probabilities = trial
    raise ValueError(
        f"l2 must be large enough to find the optimum, got {l2}: after {NEWTON_STEPS} steps of "
        f"Newton's method the gradient's norm is {np.linalg.norm(gradient):.2g}."
    )


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], target: np.ndarray, tolerance: float
) -> np.ndarray:
    """Solve product(v) = target to a residual of norm `tolerance` (product positive definite)."""
    solution, residual = np.zeros_like(target), target
    direction, energy = residual, float(np.sum(residual * residual))
    for _ in range(2 * target.size):
        if energy <= tolerance * tolerance:
            break
        image = product(direction)
        rate = energy / float(np.sum(direction * image))
        solution = solution + rate * direction
        residual = residual - rate * image
        previous, energy = energy, float(np.sum(residual * residual))
        direction = residual + (energy / previous) * direction
    return solution
