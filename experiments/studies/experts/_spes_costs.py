"""A node's memory by its compiled program, against the factor of the paper."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import experts, models
from dflax.experts.spes import first_optimizers, local_steps
from dflax.experts.spes_ownership import ownership, size_of
from experiments.tools.finished import Stage
from experiments.tools.report import Report
from experiments.tools.study import Summary

FLOAT, VOCABULARY, WIDTH, HIDDEN, DEPTH = 4, 64, 64, 256, 4
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def factor_of(params: Any, count: int, nodes: int) -> float:
    """`(phi + q x) / (phi + E x)`: what a node trains and sends, in all weights."""
    shared, all_experts = ownership(count, nodes).divide(params)
    return (size_of(shared) + size_of(all_experts) / nodes) / size_of(params)


def node_program(count: int, nodes: int, active: int) -> dict[str, Any]:
    """Bytes of a node's compiled local steps: one sequence at a time, so that weights are what counts.

    Args:
      count: E.
      nodes: N; with one node the node trains everything.
      active: a.

    Returns:
      "trained": bytes of what it trains; "moments": arguments beside the whole model and the data;
      "results": trained weights and moments; "working": all that the program needs in between,
      gradients among it.
    """
    model = models.TransformerLM(
        VOCABULARY,
        length=4,
        width=WIDTH,
        depth=DEPTH,
        heads=4,
        mixture=models.MoE(count, active=active, hidden=HIDDEN),
    )
    tokens = jnp.zeros((nodes, 4), jnp.int32)
    data = dx.data.Dataset(tokens, tokens, classes=VOCABULARY)
    source = dx.Federation(
        data, dx.data.from_indices(list(np.arange(nodes)[:, None])), local_steps=2, batch_size=1
    )
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    owns = ownership(count, nodes)
    shared, all_experts = jax.eval_shape(owns.divide, params)
    work = local_steps(experts.routed_language_modelling(model), ADAM, owns, models.Owned)
    moments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        jax.eval_shape(lambda p: first_optimizers(ADAM, owns, p), params),
    )
    assignment = jax.tree.map(
        lambda leaf: leaf[0], source.draw(jax.random.key(0), jnp.int32(0)).assignments
    )
    compiled = jax.jit(work).lower(params, moments, assignment, data, jnp.int32(0)).compile()
    held: Any = compiled.memory_analysis()
    trained = size_of(shared) + size_of(all_experts) / nodes
    others = FLOAT * size_of(params) + data.inputs.nbytes + data.labels.nbytes
    return {
        "trained": np.float64(FLOAT * trained),
        "moments": np.float64(held.argument_size_in_bytes - others),
        "results": np.float64(held.output_size_in_bytes),
        "working": np.float64(held.temp_size_in_bytes),
    }


def costs(stage: Stage, count: int, sizes: list[int], active: int) -> Summary:
    """The same for nodes that train everything, the first of the sizes, and for one of so many."""
    found = {
        each: stage(
            f"a program of one of {each}", lambda each=each: node_program(count, each, active)
        )
        for each in sizes
    }
    report = Report()
    for each, held in found.items():
        name = "everything" if each == 1 else f"{count // each} of {count} experts"
        columns = {f"{what}_MB": value / 1e6 for what, value in held.items()}
        report.row("memory of a node that trains", name, None, **columns)
    factor = {each: held["trained"] / found[1]["trained"] for each, held in found.items()}
    for what, most in (("moments", 0.001), ("results", 0.001), ("working", 0.05)):
        ratio = {each: found[each][what] / found[1][what] for each in sizes[1:]}
        worst = max(abs(ratio[each] / factor[each] - 1) for each in ratio)
        said = {
            "moments": "moments",
            "results": "trained weights and moments",
            "working": "working memory, gradients among it,",
        }[what]
        report.claim(
            f"{said} by the compiled program fall by (phi + q x) / (phi + E x), to {100 * most:g} %",
            worst <= most,
            list(ratio.values()),
            [factor[each] for each in ratio],
        )
    return report.summary({})
