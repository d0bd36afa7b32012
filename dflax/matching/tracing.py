"""The factors of every array of a program, found by following the program's operations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from dflax.matching.factors import Axes, Axis, Factors
from dflax.programs.walk import Operation, Program, bind, called, evaluate, inner, scan_operands


class Traced(NamedTuple):
    """An array of the program.

    Attributes:
      axes: its factors.
      value: what it holds; None inside loops and branches, which are only followed.
    """

    axes: Axes
    value: Array | None


class Follower:
    """Evaluates a program and learns, operation by operation, what its axes have to do with each other.

    The rules state when permuting the inputs of an operation permutes its outputs. Of operations
    without a rule nothing is assumed: the units of all their inputs and outputs are fixed.

    Attributes:
      factors: what is known.
      seen: the results of all operations outside of loops and branches, in order.
    """

    def __init__(self) -> None:
        self.factors = Factors()
        self.seen: list[Traced] = []

    def run(self, program: Program, arguments: Sequence[Traced]) -> list[Traced]:
        """The results of a program; its constants are taken to be irregular."""
        return evaluate(program, arguments, self._apply, self._constant)

    def follow(self, program: Program, arguments: Sequence[Axes]) -> list[Axes]:
        """As `run`, without computing anything."""
        inputs = [Traced(axes, None) for axes in arguments]

        def constant(held: Any) -> Traced:
            return self._constant(held)._replace(value=None)

        return [result.axes for result in evaluate(program, inputs, self._apply, constant)]

    def _constant(self, held: Any) -> Traced:
        return Traced(self.factors.axes(getattr(held, "shape", ()), fixed=True), held)

    def _apply(self, equation: Operation, *inputs: Traced) -> list[Traced]:
        computes = all(operand.value is not None for operand in inputs)
        axes = [operand.axes for operand in inputs]
        program = called(equation)
        if program is not None and computes:
            return self.run(program, inputs)
        if program is not None:
            results = self.follow(program, axes)
        else:
            results = RULES.get(equation.primitive.name, _unknown)(self, equation, axes)
        if not computes:
            return [Traced(axes, None) for axes in results]
        out = bind(equation, *(operand.value for operand in inputs))
        found = [Traced(axes, value) for axes, value in zip(results, out, strict=True)]
        self.seen += found
        return found


Rule = Callable[[Follower, Operation, list[Axes]], list[Axes]]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _unknown(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    for axes in inputs:
        f.factors.fix(*axes)
    return [f.factors.axes(_shape(out), fixed=True) for out in equation.outvars]


def _elementwise(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    shape = _shape(equation.outvars[0])
    found: list[Axis | None] = [None] * len(shape)
    for atom, axes in zip(equation.invars, inputs, strict=True):
        # Scalars, and axes of length 1, are the same for all units.
        for place, (size, axis) in enumerate(zip(_shape(atom), axes, strict=True)):
            known = found[place]
            if size == shape[place] and known is not None:
                f.factors.unite(known, axis)
            elif size == shape[place]:
                found[place] = axis
    filled = [
        f.factors.axis(size) if axis is None else axis
        for size, axis in zip(shape, found, strict=True)
    ]
    return [tuple(filled)] * len(equation.outvars)


def _each(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    return list(inputs)


def _broadcast(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    shape = equation.params["shape"]
    found = list(f.factors.axes(shape))
    given = _shape(equation.invars[0])
    for place, target in enumerate(equation.params["broadcast_dimensions"]):
        if given[place] == shape[target]:
            found[target] = inputs[0][place]
    return [tuple(found)]


def _reshape(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    if equation.params.get("dimensions") is not None:
        return _unknown(f, equation, inputs)
    return [f.factors.reshape(inputs[0], _shape(equation.outvars[0]))]


def _squeeze(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    return [_without(inputs[0], equation.params["dimensions"])]


def _transpose(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    return [tuple(inputs[0][axis] for axis in equation.params["permutation"])]


def _reduce(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    return [_without(inputs[0], equation.params["axes"])]


def _arg_reduce(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    f.factors.fix(*(inputs[0][axis] for axis in equation.params["axes"]))
    return _reduce(f, equation, inputs)


def _dot(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = inputs
    for a, b in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        f.factors.unite(left[a], right[b])
    batch = tuple(left[axis] for axis in left_batch)
    return [
        (
            *batch,
            *_without(left, (*left_sum, *left_batch)),
            *_without(right, (*right_sum, *right_batch)),
        )
    ]


def _convolution(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    options = equation.params
    if options["batch_group_count"] != 1:
        return _unknown(f, equation, inputs)
    numbers, groups = options["dimension_numbers"], options["feature_group_count"]
    (x, kernel), shape = inputs, _shape(equation.outvars[0])
    batch, channels, *space = numbers.lhs_spec
    features, inner, *taps = numbers.rhs_spec
    f.factors.fix(*(x[axis] for axis in space), *(kernel[axis] for axis in taps))
    grouped, each = f.factors.split(x[channels], groups)
    f.factors.unite(grouped, f.factors.split(kernel[features], groups)[0])
    f.factors.unite(each, kernel[inner])
    out: list[Axis] = list(f.factors.axes(shape, fixed=True))
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = x[batch], kernel[features]
    return [tuple(out)]


def _concatenate(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    axis = equation.params["dimension"]
    lengths = {_shape(atom)[axis] for atom in equation.invars}
    for other in inputs[1:]:
        _unite(f, _without(inputs[0], (axis,)), _without(other, (axis,)))
    joined = list(inputs[0])
    if len(lengths) == 1:
        # Pieces of equal length are taken to list the same units, as patches of one image do.
        for other in inputs[1:]:
            f.factors.unite(inputs[0][axis], other[axis])
        joined[axis] = (*f.factors.axis(len(inputs), fixed=True), *inputs[0][axis])
    else:
        f.factors.fix(*(axes[axis] for axes in inputs))
        joined[axis] = f.factors.axis(_shape(equation.outvars[0])[axis], fixed=True)
    return [tuple(joined)]


def _stack(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    for other in inputs[1:]:
        _unite(f, inputs[0], other)
    stacked, place = list(inputs[0]), equation.params["axis"]
    return [(*stacked[:place], f.factors.axis(len(inputs), fixed=True), *stacked[place:])]


def _unstack(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    place = equation.params["axis"]
    f.factors.fix(inputs[0][place])
    return [_without(inputs[0], (place,))] * len(equation.outvars)


def _partly(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    """Slices and paddings: axes that keep their length are whole, the others fixed."""
    return [_whole(f, inputs[0], _shape(equation.invars[0]), _shape(equation.outvars[0]))]


def _pad(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    untouched = [config == (0, 0, 0) for config in equation.params["padding_config"]]
    return [_kept(f, inputs[0], untouched, _shape(equation.outvars[0]))]


def _windows(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    single = [window == 1 for window in equation.params["window_dimensions"]]
    strides = equation.params["window_strides"]
    untouched = [one and stride == 1 for one, stride in zip(single, strides, strict=True)]
    return [_kept(f, inputs[0], untouched, _shape(equation.outvars[0]))]


def _gather(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    """A look-up of whole rows; the axis that is looked up in is fixed."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, shape = inputs[0], _shape(equation.outvars[0])
    if numbers.operand_batching_dims or set(numbers.collapsed_slice_dims) != set(
        numbers.start_index_map
    ):
        return _unknown(f, equation, inputs)
    f.factors.fix(*inputs[1], *(operand[axis] for axis in numbers.collapsed_slice_dims))
    kept = [axis for axis in range(len(sizes)) if axis not in numbers.collapsed_slice_dims]
    looked_up = iter(inputs[1][:-1])
    offsets = dict(zip(numbers.offset_dims, kept, strict=True))
    rows = _whole(f, operand, _shape(equation.invars[0]), sizes)
    return [
        tuple(
            rows[offsets[axis]] if axis in offsets else next(looked_up)
            for axis in range(len(shape))
        )
    ]


