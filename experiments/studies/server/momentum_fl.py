"""Momentum in federated learning: bias, partial participation, the noise floor, and larger steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from experiments.tasks.inputs import DIGITS
from experiments.tasks.skewed_digits import CLIENTS, accuracies, problems
from experiments.tools.command import main
from experiments.tools.curves import around, spread
from experiments.tools.figures import bars, figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Study, Summary

BETAS = (1.0, 0.5, 0.1, 0.02)
ALPHAS = (0.1, 0.3)
FedAvgM, ScaffoldM = dx.server.fedcm, dx.server.scaffold_m


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      instances: heterogeneous quadratics; the first is NumPy's default_rng(3).
      bias_rounds: rounds after which a method is taken to stand still.
      partial_rounds: rounds with two of six clients.
      noise_problems: least-squares problems.
      noise_rounds: rounds of each.
      seeds: repetitions on digits.
    """

    instances: int = 4
    bias_rounds: int = 20_000
    partial_rounds: int = 8_000
    noise_problems: int = 3
    noise_rounds: int = 2_000
    seeds: int = 8


class Instances(NamedTuple):
    """Quadratics f_i = (1/2) (x - b_i)^T A_i (x - b_i), several of equal shape.

    Attributes:
      A: `[I, 6, 3, 3]`.
      b: `[I, 6, 3]`.
      optima: `[I, 3]`.
    """

    A: np.ndarray
    b: np.ndarray
    optima: np.ndarray


def exact(config: Config, stage: Stage = in_memory) -> Summary:
    """Bias, partial participation and the noise floor, on problems with known optima."""
    rows: dict[str, Any] = {}
    claims: list[Claim] = []
    with jax.enable_x64(True):
        given = instances(config.instances)
        table, stated, errors = bias(config, given, stage)
        rows |= table
        claims += stated
        table, stated = partial(config, given, stage)
        rows |= table
        claims += stated
    table, stated, ratios = noise(config, stage)
    rows |= table
    claims += stated
    with figure(9.0, 3.4, ncols=2) as (drawn, axes):
        for K, mark in ((5, "o-"), (10, "s--")):
            mean = errors[K].mean(1)
            axes[0].loglog(BETAS, mean, mark, label=f"FedAvg-M, K = {K}")
            straight = "proportional" if K == 10 else None
            axes[0].loglog(BETAS, mean[0] * np.array(BETAS), "k:", linewidth=1, label=straight)
        axes[0].set(xlabel="beta", ylabel="|x - x*| at rest", title="bias is proportional to beta")
        axes[0].legend()
        names = list(ratios)
        gammas = (0.02, 0.05)
        for gamma, (label, look) in zip(
            gammas, looks(f"gamma = {gamma}" for gamma in gammas).items(), strict=True
        ):
            values = np.stack([ratios[name][gamma] for name in names], axis=1)
            at = np.arange(len(names)) + 0.4 * look.place - 0.2
            bars(axes[1], at, values, look, 0.38, label)
        axes[1].axhline(1.0, color="0.5", linewidth=0.8)
        axes[1].set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes[1].set(
            ylabel="noise floor over FedAvg's",
            title="only variance reduction lowers it",
            ylim=(0.0, 1.3),
        )
        axes[1].legend(loc="upper center", ncols=2)
    return Summary(rows, claims, {"bias_and_noise": drawn})


def instances(count: int) -> Instances:
    """A_i = M_i M_i^T / 3 + I / 2 and b_i ~ 2 N(0, I), six clients in three dimensions."""
    A, b, optima = [], [], []
    for seed in range(3, 3 + count):
        generator = np.random.default_rng(seed)
        M = generator.normal(size=(6, 3, 3))
        A.append(M @ M.swapaxes(1, 2) / 3 + 0.5 * np.eye(3))
        b.append(2 * generator.normal(size=(6, 3)))
        optima.append(np.linalg.solve(A[-1].sum(0), np.einsum("nde,ne->d", A[-1], b[-1])))
    return Instances(np.stack(A), np.stack(b), np.stack(optima))


