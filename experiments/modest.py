"""MoDeST on 100 nodes: federated averaging without a server, while nodes crash, join and fall silent."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import evaluation, participation
from dflax.decentralized import md5_ranks, modest
from experiments.study import Claim, Summary, figure, main

NEVER = 1 << 20


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      nodes: n, on scikit-learn's digits.
      alpha: Dirichlet concentration of the label split.
      sample: s, participants of a round.
      rounds: of the comparison with D-SGD and of deaths and joins.
      crash_rounds: of the runs in which four nodes in five fall silent.
      local_steps: K.
      batch_size: B, drawn with replacement.
      learning_rate: of the local SGD.
      target: accuracy whose cost is counted.
      seeds: repetitions.
      seed: of the first.
    """

    nodes: int = 100
    alpha: float = 1.0
    sample: int = 10
    rounds: int = 150
    crash_rounds: int = 200
    local_steps: int = 5
    batch_size: int = 20
    learning_rate: float = 0.1
    target: float = 0.85
    seeds: int = 3
    seed: int = 11


class Bench:
    """Data, model and the one way in which everything here is run: all seeds as one program."""

    def __init__(self, config: Config):
        self.config = config
        self.data = dx.data.digits()
        self.model = dx.models.MLP((32,), classes=10)
        self.loss = dx.losses.classification(self.model.apply)
        self.partition = dx.data.dirichlet(
            np.asarray(self.data.labels), config.nodes, config.alpha, seed=config.seed
        )
        self.keys = jax.random.split(jax.random.key(config.seed), config.seeds)
        orders = [
            md5_ranks(config.nodes, config.crash_rounds + 2, first=1000 * seed)
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        self.ranks = jnp.stack(orders)

    def federation(self, rule: Any = None) -> dx.Federation:
        """All clients, or those that a rule names, counted alike."""
        return dx.Federation(
            self.data,
            self.partition,
            local_steps=self.config.local_steps,
            batch_size=self.config.batch_size,
            participation=rule,
            replacement=True,
            weights=jnp.ones(self.config.nodes),
        )

    def run(
        self,
        make: Any,
        rounds: int,
        measure: Any,
        *,
        online: Any = None,
        cohorts: Any = None,
        given: tuple[Any, ...] = (),
    ) -> Any:
        """Metrics and evaluations of every round, leaves `[seeds, rounds, ...]`, and final states."""

        def rule(online: Any, cohorts: Any) -> Any:
            if online is not None:
                return participation.present(online)
            return jax.tree_util.Partial(_given_cohorts, cohorts)

        plain = online is None and cohorts is None
        firsts = [None if table is None else table[0] for table in (online, cohorts)]
        source = self.federation(None if plain else rule(*firsts))

        def one(key: Any, ranks: Any, online: Any, cohorts: Any, source: Any, measure: Any) -> Any:
            if not plain:
                source = copy.copy(source)
                source.participation = rule(online, cohorts)
            algorithm = make(ranks)
            params = self.model.init(key, self.data.example)["params"]
            state = algorithm.init(key, params, *given)

            def step(state: Any, index: Any) -> Any:
                state, metrics = algorithm.step(state, source.draw(key, index))
                return state, metrics | {f"test_{k}": v for k, v in measure(state).items()}

            return jax.lax.scan(step, state, jnp.arange(rounds, dtype=jnp.int32))

        axes = (0, 0, None if online is None else 0, None if cohorts is None else 0, None, None)
        states, metrics = jax.jit(jax.vmap(one, in_axes=axes))(
            self.keys, self.ranks, online, cohorts, source, measure
        )
        return states, jax.tree.map(np.asarray, metrics)

    def modest(self, ranks: Any, **options: Any) -> dx.Algorithm:
        """The algorithm at hand with these settings."""
        return modest(
            self.loss,
            optax.sgd(self.config.learning_rate),
            nodes=self.config.nodes,
            sample=self.config.sample,
            ranks=ranks,
            **options,
        )


def _given_cohorts(cohorts: Any, key: Any, index: Any, clients: int) -> participation.Cohort:
    return participation.Cohort(cohorts[index])


def crashes(config: Config) -> np.ndarray:
    """`[seeds, T, n]`: from round 50 four more nodes fall silent every 5 rounds, until 20 are left."""
    tables = np.ones((config.seeds, config.crash_rounds, config.nodes), bool)
    for place, table in enumerate(tables):
        order = np.random.default_rng(config.seed + place).permutation(config.nodes)
        dead = config.nodes - config.nodes // 5
        for batch in range(-(-dead // 4)):
            table[50 + 5 * batch - 1 :, order[4 * batch : min(4 * batch + 4, dead)]] = False
    return tables


def study(config: Config) -> Summary:
    """Runs all five experiments."""
    bench = Bench(config)
    at_server = evaluation.server_model(evaluation.on(bench.loss, bench.data.test))
    at_clients = evaluation.together(
        evaluation.client_models(evaluation.on(bench.loss, bench.data.test)),
        evaluation.mean_model(evaluation.on(bench.loss, bench.data.test)),
    )
    rows: dict[str, dict[str, float]] = {}
    curves: dict[str, np.ndarray] = {}
    claims = [
        *_ideal(bench, at_server, at_clients, rows, curves),
        *_crash(bench, at_server, rows, curves),
        *_deaths(bench, at_server, rows),
        *_joins(bench, at_server, rows),
    ]
    return Summary(rows, claims, {"modest": _figure(config, curves)})


def _ideal(bench: Bench, at_server: Any, at_clients: Any, rows: Any, curves: Any) -> list[Claim]:
    config = bench.config
    T, s, n = config.rounds, config.sample, config.nodes
    ideal, metrics = bench.run(lambda r: bench.modest(r, idealised=True), T, at_server)
    _, viewed = bench.run(lambda r: bench.modest(r), T, at_server)
    descent = optax.sgd(config.learning_rate)
    cohorts = jnp.asarray(metrics["sampled"])
    federated, averaged = bench.run(
        lambda r: dx.server.fedavg(bench.loss, descent), T, at_server, cohorts=cohorts
    )
    _, gossiped = bench.run(
        lambda r: dx.decentralized.dfedavg(bench.loss, descent, dx.gossip.one_peer_exponential(n)),
        T,
        at_clients,
    )
    gap = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(
            jax.tree.leaves(jax.vmap(lambda state: state.server.params)(ideal)),
            jax.tree.leaves(federated.server.params),
            strict=True,
        )
    )
    per_round = metrics["models_sent"].mean()
    results = {
        "MoDeST": (metrics["test_accuracy"], metrics["models_sent"].cumsum(1)),
        "FedAvg": (averaged["test_accuracy"], np.full((1, T), 2 * s).cumsum(1)),
        "D-SGD one-peer, mean local": (gossiped["test_accuracy"], np.full((1, T), n).cumsum(1)),
        "D-SGD one-peer, mean model": (
            gossiped["test_mean_model_accuracy"],
            np.full((1, T), n).cumsum(1),
        ),
    }
    cost = {}
    for name, (accuracy, sent) in results.items():
        reached = (accuracy >= config.target).argmax(1)
        total = np.broadcast_to(sent, accuracy.shape)[np.arange(len(reached)), reached]
        cost[name] = reached + 1, total
        curves[name] = accuracy
        rows[name] = _row(accuracy[:, -1]) | {
            "rounds to target": float(reached.mean() + 1),
            "models to target": float(total.mean()),
        }
    saved = cost["D-SGD one-peer, mean local"][1].mean() / cost["MoDeST"][1].mean()
    slower = cost["D-SGD one-peer, mean local"][0].mean() >= cost["MoDeST"][0].mean()
    return [
        Claim(
            "idealised MoDeST is FedAvg: largest difference of parameters", gap <= 1e-5, gap, 1e-5
        ),
        Claim(
            "views give the sample sequence of true membership",
            bool((viewed["sampled"] == metrics["sampled"]).all()),
            float((viewed["sampled"] != metrics["sampled"]).mean()),
            0.0,
        ),
        Claim(
            "models sent per round are 2 s - 1, less participants that aggregate next",
            2 * s - 2 <= per_round <= 2 * s - 1,
            float(per_round),
            2 * s - 1,
        ),
        Claim(
            f"D-SGD (mean local) needs at least 5 times the models to reach {config.target}",
            bool(saved >= 5.0 and slower),
            float(saved),
            5.0,
        ),
    ]


def _crash(bench: Bench, at_server: Any, rows: Any, curves: Any) -> list[Claim]:
    config = bench.config
    T, s = config.crash_rounds, config.sample
    online = jnp.asarray(crashes(config))
    live = config.nodes // 5
    last = 50 + 5 * (-(-(config.nodes - live) // 4) - 1)
    expected = s * (config.nodes - live) / (live + 1)
    claims = []
    for delta in (20, 50, None):
        name = f"crash, delta = {'inf' if delta is None else delta}"
        _, metrics = bench.run(
            lambda r, delta=delta: bench.modest(r, inactivity=delta), T, at_server, online=online
        )
        accuracy, failed = metrics["test_accuracy"], metrics["failed_pings"]
        curves[name], curves[f"pings, {name}"] = accuracy, failed
        quiet = last + 30
        rows[name] = _row(accuracy[:, -1]) | {
            "accuracy at 50": float(accuracy[:, 49].mean()),
            "failed pings while they crash": float(failed[:, 99 : last - 1].mean()),
            "failed pings at the end": float(failed[:, quiet - 1 :].mean()),
            "view at the end": float(metrics["view_size"][:, -1].mean()),
            "rounds lost": float(metrics["lost"].sum(1).mean()),
            "takeovers": float(metrics["takeovers"].sum(1).mean()),
        }
        drop = float((accuracy[:, 49] - accuracy[:, -1]).max())
        claims.append(
            Claim(
                f"{name}: accuracy does not fall while 80% fall silent (largest drop)",
                drop <= 0.03,
                drop,
                0.03,
            )
        )
        lost = int(metrics["lost"].sum())
        claims.append(Claim(f"{name}: no round is lost", lost == 0, lost, 0))
        if delta is None:
            steady = failed[:, last + 4 :].mean(1)
            claims.append(
                Claim(
                    f"{name}: failed pings per sample stay at s N_off / (N_live + 1)",
                    bool(((steady >= 32) & (steady <= 44)).all()),
                    steady.tolist(),
                    expected,
                )
            )
        else:
            after = failed[:, last + delta :]
            claims.append(
                Claim(
                    f"{name}: no failed pings from delta rounds after the last crash",
                    after.size == 0 or int(after.max()) == 0,
                    int(after.max(initial=0)),
                    0,
                )
            )
    return claims


def _deaths(bench: Bench, at_server: Any, rows: Any) -> list[Claim]:
    lost = {}
    for name, options in {
        "deaths, all models or none": {"aggregation_timeout": None},
        "deaths, 8 of 10 models": {"aggregation_timeout": None, "success_fraction": 0.8},
        "deaths, all models or the time-out": {},
    }.items():
        _, metrics = bench.run(
            lambda r, options=options: bench.modest(r, death=0.02, **options),
            bench.config.rounds,
            at_server,
        )
        lost[name] = float(metrics["lost"].mean())
        rows[name] = _row(metrics["test_accuracy"][:, -1]) | {
            "rounds lost": float(metrics["lost"].sum(1).mean())
        }
    strict, some, patient = lost.values()
    return [
        Claim(
            "2% deaths a round: waiting for all models loses rounds, 8 of 10 or a time-out almost none",
            strict >= 0.1 and some <= 0.02 and patient == 0.0,
            [strict, some, patient],
            [0.1, 0.02, 0.0],
        )
    ]


def _joins(bench: Bench, at_server: Any, rows: Any) -> list[Claim]:
    config = bench.config
    newcomers = config.nodes // 10
    start = config.nodes - newcomers
    arrivals = np.zeros(config.nodes, np.int32)
    arrivals[start:] = 5 * np.arange(1, newcomers + 1)

    def measure(state: dx.FederatedState) -> dict[str, Any]:
        known = state.clients.joined[:start, start:]
        return at_server(state) | {"known": known.mean(0)}

    _, metrics = bench.run(
        lambda r: bench.modest(r, success_fraction=0.9),
        config.rounds,
        jax.tree_util.Partial(measure),
        given=(arrivals,),
    )
    known = metrics["test_known"]
    rounds = np.arange(1, config.rounds + 1)[None, :, None]
    joined = arrivals[start:][None, None, :]

    def first(reached: np.ndarray) -> np.ndarray:
        return np.where(reached, rounds - joined, NEVER).min(1)

    half, all_of = first(known >= 0.5), first(known >= 1.0)
    took = (metrics["sampled"][..., None] == np.arange(start, config.nodes)).any(2)
    part = first(took)
    rows["joins"] = _row(metrics["test_accuracy"][:, -1]) | {
        "half know a newcomer after": float(half.mean()),
        "all know it after": float(all_of.mean()),
        "it takes part after": float(part.mean()),
    }
    split = int(metrics["disagreements"].sum())
    return [
        Claim(
            "half of the nodes know a newcomer within 10 rounds, all within 90",
            bool(half.max() <= 10 and all_of.max() <= 90),
            [int(half.min()), int(half.max()), int(all_of.min()), int(all_of.max())],
            [4, 6, 32, 62],
        ),
        Claim("joins never split a sample's choice of aggregator", split == 0, split, 0),
    ]


def _row(accuracy: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(accuracy.mean()), "std": float(accuracy.std())}


def _figure(config: Config, curves: dict[str, np.ndarray]) -> Any:
    with figure(11.0, 3.6, ncols=3) as (drawn, axes):
        for name, values in curves.items():
            panel = axes[2 if name.startswith("pings") else 1 if name.startswith("crash") else 0]
            # Pings of single rounds are noisy: a mean over ten.
            if name.startswith("pings"):
                values = values[:, : values.shape[1] // 10 * 10]
                values = values.reshape(len(values), -1, 10).mean(2)
                rounds = 10 * np.arange(values.shape[1]) + 5
            else:
                rounds = np.arange(1, values.shape[1] + 1)
            mean, spread = values.mean(0), values.std(0)
            label = name.removeprefix("pings, ").removeprefix("crash, ")
            (line,) = panel.plot(rounds, mean, label=label)
            panel.fill_between(
                rounds, mean - spread, mean + spread, color=line.get_color(), alpha=0.2
            )
        axes[0].set(ylabel="test accuracy", title="everyone there", ylim=(0.6, 1.0))
        axes[1].set(ylabel="test accuracy", title="80 of 100 fall silent", ylim=(0.6, 1.0))
        axes[2].set(ylabel="failed pings per sample", title="the price of silence")
        for panel in axes:
            panel.set_xlabel("round")
            panel.legend(fontsize=8)
        for panel in axes[1:]:
            panel.axvspan(50, 145, color="grey", alpha=0.1, lw=0)
    return drawn


if __name__ == "__main__":
    main(study, Config, __file__)
