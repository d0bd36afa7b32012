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