def _along_axis(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    f.factors.fix(*(axes[equation.params["axis"]] for axes in inputs))
    return list(inputs)


def _branches(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    first, *others = [f.follow(branch.program, branch.of(inputs)) for branch in inner(equation)]
    for other in others:
        for one, same in zip(first, other, strict=True):
            _unite(f, one, same)
    return first


def _scan(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    constants, carried = scan_operands(equation)
    (body,) = inner(equation)
    scanned = inputs[constants + carried :]
    f.factors.fix(*(axes[0] for axes in scanned))
    carry = inputs[constants : constants + carried]
    rows = [axes[1:] for axes in scanned]
    results = f.follow(body.program, [*inputs[:constants], *carry, *rows])
    for before, after in zip(carry, results[:carried], strict=True):
        _unite(f, before, after)
    steps = f.factors.axis(body.times, fixed=True)
    return [*carry, *((steps, *axes) for axes in results[carried:])]


def _while(f: Follower, equation: Operation, inputs: list[Axes]) -> list[Axes]:
    condition, body = inner(equation)
    f.follow(condition.program, condition.of(inputs))
    results = f.follow(body.program, body.of(inputs))
    carry = inputs[len(inputs) - len(results) :]
    for before, after in zip(carry, results, strict=True):
        _unite(f, before, after)
    return carry


def _unite(f: Follower, first: Axes, second: Axes) -> None:
    for one, other in zip(first, second, strict=True):
        f.factors.unite(one, other)


def _without(axes: Axes, dropped: Sequence[int]) -> Axes:
    return tuple(axis for place, axis in enumerate(axes) if place not in set(dropped))


def _whole(f: Follower, axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    return _kept(f, axes, [a == b for a, b in zip(before, after, strict=True)], after)


def _kept(f: Follower, axes: Axes, untouched: Sequence[bool], shape: Sequence[int]) -> Axes:
    found = []
    for axis, whole, size in zip(axes, untouched, shape, strict=True):
        if not whole:
            f.factors.fix(axis)
        found.append(axis if whole else f.factors.axis(size, fixed=True))
    return tuple(found)


ELEMENTWISE = tuple(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    imag integer_pow is_finite le lgamma log log1p log2 logistic lt max min mul ne neg nextafter not
    one_minus_square or polynomial pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt
    square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor"), _reduce),
    **dict.fromkeys(("argmax", "argmin"), _arg_reduce),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along_axis),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _windows),
    "optimization_barrier": _each,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "slice": _partly,
    "dynamic_slice": _partly,
    "pad": _pad,
    "gather": _gather,
    "cond": _branches,
    "scan": _scan,
    "while": _while,
}
