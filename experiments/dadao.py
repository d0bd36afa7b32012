"""DADAO and four other ways to the common minimiser, on five graphs: gradients and communications."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax.data.dataset import Dataset
from dflax.decentralized import adom_plus, continuized, dadao, gossip_steps, msda, unit_rates
from dflax.gossip import NodeEvents, Stream, poisson_stream
from dflax.local.conjugate import least_squares_conjugate
from dflax.topology import GossipRates, Graph, from_edges, optimal_rates, uniform_rates
from experiments.study import Claim, Summary, figure, main


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      nodes: n, an even square.
      dimension: d of the regression.
      samples: rows of data at each node.
      target: stop when the mean squared error is this share of |x*|^2.
      horizon: units of time for which DADAO's events are drawn.
      rounds: most rounds of ADOM+; with multi-consensus and for MSDA a small part of it will do.
      seeds: repetitions, each with data, starts and events of its own.
      seed: of the first.
    """

    nodes: int = 16
    dimension: int = 5
    samples: int = 100
    target: float = 1e-6
    horizon: float = 170.0
    rounds: int = 13000
    seeds: int = 3
    seed: int = 0


class Problems(NamedTuple):
    """One regression per seed, leaves `[S, ...]`: f_i(x) = mean (<a, x> - b)^2 over i's rows."""

    inputs: Any
    labels: Any
    optimum: Any
    strong_convexity: Any
    smoothness: Any


class Cost(NamedTuple):
    """What it took to reach the target, `[S]` each; NaN where it was not reached."""

    gradients: np.ndarray
    communications: np.ndarray
    errors: np.ndarray


