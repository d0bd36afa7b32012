"""The cost model of SFPrompt in closed form, and what it says of ViT-B/16 and ViT-L/16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dflax import models
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Summary

FLOAT = 4


class Shape(NamedTuple):
    """A vision transformer in numbers: the cost model's own arithmetic, beside the traced one.

    Attributes:
      tokens: patches of an image.
      pixels: numbers of a patch.
      width: d.
      depth: blocks.
      classes: C.
    """

    tokens: int
    pixels: int
    width: int
    depth: int
    classes: int

    @property
    def block(self) -> int:
        """Parameters of a block."""
        return 12 * self.width**2 + 13 * self.width

    @property
    def tail(self) -> int:
        """Parameters of norm and classifier."""
        return 2 * self.width + (self.width + 1) * self.classes

    @property
    def whole(self) -> int:
        """Parameters of the model."""
        embedding = (self.pixels + 1 + self.tokens) * self.width
        return embedding + self.depth * self.block + self.tail

    def sent(self, prompts: int, examples: int, clients: int = 1) -> int:
        """Numbers of a round of SFPrompt; without prompts no gradients travel."""
        crossings = 4 if prompts else 2
        crossing = crossings * (self.tokens + prompts) * self.width * examples
        return crossing + 2 * (self.tail + prompts * self.width) * clients

    def ends(self, prompts: int, blocks: int = 1) -> int:
        """Products of one example's way through head and tail."""
        seen = self.tokens + prompts
        block = 12 * seen * self.width**2 + 2 * seen**2 * self.width
        embedding = self.tokens * self.pixels * self.width
        return embedding + blocks * block + self.width * self.classes


VITS = {"ViT-B/16": (768, 12, 12), "ViT-L/16": (1024, 24, 16)}
PAPER = {"ViT-B/16": 0.47, "ViT-L/16": 0.19}


def on_paper(config: Any, stage: Stage = in_memory) -> Summary:
    """The cost model for ViT-B/16 and ViT-L/16 with 5 prompts: nothing is trained."""
    report, explained, shares, same = Report(), {}, {}, []
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    for name, (width, depth, heads) in VITS.items():
        net = models.TransformerClassifier(
            classes=100, patch=16, width=width, depth=depth, heads=heads
        )
        params = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
        cost = models.split_cost(models.split_transformer(net, prompts=5), params, image)
        form = Shape(196, 768, width, depth, 100)
        whole = cost.head + cost.body + cost.trained - 5 * width
        products = cost.head_products + cost.body_products + cost.tail_products
        same += [cost.numbers(100) == form.sent(5, 100), whole == form.whole]
        same += [cost.head_products + cost.tail_products == form.ends(5)]
        crossing = cost.numbers(1) - cost.numbers(0)
        even = 2 * whole - cost.numbers(0)
        explained[name] = (PAPER[name] * 2 * whole - cost.numbers(0)) / crossing
        shares[name] = form.ends(5, blocks=0) / products
        report.row(
            "vision transformers",
            name,
            None,
            parameters=whole,
            megabytes_of_whole_models=2 * FLOAT * whole / 1e6,
            megabytes_of_100_kept=FLOAT * cost.numbers(100) / 1e6,
            kept_at_equal_bytes=even / crossing,
            kept_at_the_papers_ratio=explained[name],
            share_of_head_and_tail=(cost.head_products + cost.tail_products) / products,
            the_same_without_a_block=shares[name],
        )
    base, large = explained.values()
    report.claim("traced counts are the closed forms", all(same), same, True)
    most = report.rows["ViT-B/16"]["kept at equal bytes"]
    report.claim(
        "ViT-B/16: fewer bytes than whole models up to 277 kept examples, within 1 %",
        abs(most / 277 - 1) < 0.01,
        most,
        277,
    )
    report.claim(
        "one number of kept examples explains the paper's 0.47 (B) and 0.19 (L), within 10 %",
        abs(large / base - 1) <= 0.1,
        [base, large],
        list(PAPER.values()),
    )
    report.claim(
        "the paper's 0.46 % of the products needs a head without blocks: between 0.2 and 0.7 %",
        all(0.002 < share < 0.007 for share in shares.values()),
        list(shares.values()),
        0.0046,
    )
    return report.summary({"sfprompt_cost": _draw_cost()})


def _draw_cost() -> Any:
    kept = np.geomspace(5, 5000, 60)
    with figure(6.4, 4.0) as (drawn, axes):
        for colour, (name, (width, depth, _)) in zip(("C0", "C3"), VITS.items(), strict=True):
            form = Shape(196, 768, width, depth, 100)
            fixed = form.sent(5, 0)
            ours = FLOAT * (fixed + kept * (form.sent(5, 1) - fixed)) / 1e6
            mark: dict[str, Any] = {"color": colour, "marker": "o" if colour == "C0" else "s"}
            axes.loglog(kept, ours, label=f"SFPrompt, {name}", markevery=(5, 12), **mark)
            whole = np.full(len(kept), 2 * FLOAT * form.whole / 1e6)
            label = f"whole models, {name}"
            axes.loglog(kept, whole, "--", label=label, markevery=(5, 12), mfc="white", **mark)
        axes.set(xlabel="examples that a client keeps in a round", ylabel="megabytes a round")
        axes.legend()
    return drawn
