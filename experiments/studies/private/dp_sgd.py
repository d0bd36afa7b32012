"""DP-SGD, DP-FedAvg and DP-FTRL in a federation: accuracy over epsilon, and what an audit finds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import evaluation, participation, privacy, recipes
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

KEY = jax.random.key(7)
# One example of 1,437; one client of 200. Both below one over the number of units.
EXAMPLE_DELTA, CLIENT_DELTA = 1e-5, 1e-3
SILOS, CLIENTS, COHORT = 10, 200, 20
SAMPLED, CLIP, RATE = 0.3, 1.0, 1.0
LOCAL_STEPS, CHANGE, LOCAL_RATE = 5, 0.5, 0.5
CANARIES, GUESSES, SIZE = 400, 100, 3.0
EVERY = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      rounds: T, a multiple of ten.
      epsilons: what is asked for, ascending.
      seeds: repetitions with a split, clients, minibatches and noise of their own.
      seed: of the first repetition.
      images: whether DP-FedAvg runs on Fashion-MNIST as well.
      image_clients: clients there.
      image_rounds: rounds there.
    """

    rounds: int = 150
    epsilons: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    seeds: int = 3
    seed: int = 0
    images: bool = False
    image_clients: int = 2000
    image_rounds: int = 200


MODEL = dx.models.MLP((), 10)
LOSS = dx.losses.classification(MODEL)


def flat(data: dx.data.Split) -> dx.data.Split:
    """Images as rows of numbers."""
    return dx.data.Split(
        *(
            dataclasses.replace(part, inputs=jnp.asarray(part.inputs).reshape(len(part), -1))
            for part in data
        )
    )


def in_silos(data: Any, partition: Any) -> dx.Federation:
    """Ten hospitals whose examples are in a minibatch by their own chance, all hospitals alike."""
    return dx.Federation(
        data,
        privacy.poisson_sampled(partition, SAMPLED),
        batch_size=privacy.places(partition, SAMPLED, 8.0),
        local_steps=1,
        weights=jnp.ones(partition.clients),
    )


def expected(federation: dx.Federation) -> float:
    """b, the expected number of examples in a minibatch of a silo."""
    return SAMPLED * float(np.asarray(federation.partition.sizes).mean())


def dp_sgd(b: float) -> Callable[..., dx.Algorithm]:
    """DP-SGD, one program for both places of the noise.

    Every silo puts it in by itself, trusting nobody (trusted = 0), or a trusted server puts it on the
    mean of ten gradients, once (trusted = 1).
    """

    def method(z: Any, trusted: Any = 0.0) -> dx.Algorithm:
        seen = privacy.clipped_per_example(LOSS, CLIP, expected=b)
        own = privacy.noisy_gradient(seen, (1 - trusted) * z * CLIP / b)
        rule = privacy.noisy(dx.aggregation.mean(), trusted * RATE * z * CLIP / (b * SILOS))
        return dx.server.fedavg(own, optax.sgd(RATE), aggregator=rule)

    return method


def swept(
    factory: Callable[..., dx.Algorithm],
    sources: list[dx.Federation],
    grid: dict[str, list[float]],
    rounds: int,
    test: Any,
) -> np.ndarray:
    """Test accuracy, `[grid, seeds, evaluations]`."""
    found = dx.sweep(
        factory,
        lambda algorithm, key: algorithm.init(key, MODEL.init(key, sources[0].data.example)),
        sources=sources,
        grid=grid,
        key=KEY,
        rounds=rounds,
        evaluate=evaluation.server_model(evaluation.on(LOSS, test)),
        every=EVERY,
    )
    return np.asarray(found.evaluations["accuracy"])


def noises(plan: privacy.Plan, epsilons: tuple[float, ...], delta: float) -> list[float]:
    """The noise multiplier of every epsilon, and none."""
    return [*(privacy.noise_for(plan, one, delta) for one in epsilons), 0.0]


def of_examples(config: Config, stage: Stage) -> dict[str, np.ndarray]:
    """DP-SGD on ten silos: the unit is an example."""
    data = flat(dx.data.digits())
    sources = [
        in_silos(data, dx.data.iid(data.labels, SILOS, seed=config.seed + seed))
        for seed in range(config.seeds)
    ]
    plan = privacy.examples_plan(sources[0], None, config.rounds)
    grid = noises(plan, config.epsilons, EXAMPLE_DELTA)
    method = dp_sgd(expected(sources[0]))
    places = {"trusted": [0.0, 1.0], "z": grid}
    found = stage("DP-SGD", lambda: swept(method, sources, places, config.rounds, data.test))
    return {
        f"DP-SGD, noise at the {name}": found[n] for n, name in enumerate(("clients", "server"))
    }


