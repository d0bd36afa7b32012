"""Experts that never speak to each other generate what one model does; when they do it better."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import experts as ex
from dflax import generative as gen
from dflax.programs.arithmetic import operations
from experiments.studies.experts import _ddm_figures as figures
from experiments.tasks import generation
from experiments.tasks.generation import PATH, Routers, Task, Trainer, distance
from experiments.tasks.inputs import DIGITS, FASHION_MNIST
from experiments.tools.command import main
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Part, Study, Summary

BLOCK = 16
# Clients of one cluster each, which ten steps lead apart.
DRIFTING = "FedAvg, experts as clients, 10 local steps"
RULES = ("full", "top-1", "top-2", "nucleus 0.9", "threshold 0.2", "sample")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: of networks, clusters, minibatches and noise.
      seed: the first.
      experts: K on the digits.
      steps: of experts, monolith and student; the sheet took 6,000.
      router_steps: of the router.
      samples: of each rule.
      rules: of inference, full and top-1 among them.
      routers: whether routers are trained by clients, too.
      digits: whether the digits are run.
      fashion: whether Fashion-MNIST's latents are run as well, about ten minutes more.
      fashion_experts: K there.
      fashion_steps: of experts and monolith there.
      widths: of the hidden layers there, from experts far too small to larger ones.
      latents: principal components that stand for an autoencoder's latents.
    """

    seeds: int = 3
    seed: int = 40
    experts: int = 4
    steps: int = 2000
    router_steps: int = 2000
    samples: int = 2000
    rules: tuple[str, ...] = RULES
    routers: bool = True
    digits: bool = True
    fashion: bool = False
    fashion_experts: int = 8
    fashion_steps: int = 6000
    widths: tuple[int, ...] = (32, 96)
    latents: int = 64


def identity(config: Config, stage: Stage = in_memory) -> Summary:
    """Exact experts with the exact router are the exact model, for any partition of the digits."""
    report = Report()

    def measured() -> np.ndarray:
        with jax.enable_x64():
            return np.array([_apart_from_whole(seed, config) for seed in _seeds(config)])

    found = stage("identity of the ensemble", measured)
    report.row("exact fields", "ensemble against whole", None, largest_difference=found.max())
    report.claim(
        "closed-form experts with the closed-form router are the whole model within 1e-6, for random "
        "partitions of the digits",
        found.max() < 1e-6,
        found.max(),
        1e-6,
    )
    return report.summary({})


def _seeds(config: Config) -> range:
    return range(config.seed, config.seed + config.seeds)


def _apart_from_whole(seed: int, config: Config) -> float:
    """The largest difference of velocities at noised digits."""
    x = np.asarray(generation.digits().data.inputs, np.float64)
    rng = np.random.default_rng(seed)
    labels = rng.integers(config.experts, size=len(x))
    whole = gen.mixture(x)
    masks = jnp.stack([jnp.asarray(labels == k, float) for k in range(config.experts)])
    t = jnp.asarray(rng.uniform(0.05, 1, 16))
    data, noise = x[rng.integers(len(x), size=16)], rng.normal(size=(16, x.shape[1]))
    seen = gen.Noised(gen.noised(PATH, data, noise, t), t)
    key = jax.random.key(seed)

    def expert(weights: jax.Array, noised: gen.Noised) -> jax.Array:
        return gen.exact(whole._replace(weights=weights), PATH)(noised, key)

    def router(noised: gen.Noised, key: jax.Array) -> jax.Array:
        return gen.log_responsibilities(whole, labels, config.experts, PATH, noised)

    together = jax.jit(ex.ensemble(expert, masks, router, ex.full()))(seen, key)
    return float(jnp.abs(together - gen.exact(whole, PATH)(seen, key)).max())


