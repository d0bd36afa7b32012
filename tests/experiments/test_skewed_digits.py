import numpy as np

from experiments.tasks.skewed_digits import CLIENTS, OWNED, problems


def test_problems_of_one_seed_share_their_key_and_differ_in_their_clients():
    given = problems((0.1, 100.0), 2)
    np.testing.assert_array_equal(given.where(0.1), [0, 1])
    np.testing.assert_array_equal(given.seeds, [0, 1, 0, 1])
    assert given.keys[0] == given.keys[2] != given.keys[1]
    assert [own.indices.shape for own in given.partitions] == 4 * [(CLIENTS * OWNED,)]
    labels = np.asarray(given.data.labels)

    def largest_share(place):
        owned = labels[np.asarray(given.partitions[place].indices)].reshape(CLIENTS, OWNED)
        return np.mean([np.bincount(own, minlength=10).max() / OWNED for own in owned])

    assert largest_share(0) > 0.6 > 0.3 > largest_share(2)
