import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import validation


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, r"rate must be a finite number in \[0, 1\), got -0.1"),
        (1.0, r"rate must be a finite number in \[0, 1\), got 1.0"),
        (float("nan"), "rate must be a finite number"),
        ([0.5, 2.0], r"got \[0.5, 2.0\]"),
        ("fast", "rate must be a real number"),
        ("0.5", "rate must be a real number"),
        (None, "rate must be a real number"),
        (True, r"rate must be a real number in \[0, 1\), got True"),
        (np.False_, "rate must be a real number"),
        (np.zeros(2, bool), "rate must be a real number"),
        (0.5 + 0.0j, r"rate must be a real number in \[0, 1\), got \(0.5\+0j\)"),
        (jnp.zeros(2, jnp.complex64), "rate must be a real number"),
        (["0.5", "0.6"], "rate must be a real number"),
        ([[0.1], [0.1, 0.2]], "rate must be a real number"),
        ([], r"rate must be an array of at least one number, got \[\]"),
        (jnp.zeros((0, 3)), "rate must be an array of at least one number"),
    ],
)
def test_reals_out_of_range_are_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        validation.real("rate", value, low=0.0, high=1.0, high_open=True)


@pytest.mark.parametrize(
    "value", [0, np.int64(1), 0.5, np.float16(0.5), jnp.bfloat16(0.5), [0.1, 1], jnp.zeros((2, 3))]
)
def test_real_numbers_of_every_width_pass(value):
    validation.real("rate", value, low=0.0, high=1.0)


def test_a_scalar_is_one_number_also_when_traced():
    validation.real("rate", 0.5, scalar=True)
    validation.real("rate", jnp.float32(0.5), scalar=True)
    with pytest.raises(ValueError, match="rate must be a single real number"):
        validation.real("rate", [0.1, 0.2], scalar=True)

    def inside(value):
        validation.real("rate", value, low=10.0)
        validation.real("rate", value, scalar=True)
        return value

    assert jax.jit(inside)(1.0) == 1.0
    with pytest.raises(ValueError, match="rate must be a single real number"):
        jax.jit(inside)(jnp.ones(2))


@pytest.mark.parametrize("value", [0, 1.0, True, "2", None])
def test_counts_are_integers_in_their_range(value):
    with pytest.raises((TypeError, ValueError), match="rounds must be an integer >= 1, got"):
        validation.integer("rounds", value, low=1)
    validation.integer("rounds", np.int64(3), low=1, high=3)


def test_kinds_flags_and_functions():
    validation.instance("graph", 3, int)
    with pytest.raises(
        TypeError, match=r"graph must be of type int or str, not float, got 3.0. Do"
    ):
        validation.instance("graph", 3.0, (int, str), "Do better.")
    validation.flag("strict", True)
    validation.flag("strict", np.False_)
    for value in ("no", 0, 1, None, [], 1.0, jnp.bool_(True)):
        with pytest.raises(TypeError, match="strict must be True or False, got"):
            validation.flag("strict", value)
    with pytest.raises(TypeError, match="loss must be a function, got 3"):
        validation.function("loss", 3)


def test_leading_axes_are_shared():
    assert validation.leading_axis("tree", {"a": np.ones((3, 2)), "b": np.ones(3)}) == 3
    for tree in ({}, {"a": np.ones(3), "b": np.ones(4)}, {"a": np.float32(1)}):
        with pytest.raises(ValueError, match="tree must have leaves that share one leading axis"):
            validation.leading_axis("tree", tree)
    with pytest.raises(ValueError, match="tree must have a leading axis of length 4, got 3"):
        validation.leading_axis("tree", np.ones(3), 4)
    assert validation.leading_axis("tree", np.ones((0, 2))) == 0
    with pytest.raises(ValueError, match="tree must have a leading axis of at least 1, got 0"):
        validation.leading_axis("tree", np.ones((0, 2)), least=1)


