"""The one place that knows how JAX writes down a traced program.

The names of an operation's parameters and the types of the programs in them change from one JAX to the
next. Where shapes and counts say the same, they are asked instead.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from jax.extend import linear_util, source_info_util
from jax.extend.core import ClosedJaxpr as Program
from jax.extend.core import Jaxpr, Literal, primitives
from jax.extend.core import JaxprEqn as Operation

T = TypeVar("T")

# Operations that call one program with their own operands.
CALLS = frozenset(
    (
        *(primitives.jit_p, primitives.remat_p, primitives.call_p, primitives.closed_call_p),
        *(primitives.custom_jvp_call_p, primitives.custom_vjp_call_p),
    )
)
# Their programs join two numbers at a time, and are part of them.
_JOINING = ("reduce", "scatter", "select_and_scatter")


class Inner(NamedTuple):
    """A program inside an operation.

    Attributes:
      program: with its constants.
      operands: which of the operation's operands it reads, in its own order; of a scanned operand it
        reads one row.
      times: how often it runs on all devices together; 1 in a loop of unknown length, and 1 for each
        branch of a conditional.
    """

    program: Program
    operands: tuple[int, ...]
    times: int

    def of(self, inputs: Sequence[T]) -> list[T]:
        """What the program reads, of what belongs to the operation's operands."""
        return [inputs[place] for place in self.operands]


def operands(operation: Operation) -> list[Any]:
    """Shape and dtype of every operand."""
    return [atom.aval for atom in operation.invars]


def results(operation: Operation) -> list[Any]:
    """Shape and dtype of every result."""
    return [variable.aval for variable in operation.outvars]


def inner(operation: Operation) -> list[Inner]:
    """The programs inside an operation: a loop's condition and body, branches, what a call calls."""
    if operation.primitive.name.startswith(_JOINING):
        return []
    programs = [part for value in operation.params.values() for part in _programs(value)]
    places = range(len(operation.invars))
    if operation.primitive is not primitives.while_p:
        # The first operand of a conditional is the number of the branch.
        return [
            Inner(program, tuple(places[len(places) - len(program.in_avals) :]), _times(operation))
            for program in programs
        ]
    condition, body = operation.params["cond_jaxpr"], operation.params["body_jaxpr"]
    carried = len(operation.outvars)
    asked, start = len(condition.in_avals) - carried, len(places) - carried
    return [
        Inner(condition, (*places[:asked], *places[start:]), 1),
        Inner(body, tuple(places[asked:]), 1),
    ]


def called(operation: Operation) -> Program | None:
    """The program of an operation that does nothing but call it: jit, checkpoint, custom derivatives."""
    return inner(operation)[0].program if operation.primitive in CALLS else None


def scan_operands(operation: Operation) -> tuple[int, int]:
    """How many operands of a scan every step reads whole, and how many are carried from step to step.

    A scanned operand has one axis more than what a step sees of it, and so has a stacked result.
    """
    body = operation.params["jaxpr"]

    def of_equal_rank(outside: Iterable[Any], inside: Iterable[Any]) -> int:
        return sum(len(o.shape) == len(i.shape) for o, i in zip(outside, inside, strict=True))

    carried = of_equal_rank(results(operation), body.out_avals)
    return of_equal_rank(operands(operation), body.in_avals) - carried, carried


def chosen_by_platform(operation: Operation) -> bool:
    """Whether an operation is a choice of `jax.lax.platform_dependent`."""
    return operation.params.get("branches_platforms") is not None


def fold(
    program: Program, visit: Callable[[Operation, list[T]], T], combine: Callable[[Iterable[T]], T]
) -> T:
    """A value of a program: `combine(visit(operation, values of the programs inside it) ...)`."""
    return combine(
        visit(operation, [fold(part.program, visit, combine) for part in inner(operation)])
        for operation in program.eqns
    )


def evaluate(
    program: Program,
    inputs: Iterable[T],
    carry_out: Callable[..., Sequence[T]],
    constant: Callable[[Any], T] = lambda value: value,
) -> list[T]:
    """The results of a program, each operation carried out by a function of one's own.

    Args:
      program: whose operations are carried out in their order.
      inputs: of the program; arrays, or whatever is to stand for them.
      carry_out: `(operation, *inputs) -> results`; `bind` carries out what is written.
      constant: what stands for a constant of the program.

    Returns:
      What stands for the results.
    """
    constants = map(constant, program.consts)
    values = dict(zip(program.jaxpr.constvars, constants, strict=True))
    values |= zip(program.jaxpr.invars, inputs, strict=True)

    def read(atom: Any) -> T:
        return constant(atom.val) if isinstance(atom, Literal) else values[atom]

    for operation in program.eqns:
        computed = carry_out(operation, *map(read, operation.invars))
        values |= zip(operation.outvars, computed, strict=True)
    return [read(atom) for atom in program.jaxpr.outvars]


def bind(
    operation: Operation,
    *inputs: Any,
    programs: Callable[[Program], Program] = lambda program: program,
    derivatives: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> list[Any]:
    """Carries out an operation.

    Args:
      operation: to be carried out.
      *inputs: its operands.
      programs: what takes the place of each program inside it: one of the same signature.
      derivatives: what takes the place of its custom rules of differentiation; None leaves them.

    Returns:
      Its results.
    """
    replaced = {name: _replaced(value, programs) for name, value in operation.params.items()}
    parameters = operation.primitive.get_bind_params(replaced)
    if derivatives is not None and "subfuns" in parameters:
        function, *rules = parameters["subfuns"]
        others = [
            linear_util.wrap_init(derivatives(rule.call_wrapped), debug_info=rule.debug_info)
            for rule in rules
        ]
        parameters["subfuns"] = (function, *others)
    with written_at(operation):
        computed = operation.primitive.bind(*inputs, **parameters)
    return computed if operation.primitive.multiple_results else [computed]


@contextlib.contextmanager
def written_at(operation: Operation) -> Iterator[None]:
    """What is carried out within bears the names, the source lines and the switches of an operation."""
    source = operation.source_info
    names = source_info_util.current_name_stack() + source.name_stack
    with source_info_util.user_context(source.traceback, name_stack=names), operation.ctx.manager:
        yield


def _times(operation: Operation) -> int:
    if operation.primitive is primitives.scan_p:
        return operation.params["length"]
    if operation.primitive.name != "shard_map":
        return 1
    # The program is one device's share.
    sizes = operation.params["mesh"].shape
    return math.prod(sizes[axis] for axis in operation.params["newly_manual_axes"])


def _programs(value: Any) -> Iterator[Program]:
    for part in value if isinstance(value, (tuple, list)) else (value,):
        # Up to JAX 0.10 some operations hold programs without constants, of a type of their own.
        if isinstance(part, Program):
            yield part
        elif isinstance(part, Jaxpr):
            yield Program(part, ())


def _replaced(value: Any, programs: Callable[[Program], Program]) -> Any:
    """A parameter with other programs in it."""
    if type(value) in (tuple, list):
        return type(value)(_replaced(part, programs) for part in value)
    if isinstance(value, Program):
        return programs(value)
    if not isinstance(value, Jaxpr):
        return value
    new = programs(Program(value, ()))
    # Such an operation has no room for constants.
    return value if new.consts else new.jaxpr
