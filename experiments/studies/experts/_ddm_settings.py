"""Settings of the study of DDM."""

import dataclasses

RULES = ("full", "top-1", "top-2", "nucleus 0.9", "threshold 0.2", "sample")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: of networks, clusters, minibatches and noise.
      seed: the first.
      experts: K on the digits.
      width: of the networks' three hidden layers on the digits.
      small: a width that is too small for the digits.
      steps: of experts, monolith and student; the sheet took 6,000.
      router_steps: of the router.
      samples: of each rule.
      rules: of inference, full and top-1 among them.
      routers: whether routers are trained by clients, too.
      digits: whether the digits are run.
      fashion: whether Fashion-MNIST's latents are run as well, about six minutes more.
      fashion_experts: K there.
      fashion_steps: of experts and monolith there.
      widths: of the hidden layers there, from experts far too small to larger ones.
      latents: principal components that stand for an autoencoder's latents.
    """

    seeds: int = 3
    seed: int = 40
    experts: int = 4
    width: int = 256
    small: int = 32
    steps: int = 2000
    router_steps: int = 2000
    samples: int = 2000
    rules: tuple[str, ...] = RULES
    routers: bool = True
    digits: bool = True
    fashion: bool = False
    fashion_experts: int = 8
    fashion_steps: int = 6000
    widths: tuple[int, ...] = (16, 32, 96)
    latents: int = 64


def seeds(config: Config) -> range:
    """Those of the study."""
    return range(config.seed, config.seed + config.seeds)
