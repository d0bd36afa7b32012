"""Field arithmetic against Python's integers; checks of products against their soundness errors."""

import functools
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dflax import verified_inference as vi
from dflax.verified_inference.proofs import field
from dflax.verified_inference.proofs.network_proof import _read
from dflax.verified_inference.proofs.sum_check import lagrange, through_three

KEY = jax.random.key(0)
P = field.MERSENNE
RNG = np.random.default_rng(0)


def objects(values):
    """Python integers, which have no largest."""
    return np.asarray(values).astype(object)


@pytest.mark.parametrize("p", [P, 65521, 101, 3])
def test_arithmetic_is_that_of_integers(p):
    edges = np.array([0, 1, 2, p // 2, p - 2, p - 1, *RNG.integers(0, p, 30)], np.uint64) % p
    a, b = (part.ravel().astype(np.uint32) for part in np.meshgrid(edges, edges))
    table = jax.jit(
        lambda a, b: [
            field.add(a, b, p),
            field.subtract(a, b, p),
            field.multiply(a, b, p),
            field.inverse(a, p),
            field.total(jnp.stack([a, b]), 1, p),
        ]
    )(a, b)
    added, subtracted, multiplied, inverse, totals = map(objects, table)
    x, y = objects(a), objects(b)
    assert np.all(added == (x + y) % p)
    assert np.all(subtracted == (x - y) % p)
    assert np.all(multiplied == x * y % p)
    assert np.all((inverse * x % p)[x > 0] == 1)
    assert np.all(inverse[x == 0] == 0)
    assert totals.tolist() == [x.sum() % p, y.sum() % p]


@pytest.mark.parametrize(
    ("p", "shape"),
    [
        (P, (6, 300, 7)),
        (P, (6, 300, 2)),
        (101, (6, 300, 7)),
        *(
            pytest.param(p, shape, marks=pytest.mark.slow)
            for p, shape in (
                (P, (6, 1, 7)),
                (P, (3, 20, 6)),
                (101, (6, 1, 7)),
                (101, (6, 300, 2)),
                (101, (3, 20, 6)),
            )
        ),
    ],
)
def test_matrix_products_are_those_of_integers(p, shape):
    """By digits, in one block and in two, and entry by entry where one factor is a vector or two."""
    m, n, k = shape
    a, b = RNG.integers(0, p, (m, n)), RNG.integers(0, p, (n, k))
    a[0], b[:, 0] = p - 1, p - 1
    found = field.matmul(jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32), p)
    assert np.all(objects(found) == objects(a) @ objects(b) % p)


def test_a_product_in_several_parts_is_the_same(monkeypatch):
    monkeypatch.setattr(field, "MOST_PARTS", 300)
    a, b = RNG.integers(0, P, (8, 300)), RNG.integers(0, P, (300, 5))
    found = field.matmul(jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32), P)
    assert np.all(objects(found) == objects(a) @ objects(b) % P)


def test_a_long_sum_does_not_overflow():
    values = jnp.full(70_000, P - 1, jnp.uint32)
    assert int(field.total(values, 0, P)) == -70_000 % P


@functools.cache
def product():
    a, b = RNG.integers(-127, 128, (6, 20)), RNG.integers(-127, 128, (20, 9))
    return a, b, a @ b


def test_the_modular_product_is_the_integers_own():
    a, b, c = product()
    assert np.array_equal(vi.modular_product(a, b), c)


