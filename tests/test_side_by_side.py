import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import regression

import dflax as dx

TASK = regression()
FEDERATION = dx.Federation(
    TASK.data,
    TASK.partition,
    batch_size=6,
    local_steps=2,
    participation=dx.participation.uniform(4),
)


def split(cut):
    """Two clients, the first with `cut` of the 240 examples."""
    return dx.data.from_indices(np.split(np.arange(240), [cut]))


def two(cut, **options):
    arguments = {"batch_size": 3, "local_steps": 2} | options
    return dx.Federation(TASK.data, split(cut), **arguments)


def test_each_lane_draws_what_its_source_draws_alone():
    sources = [two(cut) for cut in (100, 150, 220)]
    together = dx.side_by_side(sources)
    key = jax.random.key(0)
    drawn = jax.vmap(lambda own, all: all.source(own).draw(key, 2), in_axes=(0, None))(
        together.own, together
    )
    for place, source in enumerate(sources):
        alone = source.draw(key, 2)
        np.testing.assert_array_equal(
            drawn.assignments.minibatches[place], alone.assignments.minibatches
        )
        np.testing.assert_array_equal(drawn.weights[place], alone.weights)
    assert [source.largest for source in sources] == [140, 150, 220]


def test_what_all_share_is_stored_once():
    template = two(100)
    together = dx.side_by_side([template.replace(partition=split(cut)) for cut in (100, 150)])
    assert any(leaf is template.data.inputs for leaf in together.shared)
    assert not any(leaf.shape[1:] == template.data.inputs.shape for leaf in together.own)


def test_one_source_alone_has_an_axis_as_well():
    template = two(100)
    one = dx.side_by_side([template])
    sizes = jax.vmap(lambda own, all: all.source(own).partition.sizes, in_axes=(0, None))(
        one.own, one
    )
    np.testing.assert_array_equal(sizes, [[100, 140]])
    assert one.source(()).weights is template.weights


def test_epochs_take_the_steps_of_the_largest_client_of_all():
    several = [two(size, local_steps=None, local_epochs=1) for size in (100, 150)]
    sources = dx.side_by_side(several)
    key = jax.random.key(0)
    for place, alone in enumerate(several):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], sources.own)
        drawn, expected = sources.source(own).draw(key, 3), alone.draw(key, 3)
        assert drawn.assignments.minibatches.shape[1] == 50
        steps = expected.assignments.minibatches.shape[1]
        np.testing.assert_array_equal(
            drawn.assignments.minibatches[:, :steps], expected.assignments.minibatches
        )
        np.testing.assert_array_equal(
            drawn.assignments.local_steps, expected.assignments.local_steps
        )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (two(100, batch_size=4), r"sources\[1\] differs.*batch_size is 4, not 3"),
        (two(100, participation=dx.participation.uniform(2)), "another participation"),
        (
            dx.Federation(TASK.data, TASK.partition, batch_size=3, local_steps=2),
            r"clients is 8, not 2",
        ),
        (
            two(100).replace(partition=dx.data.from_indices([np.arange(9), np.arange(3)])),
            r"int32\[12\] for .*indices of sources\[1\] and int32\[240\]",
        ),
        (dx.Events(jnp.zeros(3)), "Events, not Federation"),
    ],
)
def test_sources_that_differ_in_more_than_numbers_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        dx.side_by_side([two(100), other])


def test_a_replaced_argument_is_that_of_a_new_federation():
    other = dx.data.from_indices(np.split(np.arange(240), 6))
    made = dx.Federation(
        TASK.data, other, batch_size=6, local_steps=2, participation=FEDERATION.participation
    )
    replaced = FEDERATION.replace(partition=other)
    assert replaced.data is FEDERATION.data
    assert (replaced.clients, replaced.largest) == (6, 40)
    assert FEDERATION.clients == 8
    assert jax.tree.structure(replaced) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, replaced, made)


def test_weights_and_epochs_follow_a_new_partition():
    by_size = two(100, local_steps=None, local_epochs=1).replace(partition=split(150))
    np.testing.assert_array_equal(by_size.weights, [150.0, 90.0])
    np.testing.assert_array_equal(by_size.steps, [50, 30])
    given = two(100, weights=jnp.array([1.0, 2.0])).replace(partition=split(150))
    np.testing.assert_array_equal(given.weights, [1.0, 2.0])
    assert by_size.replace(local_steps=7).local_steps == 7
    np.testing.assert_array_equal(by_size.replace(local_epochs=2).steps, [100, 60])
    assert two(100).replace(local_epochs=1).local_steps == 47


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nope": 3}, "nope is no argument of Federation, got nope=3. Allowed are data, partition"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"local_steps": 2, "local_epochs": 1}, "exactly one of local_steps and local_epochs"),
        ({"partition": 3}, "partition must have clients"),
    ],
)
def test_a_wrong_replacement_is_refused_by_name(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FEDERATION.replace(**changes)