def distances(
    given: Instances, method: Callable, hyper: Any, *, K: int, cohort: int, rounds: int, last: int
) -> np.ndarray:
    """Root mean square of |x - x*| over the last rounds, `[G, I]`, one program for all points."""
    rule = dx.participation.uniform(cohort) if cohort < 6 else dx.participation.everyone()
    numbers = jnp.arange(6)
    problems = [
        dx.data.Dataset({"A": jnp.asarray(A), "b": jnp.asarray(b)}, numbers)
        for A, b in zip(given.A, given.b, strict=True)
    ]
    first = dx.Federation(
        problems[0],
        dx.data.from_indices([np.array([i]) for i in range(6)]),
        batch_size=1,
        local_steps=K,
        participation=rule,
    )
    sources = dx.side_by_side([first.replace(data=data) for data in problems])
    key = jax.random.key(0)

    def run(values: Any, own: Any, A: Any, b: Any, optimum: Any, sources: dx.SideBySide) -> Any:
        source = sources.source(own)
        algorithm = method(*values)
        x = jnp.zeros(3)
        state = algorithm.init(key, x, -jnp.einsum("nde,ne->nd", A, b))

        def step(state: Any, round: dx.Round) -> tuple[Any, Any]:
            state, _ = algorithm.step(state, round)
            return state, jnp.sum(jnp.square(state.server.params - optimum))

        watched = dx.Algorithm(algorithm.init, step)
        state, _ = dx.rollout(algorithm, state, source, key, rounds - last)
        squares: Any = dx.rollout(watched, state, source, key, last, start=rounds - last)[1]
        return jnp.sqrt(squares.mean())

    over = jax.vmap(run, in_axes=(None, 0, 0, 0, 0, None))
    over = jax.vmap(over, in_axes=(0, None, None, None, None, None))
    points = tuple(jnp.asarray(entry) for entry in hyper)
    return np.asarray(jax.jit(over)(points, sources.own, given.A, given.b, given.optima, sources))


def bias(
    config: Config, given: Instances, stage: Stage
) -> tuple[dict, list[Claim], dict[int, np.ndarray]]:
    """(1) Where the methods come to rest with everyone and exact gradients."""
    rows: dict[str, Any] = {}
    claims, errors = [], {}
    gammas = [0.1, 0.1, 0.1, 0.02]

    def plain(beta: Any, gamma: Any) -> dx.Algorithm:
        return FedAvgM(dx.data.quadratic_loss, optax.sgd(0.02), beta=beta, server_rate=gamma)

    def controlled(beta: Any) -> dx.Algorithm:
        return ScaffoldM(dx.data.quadratic_loss, optax.sgd(0.02), 6, beta=beta, server_rate=0.1)

    for K, reference, factor, low, high in (
        (5, (0.15365, 0.07859, 0.01600, 0.00321), 8, 0.9, 1.1),
        (10, (0.31354, 0.16838, 0.03564, 0.00721), 7, 0.85, 1.25),
    ):
        options = {"K": K, "cohort": 6, "rounds": config.bias_rounds, "last": 1}
        found = errors[K] = stage(
            f"bias, K = {K}",
            lambda options=options: distances(given, plain, (BETAS, gammas), **options),
        )
        exact = stage(
            f"bias of SCAFFOLD-M, K = {K}",
            lambda options=options: distances(given, controlled, ([0.3],), **options)[0],
        )
        for row, beta in enumerate(BETAS):
            rows[f"|x - x*|: FedAvg-M({beta:g}), K = {K}"] = {
                "measured": spread(found[row], 4),
                "first instance": f"{found[row, 0]:.5f}",
                "reference": f"{reference[row]:.5f}",
            }
        rows[f"|x - x*|: SCAFFOLD-M(0.3), K = {K}"] = {
            "measured": f"{exact.mean():.0e}",
            "first instance": f"{exact[0]:.0e}",
            "reference": "1e-13" if K == 5 else "2e-13",
        }
        slopes = found[1:] / (found[:1] * np.array(BETAS[1:])[:, None])
        claims += [
            Claim(
                f"the first instance has the sheet's errors to five digits (K = {K})",
                bool(np.allclose(found[:, 0], reference, atol=6e-6)),
                [float(e) for e in found[:, 0]],
                list(reference),
            ),
            Claim(
                f"FedAvg-M(0.1) is at least {factor} times closer than FedAvg (K = {K})",
                bool((found[0] / found[2] >= factor).all()),
                float((found[0] / found[2]).min()),
                factor,
            ),
            Claim(
                f"the bias is proportional to beta (K = {K}): least and largest factor",
                bool((slopes > low).all() and (slopes < high).all()),
                [float(slopes.min()), float(slopes.max())],
                [low, high],
            ),
            Claim(
                f"SCAFFOLD-M has none (K = {K})",
                bool(exact.max() < 1e-11),
                float(exact.max()),
                1e-11,
            ),
        ]
    return rows, claims, errors