@functools.cache
def checks():
    return [
        jax.jit(jax.vmap(check, in_axes=(0, None, None, 0)))
        for check in (vi.freivalds, vi.sum_check)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("check", [0, 1])
def test_right_products_are_accepted_and_a_thousand_altered_ones_are_not(check):
    a, b, c = product()
    keys = jax.random.split(jax.random.key(5), 1000)
    rng = np.random.default_rng(7)
    altered = np.repeat(c[None], 1000, 0)
    change = rng.integers(1, 1000, 1000) * rng.choice([-1, 1], 1000)
    altered[np.arange(1000), rng.integers(0, 6, 1000), rng.integers(0, 9, 1000)] += change
    # The same residue, and another integer.
    altered[0] = c
    altered[0, 2, 3] += -P if c[2, 3] > 0 else P
    run = checks()[check]
    assert bool(jnp.all(run(keys, a, b, np.repeat(c[None], 1000, 0))))
    assert not bool(jnp.any(run(keys, a, b, altered)))


def test_soundness_errors_of_freivalds():
    """A wrong entry passes with probability 1/p, and 1/2 with vectors of zeros and ones."""
    a, b = np.eye(3, dtype=int), np.eye(3, dtype=int)
    c = np.eye(3, dtype=int)
    c[1, 2] += 1
    keys = jax.random.split(KEY, 4000)

    @functools.partial(jax.jit, static_argnames=("p", "binary", "trials"))
    def share(p, binary, trials):
        def one(key):
            return vi.freivalds(key, a, b, c, modulus=p, binary=binary, trials=trials)

        return jax.vmap(one)(keys).mean()

    deviation = np.sqrt(0.25 / 4000)
    assert abs(share(P, True, 1) - 0.5) < 4 * deviation
    assert abs(share(P, True, 3) - 0.125) < 4 * deviation
    assert abs(share(13, False, 1) - 1 / 13) < 4 * np.sqrt(1 / 13 / 4000)


def test_the_sum_check_of_two_by_two_by_hand():
    """One variable: g(t) = A~(u, t) B~(t, w), with everything else on paper."""
    p = 101
    a, b = np.array([[1, 2], [3, 4]]), np.array([[0, 1], [2, 1]])
    u, w, r = 5, 7, 11
    rows = [int((1 - u) * a[0, t] + u * a[1, t]) for t in (0, 1)]
    columns = [int((1 - w) * b[t, 0] + w * b[t, 1]) for t in (0, 1)]
    at_two = (2 * rows[1] - rows[0]) * (2 * columns[1] - columns[0])
    wanted = [rows[0] * columns[0] % p, rows[1] * columns[1] % p, at_two % p]
    coins = vi.Challenges(*(jnp.array([one], jnp.uint32) for one in (u, w, r)))
    messages = vi.prove_product(a, b, coins, modulus=p)
    assert messages.tolist() == [wanted]
    c = a @ b
    claim = (
        (1 - u) * (1 - w) * c[0, 0]
        + (1 - u) * w * c[0, 1]
        + u * (1 - w) * c[1, 0]
        + u * w * c[1, 1]
    ) % p
    assert (wanted[0] + wanted[1]) % p == claim
    assert bool(vi.verify_product(a, b, c, messages, coins, modulus=p))
    end = ((1 - r) * rows[0] + r * rows[1]) * ((1 - r) * columns[0] + r * columns[1]) % p
    assert int(through_three(messages[0], jnp.uint32(r), p)) == end


def test_the_extension_is_the_matrix_at_its_indices():
    for place in range(5):
        bits = jnp.array([int(bit) for bit in f"{place:03b}"], jnp.uint32)
        assert lagrange(bits, 5, P).tolist() == [int(place == other) for other in range(5)]


@pytest.mark.slow
def test_every_tampered_message_is_refused():
    a, b, c = product()
    coins = vi.challenges(KEY, (6, 20, 9))
    messages = vi.prove_product(a, b, coins)
    assert messages.shape == (5, 3)
    verify = jax.jit(jax.vmap(lambda one: vi.verify_product(a, b, c, one, coins)))
    changes = jnp.eye(15, dtype=jnp.uint32).reshape(15, 5, 3)
    tampered = (messages + changes) % jnp.uint32(P)
    assert not bool(jnp.any(verify(tampered)))
    assert bool(verify(messages[None])[0])
    # An element of the field has one name.
    assert not bool(verify((messages + P * changes[:1])[:1])[0])


def test_a_prover_of_another_product_gets_through_as_often_as_the_bound_allows():
    """Modulo 101 with 2 v + a + c = 2 + 1 + 1: at most 4 / 101, and more than never."""
    a, b = np.array([[1, 2], [3, 0]]), np.array([[0, 1], [2, 1]])
    c = a @ b
    c[0, 0] += 1

    @jax.jit
    def share():
        def one(key):
            return vi.sum_check(key, a, b, c, modulus=101)

        return jax.vmap(one)(jax.random.split(KEY, 8000)).mean()

    assert 0 < float(share()) <= 4 / 101 + 4 * np.sqrt(4 / 101 / 8000)


@pytest.mark.slow
def test_a_product_over_one_index_needs_no_rounds():
    a, b = np.array([[3], [4]]), np.array([[5, 6, 7]])
    assert bool(vi.sum_check(KEY, a, b, a @ b))
    assert not bool(vi.sum_check(KEY, a, b, a @ b + 1))


def test_values_out_of_range_fail_the_lookup_whatever_the_counts():
    values = np.array([0, 3, 3, 7, 1])
    counts = vi.multiplicities(values, 8)
    assert counts.tolist() == [1, 1, 0, 2, 0, 0, 0, 1]
    assert bool(vi.verify_range(values, counts, 12345))
    for wrong in (8, -1, 5):
        assert not bool(vi.verify_range(np.array([0, 3, 3, 7, wrong]), counts, 12345))
    # A point of the table says nothing.
    assert not bool(vi.verify_range(values, counts, 3))


def test_merkle_paths_and_roots():
    leaves = [np.arange(n + 1) for n in range(5)]
    root = vi.merkle_root(leaves)
    for place, leaf in enumerate(leaves):
        path = vi.merkle_path(leaves, place)
        assert vi.merkle_member(root, leaf, path)
        assert not vi.merkle_member(root, leaf + 1, path)
        assert not vi.merkle_member(root, leaf.astype(np.int32), path)
    assert vi.merkle_root(leaves[::-1]) != root
    assert vi.merkle_root([np.zeros((2, 3))]) != vi.merkle_root([np.zeros((3, 2))])
    two = vi.merkle_root(leaves[:2])
    # An inner node is no leaf.
    assert not vi.merkle_member(vi.merkle_root(leaves[:4]), two, [])


@functools.cache
def network():
    rng = np.random.default_rng(3)
    widths = [8, 6, 4]
    layers = [
        (rng.normal(size=pair), rng.normal(size=pair[1])) for pair in itertools.pairwise(widths)
    ]
    inputs = rng.random((3, 8))
    return layers, inputs, vi.quantise(layers, inputs)


def test_a_quantised_network_is_the_real_one_up_to_its_bits():
    layers, inputs, quantised = network()
    (first, one), (second, two) = layers
    real = np.maximum(inputs @ first + one, 0) @ second + two
    errors = [
        np.abs(
            np.asarray(vi.quantised_apply(vi.quantise(layers, inputs, bits=bits), inputs)) - real
        ).max()
        for bits in (8, 12)
    ]
    assert errors[0] < 0.1 * np.abs(real).max()
    assert errors[1] < 0.2 * errors[0]
    whole = np.round(inputs * 2.0**quantised.input_bits).clip(-127, 127).astype(int)
    products = whole @ np.asarray(quantised.kernels[0]) + np.asarray(quantised.biases[0])
    shift = quantised.shifts[0]
    hidden = np.floor(products / 2**shift + 0.5).clip(0, 127).astype(int)
    last = hidden @ np.asarray(quantised.kernels[1]) + np.asarray(quantised.biases[1])
    assert np.array_equal(vi.quantised_apply(quantised, inputs), last * 2.0**-quantised.output_bits)


@pytest.mark.parametrize("lookups", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_proof_of_a_network_holds_and_no_altered_part_does(lookups):
    _, inputs, quantised = network()
    proof = vi.prove_inference(quantised, inputs, lookups=lookups)
    assert vi.verify_inference(quantised, proof)
    claim = vi.claim_of(quantised, proof)
    assert np.array_equal(claim.outputs, vi.quantised_apply(quantised, inputs))
    parts = _read(quantised, proof)
    for name, part in parts.items():
        if name in ("commitment", "lookups"):
            continue
        changed = part.copy()
        changed.reshape(-1)[part.size // 2] += 1
        file = io.BytesIO()
        np.savez_compressed(file, **parts | {name: changed})
        assert not vi.verify_inference(quantised, file.getvalue()), name


def test_a_proof_for_another_model_is_refused_by_name():
    layers, inputs, quantised = network()
    other = vi.quantise([(layers[0][0] + 0.1, layers[0][1]), layers[1]], inputs)
    proof = vi.prove_inference(quantised, inputs)
    with pytest.raises(vi.OtherModelError, match="proof must be about the commitment"):
        vi.verify_inference(other, proof)
    with pytest.raises(ValueError, match="proof must be one of prove_inference"):
        vi.verify_inference(quantised, proof[:50])


def test_provers_accept_right_outputs_and_refuse_others():
    _, inputs, quantised = network()
    outputs = vi.quantised_apply(quantised, inputs)
    real = vi.sum_check_prover(quantised, examples=3)
    proof = real.prove(real.model, inputs, outputs)
    assert real.verify(proof)
    assert 0 < real.soundness_error < 1e-7
    assert abs(len(proof) - real.proof_bytes) < 200
    with pytest.raises(ValueError, match="outputs must be"):
        real.prove(real.model, inputs, outputs + 1)
    other = vi.sum_check_prover(network()[2]._replace(input_bits=1), examples=3)
    assert not other.verify(proof)
    with pytest.raises(vi.OtherModelError):
        other.prove(real.model, inputs, outputs)


def test_a_mock_is_wrong_as_often_as_it_says():
    def apply(x):
        return 2.0 * x

    mock = vi.mock_prover(apply, bytes(32), soundness_error=0.25, proof_bytes=500)
    inputs = np.ones((1, 2), np.float32)
    proof = mock.prove(mock.model, inputs, apply(inputs))
    assert mock.verify(proof)
    assert len(proof) == 500
    passed = [mock.verify(mock.prove(mock.model, inputs, apply(inputs) + n)) for n in range(1, 401)]
    assert abs(np.mean(passed) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)
    assert not vi.mock_prover(apply, bytes(32)).verify(mock.prove(bytes(32), inputs, inputs))
    assert not vi.mock_prover(apply, bytes(32)).verify(b"nothing")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: vi.freivalds(KEY, [[1000]], [[1000]], [[1]], modulus=101),
            r"modulus must be above .* 21 bits",
        ),
        (lambda: vi.freivalds(KEY, [[1]], [[1]], [[1]], modulus=100), "modulus must be 2"),
        (lambda: vi.freivalds(KEY, [[1.5]], [[1]], [[1]]), "a must be integers"),
        (lambda: vi.freivalds(KEY, [[1]], [[1], [2]], [[1]]), "b must be"),
        (
            lambda: vi.verify_range([1], [1] * 120, 1, modulus=101),
            "modulus must be above the table",
        ),
        (
            lambda: vi.verify_product(
                [[1, 1]], [[1], [1]], [[2]], [[1, 1, 1]], vi.challenges(KEY, (1, 4, 1))
            ),
            "coins must be",
        ),
        (lambda: vi.quantise([(np.ones((4, 2)), np.ones(3))], np.ones((1, 4))), "bias must be"),
    ],
)
def test_bad_claims_are_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
