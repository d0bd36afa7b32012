"""What JAX writes into its operations, which changes from version to version, read as it is meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.source_info_util import summarize
from jax.sharding import PartitionSpec

import dflax as dx
from dflax.programs import walk
from dflax.programs.rewriting import rewrite

X = jnp.arange(1.0, 4.0)
ROWS = jnp.arange(12.0).reshape(4, 3)


@jax.custom_jvp
def ruled(x):
    return x * x


@ruled.defjvp
def _(primals, tangents):
    return ruled(*primals), tangents[0] * 5.0


@jax.custom_vjp
def reversed_by_rule(x):
    return x * x


reversed_by_rule.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))


def scanned(x, rows):
    def step(carry, row):
        total, count = carry
        return (total + row * x, count + 1), (row.sum(), row)

    return jax.lax.scan(step, (x, 0), rows, reverse=True)


def looped(x, rows):
    bound, scale = rows.sum(), rows[0, 1]
    return jax.lax.while_loop(
        lambda c: c[1] < bound, lambda c: (c[0] * scale, c[1] + x[2]), (x, 0.0)
    )


def branched(x, rows):
    return jax.lax.switch(x[0].astype(int), [jnp.sin, lambda x: x * x, lambda x: x + rows[0]], x)


# A function, the operation that it becomes, the operands its programs read, and how often they run.
STRUCTURES = {
    "scan": (scanned, "scan", [4], 4),
    "while": (looped, "while", [3, 4], 1),
    "cond": (branched, "cond", [2, 2, 2], 1),
    "jit": (lambda x, rows: jax.jit(jnp.multiply)(x, rows), "jit", [2], 1),
    "checkpoint": (lambda x, rows: jax.checkpoint(jnp.matmul)(rows, x), "remat2", [2], 1),
    "custom jvp": (lambda x, rows: ruled(x), "custom_jvp_call", [1], 1),
    "custom vjp": (lambda x, rows: reversed_by_rule(x), "custom_vjp_call", [1], 1),
}


def operation(function, name):
    program = jax.make_jaxpr(function)(X, ROWS)
    (found,) = [one for one in program.eqns if one.primitive.name == name]
    return found


@pytest.mark.parametrize("case", STRUCTURES)
def test_programs_inside_of_an_operation_have_their_operands(case):
    function, name, reads, times = STRUCTURES[case]
    found = operation(function, name)
    parts = walk.inner(found)
    assert [len(part.operands) for part in parts] == reads
    assert [part.times for part in parts] == [times] * len(reads)
    for part in parts:
        given = part.of(walk.operands(found))
        if case != "scan":
            assert [g.shape for g in given] == [i.shape for i in part.program.in_avals]
        assert len(part.program.jaxpr.invars) == len(given)
    calls = case not in ("scan", "while", "cond")
    assert (walk.called(found) is not None) == calls


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (scanned, (1, 2)),
        (lambda x, rows: jax.lax.scan(lambda c, r: (c, r * x), (), rows), (1, 0)),
        (lambda x, rows: jax.lax.fori_loop(0, 3, lambda i, c: c + x * rows[0], x), (2, 2)),
        (lambda x, rows: jax.lax.scan(lambda c, _: (c * 2, None), x, length=3), (0, 1)),
        (lambda x, rows: jax.lax.map(jnp.sum, rows), (0, 0)),
        # Rows without entries of their own.
        (lambda x, rows: jax.lax.scan(lambda c, r: (c + r, r), x[0], x), (0, 1)),
    ],
)
def test_a_scan_says_what_it_holds_and_what_it_carries(function, expected):
    assert walk.scan_operands(operation(function, "scan")) == expected


def test_what_every_device_runs_counts_once_for_each():
    with jax.set_mesh(dx.client_mesh()):
        dealt = jax.shard_map(
            lambda x: x * 2,
            in_specs=PartitionSpec("clients"),
            out_specs=PartitionSpec("clients"),
            axis_names={"clients"},
            check_vma=False,
        )
        (part,) = walk.inner(jax.make_jaxpr(dealt)(jnp.ones((8, 3))).eqns[-1])
    assert part.times == 8
    assert part.program.in_avals[0].shape == (1, 3)


def test_programs_that_join_numbers_are_part_of_their_operation():
    def joined(x, rows):
        return x.at[0].add(1.0), jax.lax.reduce(rows, 0.0, lambda a, b: a * b + a, (0,))

    program = jax.make_jaxpr(joined)(X, ROWS)
    assert {op.primitive.name for op in program.eqns} >= {"scatter-add", "reduce"}
    assert all(walk.inner(op) == [] for op in program.eqns)


def test_a_choice_by_platform_is_told_from_one_by_value():
    def by_platform(x, rows):
        return jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)

    assert walk.chosen_by_platform(operation(by_platform, "cond"))
    assert not walk.chosen_by_platform(operation(branched, "cond"))


def everything(x, rows):
    (total, count), (sums, _) = scanned(x, rows)
    grown, _ = looped(x, rows)
    called = jax.jit(lambda x: jax.checkpoint(jnp.sin)(x) + reversed_by_rule(ruled(x)))(x)
    constant = jnp.asarray(np.linspace(0.0, 1.0, 3))
    return branched(total, rows) + grown / count + called * constant, sums, jax.random.key(3)


def doubling(operation):
    """Products of two arrays become twice what they are."""
    if operation.primitive.name != "mul":
        return None
    return lambda *inputs: [2.0 * one for one in walk.bind(operation, *inputs)]


def test_evaluation_by_what_is_written_is_the_function():
    program = jax.make_jaxpr(everything)(X, ROWS)
    found = walk.evaluate(program, [X, ROWS], walk.bind)
    wanted = jax.tree.leaves(everything(X, ROWS))
    for one, other in zip(found[:-1], wanted[:-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert found[-1] == wanted[-1]


def test_a_fold_sees_every_operation_in_every_program():
    program = jax.make_jaxpr(everything)(X, ROWS)
    names = walk.fold(
        program, lambda op, inside: {op.primitive.name}.union(*inside), lambda a: set().union(*a)
    )
    assert names >= {"scan", "while", "cond", "sin", "mul", "add", "remat2", "lt", "reduce_sum"}


INSIDE = {
    "itself": lambda x: x * x,
    "jit": lambda x: jax.jit(lambda x: x * x)(x),
    "checkpoint": lambda x: jax.checkpoint(lambda x: x * x)(x),
    "scan": lambda x: jax.lax.scan(lambda c, _: (c * x, None), x, length=1)[0],
    "while": lambda x: jax.lax.while_loop(
        lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] * x), (0, x)
    )[1],
    "cond": lambda x: jax.lax.cond(x > 0, lambda x: x * x, lambda x: x, x),
    "custom jvp": ruled,
    "custom vjp": reversed_by_rule,
    "all": lambda x: jax.lax.map(jax.jit(jax.checkpoint(ruled)), x[None])[0],
}


@pytest.mark.some(1)
@pytest.mark.parametrize("case", INSIDE)
def test_an_operation_is_replaced_wherever_it_stands(case):
    changed = rewrite(INSIDE[case], doubling)
    assert changed(jnp.float32(3.0)) == 18.0
    assert jax.jit(changed)(jnp.float32(3.0)) == 18.0
    assert INSIDE[case](jnp.float32(3.0)) == 9.0
    np.testing.assert_array_equal(jax.vmap(changed)(X), 2 * X * X)


def test_rules_of_derivatives_are_rewritten_and_stay_in_force():
    slope = jax.grad(rewrite(ruled, doubling))
    # The rule says 5, and its product is doubled; by itself the derivative of 2 x^2 would be 12.
    assert slope(jnp.float32(3.0)) == 10.0
    assert jax.grad(rewrite(reversed_by_rule, doubling))(jnp.float32(3.0)) == 6.0


def test_what_a_differentiated_checkpoint_computes_again_is_rewritten():
    def loss(x):
        return jax.checkpoint(lambda x: jnp.sin(x * x))(x)

    plain = jax.grad(loss)
    program = jax.make_jaxpr(rewrite(plain, doubling))(jnp.float32(0.5))
    assert "remat2" in [op.primitive.name for op in program.eqns]

    def products(op, inside):
        return sum(inside) + (op.primitive.name == "mul")

    before = walk.fold(jax.make_jaxpr(plain)(jnp.float32(0.5)), products, sum)
    assert walk.fold(program, products, sum) == 2 * before > 4


def test_what_is_carried_out_again_keeps_its_names_and_lines():
    def named(x):
        with jax.named_scope("mine"):
            return jnp.sin(x)

    def outer(x):
        with jax.named_scope("outer"):
            return rewrite(named, doubling)(x)

    source = jax.make_jaxpr(outer)(X).eqns[-1].source_info
    assert str(source.name_stack) == "outer/mine"
    assert "test_walk.py" in summarize(source)