def partial(config: Config, given: Instances, stage: Stage) -> tuple[dict, list[Claim]]:
    """(2) Two of six clients a round."""
    rows: dict[str, Any] = {}
    found = {}
    options = {
        "K": 5,
        "cohort": 2,
        "rounds": config.partial_rounds,
        "last": config.partial_rounds // 4,
    }
    descent, loss = optax.sgd(0.02), dx.data.quadratic_loss
    methods: dict[str, Callable] = {
        "FedAvg-M": lambda beta: FedAvgM(loss, descent, beta=beta, server_rate=0.1),
        "SCAFFOLD-M": lambda beta: ScaffoldM(loss, descent, 6, beta=beta, server_rate=0.1),
        "SCAFFOLD-M-VR": lambda beta: dx.server.scaffold_m_vr(
            loss, descent, 6, beta=beta, server_rate=0.1
        ),
    }
    for name, method in methods.items():
        found[name] = stage(
            f"{name}, 2 of 6",
            lambda method=method: distances(given, method, ([1.0, 0.3],), **options),
        )
        for row, beta in enumerate((1.0, 0.3)):
            errors = found[name][row]
            rows[f"|x - x*|: {name}({beta:g}), 2 of 6"] = {
                "measured": f"{errors.min():.2g} to {errors.max():.2g}",
                "reference": "0.46 to 0.86" if name == "FedAvg-M" else "1e-13",
            }
    floors = found["FedAvg-M"]
    exact = max(found["SCAFFOLD-M"].max(), found["SCAFFOLD-M-VR"].max())
    claims = [
        Claim("with 2 of 6 SCAFFOLD-M and -VR are exact", bool(exact < 1e-11), float(exact), 1e-11),
        Claim(
            "FedAvg and FedAvg-M keep a floor there",
            bool((floors > 0.1).all()),
            [float(floors.min()), float(floors.max())],
            0.1,
        ),
        Claim(
            "which momentum hardly lowers at the same gamma (by less than 10 %)",
            bool((np.abs(floors[1] / floors[0] - 1) < 0.1).all()),
            [float(r) for r in floors[1] / floors[0]],
            1.0,
        ),
    ]
    return rows, claims


