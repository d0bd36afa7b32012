"""What an adapter of a library gives, and what all adapters share: statistics, switches, refusals."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.models.averaged import STATISTICS

Training = str | Mapping[str, bool]


class Apply(NamedTuple):
    """A model as a function; `apply(params, inputs, key=None)` gives its outputs.

    Attributes:
      forward: `(params, inputs, key) -> (outputs, carry)`. `key` None means evaluation, a key means
        training. `carry` is a scalar of value zero to be added to the loss: its gradient with
        respect to running statistics among `params` is old minus new statistics, see
        `dflax.models.statistics`.
      calibrate: `(params, inputs) -> (outputs, statistics)`: dropout off, every layer by the minibatch's
        own statistics, and these statistics; refused by models that have none.
      variables: `(key, inputs) -> {"params": ..., "batch_stats": ...}`, see `dflax.models.variables`.
      fill: `(variables, inputs) -> model` as its library holds it, see `dflax.models.with_variables`.
    """

    forward: Callable[..., tuple[PyTree[Array], Float[Array, ""]]]
    calibrate: Callable[[Params, PyTree[Array]], tuple[PyTree[Array], PyTree[Array]]]
    variables: Callable[[Key[Array, ""] | None, PyTree[Array] | None], Params]
    fill: Callable[[Params, PyTree[Array] | None], Any]

    def __call__(
        self, params: Params, inputs: PyTree[Array], key: Key[Array, ""] | None = None
    ) -> PyTree[Array]:
        """The outputs: evaluation without a key, training with one."""
        return self.forward(params, inputs, key)[0]


class Switches(NamedTuple):
    """The arguments that put a model in training mode.

    Attributes:
      name: of the model, for messages.
      takes: the arguments of its call beside the inputs, for messages.
      training: argument names and their values in training; in evaluation they are negated.
      waived: whether the user said that nothing switches, so that a model at rest is no mistake.
    """

    name: str
    takes: str
    training: dict[str, bool]
    waived: bool

    def options(self, training: bool) -> dict[str, Any]:
        """The keyword arguments of a training pass or of an evaluation."""
        return {name: value is training for name, value in self.training.items()}

    def refuse(self, found: str) -> NoReturn:
        """Say that the model did not do what the mode asks for, and how to name its switch."""
        tried = ", ".join(f"{k}={v}" for k, v in self.training.items()) or "no argument"
        raise ValueError(
            f"model {self.name} must switch between training and evaluation, got {found}. In training "
            f"it was called with {tried}; its call takes ({self.takes}). Say which argument switches: "
            "dflax.models.as_apply(model, training='NAME') if NAME=True is training, "
            "training={'NAME': False} if False is, training={} if its layers are fixed on purpose."
        )


def switches(
    name: str,
    call: Callable[..., Any],
    training: Training | None,
    known: Mapping[str, bool],
    given: int,
    also: tuple[str, ...] = (),
) -> Switches:
    """The switches of a model: those the user named, or else those its library's own layers know.

    Args:
      name: of the model.
      call: what is called; its signature is read.
      training: the user's word; None where there was none.
      known: the library's own names, with their values in training.
      given: how many leading arguments are filled already.
      also: names of arguments that the adapter fills by name.

    Raises:
      TypeError: `training` is neither a name nor a dict of names to booleans.
      ValueError: it names no argument, or the call needs arguments that nobody fills.
    """
    parameters = list(inspect.signature(call).parameters.values())
    rest = [p for p in parameters[given:] if p.name not in also]
    named = {p.name for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes = ", ".join(p.name for p in parameters[max(given - 1, 0) :])
    if training is None:
        found = {n: v for n, v in known.items() if n in named}
    else:
        found = _named(training)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for each in () if open_ended else found:
            if each not in named:
                raise ValueError(
                    f"training must name an argument of {name}, which takes ({takes}), got "
                    f"{validation.shown(each)}."
                )
    switched = Switches(name, takes, found, training is not None and not found)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    unfilled = [
        p.name for p in rest if p.default is p.empty and p.kind not in kinds and p.name not in found
    ]
    if unfilled:
        switched.refuse(f"the arguments {unfilled}, which have no default")
    return switched


def _named(training: Any) -> dict[str, bool]:
    if isinstance(training, str):
        return {training: True}
    if not isinstance(training, Mapping):
        raise TypeError(
            "training must be the name of an argument, or a dict of names and their values in "
            f"training, got {validation.shown(training)}. For example 'is_training' or "
            "{'deterministic': False}."
        )
    for each, value in training.items():
        validation.flag(f"training[{each!r}]", value)
    return dict(training)


def require_example(inputs: Any) -> None:
    """Refuse what is no batch to initialise a model on."""
    fix = "Pass an example batch, such as data.inputs[:2]."
    validation.arrays("inputs", inputs, fix)
    validation.leading_axis("inputs", inputs)


def split_statistics(params: Params) -> tuple[Params, PyTree[Array] | None]:
    """Weights and statistics, of a variables dict or of bare weights; nothing flows into statistics.

    A model may read its running statistics, frozen ones for example. Their gradient is what
    `carry` says and nothing else, so that they are never trained like weights.
    """
    if not isinstance(params, Mapping) or "params" not in params:
        return params, None
    return params["params"], jax.lax.stop_gradient(params.get(STATISTICS))


def carry(params: Params, new: PyTree[Array]) -> Float[Array, ""]:
    """Sum of (old - new) (old - stop(old)): zero, with the gradient old - new."""
    terms = jax.tree.map(
        lambda o, n: jnp.sum(jax.lax.stop_gradient(o - n) * (o - jax.lax.stop_gradient(o))),
        params[STATISTICS],
        new,
    )
    return sum(jax.tree.leaves(terms), start=jnp.zeros(()))


def stands_still(old: PyTree[Array], new: PyTree[Array]) -> bool:
    """Whether a pass handed back every statistic as the very array it was given."""
    leaves = jax.tree.leaves(old)
    pairs = zip(leaves, jax.tree.leaves(new), strict=True)
    return bool(leaves) and all(before is after for before, after in pairs)


def require(params: Params, part: PyTree, name: str, wanted: PyTree) -> None:
    """Refuse weights or statistics that are not those of the model.

    Args:
      params: what the user gave, for the message.
      part: the weights or the statistics in it; None if absent.
      name: "params" or "batch_stats".
      wanted: a tree of the right structure.
    """
    if part is None and name == STATISTICS:
        missing_statistics()
    found: Any = jax.tree.structure(part)
    if found != jax.tree.structure(wanted):
        raise ValueError(
            f'params must hold the model\'s own "{name}", got a {type(params).__name__} of another '
            "structure. Take variables = dflax.models.variables(model)."
        )


def missing_statistics(error: Exception | None = None) -> NoReturn:
    """Say that a model with running statistics was given weights alone."""
    raise ValueError(
        "params must be the whole variables dict of a model with running statistics, got a tree "
        'without "batch_stats". Pass dflax.models.variables(model, key, inputs), or of a linen model '
        'variables = model.init(...) itself instead of variables["params"].'
    ) from error


def as_real(tree: PyTree[Array]) -> PyTree[Array]:
    """Counters and flags as float32: what is averaged and sent is real."""
    return jax.tree.map(
        lambda leaf: leaf if _is_real(leaf) else jnp.asarray(leaf, jnp.float32), tree
    )


def as_kept(tree: PyTree[Array], like: PyTree) -> PyTree[Array]:
    """The inverse of `as_real`: counters and flags, rounded, in the types they have in `like`."""
    return jax.tree.map(
        lambda leaf, kept: leaf if _is_real(kept) else jnp.round(leaf).astype(kept.dtype),
        tree,
        like,
    )


def _is_real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