def tables(clients: int, cohort: int, seed: int) -> participation.Participation:
    """Everybody once in every `clients / cohort` rounds, in an order drawn once."""
    order = np.random.default_rng(seed).permutation(clients)
    return participation.from_table(jnp.asarray(order.reshape(-1, cohort)))


def of_clients(
    config: Config, stage: Stage, data: Any, clients: int, rounds: int, delta: float, label: str
) -> dict[str, np.ndarray]:
    """DP-FedAvg and DP-FTRL on many small clients: the unit is a client."""
    cohort = clients // (CLIENTS // COHORT)
    seeds = range(config.seed, config.seed + config.seeds)
    parts = [dx.data.iid(data.labels, clients, seed=seed) for seed in seeds]
    options: dict[str, Any] = {
        "batch_size": 5,
        "local_steps": LOCAL_STEPS,
        "weights": jnp.ones(clients),
    }
    sampled = [
        dx.Federation(
            data,
            part,
            participation=participation.bernoulli(cohort / clients, capacity=3 * cohort),
            **options,
        )
        for part in parts
    ]
    taking_turns = [
        dx.Federation(data, part, participation=tables(clients, cohort, seed), **options)
        for part, seed in zip(parts, seeds, strict=True)
    ]
    turn = clients // cohort
    separated = {"steps": rounds, "bands": min(turn, rounds), "separation": min(turn, rounds)}
    noise = {
        "DP-FTRL, tree": privacy.tree_noise(turn),
        "DP-FTRL, banded matrix": privacy.banded_noise(**separated),
    }

    def fedavg(z: Any) -> dx.Algorithm:
        return recipes.dp_fedavg(LOSS, optax.sgd(LOCAL_RATE), CHANGE, z, float(cohort))

    found = {}
    plan = privacy.clients_plan(sampled[0], None, rounds)
    grid = noises(plan, config.epsilons, delta)
    found["DP-FedAvg"] = stage(
        f"DP-FedAvg{label}", lambda: swept(fedavg, sampled, {"z": grid}, rounds, data.test)
    )
    for name, one in noise.items():

        def method(z: Any, one: Any = one) -> dx.Algorithm:
            return recipes.dp_ftrl(LOSS, optax.sgd(LOCAL_RATE), one, CHANGE, z, float(cohort))

        plan = privacy.correlated_plan(taking_turns[0], one, None, rounds)
        own = noises(plan, config.epsilons, delta)
        found[name] = stage(
            f"{name}{label}",
            lambda m=method, g=own: swept(m, taking_turns, {"z": g}, rounds, data.test),
        )
    return found


def with_own_features(data: dx.data.Split) -> dx.data.Split:
    """As many features more as there are canaries, 0 for everybody."""

    def wider(part: dx.data.Dataset) -> dx.data.Dataset:
        rows = np.pad(np.asarray(part.inputs), ((0, 0), (0, CANARIES)))
        return dataclasses.replace(part, inputs=jnp.asarray(rows))

    return dx.data.Split(*map(wider, data))


def audited(config: Config, stage: Stage) -> dict[str, np.ndarray]:
    """Lower bounds of epsilon of DP-SGD with noise at the clients, `[seeds, noises]`."""
    data = with_own_features(flat(dx.data.digits()))
    inputs = np.zeros((CANARIES, data.example.shape[1]), np.uint8)
    inputs[np.arange(CANARIES), inputs.shape[1] - CANARIES + np.arange(CANARIES)] = int(16 * SIZE)
    bounds = []
    for seed in range(config.seed, config.seed + config.seeds):
        made = privacy.with_canaries(
            data, dx.data.iid(data.labels, SILOS, seed=seed), CANARIES, seed=seed, inputs=inputs
        )
        source = in_silos(made.data, made.partition)
        plan = privacy.examples_plan(source, None, config.rounds)
        grid = noises(plan, config.epsilons, EXAMPLE_DELTA)
        start = MODEL.init(jax.random.fold_in(KEY, 0), source.data.example)

        def run(
            source: Any = source, grid: Any = grid, start: Any = start, seed: int = seed
        ) -> Any:
            return dx.sweep(
                dp_sgd(expected(source)),
                lambda algorithm, key: algorithm.init(key, start),
                source,
                grid={"z": grid},
                key=jax.random.fold_in(KEY, seed),
                rounds=config.rounds,
            ).states.server.params

        ends = stage(f"audit, seed {seed}", run)
        models = [jax.tree.map(lambda leaf, z=z: leaf[z, 0], ends) for z in range(len(grid))]
        scores = [privacy.canary_scores(LOSS, start, end, made.examples) for end in models]
        bounds.append(
            [
                privacy.epsilon_lower_bound(one, made.included, EXAMPLE_DELTA, guesses=GUESSES)
                for one in scores
            ]
        )
    return {"bounds": np.array(bounds)}


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """All methods on the digits, and the audit."""
    found = of_examples(config, stage)
    found |= of_clients(
        config, stage, flat(dx.data.digits()), CLIENTS, config.rounds, CLIENT_DELTA, ""
    )
    bounds = audited(config, stage)["bounds"]
    rows = {name: _row(values, config) for name, values in found.items()}
    claims = _claims(found, bounds, config)
    return Summary(rows, claims, {"dp_sgd": _draw(found, bounds, config)})


