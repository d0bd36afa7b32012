"""What FedDyn, FedSpeed and FedSMOO share: a proximal problem tilted by the client's own dual."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, check_pull, solver
from dflax.local.subproblem import Subproblem
from dflax.models.averaged import of_weights
from dflax.population import Assignment
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server

AVERAGES = ("code", "active_old", "active_new")


class Duals(NamedTuple):
    """What the server remembers.

    Attributes:
      mean: the mean dual over all n clients, float32 or wider; () where the server does without.
      shared: what the oracle is made from, of the method; () for none.
    """

    mean: Params | tuple[()] = ()
    shared: Any = ()


class Own(NamedTuple):
    """What a client remembers, leaves `[n, ...]`.

    Attributes:
      dual: h_i, float32 or wider.
      last: the client's last local model; () without relaxed initialisation.
      oracle: what its oracle remembers; () for none.
    """

    dual: Params
    last: Params | tuple[()] = ()
    oracle: Any = ()


class Look(NamedTuple):
    """An oracle that remembers from round to round, and of which the server knows a mean.

    Attributes:
      at: `shared -> oracle`.
      begin: `params -> memory` of each client's oracle, all of them the same.
      share: `mean of the reporting clients' memories -> shared`.
    """

    at: Callable[[Any], Oracle | Loss]
    begin: Callable[[Params], Any] = lambda params: ()
    share: Callable[[Any], Any] = lambda mean: ()


def with_duals(
    look: Look,
    optimizer: Optimizer,
    clients: int,
    *,
    pull: float,
    average: str = "code",
    relaxed: float | None = None,
    **options: Any,
) -> Algorithm:
    """Local steps on a tilted proximal problem, and a server that adds the duals to the mean model.

    With lam = pull, for the clients S that report:

        x_0 = x,   or x + relaxed (x - the client's last model)
        y_i = K steps of `optimizer` on f_i(y) + lam <h_i, y> + (lam / 2) |y - x_0|^2 from x_0
        h_i = h_i + y_i - x_0
        x   = (mean over S of y_i) + (mean over ALL n clients of the new h_i)     "code"
        x   = mean over S of y_i + h_i,  the old h_i / the new h_i     "active_old" / "active_new"

    A dual is made of models, so weight decay in the optimiser is in it, as in the authors' code. With
    SGD it is the same as (wd / 2) |y|^2 in the loss.

    The mean over all follows the changes of those who report, so a round costs nothing in n. Running
    statistics ("batch_stats") have no dual: theirs stays 0.

    Args:
      look: how the clients see their objective.
      optimizer: the clients' optax optimiser, fresh in every round, or a function of the round.
      clients: n.
      pull: lam > 0 with (local rate) * (lam + weight decay) < 1, traceable.
      average: which of the server's rules.
      relaxed: weight of relaxed initialisation >= 0, traceable; None: off, and nothing remembered.
      **options: of `with_server`.

    Returns:
      An `Algorithm` whose server memory is `Duals` and whose clients' memory is `Own`. Metrics: the
      loss's own, `drift` (mean of |y_i - x|^2), `clients_reporting`, and with "code" also
      `divergence` (mean over S of |y_i - new x|^2) and `dual_norm` (|mean h|).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_optimizer("optimizer", optimizer)
    check_pull("pull", pull, optimizer)
    validation.integer("clients", clients, low=1)
    validation.choice("average", average, AVERAGES)
    if relaxed is not None:
        validation.real("relaxed", relaxed, low=0.0, scalar=True)

    def start(key: Key[Array, ""], params: Params) -> tuple[Duals, Own]:
        dual, begun = jax.tree.map(_zero, params), look.begin(params)
        last = () if relaxed is None else params
        own = replicate(Own(dual, last, begun), clients)
        return Duals(dual if average == "code" else (), look.share(begun)), own

    def local_work(
        assignment: Assignment, own: Own, server: Server, data: Dataset, index: Array
    ) -> Report:
        x = first = server.params
        if relaxed is not None:
            ahead = jax.tree.map(jnp.subtract, x, own.last)
            first = jax.tree.map(lambda a, d: a + jnp.asarray(relaxed, a.dtype) * d, x, ahead)
        shift = jax.tree.map(lambda h, a: (pull * h).astype(a.dtype), own.dual, x)
        solution = solver(look.at(server.memory.shared), optimizer)(
            Subproblem(shift=shift, pull=pull, anchor=first),
            first,
            assignment,
            data,
            index=index,
            memory=own.oracle,
        )
        change = jax.tree.map(jnp.subtract, solution.params, x)
        moved = jax.tree.map(
            lambda y, a, h: (y - a).astype(h.dtype), solution.params, first, own.dual
        )
        moved = of_weights(moved)
        dual = jax.tree.map(jnp.add, own.dual, moved)
        message: dict[str, Any] = {"change": change, "oracle": solution.memory}
        if average != "code":
            added = own.dual if average == "active_old" else dual
            message["change"] = jax.tree.map(lambda d, h: d + h.astype(d.dtype), change, added)
        elif relaxed is not None:
            message["dual"] = moved
        last = () if relaxed is None else solution.params
        drift = {"drift": optax.tree.norm(change, squared=True)}
        return Report(message, Own(dual, last, solution.memory), solution.metrics | drift)

    def update(server: Server, received: Received) -> tuple[Params, Duals, Metrics]:
        x, change = server.params, received.message["change"]
        shared = look.share(received.message["oracle"])
        if average != "code":
            return jax.tree.map(jnp.add, x, change), Duals((), shared), {}
        # Without relaxed initialisation a dual changes by what the model does.
        moved = received.message.get("dual", of_weights(change))
        mean = jax.tree.map(
            lambda h, d: h + received.share.astype(h.dtype) * d, server.memory.mean, moved
        )
        step = jax.tree.map(lambda d, h: d + h.astype(d.dtype), change, mean)
        # mean |y - new x|^2, with y - new x = (y - x) - step.
        divergence = (
            received.metrics["drift"]
            - 2 * optax.tree.vdot(change, step)
            + optax.tree.norm(step, squared=True)
        )
        measured = {"divergence": divergence, "dual_norm": optax.tree.norm(mean)}
        return jax.tree.map(jnp.add, x, step), Duals(mean, shared), measured

    def template(params: Params) -> dict[str, Any]:
        sent: dict[str, Any] = {"change": params, "oracle": look.begin(params)}
        if average == "code" and relaxed is not None:
            sent["dual"] = jax.tree.map(_zero, params)
        return sent

    return with_server(
        start, local_work, update, message=template, clients=clients, equal=True, **options
    )


def _zero(leaf: Array) -> Array:
    """Duals are sums over many rounds: float32 also for models in half precision."""
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
