"""The flag aggregator among liars: what its subspace adds to the mean of directions."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import dflax as dx
from dflax import aggregation, attacks
from dflax.aggregation import Aggregator, Combining
from dflax.aggregation.flag import flag_subspace
from dflax.aggregation.rows.similarity import row_cosines
from dflax.channel import Channel
from experiments.tasks.images import network
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.figures import figure, looks
from experiments.tools.finished import Stage, in_memory
from experiments.tools.study import Claim, Part, Picture, Study, Summary

CLIENTS, FAULTY, TRAINED = 15, 3, 1437
LIARS = np.arange(CLIENTS) < FAULTY
ATTACKS = ("none", "random", "reverse", "Gaussian")
MEAN, CONTROL, MEDIAN, FLAG = "mean", "mean of directions", "median", "flag"
MESSAGES, CODE, FIRST = "flag of messages", "flag, one step, over r", "flag, r = 1"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; 15 workers of which the first 3 are faulty, one gradient of 16 examples a round.

    Attributes:
      seeds: repetitions on digits, each with a split of its own.
      rounds: on digits.
      rate: of the server on digits, with momentum.
      momentum: of the server.
      images: whether the convolutional network is trained on augmented images as well.
      image_seeds: repetitions on images.
      image_rounds: on images.
      image_rates: the server's rates on images; each rule is told at its best.
      noise: standard deviation of the noise on the faulty workers' images, whose pixels are in [0, 1].
      seed: of everything random.
    """

    seeds: int = 5
    rounds: int = 200
    rate: float = 0.2
    momentum: float = 0.9
    images: bool = True
    image_seeds: int = 3
    image_rounds: int = 100
    image_rates: tuple[float, ...] = (0.1, 0.3)
    noise: float = 0.5
    seed: int = 0


def rules() -> dict[str, Aggregator]:
    """Those of the table; f = 3 of 15."""
    return {
        MEAN: aggregation.mean(),
        CONTROL: aggregation.mean_of_normalised(),
        MEDIAN: aggregation.median(),
        "trimmed mean": aggregation.trimmed_mean(FAULTY),
        "Multi-Krum": aggregation.multi_krum(FAULTY, kept="m-f-2"),
        FLAG: _explaining(aggregation.flag()),
        CODE: aggregation.flag(steps=1, scale="directions/r"),
        FIRST: aggregation.flag(1),
        MESSAGES: aggregation.flag(scale="messages"),
    }


def _explaining(rule: Aggregator) -> Aggregator:
    """The flag aggregator, with the explained variance of faulty and of honest messages measured."""

    def apply(messages: Any, weights: Array, state: Any, combining: Combining) -> Any:
        out, state, metrics = rule.apply(messages, weights, state, combining)
        found = flag_subspace(row_cosines(messages)[0], weights > 0).explained
        measured = {"faulty": found[:FAULTY].mean(), "honest": found[FAULTY:].mean()}
        return out, state, metrics | measured

    return rule._replace(apply=apply)


def lies(attack: Array) -> Channel:
    """The attack of that number of `ATTACKS`, traced: one program for all of them."""
    some = jnp.asarray(LIARS)
    # A message is the negative gradient.
    return dx.channel.chain(
        attacks.uniform(some & (attack == 1), -1.0, 0.0),
        attacks.sign_flipping(some & (attack == 2), 10.0),
        attacks.gaussian(some & (attack == 3), 10.0),
    )


class Found(NamedTuple):
    """Of one rule, by attack and seed.

    Attributes:
      accuracy: `[A, S, T]` on the test set after every round.
      explained: `[A, S, 2]`, the mean v of faulty and of honest messages; 0 where it is not measured.
    """

    accuracy: Float[np.ndarray, "A S T"]
    explained: Float[np.ndarray, "A S 2"]


def _logits(params: dict[str, Array], inputs: Array) -> Array:
    return inputs.reshape(len(inputs), -1) @ params["weight"] + params["bias"]