def noise(
    config: Config, stage: Stage
) -> tuple[dict, list[Claim], dict[str, dict[float, np.ndarray]]]:
    """(3) The floor of a constant step under gradient noise, over FedAvg's on the same problem."""
    n, rows_each, d = 10, 50, 10
    X, Y = [], []
    for seed in range(config.noise_problems):
        generator = np.random.default_rng(100 + seed)
        inputs = generator.normal(size=(n, rows_each, d))
        models = generator.normal(size=(n, d))
        labels = np.einsum("nrd,nd->nr", inputs, models)
        labels += 0.5 * generator.normal(size=labels.shape)
        X.append(inputs.reshape(-1, d))
        Y.append(labels.reshape(-1))
    stacked = jnp.asarray(np.stack(X), jnp.float32), jnp.asarray(np.stack(Y), jnp.float32)
    first = dx.Federation(
        dx.data.Dataset(stacked[0][0], stacked[1][0]),
        dx.data.from_indices(np.array_split(np.arange(n * rows_each), n)),
        batch_size=1,
        local_steps=10,
        replacement=True,
    )
    sources = dx.side_by_side(
        [first.replace(data=dx.data.Dataset(*own)) for own in zip(*stacked, strict=True)]
    )
    key, loss, descent = jax.random.key(0), dx.data.least_squares_loss, optax.sgd(0.002)
    last = config.noise_rounds // 5

    def floor(method: Callable, betas: list[float], gammas: list[float]) -> np.ndarray:
        def run(beta: Any, gamma: Any, own: Any, sources: dx.SideBySide) -> Any:
            source = sources.source(own)
            inputs, labels = source.data.inputs, source.data.labels
            algorithm = method(beta, gamma)
            mine, wanted = inputs.reshape(n, -1, d), labels.reshape(n, -1)
            # At x = 0 the gradient of a row is -label times input.
            start = -jnp.einsum("nrd,nr->nd", mine, wanted) / rows_each
            state = algorithm.init(key, jnp.zeros(d), start)

            def step(state: Any, round: dx.Round) -> tuple[Any, Any]:
                state, _ = algorithm.step(state, round)
                slope = (inputs @ state.server.params - labels) @ inputs / len(labels)
                return state, jnp.sum(jnp.square(slope))

            watched = dx.Algorithm(algorithm.init, step)
            squares: Any = dx.rollout(watched, state, source, key, config.noise_rounds)[1]
            return squares[-last:].mean()

        over = jax.vmap(run, in_axes=(None, None, 0, None))
        over = jax.vmap(over, in_axes=(0, 0, None, None))
        points = jnp.asarray(betas, jnp.float32), jnp.asarray(gammas, jnp.float32)
        return np.asarray(jax.jit(over)(*points, sources.own, sources))

    gammas = (0.02, 0.05)
    s = dx.server
    asked: dict[str, tuple[Callable, tuple[float, ...]]] = {
        "FedAvg-M": (lambda b, g: s.fedcm(loss, descent, beta=b, server_rate=g), (1.0, 0.1)),
        "FedAvg-M-VR": (
            lambda b, g: s.fedavg_m_vr(loss, descent, beta=b, server_rate=g),
            (0.1, 0.3),
        ),
        "SCAFFOLD-M": (
            lambda b, g: s.scaffold_m(loss, descent, n, beta=b, server_rate=g),
            (1.0, 0.1),
        ),
        "SCAFFOLD-M-VR": (
            lambda b, g: s.scaffold_m_vr(loss, descent, n, beta=b, server_rate=g),
            (0.1,),
        ),
    }
    floors: dict[str, dict[float, np.ndarray]] = {}
    for name, (method, betas) in asked.items():
        points = [(beta, gamma) for beta in betas for gamma in gammas]
        found = stage(
            f"noise floor of {name}",
            lambda method=method, points=points: floor(
                method, *map(list, zip(*points, strict=True))
            ),
        )
        for (beta, gamma), values in zip(points, found, strict=True):
            floors.setdefault(f"{name}({beta:g})", {})[gamma] = values
    base = floors.pop("FedAvg-M(1)")
    ratios = {
        name: {gamma: values[gamma] / base[gamma] for gamma in gammas}
        for name, values in floors.items()
    }
    sheet = {
        "FedAvg-M(0.1)": ((0.99, 1.02), (0.96, 1.02)),
        "FedAvg-M-VR(0.1)": ((0.77, 0.79), (0.62, 0.64)),
        "FedAvg-M-VR(0.3)": ((0.93, 0.93), (0.85, 0.86)),
        "SCAFFOLD-M(1)": ((1.01, 1.04), (1.02, 1.03)),
        "SCAFFOLD-M(0.1)": ((1.00, 1.02), (0.97, 1.03)),
        "SCAFFOLD-M-VR(0.1)": ((0.79, 0.81), (0.63, 0.65)),
    }
    rows: dict[str, Any] = {}
    for place, gamma in enumerate(gammas):
        rows[f"noise floor: FedAvg, gamma {gamma}"] = {
            "measured": f"{base[gamma].mean():.1e} ± {base[gamma].std():.0e}",
            "reference": ("8.4e-3 to 1.1e-2", "2.0e-2 to 2.9e-2")[place],
        }
        for name in ratios:
            low, high = sheet[name][place]
            rows[f"over FedAvg's: {name}, gamma {gamma}"] = {
                "measured": spread(ratios[name][gamma], 2),
                "reference": f"{low:.2f} to {high:.2f}",
            }
    claims = []
    for gamma, most in ((0.02, 0.85), (0.05, 0.70)):
        reduced = ratios["FedAvg-M-VR(0.1)"][gamma]
        claims.append(
            Claim(
                f"variance reduction lowers the noise floor by {1 - most:.0%} (gamma {gamma})",
                bool((reduced <= most).all()),
                [float(r) for r in reduced],
                most,
            )
        )
    plain = np.concatenate([ratios["FedAvg-M(0.1)"][gamma] for gamma in gammas])
    claims.append(
        Claim(
            "momentum alone does not (within 10 %)",
            bool((np.abs(plain - 1) < 0.1).all()),
            [float(plain.min()), float(plain.max())],
            1.0,
        )
    )
    return rows, claims, ratios


