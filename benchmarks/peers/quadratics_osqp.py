"""OSQP on small quadratic programs, one after another, each kind set up once and warm-started."""

import time
from typing import Any

import numpy as np
import osqp
from scipy import sparse


def measure(
    quadratics: list[list[list[float]]],
    given: list[list[int]],
    gradients: list[list[list[float]]],
    ends: list[list[list[float]]],
) -> dict[str, Any]:
    """Min c' Q c / 2 - q' c where some of c are given: milliseconds a program, and all solutions."""
    solvers = []
    for Q, places in zip(quadratics, given, strict=True):
        matrix = np.asarray(Q)
        chosen = sparse.csc_matrix(np.eye(len(matrix))[places])
        solver = osqp.OSQP()
        zeros = np.zeros(len(places))
        solver.setup(
            sparse.triu(matrix, format="csc"),
            np.zeros(len(matrix)),
            chosen,
            zeros,
            zeros,
            verbose=False,
            max_iter=100_000,
        )
        solvers.append(solver)
    tasks = [
        [(-np.asarray(q), np.asarray(e)[places]) for q, e in zip(qs, es, strict=True)]
        for qs, es, places in zip(gradients, ends, given, strict=True)
    ]
    best, solutions = float("inf"), []
    for _ in range(20):
        began = time.perf_counter()
        solutions = []
        for solver, own in zip(solvers, tasks, strict=True):
            found = []
            for q, end in own:
                solver.update(q=q, l=end, u=end)
                found.append(solver.solve().x)
            solutions.append(found)
        best = min(best, time.perf_counter() - began)
    count = sum(map(len, tasks))
    return {"ms": 1e3 * best / count, "solutions": [np.array(s).tolist() for s in solutions]}