def on_images(config: Config, stage: Stage = in_memory) -> Summary:
    """The methods for whole clients on Fashion-MNIST, with ten times as many clients."""
    data = flat(dx.data.fashion_mnist())
    delta = 0.5 / config.image_clients
    found = of_clients(
        config, stage, data, config.image_clients, config.image_rounds, delta, ", Fashion-MNIST"
    )
    rows = {f"{name}, Fashion-MNIST": _row(values, config) for name, values in found.items()}
    ends = {name: values[:, :, -1] for name, values in found.items()}
    lost = ends["DP-FedAvg"][-1] - ends["DP-FedAvg"][-2]
    middle = len(config.epsilons) // 2
    lead = (ends["DP-FTRL, banded matrix"] - ends["DP-FTRL, tree"])[middle]
    within, ahead = _on_images(config)
    claims = [
        Claim(within, bool((lost < 0.05).all()), lost.tolist(), 0.05),
        Claim(ahead, bool((lead > 0).all()), lead.tolist(), 0.0),
    ]
    return Summary(rows, claims, {"dp_sgd_images": _draw_images(found, config, delta)})


def _on_images(config: Config) -> list[str]:
    middle, most = config.epsilons[len(config.epsilons) // 2], config.epsilons[-1]
    return [
        f"on Fashion-MNIST DP-FedAvg at epsilon {most:g} is within 0.05 of no noise, every seed",
        f"on Fashion-MNIST at epsilon {middle:g} the matrix is ahead of the tree, every seed",
    ]


def _row(values: np.ndarray, config: Config) -> dict[str, float]:
    names = [*(f"epsilon {one:g}" for one in config.epsilons), "no noise"]
    ends = values[:, :, -1]
    return {name: float(row.mean()) for name, row in zip(names, ends, strict=True)} | {
        "std at the last epsilon": float(ends[-2].std())
    }


def _claims(found: dict[str, np.ndarray], bounds: np.ndarray, config: Config) -> list[Claim]:
    claims: list[Claim] = []
    ends = {name: values[:, :, -1] for name, values in found.items()}

    def least(text: str, values: np.ndarray, limit: float) -> None:
        claims.append(
            Claim(f"{text}, every seed", bool((values > limit).all()), values.tolist(), limit)
        )

    for name, values in ends.items():
        mean = values.mean(1)
        claims.append(
            Claim(
                f"{name}: more epsilon is more accuracy, to 0.01 on the mean of the seeds",
                bool((np.diff(mean) > -0.01).all()),
                mean.tolist(),
                -0.01,
            )
        )
    own, trusted = (ends[f"DP-SGD, noise at the {where}"] for where in ("clients", "server"))
    least("at the least epsilon noise at the server is ahead", trusted[0] - own[0], 0.0)
    banded, tree = ends["DP-FTRL, banded matrix"], ends["DP-FTRL, tree"]
    middle = len(config.epsilons) // 2
    epsilon = config.epsilons[middle]
    least(f"at epsilon {epsilon:g} the matrix is ahead of the tree", (banded - tree)[middle], 0.0)
    room = np.array(config.epsilons) - bounds[:, :-1]
    least("the audit's bound is not above the accountant's epsilon", room.reshape(-1), -1e-9)
    least("with the noise left out it is above 2", bounds[:, -1], 2.0)
    return claims


STYLES = {
    "DP-SGD, noise at the clients": ("C0", "o", "-"),
    "DP-SGD, noise at the server": ("C1", "s", "--"),
    "DP-FedAvg": ("C2", "o", "-"),
    "DP-FTRL, tree": ("C3", "^", ":"),
    "DP-FTRL, banded matrix": ("C4", "s", "--"),
}


def _curve(panel: Any, name: str, values: np.ndarray) -> None:
    """Accuracy at the end over the budgets, its mean and its range over seeds."""
    colour, marker, line = STYLES[name]
    ends = values[:, :, -1]
    places = np.arange(len(ends))
    panel.plot(places, ends.mean(1), color=colour, marker=marker, linestyle=line, label=name)
    panel.fill_between(places, ends.min(1), ends.max(1), color=colour, alpha=0.15)


def _draw_images(found: dict[str, np.ndarray], config: Config, delta: float) -> Any:
    names = [*(f"{one:g}" for one in config.epsilons), "no noise"]
    with figure(5.6, 4.4) as (drawn, panel):
        for name, values in found.items():
            _curve(panel, name, values)
        panel.set_xticks(np.arange(len(names)), names)
        panel.set(
            xlabel="epsilon asked for",
            ylabel="test accuracy on Fashion-MNIST",
            title=f"unit: a client of {config.image_clients:,} (delta {delta:g}),\n"
            f"softmax regression, {config.image_rounds} rounds",
        )
        panel.legend(loc="lower right", fontsize=8)
        drawn.suptitle(f"bands: least and most of {config.seeds} seeds", fontsize=9)
    return drawn


def _draw(found: dict[str, np.ndarray], bounds: np.ndarray, config: Config) -> Any:
    places = np.arange(len(config.epsilons) + 1)
    names = [*(f"{one:g}" for one in config.epsilons), "no noise"]
    with figure(12.5, 4.4, ncols=3) as (drawn, axes):
        for name, values in found.items():
            _curve(axes[0] if "SGD" in name else axes[1], name, values)
        axes[0].set(
            title=f"unit: an example, {SILOS} clients\n(delta {EXAMPLE_DELTA:g})",
            ylabel="test accuracy on the digits",
        )
        axes[1].set(title=f"unit: a client of {CLIENTS}\n(delta {CLIENT_DELTA:g})")
        axes[2].plot(places[:-1], config.epsilons, color="black", label="accountant")
        axes[2].errorbar(
            places,
            bounds.mean(0),
            yerr=[bounds.mean(0) - bounds.min(0), bounds.max(0) - bounds.mean(0)],
            color="C0",
            marker="o",
            linestyle="none",
            capsize=3,
            label="audit, lower bound (95 %)",
        )
        best = 0.05 ** (1 / GUESSES)
        axes[2].axhline(
            np.log(best / (1 - best)), color="grey", linestyle=":", label="most the audit can show"
        )
        axes[2].set(
            title="DP-SGD, noise at the clients:\nwhat is spent, and what one run shows",
            ylabel="epsilon",
        )
        for panel in axes:
            panel.set_xticks(places, names)
            panel.set_xlabel("epsilon asked for")
            panel.legend(loc="best", fontsize=8)
        low = min(panel.get_ylim()[0] for panel in axes[:2])
        for panel in axes[:2]:
            panel.set_ylim(low, 1.0)
        drawn.suptitle(
            f"digits, softmax regression, {config.rounds} rounds; bands and bars: least and most of "
            f"{config.seeds} seeds",
            fontsize=10,
        )
    return drawn


STUDY = Study(
    Config,
    (
        Part("digits", on_digits, needs=(DIGITS,)),
        Part(
            "Fashion-MNIST",
            on_images,
            needs=(FASHION_MNIST,),
            states=_on_images,
            wanted=lambda config: config.images,
        ),
    ),
    seconds=85,
    quick=Config(rounds=20, epsilons=(2.0, 8.0), seeds=1),
    pictures=(
        Picture(
            name="dp_sgd",
            file="dp_sgd.png",
            claim=(
                "What privacy costs, for examples and for whole clients: noise of a "
                "trusted server costs least, a matrix of correlated noise less than a "
                "tree; an audit of one run stays below the accountant's epsilon, and "
                "finds noise that was left out."
            ),
            data="digits (scikit-learn), softmax regression, {config.rounds} rounds",
            bands="bands and bars: least to largest of {config.seeds} seeds",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