class Generators:
    """Compiled samplers of one task: an ensemble under each rule, and one model alone.

    Args:
      trainer: of the experts.
      routers: of the router.
      samples: of each.
    """

    def __init__(self, trainer: Trainer, routers: Routers, samples: int):
        self.trainer, self.routers, self.count = trainer, routers, samples

    @functools.partial(jax.jit, static_argnums=0)
    def alone(self, params: Any, key: jax.Array) -> jax.Array:
        """Samples of one model."""
        field = gen.field(self.trainer.model, params)
        return self.trainer.samples(field, self.count, 50, key)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def together(self, rule: str, params: Any, router: Any, key: jax.Array) -> jax.Array:
        """Samples of the experts under a rule."""
        field = self.field(rule, params, router)
        return self.trainer.samples(field, self.count, 50, key)

    def field(self, rule: str, params: Any, router: Any) -> Any:
        """The ensemble's field under a rule."""
        made, block = {
            "full": (ex.full(), None),
            "top-1": (ex.top(1), BLOCK),
            "top-2": (ex.top(2), BLOCK),
            "nucleus 0.9": (ex.nucleus(0.9), None),
            "threshold 0.2": (ex.threshold(0.2), None),
            "sample": (ex.sampled(), BLOCK),
        }[rule]
        asked = gen.field(self.routers.model, router)
        return ex.ensemble(self.trainer.model, params, asked, made, block=block)

    @functools.partial(jax.jit, static_argnums=0)
    def by_oracle(self, params: Any, labels: jax.Array, key: jax.Array) -> jax.Array:
        """Samples whose clusters are drawn beforehand, each by its own expert all the way."""
        field = ex.ensemble(self.trainer.model, params, None, ex.oracle(labels), block=BLOCK)
        return self.trainer.samples(field, self.count, 50, key)

    def flops(self, rule: str | None, params: Any, router: Any) -> float:
        """Operations of one evaluation for one sample; of one model for None."""
        seen = gen.Noised(
            jnp.zeros((self.count, *self.trainer.example.x.shape[1:])), jnp.ones(self.count)
        )
        key = jax.random.key(0)

        def evaluated(params: Any, router: Any) -> jax.Array:
            if rule is None:
                return gen.field(self.trainer.model, params)(seen, key)
            return self.field(rule, params, router)(seen, key)

        return operations(jax.make_jaxpr(evaluated)(params, router)) / self.count


class OnDigits:
    """Everything that is trained and drawn on the digits, seed by seed.

    Args:
      config: the study's.
    """

    def __init__(self, config: Config):
        self.config, self.task = config, generation.digits()
        self.trainer = Trainer(self.task, 256, 128, config.steps, 0.999)
        self.routers = Routers(self.task, config.experts, 64, config.router_steps)
        self.makers = Generators(self.trainer, self.routers, config.samples)
        count = len(self.task.features)
        self.partitions = {
            "k-means": [
                ex.clusters(self.task.features, config.experts, seed=s).labels
                for s in _seeds(config)
            ],
            "random": [
                np.random.default_rng(s).permutation(np.arange(count) % config.experts)
                for s in _seeds(config)
            ],
        }
        every = [labels for several in self.partitions.values() for labels in several]
        self.whole = self.trainer.sources([np.zeros(count, int)], 1)
        self.parts = self.trainer.sources(every, config.experts)
        self.lessons = self.trainer.lessons(every, config.experts)

    def measured(self, place: int) -> dict[str, Any]:
        """Distances, ten samples of each method, and what routers of clients are worth."""
        config, makers, trainer = self.config, self.makers, self.trainer
        seed = config.seed + place
        key = jax.random.key(seed)
        drawn: dict[str, Any] = {}
        apart: dict[str, Any] = {}
        one = jax.tree.map(lambda leaf: leaf[0], trainer.experts(self.whole, 0, key))
        drawn["monolith"] = makers.alone(one, key)
        for kind, lane in (("k-means", place), ("random", config.seeds + place)):
            labels = self.partitions[kind][place]
            params = trainer.experts(self.parts, lane, key)
            own = self.routers.source(labels, _all_together(labels), 128, 10)
            router = self.routers.trained(own, key)
            for rule in config.rules if kind == "k-means" else ("full", "top-1"):
                drawn[f"{kind}, {rule}"] = makers.together(rule, params, router, key)
            first = jax.tree.map(lambda leaf: leaf[0], params)
            drawn[f"{kind}, one expert alone"] = makers.alone(first, key)
            drawn[f"{kind}, soup"] = makers.alone(dx.weighted_mean(params), key)
            if kind == "random":
                continue
            chosen = jax.random.choice(key, jnp.asarray(labels), (config.samples,))
            drawn["k-means, oracle"] = makers.by_oracle(params, chosen, key)
            student = trainer.student(self.lessons, lane, key, params)
            drawn["k-means, distilled"] = makers.alone(student, key)
            if config.routers:
                apart = _routers(self, labels, params, router, key, seed)
        again = np.random.default_rng(seed).integers(len(labels), size=config.samples)
        drawn["data drawn again"] = self.task.data.inputs[again]
        far = {name: distance(self.task, samples) for name, samples in drawn.items()}
        shown = {name: samples[:10] for name, samples in drawn.items()}
        return {"far": far, "drawn": shown, "routers": apart}

    def flops(self) -> dict[str, float]:
        """Operations of an evaluation for one sample, by method."""
        key = jax.random.key(0)
        params = jax.eval_shape(lambda: self.trainer.experts(self.parts, 0, key))
        router = jax.eval_shape(self.routers.model.init, key, self.routers.example)["params"]
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
        return {"monolith": self.makers.flops(None, one, router)} | {
            f"k-means, {rule}": self.makers.flops(rule, params, router)
            for rule in self.config.rules
        }