def on_digits(config: Config, rule: Aggregator) -> dict[str, np.ndarray]:
    """Softmax regression from zero, every worker drawing from all training examples."""
    split = dx.data.digits()
    joined = [
        jnp.concatenate([getattr(split.train, part), getattr(split.test, part)])
        for part in ("inputs", "labels")
    ]
    data = dataclasses.replace(split.train, inputs=joined[0], labels=joined[1])
    orders = [
        np.random.default_rng((config.seed, seed)).permutation(len(data))
        for seed in range(config.seeds)
    ]
    owned = [dx.data.from_indices([np.sort(o[:TRAINED])] * CLIENTS) for o in orders]
    first = dx.Federation(
        data,
        owned[0],
        local_steps=1,
        batch_size=16,
        weights=jnp.ones(CLIENTS),
        replacement=True,
    )
    sources = dx.side_by_side([first.replace(partition=own) for own in owned])
    tests = jnp.asarray(np.stack([np.sort(o[TRAINED:]) for o in orders]), jnp.int32)
    loss = dx.losses.classification(_logits)
    start = {"weight": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}

    def one(lane: tuple[Any, ...], sources: dx.SideBySide) -> dict[str, Array]:
        attack, own, test, key = lane
        source = sources.source(own)
        batch = source.data.fetch(test)
        algorithm = dx.server.fedavg(
            loss,
            optax.sgd(1.0),
            optax.sgd(config.rate, config.momentum),
            aggregator=rule,
            channel=lies(attack),
        )

        def step(state: Any, round: dx.Round) -> tuple[Any, dict[str, Array]]:
            state, metrics = algorithm.step(state, round)
            told = [metrics.get(name, jnp.float32(0)) for name in ("faulty", "honest")]
            accuracy = loss(state.server.params, batch, None)[1]["accuracy"]
            return state, {"accuracy": accuracy, "explained": jnp.stack(told)}

        state = algorithm.init(key, start)
        made = dx.Algorithm(algorithm.init, step)
        found = dx.rollout(made, state, source, key, config.rounds)[1]
        return {"accuracy": found["accuracy"], "explained": found["explained"].mean(0)}

    @jax.jit
    def everything(lanes: Any, sources: dx.SideBySide) -> dict[str, Array]:
        return jax.lax.map(lambda lane: one(lane, sources), lanes)

    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    per_seed = (sources.own, tests, keys)
    count = len(ATTACKS)
    lanes = (
        jnp.repeat(jnp.arange(count), config.seeds),
        *jax.tree.map(lambda leaf: jnp.concatenate([leaf] * count), per_seed),
    )
    found = everything(lanes, sources)
    return {k: np.asarray(v).reshape(count, config.seeds, *v.shape[1:]) for k, v in found.items()}


def digits(config: Config, stage: Stage = in_memory) -> Summary:
    """All rules under all attacks."""
    found = {
        name: Found(**stage(f"digits, {name}", functools.partial(on_digits, config, rule)))
        for name, rule in rules().items()
    }
    last = {name: one.accuracy[..., -1] for name, one in found.items()}
    rows = {
        name: {
            **{attack: float(last[name][a].mean()) for a, attack in enumerate(ATTACKS)},
            "spread": float(last[name].std(1).max()),
        }
        for name in found
    }
    explained = found[FLAG].explained.mean(1)
    rows["mean v of faulty messages"] = dict(zip(ATTACKS, map(float, explained[:, 0]), strict=True))
    rows["mean v of honest messages"] = dict(zip(ATTACKS, map(float, explained[:, 1]), strict=True))
    return Summary(rows, _claims(last, explained), {"digits": _bars(last)})