def loss(x: jax.Array, batch: dx.data.Batch, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared residual, without a half."""
    value = jnp.mean(jnp.square(batch.inputs @ x - batch.labels))
    return value, {"loss": value}


def problems(config: Config) -> Problems:
    """Per node a regression of its own: scikit-learn's, noise 10, labels scaled by U(0.01, 5)."""
    from sklearn.datasets import make_regression

    drawn = []
    for seed in range(config.seed, config.seed + config.seeds):
        generator = np.random.default_rng(seed)
        inputs, labels = [], []
        for _ in range(config.nodes):
            a, b = make_regression(
                config.samples,
                config.dimension,
                n_informative=config.dimension,
                noise=10.0,
                random_state=int(generator.integers(1 << 31)),
            )
            inputs.append(a)
            labels.append(b * generator.uniform(0.01, 5.0))
        a, b = np.concatenate(inputs), np.concatenate(labels)
        hessians = [2.0 * rows.T @ rows / config.samples for rows in inputs]
        values = np.linalg.eigvalsh(hessians)
        optimum = np.linalg.lstsq(a, b, rcond=None)[0]
        drawn.append(Problems(a, b, optimum, values.min(), values.max()))
    return Problems(*(jnp.asarray(np.stack(leaves)) for leaves in zip(*drawn, strict=True)))


def barbell(nodes: int) -> Graph:
    """Two complete graphs of n/2 nodes, joined by one link."""
    half = nodes // 2
    clique = [(i, j) for i in range(half) for j in range(i)]
    other = [(i + half, j + half) for i, j in clique]
    pairs = np.array([*clique, *other, (half - 1, half)])
    return from_edges(nodes, pairs, name=f"barbell of {nodes}")


def grid(nodes: int) -> Graph:
    """The square grid, not periodic."""
    side = math.isqrt(nodes)
    points = np.arange(nodes).reshape(side, side)
    pairs = [np.stack([points[:, :-1], points[:, 1:]], -1), np.stack([points[:-1], points[1:]], -1)]
    return from_edges(nodes, np.concatenate([p.reshape(-1, 2) for p in pairs]), name="grid")


def events(
    config: Config,
    problem: Problems,
    rates: GossipRates,
    method: Callable[..., dx.Algorithm],
    *,
    count: int,
    gradient_rate: float = 1.0,
) -> Cost:
    """Runs a method that goes event by event; all seeds as one program."""
    streams = [
        poisson_stream(rates, count, seed=config.seed + s, gradient_rate=gradient_rate)
        for s in range(config.seeds)
    ]
    stream = jax.tree.map(lambda *leaves: jnp.stack(leaves), *streams)
    partition = deal(config)

    def one(problem: Problems, stream: Stream, key: jax.Array) -> tuple[Any, ...]:
        data = Dataset(problem.inputs, problem.labels)
        source = NodeEvents(data, partition, stream)
        return trace(config, problem, method, source, key, count)

    metrics, errors = jax.jit(jax.vmap(one))(problem, stream, keys(config))
    return cost(config, problem, errors, metrics["gradients"], metrics["communications"])


def rounds(
    config: Config,
    problem: Problems,
    method: Callable[..., dx.Algorithm],
    *,
    messages: int,
    most: int,
) -> Cost:
    """Runs a method that goes round by round, with so many communications in each."""
    partition = deal(config)

    def one(problem: Problems, key: jax.Array) -> tuple[Any, ...]:
        data = Dataset(problem.inputs, problem.labels)
        source = dx.Federation(data, partition, local_steps=1, batch_size=config.samples)
        return trace(config, problem, method, source, key, most)

    _, errors = jax.jit(jax.vmap(one))(problem, keys(config))
    number = np.arange(1, most + 1)
    return cost(config, problem, errors, number * config.nodes, number * messages)


def trace(
    config: Config,
    problem: Problems,
    method: Callable[..., dx.Algorithm],
    source: Any,
    key: jax.Array,
    count: int,
) -> tuple[Any, jax.Array]:
    """Every step's metrics and mean squared error of the models as they lie in memory."""
    algorithm = method(strong_convexity=problem.strong_convexity, smoothness=problem.smoothness)
    state = algorithm.init(key, lambda key: jax.random.normal(key, (config.dimension,)))

    def step(state: Any, index: jax.Array) -> tuple[Any, Any]:
        state, metrics = algorithm.step(state, source.draw(key, index))
        error = jnp.mean(jnp.sum(jnp.square(state.clients.params - problem.optimum), axis=-1))
        return state, (metrics, error)

    return jax.lax.scan(step, state, jnp.arange(count, dtype=jnp.int32))[1]


def deal(config: Config) -> dx.data.Partition:
    """Node i owns rows i m to (i + 1) m."""
    rows = np.arange(config.nodes * config.samples).reshape(config.nodes, config.samples)
    return dx.data.from_indices(list(rows))


def keys(config: Config) -> jax.Array:
    """A key per seed."""
    return jax.random.split(jax.random.key(config.seed), config.seeds)


def cost(
    config: Config, problem: Problems, errors: Any, gradients: Any, communications: Any
) -> Cost:
    """Counts at the first step that meets the target."""
    errors = np.asarray(errors)
    bar = config.target * np.square(np.asarray(problem.optimum)).sum(-1)
    met = errors <= bar[:, None]
    first = met.argmax(1)

    def at(counts: Any) -> np.ndarray:
        table = np.broadcast_to(np.asarray(counts, np.float64), errors.shape)
        return np.where(met.any(1), table[np.arange(len(first)), first], np.nan)

    return Cost(at(gradients), at(communications), errors / bar[:, None] * config.target)


def study(config: Config) -> Summary:
    """Runs everything in float64."""
    with jax.enable_x64(True):
        return _study(config)


def _study(config: Config) -> Summary:
    n = config.nodes
    problem = problems(config)
    graphs = {
        "star": dx.topology.star(n),
        "path": dx.topology.path(n),
        "grid": grid(n),
        "complete": dx.topology.complete(n),
        "barbell": barbell(n),
    }
    costs: dict[str, dict[str, Cost]] = {}
    totals: dict[str, float] = {}
    decays: dict[str, np.ndarray] = {}

    def asynchronous(rates: GossipRates, name: str) -> Cost:
        count = int(config.horizon * (n + rates.total))
        found = events(
            config,
            problem,
            rates,
            lambda **constants: dadao(loss, rates, **constants),
            count=count,
        )
        reached = found.gradients / n
        decays[name] = np.log(found.errors[:, 0] / config.target) / reached
        totals[name] = rates.total
        return found

    for name, graph in graphs.items():
        links = len(graph.links)
        chi = np.linalg.eigvalsh(dx.topology.laplacian(graph))
        chi = chi[-1] / chi[1]
        few = min(config.rounds, 500)
        repeats = max(1, math.ceil(chi * math.log(2.0) - 1e-9))

        def synchronous(
            messages: int, most: int, method: Any, *given: Any, graph: Graph = graph, **options: Any
        ) -> Cost:
            return rounds(
                config,
                problem,
                lambda **constants: method(*given, graph, **constants, **options),
                messages=messages,
                most=most,
            )

        rows = {
            "DADAO": asynchronous(uniform_rates(graph), name),
            "ADOM+": synchronous(links, few if chi < 2 else config.rounds, adom_plus, loss),
            "ADOM+ multi-consensus": synchronous(
                repeats * links, few, adom_plus, loss, multi_consensus=True
            ),
            "MSDA (dual)": synchronous(
                gossip_steps(graph) * links, few // 5, msda, least_squares_conjugate
            ),
            "continuized (dual)": events(
                config,
                problem,
                unit_rates(graph),
                lambda graph=graph, **constants: continuized(
                    least_squares_conjugate, graph, **constants
                ),
                count=3000,
                gradient_rate=0.0,
            ),
        }
        if name in ("grid", "barbell"):
            rows["DADAO, optimal rates"] = asynchronous(
                optimal_rates(graph), f"{name}, optimal rates"
            )
        costs[name] = rows
    return Summary(
        _table(costs, totals),
        _claims(config, problem, costs, totals, decays),
        {
            "communications": _figure(costs),
        },
    )


def _table(
    costs: dict[str, dict[str, Cost]], totals: dict[str, float]
) -> dict[str, dict[str, float]]:
    table = {}
    for graph, rows in costs.items():
        for method, found in rows.items():
            table[f"{graph}: {method}"] = {
                "gradients": float(found.gradients.mean()),
                "std of gradients": float(found.gradients.std()),
                "communications": float(found.communications.mean()),
                "std of communications": float(found.communications.std()),
            }
        table[f"{graph}: DADAO"]["rate"] = totals[graph]
    return table


def _claims(
    config: Config,
    problem: Problems,
    costs: dict[str, dict[str, Cost]],
    totals: dict[str, float],
    decays: dict[str, np.ndarray],
) -> list[Claim]:
    primal = ("ADOM+", "ADOM+ multi-consensus")
    ratios = [
        float(
            min(rows[p].communications.mean() for p in primal) / rows["DADAO"].communications.mean()
        )
        for rows in costs.values()
    ]
    shares = [
        float(rows["DADAO"].gradients.mean() / min(rows[p].gradients.mean() for p in primal))
        for rows in costs.values()
    ]
    gradients = [float(rows["DADAO"].gradients.mean()) for rows in costs.values()]
    mu, top = np.asarray(problem.strong_convexity), np.asarray(problem.smoothness)
    bound = np.sqrt(mu / top) / (8 * np.sqrt(2.0))
    slopes = [float((decay / bound).min()) for decay in decays.values()]
    cut, plain = costs["barbell"]["DADAO, optimal rates"], costs["barbell"]["DADAO"]
    saved = float(plain.communications.mean() / cut.communications.mean())
    expected = totals["barbell"] / totals["barbell, optimal rates"]
    same = float(cut.gradients.mean() / plain.gradients.mean())
    return [
        Claim(
            "DADAO needs about 10 to 30 times fewer communications than either ADOM+ (each graph)",
            all(8.0 <= ratio <= 40.0 for ratio in ratios),
            ratios,
            [10, 30],
        ),
        Claim(
            "with at most about 1.2 times the gradients of the better ADOM+ (each graph)",
            all(share <= 1.2 for share in shares),
            shares,
            1.2,
        ),
        Claim(
            "its gradients do not depend on the graph (largest over smallest mean)",
            max(gradients) / min(gradients) <= 1.2,
            gradients,
            1.2,
        ),
        Claim(
            "the error falls faster than the bound in every run (least measured rate over bound)",
            all(slope >= 1.0 for slope in slopes),
            slopes,
            1.0,
        ),
        Claim(
            "optimal rates cut communications on the barbell as much as they cut the rate",
            saved >= 0.85 * expected,
            saved,
            expected,
        ),
        Claim("at equal gradients", abs(same - 1.0) <= 0.1, same, 1.0),
    ]


def _figure(costs: dict[str, dict[str, Cost]]) -> Any:
    methods = list(dict.fromkeys(method for rows in costs.values() for method in rows))
    with figure(10.0, 3.8, ncols=2) as (drawn, axes):
        for panel, what in zip(axes, ("communications", "gradients"), strict=True):
            for place, method in enumerate(methods):
                at = [g for g, rows in enumerate(costs.values()) if method in rows]
                counts = [getattr(rows[method], what) for rows in costs.values() if method in rows]
                panel.bar(
                    np.array(at) + (place - 2.5) * 0.14,
                    [count.mean() for count in counts],
                    0.13,
                    yerr=[count.std() for count in counts],
                    color=f"C{place}",
                    label=method,
                )
            panel.set_xticks(range(len(costs)), list(costs))
            panel.set(yscale="log", title=f"{what} until the target")
            panel.grid(axis="x", visible=False)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


if __name__ == "__main__":
    main(study, Config, __file__)