def on_digits(config: Config, stage: Stage = in_memory) -> Summary:
    """Monolith, experts of two partitions under all rules, a student, and a soup, on the digits."""
    work = OnDigits(config)
    results = [
        stage(f"seed {seed}", functools.partial(work.measured, place))
        for place, seed in enumerate(_seeds(config))
    ]
    report, flops = Report(), work.flops()
    columns = {
        name: np.array([float(r["far"][name]) for r in results]) for name in results[0]["far"]
    }
    for name, values in columns.items():
        counted = {"kFLOP": flops[name] / 1e3} if name in flops else {}
        report.row("digits", name, None, frechet=values, std=values.std(), **counted)
    routers = {
        name: {key: np.array([float(r["routers"][name][key]) for r in results]) for key in row}
        for name, row in results[0]["routers"].items()
    }
    for name, row in routers.items():
        report.row("routers", name, None, **row, std=row["full"].std())
    _claims_on_digits(report, columns, flops)
    _claims_of_routers(report, {name: row["full"] for name, row in routers.items()})
    return report.summary({"ddm": figures.on_digits(work.task, columns, results[0]["drawn"])})


def _all_together(labels: np.ndarray) -> Any:
    return dx.data.from_indices([np.arange(len(labels))])


def _routers(
    work: OnDigits, labels: np.ndarray, params: Any, central: Any, key: jax.Array, seed: int
) -> dict[str, dict[str, Any]]:
    """What routers that were trained by clients tell, and what the experts generate with them."""
    routers, makers, task = work.routers, work.makers, work.task
    owners = [np.flatnonzero(labels == k) for k in range(routers.model.outputs or 0)]
    apart = dx.data.from_indices(owners)
    mixed = dx.data.iid(labels, 10, seed=seed)
    made = {
        "central": central,
        "FedAvg, 10 clients alike, 10 local steps": routers.trained(
            routers.source(labels, mixed, 13, 10), key
        ),
        DRIFTING: routers.trained(routers.source(labels, apart, 128 // len(owners), 10), key),
        "experts as clients, a step each, Adam at the server": routers.trained(
            routers.source(labels, apart, 128 // len(owners)), key, at_server=True
        ),
    }
    data = routers.labelled(labels)
    told: dict[str, dict[str, Any]] = {}
    for name, router in made.items():
        told[name] = {
            f"accuracy_{t}": routers.accuracy(router, data, jnp.float32(t)) for t in (0.1, 0.5, 0.9)
        }
        for rule in ("full", "top-1"):
            samples = makers.together(rule, params, router, key)
            told[name][rule] = distance(task, samples)
    return told


def _claims_on_digits(
    report: Report, found: dict[str, np.ndarray], flops: dict[str, float]
) -> None:
    monolith, full = found["monolith"], found["k-means, full"]
    for rule in ("full", "top-1"):
        apart = found[f"k-means, {rule}"] - monolith
        report.claim(
            f"{rule} of k-means experts is within 0.25 of the monolith on every seed (Frechet)",
            np.all(np.abs(apart) < 0.25),
            apart.tolist(),
            0.25,
        )
    # That clusters are ahead of a random deal does not come out after 2,000 steps.
    dealt = found["random, full"]
    report.claim(
        "the full ensembles of k-means and of random experts are within 0.1 of each other on every seed",
        np.all(np.abs(full - dealt) < 0.1),
        full.tolist(),
        dealt.tolist(),
    )
    alone = found["k-means, one expert alone"]
    report.claim(
        "one k-means expert alone is further than 3 on every seed", alone.min() > 3, alone.min(), 3
    )
    student = found["k-means, distilled"] - full
    report.claim(
        "the distilled student is within 0.3 of the full ensemble on every seed",
        np.all(np.abs(student) < 0.3),
        student.tolist(),
        0.3,
    )
    ratio = flops["k-means, top-1"] / flops["monolith"]
    report.claim(
        "an evaluation of top-1, router included, takes at most 1.3 times one expert's operations",
        ratio <= 1.3,
        ratio,
        1.3,
    )


def _claims_of_routers(report: Report, full: dict[str, np.ndarray]) -> None:
    if not full:
        return
    central = full["central"]
    for name, values in full.items():
        if name == "central":
            continue
        if name == DRIFTING:
            report.claim(
                f"with the router of '{name}' it is more than 0.5 further, every seed",
                np.all(values - central > 0.5),
                (values - central).tolist(),
                0.5,
            )
            continue
        report.claim(
            f"with the router of '{name}' the full ensemble is within 0.1 of the central router's on "
            "every seed",
            np.all(np.abs(values - central) < 0.1),
            (values - central).tolist(),
            0.1,
        )


FASHION_RULES = ("full", "top-1", "top-2", "sample")
FASHION_CLAIM = (
    "on Fashion-MNIST's latents the full ensemble of {width}-wide experts is closer than the monolith "
    "of equal operations on every seed"
)


class OnFashion:
    """What is trained and drawn on Fashion-MNIST's latents by networks of one width.

    Args:
      config: the study's.
      task: the latents.
      width: of experts and monolith.
      partitions: of each seed.
    """

    def __init__(self, config: Config, task: Task, width: int, partitions: list[np.ndarray]):
        self.config, self.task, self.partitions = config, task, partitions
        self.trainer = Trainer(task, width, 256, config.fashion_steps, 0.999)
        self.routers = Routers(task, config.fashion_experts, 64, config.router_steps)
        self.makers = Generators(self.trainer, self.routers, config.samples)
        self.whole = self.trainer.sources([np.zeros(len(task.features), int)], 1)
        self.parts = self.trainer.sources(partitions, config.fashion_experts)

    def measured(self, place: int) -> dict[str, Any]:
        """Distances and ten samples of each method."""
        makers, labels = self.makers, self.partitions[place]
        key = jax.random.key(self.config.seed + place)
        one = jax.tree.map(lambda leaf: leaf[0], self.trainer.experts(self.whole, 0, key))
        drawn = {"monolith": makers.alone(one, key)}
        params = self.trainer.experts(self.parts, place, key)
        own = self.routers.source(labels, _all_together(labels), 256, 10)
        router = self.routers.trained(own, key)
        for rule in FASHION_RULES:
            drawn[rule] = makers.together(rule, params, router, key)
        drawn["one expert alone"] = makers.alone(jax.tree.map(lambda leaf: leaf[0], params), key)
        far = {name: distance(self.task, samples) for name, samples in drawn.items()}
        return {"far": far, "drawn": {name: samples[:10] for name, samples in drawn.items()}}


def on_fashion(config: Config, stage: Stage = in_memory) -> Summary:
    """Monolith and experts at equal operations, on 60,000 examples, at widths that are too small."""
    task = generation.fashion_latents(config.latents)

    def clustered() -> list[np.ndarray]:
        return [
            ex.clusters(task.features, config.fashion_experts, seed=s, fine=128).labels
            for s in _seeds(config)
        ]

    partitions = stage("Fashion-MNIST, clusters", clustered)
    report, columns, shown = Report(), {}, {}
    for width in config.widths:
        work = OnFashion(config, task, width, partitions)
        results = [
            stage(f"width {width}, seed {seed}", functools.partial(work.measured, place))
            for place, seed in enumerate(_seeds(config))
        ]
        shown[width] = results[0]["drawn"]
        for name in results[0]["far"]:
            values = np.array([float(found["far"][name]) for found in results])
            columns[width, name] = values
            title = f"{name}, width {width}"
            report.row(f"width {width}", title, None, frechet=values, std=values.std())
        ours, theirs = columns[width, "full"], columns[width, "monolith"]
        claim = FASHION_CLAIM.format(width=width)
        report.claim(claim, np.all(ours < theirs), ours.tolist(), theirs.tolist())
    again = np.random.default_rng(config.seed).integers(len(task.features), size=config.samples)
    floor = distance(task, np.asarray(task.data.inputs[again]))
    report.row("data", "latents drawn again", None, frechet=floor)
    return report.summary({"ddm_fashion": figures.on_fashion(task, columns, shown)})


def fashion_statements(config: Config) -> list[str]:
    """What the part on Fashion-MNIST claims."""
    return [FASHION_CLAIM.format(width=width) for width in config.widths]


STUDY = Study(
    Config,
    (
        Part("identity", identity, needs=(DIGITS,)),
        Part("digits", on_digits, needs=(DIGITS,), wanted=lambda config: config.digits),
        Part(
            "Fashion-MNIST",
            on_fashion,
            needs=(FASHION_MNIST,),
            states=fashion_statements,
            wanted=lambda config: config.fashion,
        ),
    ),
    quick=Config(
        seeds=1, steps=60, router_steps=60, samples=200, rules=("full", "top-1"), routers=False
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