def _claims(last: dict[str, np.ndarray], explained: np.ndarray) -> list[Claim]:
    flag, control = last[FLAG], last[CONTROL]
    raw, mean = last[MESSAGES].mean(1), last[MEAN].mean(1)
    above = flag.mean(1) - last[MEDIAN].mean(1)
    price = (control - flag).mean(1)

    def near(statement: str, away: np.ndarray, bound: float) -> Claim:
        found = float(np.abs(away).max())
        return Claim(statement, found <= bound, found, f"<= {bound}")

    return [
        Claim(
            "flag: at least 0.92 under every attack, on every seed",
            bool((flag >= 0.92).all()),
            float(flag.min()),
            ">= 0.92",
        ),
        near("flag: on every seed near the mean of directions", flag - control, 0.025),
        near("flag: on every seed near its own value without attack", flag - flag[:1], 0.025),
        Claim(
            "flag: above the median under every attack, on the mean of the seeds",
            bool((above > 0).all()),
            above.tolist(),
            "> 0",
        ),
        near("flag of messages: like the mean, on the mean of the seeds", raw - mean, 0.03),
        Claim(
            "flag of messages: it fails under reversed gradients and Gaussian noise",
            bool(raw[2] < 0.15 and raw[3] < 0.5),
            raw[2:].tolist(),
            "< 0.15, < 0.5",
        ),
        Claim(
            "Gaussian liars are explained better than honest workers",
            bool(explained[3, 0] > explained[3, 1]),
            float(explained[3, 0]),
            f"> {explained[3, 1]:.3f}",
        ),
        Claim(
            "the subspace gains nothing over the mean of directions, on the mean of the seeds",
            bool((price > -0.005).all()),
            price.tolist(),
            "price > -0.005 each",
        ),
    ]


def on_images(config: Config, rule: Aggregator, augmented: bool) -> np.ndarray:
    """Accuracy at the end by rate and seed, `[R, S]`; faulty workers own augmented images."""
    split = dx.data.fashion_mnist()
    drawn = np.random.default_rng(config.seed).permutation(len(split.train))[: 400 * CLIENTS]
    inputs = np.asarray(split.train.inputs)[drawn].copy()
    if augmented:
        inputs[: 400 * FAULTY] = _augmented(inputs[: 400 * FAULTY], config)
    data = dataclasses.replace(
        split.train, inputs=jnp.asarray(inputs), labels=split.train.labels[drawn]
    )
    source = dx.Federation(
        data,
        dx.data.from_indices(np.split(np.arange(len(drawn)), CLIENTS)),
        local_steps=1,
        batch_size=16,
        weights=jnp.ones(CLIENTS),
    )
    model = network("halved")
    loss = dx.losses.classification(model.apply)
    test = split.test.fetch(jnp.arange(2000))

    def one(lane: tuple[Array, Array], source: dx.Federation, test: Any) -> Array:
        rate, key = lane
        algorithm = dx.server.fedavg(
            loss, optax.sgd(1.0), optax.sgd(rate, config.momentum), aggregator=rule
        )
        model_key, key = jax.random.split(key)
        state = algorithm.init(key, model.init(model_key, split.example)["params"])
        state, _ = dx.rollout(algorithm, state, source, key, config.image_rounds)
        return loss(state.server.params, test, None)[1]["accuracy"]

    @jax.jit
    def everything(lanes: Any, source: dx.Federation, test: Any) -> Array:
        return jax.lax.map(lambda lane: one(lane, source, test), lanes)

    rates = jnp.repeat(jnp.asarray(config.image_rates), config.image_seeds)
    keys = jax.random.split(jax.random.key(config.seed), config.image_seeds)
    lanes = rates, jnp.concatenate([keys] * len(config.image_rates))
    found = np.asarray(everything(lanes, source, test))
    return found.reshape(len(config.image_rates), config.image_seeds)