def digits(config: Config, stage: Stage = in_memory) -> Summary:
    """(4) Skewed digits: what momentum buys is tolerance of a larger step at the server."""
    given = problems(ALPHAS, config.seeds)
    eta, K = 0.1, 10
    points = [(1.0, 1), (1.0, 2), (0.2, 2), (1.0, 3), (0.2, 3)]
    hyper = [beta for beta, _ in points], [steps * eta * K for _, steps in points]
    descent = optax.sgd(eta)
    methods: dict[str, Callable] = {
        "FedAvg": lambda beta, gamma: FedAvgM(given.loss, descent, beta=beta, server_rate=gamma),
        "SCAFFOLD": lambda beta, gamma: ScaffoldM(
            given.loss, descent, CLIENTS, beta=beta, server_rate=gamma
        ),
    }
    sheet = {
        "FedAvg": {
            20: ((0.77, 0.89), (0.86, 0.92), (0.87, 0.91), (0.86, 0.88), (0.90, 0.93)),
            4: ((0.65, 0.85), (0.77, 0.86), (0.80, 0.90), (0.68, 0.78), (0.83, 0.91)),
        },
        "SCAFFOLD": {
            20: ((0.86, 0.90), (0.92, 0.94), (0.90, 0.92), (0.92, 0.90), (0.92, 0.94)),
            4: ((0.83, 0.89), (0.89, 0.91), (0.88, 0.90), (0.68, 0.74), (0.87, 0.92)),
        },
    }
    rows: dict[str, Any] = {}
    means: dict[tuple[str, int, float], np.ndarray] = {}
    for name, method in methods.items():
        for cohort in (20, 4):
            curves = stage(
                f"{name} on digits, {cohort} of {CLIENTS}",
                lambda method=method, cohort=cohort: accuracies(
                    given, method, *hyper, rounds=30, cohort=cohort
                ),
            )
            for column, alpha in enumerate(ALPHAS):
                late = around(curves[:, given.where(alpha)], 30)
                means[name, cohort, alpha] = late.mean(1)
                for row, (beta, steps) in enumerate(points):
                    label = name if beta == 1.0 else f"{name}-M({beta:g})"
                    group = "all" if cohort == 20 else "4 of 20"
                    rows[f"{label}, {steps} eta K, {group}, Dir {alpha}"] = {
                        "measured": spread(late[row], 2),
                        "reference": f"{sheet[name][cohort][row][column]:.2f}",
                    }
    claims = []
    for name, least in (("FedAvg", 0.04), ("SCAFFOLD", 0.08)):
        leads = [float(means[name, 4, a][4] - means[name, 4, a][3]) for a in ALPHAS]
        claims.append(
            Claim(
                f"at 3 eta K with 4 of 20, momentum is ahead ({name}; Dir 0.1, 0.3)",
                min(leads) >= least,
                leads,
                least,
            )
        )
    leads = [float(means["FedAvg", m, 0.1][2] - means["FedAvg", m, 0.1][0]) for m in (20, 4)]
    claims.append(
        Claim(
            "FedAvg-M(0.2) at 2 eta K is ahead of FedAvg at eta K (Dir 0.1; 20 and 4 of 20)",
            min(leads) >= 0.05,
            leads,
            0.05,
        )
    )
    return Summary(rows, claims)


STUDY = Study(
    Config,
    (
        Part("known optima", exact, needs=()),
        Part("digits", digits, needs=(DIGITS,)),
    ),
    quick=Config(
        instances=1,
        bias_rounds=200,
        partial_rounds=200,
        noise_problems=1,
        noise_rounds=100,
        seeds=1,
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