def test_a_model_is_a_tree_of_real_numbers():
    validation.model("params", {"w": np.ones((2, 3), np.float32), "b": jnp.ones(3, jnp.bfloat16)})
    for params, message in (
        ({}, "params must be a pytree with at least one array"),
        ({"w": 3}, r"params\['w'\] must be an array of real numbers, got int"),
        (
            {"w": jnp.ones(3, jnp.int32)},
            r"params\['w'\] must be an array of real numbers, got int32",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            validation.model("params", params)


def test_a_choice_is_one_of_the_names():
    validation.choice("rule", "mean", ("mean", "median"))
    with pytest.raises(ValueError, match="rule must be one of 'mean', 'median', got 'average'"):
        validation.choice("rule", "average", ("mean", "median"))


@pytest.mark.parametrize("value", [True, 0.5, "3", None, -1, 2**63, np.zeros(2)])
def test_a_seed_is_a_natural_number(value):
    validation.seed("seed", np.int64(2**40))
    with pytest.raises((TypeError, ValueError), match="seed must be an integer"):
        validation.seed("seed", value)


def test_counts_and_numbers_fit_32_bits():
    with pytest.raises(ValueError, match="rounds must be an integer >= 1 and at most 2147483647"):
        validation.integer("rounds", 2**31, low=1)
    with pytest.raises(
        ValueError, match=r"rate must be .*, got 1099511627776. Write it with a dec"
    ):
        validation.real("rate", 2**40)
    validation.real("rate", float(2**40))


def test_a_probability_is_one_number():
    validation.probability("rate", 1.0)
    for value in (-0.1, 1.5, [0.5, 0.5], True, 0.5 + 0j):
        with pytest.raises((TypeError, ValueError), match="rate must be"):
            validation.probability("rate", value)
    with pytest.raises(ValueError, match=r"rate must be a finite number in \(0, 1\), got 1.0"):
        validation.probability("rate", 1.0, low_open=True, high_open=True)


def test_functions_take_what_they_will_get():
    validation.function("loss", lambda params, batch, key: 0, takes=3)
    validation.function("loss", lambda *given: 0, takes=3)
    validation.function("loss", np.add, takes=3)  # which tells no signature
    with pytest.raises(TypeError, match=r"loss must be a function of 3 arguments, got .*\(x, y\)"):
        validation.function("loss", lambda x, y: 0, takes=3)


def test_sequences_have_an_order_and_a_length():
    assert validation.sequence("graphs", (1, 2), "graphs") == [1, 2]
    assert validation.sequence("graphs", iter([1]), "graphs") == [1]
    for value in ("ring", b"ring", {1: 2}, {1}, None, 3, np.zeros(()), object()):
        with pytest.raises(TypeError, match="graphs must be a list of graphs"):
            validation.sequence("graphs", value, "graphs")
    with pytest.raises(ValueError, match=r"graphs must be a list of at least one graphs, got \(\)"):
        validation.sequence("graphs", (), "graphs")


def test_arrays_have_their_kind_shape_and_range():
    edges = validation.array("edges", [[0, 1]], kind="integer", shape=("E", 2), low=0, high=1)
    assert edges.tolist() == [[0, 1]]
    assert validation.array("table", np.ones(2, bool), kind="boolean").dtype == bool
    for value, message in (
        (
            [[0, 1.5]],
            r"edges must be integers of shape \[E, 2\] with E >= 1, not float64, got \[\[",
        ),
        ([[True, False]], "not bool"),
        ([["a", "b"]], "not <U1"),
        ([[0], [0, 1]], r"edges must be integers of shape \[E, 2\]"),
        ([0, 1], r"got shape \(2,\)"),
        (np.zeros((0, 2)), r"with E >= 1, got shape \(0, 2\)"),
        ([[0, 2]], r"edges must be finite numbers in \[0, 1\], got 0 to 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            validation.array("edges", value, kind="integer", shape=("E", 2), low=0, high=1)
    with pytest.raises(ValueError, match=r"rates must be finite numbers .*, got nan to nan"):
        validation.array("rates", [1.0, np.nan], kind="real")
    jax.jit(lambda x: validation.array("rates", x, kind="real", shape=("m",)))(jnp.ones(2))


def test_complex_arrays_are_finite_numbers():
    for value in ([1.0, 2.0], np.array([1 + 2j]), np.arange(3)):
        assert validation.array("y", value, kind="complex", shape=("M",)) is not None
    with pytest.raises(TypeError, match="y must be real or complex numbers"):
        validation.array("y", np.array(["a"]), kind="complex")
    with pytest.raises(ValueError, match="y must be finite numbers"):
        validation.array("y", np.array([1 + 1j * np.nan]), kind="complex")
    with pytest.raises(ValueError, match="y must be real or complex numbers of shape"):
        validation.array("y", np.zeros(0, complex), kind="complex", shape=("M",))


def test_typed_keys_are_arrays():
    validation.arrays(
        "tree", {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(0))}
    )


def test_trees_of_arrays_hold_arrays_and_numbers():
    validation.arrays(
        "state", {"w": np.ones(2), "rate": 0.3, "shape": jax.ShapeDtypeStruct((), int)}
    )
    for leaf in ("no", object(), np.array(["no"])):
        with pytest.raises(TypeError, match=r"state\['w'\] must be an array or a number"):
            validation.arrays("state", {"w": leaf})


def test_messages_are_short_whatever_the_value():
    rows = [[0.5] * 100] * 100_000
    for check in (
        lambda: validation.integer("rows", rows, low=1),
        lambda: validation.flag("rows", rows),
        lambda: validation.choice("rows", "no" * 10_000, ("mean",)),
        lambda: validation.instance("rows", {n: n for n in range(100_000)}, int),
        lambda: validation.leading_axis("rows", {n: np.ones(n + 1) for n in range(1_000)}),
        lambda: validation.model("rows", {n: [] for n in range(100_000)}),
    ):
        with pytest.raises((TypeError, ValueError), match="rows must") as caught:
            check()
        assert len(str(caught.value)) < 1_000