def _augmented(images: np.ndarray, config: Config) -> np.ndarray:
    """Half of the images mirrored, each moved by up to 4 pixels, noise on all pixels."""
    generator = np.random.default_rng((config.seed, 1))
    moved = np.stack(
        [
            np.roll(one[:, ::-1] if flip else one, shift, axis=(0, 1))
            for one, flip, shift in zip(
                images,
                generator.random(len(images)) < 0.5,
                generator.integers(-4, 5, (len(images), 2)),
                strict=True,
            )
        ]
    )
    noisy = moved + 255 * config.noise * generator.standard_normal(moved.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def images(config: Config, stage: Stage = in_memory) -> Summary:
    """The rules on images, of which the faulty workers' are augmented; the mean without them as well."""
    chosen = rules()
    del chosen[MESSAGES], chosen[CODE]
    found = {
        name: stage(f"augmented images, {name}", functools.partial(on_images, config, rule, True))
        for name, rule in chosen.items()
    }
    found["mean, all images clean"] = stage(
        "clean images, mean", functools.partial(on_images, config, chosen[MEAN], False)
    )
    best = {name: one[one.mean(1).argmax()] for name, one in found.items()}
    rows = {
        f"augmented images, {name}": {
            "accuracy": float(one.mean()),
            "std": float(one.std()),
            "best rate": float(config.image_rates[found[name].mean(1).argmax()]),
        }
        for name, one in best.items()
    }
    lead = best[FLAG] - best[CONTROL]
    claims = [
        Claim(
            "augmented images: flag is within 0.02 of the mean of directions, on the mean of the seeds",
            bool(abs(lead.mean()) <= 0.02),
            float(lead.mean()),
            f"spread {lead.std():.4f}",
        )
    ]
    return Summary(rows, claims, {"augmented": _augmented_bars(best)})


def _bars(last: dict[str, np.ndarray]) -> Any:
    with figure(11.0, 4.0, ncols=2, width_ratios=(1, 1.6)) as (drawn, (whole, close)):
        width = 0.8 / len(last)
        for name, look in looks(last).items():
            found = last[name]
            where = np.arange(len(ATTACKS)) + (look.place - (len(last) - 1) / 2) * width
            mean = found.mean(1)
            apart = np.stack([mean - found.min(1), found.max(1) - mean])
            shape: dict[str, Any] = {"fmt": look.marker, "capsize": 2, "color": look.color}
            for panel, size in ((whole, 4), (close, 5)):
                panel.errorbar(where, mean, apart, ms=size, label=name, **shape)
        whole.set(ylabel="test accuracy", ylim=(0.0, 1.02))
        close.set(ylim=(0.885, 0.985), ylabel="test accuracy")
        close.set_title("the same, close: who is not here is below", fontsize=10)
        whole.set_title("all", fontsize=10)
        for axes in (whole, close):
            axes.set_xticks(range(len(ATTACKS)), ATTACKS)
            axes.set_xlabel(f"what {FAULTY} of {CLIENTS} workers send")
        close.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawn


def _augmented_bars(best: dict[str, np.ndarray]) -> Any:
    with figure(6.4, 3.6) as (drawn, axes):
        for place, found in enumerate(best.values()):
            apart = [[found.mean() - found.min()], [found.max() - found.mean()]]
            axes.errorbar(found.mean(), place, xerr=apart, fmt="o", capsize=3, color=f"C{place}")
        axes.set_yticks(range(len(best)), list(best))
        axes.invert_yaxis()
        axes.set(
            xlabel=f"test accuracy at the best rate (mean, least, most of {found.size} seeds)",
            title=f"Fashion-MNIST, CNN: {FAULTY} of {CLIENTS} workers on augmented images",
        )
    return drawn


def _wanted(config: Config) -> bool:
    return config.images


STUDY = Study(
    Config,
    (
        Part("digits", digits, needs=(DIGITS,)),
        Part("augmented images", images, needs=(FASHION_MNIST,), wanted=_wanted),
    ),
    quick=Config(seeds=1, rounds=50, image_seeds=1, image_rounds=10, image_rates=(0.03,)),
    seconds=290,
    pictures=(
        Picture(
            name="digits",
            file="flag.png",
            claim=(
                "The flag aggregator bears liars because it averages directions; the mean"
                " of directions alone does as well, and on messages with their lengths it"
                " fails like the mean."
            ),
            data="digits (scikit-learn), softmax regression, {config.rounds} steps",
            bands="bars: least to largest of {config.seeds} seeds",
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
