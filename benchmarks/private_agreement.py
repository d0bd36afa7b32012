"""`python -m benchmarks.private_agreement`: clipped gradients and noise beside other packages."""

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import dflax as dx
from benchmarks import peers
from benchmarks.tasks import MLP

NORM, NOISE, DRAWS = 0.5, 1.3, 5
TASK = MLP._replace(clients=1, owned=64, batch=32)


def main() -> None:
    """A row for each: the largest difference of gradients, and both deviations of the noise."""
    inputs, labels = (jnp.asarray(array[: TASK.batch]) for array in TASK.examples())
    params = [{"kernel": w, "bias": b} for w, b in TASK.layers()]

    def scores(params: list, inputs: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(inputs @ params[0]["kernel"] + params[0]["bias"])
        return hidden @ params[1]["kernel"] + params[1]["bias"]

    loss = dx.losses.classification(scores)
    batch = dx.data.Batch(inputs, labels)
    clipped = dx.privacy.clipped_per_example(loss, NORM, expected=TASK.batch)
    noisy = dx.privacy.noisy_gradient(clipped, NOISE * NORM / TASK.batch)
    still, metrics = jax.jit(clipped.evaluate)(params, batch, jax.random.key(0))
    ours = [still[layer][name] for layer in (0, 1) for name in ("kernel", "bias")]
    draws = [
        jax.jit(noisy.evaluate)(params, batch, jax.random.key(draw))[0] for draw in range(DRAWS)
    ]
    noise = [
        np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, d, still))]
        )
        for d in draws
    ]
    table = Table("beside", "clipped", "largest difference", "largest number", "noise", "its noise")
    share, deviation = f"{float(metrics['clipped']):.2f}", f"{np.std(noise):.5f}"
    largest = max(float(jnp.abs(leaf).max()) for leaf in ours)

    def row(name: str, theirs: list, their_noise: float) -> None:
        apart = max(
            float(np.abs(np.asarray(a) - b).max()) for a, b in zip(ours, theirs, strict=True)
        )
        table.add_row(
            name, share, f"{apart:.1e}", f"{largest:.1e}", deviation, f"{their_noise:.5f}"
        )

    found = peers.run("opacus", "agreement_opacus", task=TASK, norm=NORM, noise=NOISE, draws=DRAWS)
    if found is not None:
        row(found["peer"], [np.array(leaf) for leaf in found["gradient"]], found["deviation"][0])
    import jax_privacy

    theirs = jax.jit(
        jax_privacy.clipped_grad(
            lambda params, inputs, labels: loss(params, dx.data.Batch(inputs, labels), None)[0],
            l2_clip_norm=NORM,
            batch_argnums=(1, 2),
            normalize_by=TASK.batch,
        )
    )(params, inputs, labels)
    privatizer = jax_privacy.noise_addition.gaussian_privatizer(
        stddev=NOISE * NORM / TASK.batch, prng_key=jax.random.key(1)
    )
    added, _ = privatizer.update(still, privatizer.init(still))
    apart = jax.tree.map(jnp.subtract, added, still)
    own = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(apart)])
    row(
        f"jax-privacy {jax_privacy.__version__}",
        [theirs[layer][name] for layer in (0, 1) for name in ("kernel", "bias")],
        float(np.std(own)),
    )
    Console().print(table)


if __name__ == "__main__":
    main()
