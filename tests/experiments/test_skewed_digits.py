import numpy as np

from experiments.skewed_digits import CLIENTS, OWNED, around, problems, rounds_to


def test_problems_of_one_seed_share_their_key_and_differ_in_their_clients():
    given = problems((0.1, 100.0), 2)
    np.testing.assert_array_equal(given.where(0.1), [0, 1])
    np.testing.assert_array_equal(given.seeds, [0, 1, 0, 1])
    assert given.keys[0] == given.keys[2] != given.keys[1]
    assert given.partitions.indices.shape == (4, CLIENTS * OWNED)
    labels = np.asarray(given.data.labels)

    def largest_share(place):
        owned = labels[np.asarray(given.partitions.indices[place])].reshape(CLIENTS, OWNED)
        return np.mean([np.bincount(own, minlength=10).max() / OWNED for own in owned])

    assert largest_share(0) > 0.6 > 0.3 > largest_share(2)


def test_accuracy_at_a_round_is_a_mean_up_to_it():
    np.testing.assert_allclose(around(np.arange(10.0)[None], 8, 3), [6.0])


def test_rounds_to_a_target_are_counted_from_one_and_smoothed():
    curves = np.array([[0.0, 0.9, 0.0, 0.9, 0.9, 0.9], [0.0] * 6, [1.0] * 6])
    np.testing.assert_array_equal(rounds_to(curves, 0.9), [6, np.inf, 3])
