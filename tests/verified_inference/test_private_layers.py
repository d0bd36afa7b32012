"""Secret shares, split execution and what it leaks, encrypted layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax import verified_inference as vi
from dflax.verified_inference.shares import truncated

KEY = jax.random.key(2)
RNG = np.random.default_rng(2)


@pytest.mark.parametrize("parties", [2, 5])
def test_shares_add_up_to_the_integers_exactly(parties):
    values = np.array([0, 1, -1, 2**31 - 1, -(2**31), 12345], np.int32)
    shares = vi.shared(KEY, values, parties=parties)
    assert shares.shape == (parties, 6)
    assert np.array_equal(vi.reconstructed(shares), values)


def test_each_share_alone_is_uniform_whatever_is_shared():
    """Chi-square of the upper byte over 65,536 shares of one constant."""
    shares = vi.shared(KEY, np.full(65_536, 7))
    for share in np.asarray(shares):
        counts = np.bincount(share >> 24, minlength=256)
        statistic = ((counts - 256) ** 2 / 256).sum()
        # 255 degrees: mean 255, deviation 22.6.
        assert abs(statistic - 255) < 4.5 * np.sqrt(2 * 255)


def test_truncation_is_wrong_by_one_unit_at_most():
    values = RNG.integers(-(2**19), 2**19, 20_000).astype(np.int32)
    found = np.asarray(vi.reconstructed(truncated(vi.shared(KEY, values), 8)))
    off = np.abs(found - values / 256)
    # 2^20 / 2^32: of 20,000 about five wrap.
    wrapped = off > 1
    assert wrapped.sum() <= 20
    assert np.all(off[~wrapped] <= 1)


def test_a_layer_on_shares_is_the_layer():
    kernel, bias = RNG.normal(size=(20, 5)) / 5, RNG.normal(size=5)
    inputs = RNG.normal(size=(30, 20))
    unit = 2.0**-10
    products = np.round(inputs / unit) @ np.round(kernel / unit)
    exact = np.floor(products * unit + 0.5) + np.round(bias / unit)
    found = np.asarray(vi.shared_linear(KEY, kernel, bias, inputs)) / unit
    assert np.array_equal(found, exact)
    off = np.abs(np.asarray(vi.shared_linear(KEY, kernel, bias, inputs, local=True)) / unit - exact)
    wrapped = off > 2
    # |y| 2^20 / 2^32 of 150 entries: about 0.04 expected.
    assert wrapped.sum() <= 1
    layers = [(kernel, bias), (RNG.normal(size=(5, 2)) / 3, np.zeros(2))]
    real = np.maximum(inputs @ kernel + bias, 0) @ layers[1][0]
    np.testing.assert_allclose(vi.shared_forward(KEY, layers, inputs), real, atol=10 * unit)
    with pytest.raises(ValueError, match="fraction must leave place"):
        vi.shared_linear(KEY, kernel * 100, bias, inputs, fraction=14)


def test_local_truncation_wraps_as_often_as_it_says():
    """Entries of 8 with 12 bits: 2^27 / 2^32, one in 32."""
    ones = np.ones((4000, 1))
    found = np.asarray(vi.shared_linear(KEY, [[8.0]], [0.0], ones, fraction=12, local=True))
    wrapped = np.abs(found - 8) > 0.01
    assert abs(wrapped.mean() - 1 / 32) < 4 * np.sqrt(1 / 32 / 4000)
    assert np.array_equal(vi.shared_linear(KEY, [[8.0]], [0.0], ones, fraction=12), 8 * ones)


@functools.cache
def trained():
    model = dx.models.MLP((8, 6), 3)
    inputs = RNG.normal(size=(200, 5)).astype(np.float32)
    return model, model.init(KEY, inputs)["params"], inputs


@pytest.mark.parametrize(
    "cut", [(1, 1), *(pytest.param(cut, marks=pytest.mark.slow) for cut in ((0, 0), (2, 0)))]
)
def test_a_split_model_is_the_model_bit_for_bit(cut):
    model, params, inputs = trained()
    split = dx.models.split_mlp(model, cut)
    parts = split.divide(params, KEY)
    scores, sent = jax.jit(vi.split_inference(split))(parts, inputs, KEY)
    whole = jax.jit(model.apply)({"params": params}, inputs)
    assert np.array_equal(scores, whole)
    assert np.array_equal(jax.jit(split.apply)(parts, inputs), whole)
    assert sent.shape == (200, [5, 8, 6, 3][cut[0]])
    assert sum(leaf.size for leaf in jax.tree.leaves(parts)) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


def test_noise_at_the_cut_has_the_deviation_that_is_asked_for():
    model, params, inputs = trained()
    split = dx.models.split_mlp(model, (1, 0))
    parts = split.divide(params, KEY)
    _, clean = vi.split_inference(split)(parts, inputs, KEY)
    _, noisy = jax.jit(lambda sigma: vi.split_inference(split, sigma=sigma)(parts, inputs, KEY))(
        0.5
    )
    np.testing.assert_allclose(jnp.std(noisy - clean), 0.5 * jnp.std(clean), rtol=0.06)


@pytest.mark.slow
def test_probes_find_what_is_there_and_nothing_where_nothing_is():
    x = RNG.normal(size=(400, 4)).astype(np.float32)
    through = x @ RNG.normal(size=(4, 6)) + 1.0
    ridge = vi.ridge_inverse(through[:200], x[:200], penalty=1e-6)
    assert vi.reconstruction_error(ridge(through[200:]), x[200:]) < 1e-3
    assert vi.reconstruction_error(np.broadcast_to(x.mean(0), x.shape), x) == pytest.approx(
        1, rel=1e-5
    )
    other = RNG.normal(size=(400, 6)).astype(np.float32)
    blind = vi.ridge_inverse(other[:200], x[:200], penalty=1e-3)
    assert vi.reconstruction_error(blind(other[200:]), x[200:]) > 0.9
    # What a linear probe cannot find and a network can.
    twisted = np.concatenate([np.abs(x), np.sign(x) * x**2], 1)[:, [0, 1, 2, 3]] * np.array(
        [1, 1, 1, 1]
    )
    assert vi.distance_correlation(x, x) == pytest.approx(1, rel=1e-4)
    assert vi.distance_correlation(x, twisted) > vi.distance_correlation(x, other)


@pytest.mark.slow
def test_a_network_finds_what_a_linear_probe_does_not():
    x = RNG.uniform(-1, 1, (300, 2)).astype(np.float32)
    h = np.stack([np.maximum(x[:, 0], 0), np.maximum(-x[:, 0], 0) ** 3, x[:, 1]], 1)
    ridge = vi.ridge_inverse(h, x)
    deep = jax.jit(lambda key: vi.mlp_inverse(key, h, x, width=32, steps=200, rate=2e-2)(h))(KEY)
    assert vi.reconstruction_error(deep, x) < 0.5 * vi.reconstruction_error(ridge(h), x)


def test_distance_correlation_is_its_definition():
    x, h = RNG.normal(size=(30, 3)), RNG.normal(size=(30, 2))
    h[:, 0] += x[:, 0]

    def centred(rows):
        d = np.linalg.norm(rows[:, None] - rows, axis=-1)
        return d - d.mean(0) - d.mean(1)[:, None] + d.mean()

    a, b = centred(x), centred(h)
    wanted = np.sqrt((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))
    np.testing.assert_allclose(vi.distance_correlation(x, h), wanted, rtol=1e-4)


@pytest.mark.slow
def test_encrypted_layers_are_the_layers():
    pytest.importorskip("tenseal", reason="homomorphic layers need tenseal (extra he)")
    kernel, bias = RNG.normal(size=(16, 5)), RNG.normal(size=5)
    x = RNG.normal(size=16)
    layer = vi.homomorphic_linear(kernel, bias)
    sent = layer.encrypt(x)
    assert layer.encrypt(x) != sent
    np.testing.assert_allclose(layer.decrypt(layer.evaluate(sent)), x @ kernel + bias, atol=1e-4)
    layers = [(kernel, bias), (RNG.normal(size=(5, 3)), np.zeros(3))]
    wanted = np.maximum(x @ kernel + bias, 0) @ layers[1][0]
    np.testing.assert_allclose(vi.homomorphic_forward(layers, x), wanted, atol=1e-4)


@pytest.mark.slow
def test_a_zero_knowledge_proof_is_verified_and_refused_after_one_altered_output():
    reason = "zero-knowledge proofs need ezkl and onnx (extra zk)"
    pytest.importorskip("ezkl", reason=reason)
    pytest.importorskip("onnx", reason=reason)
    import json

    layers = [
        (RNG.normal(size=(8, 6)) / 3, RNG.normal(size=6)),
        (RNG.normal(size=(6, 3)) / 3, np.zeros(3)),
    ]
    inputs = RNG.random((1, 8))
    outputs = np.maximum(inputs @ layers[0][0] + layers[0][1], 0) @ layers[1][0]
    prover = vi.zero_knowledge_prover(layers, inputs)
    proof = prover.prove(prover.model, inputs, outputs)
    assert prover.verify(proof)
    np.testing.assert_allclose(vi.proved_outputs(proof), outputs, atol=0.1)
    for place in (-1, 0):
        altered = json.loads(proof)
        word = altered["instances"][0][place]
        altered["instances"][0][place] = f"{int(word[:2], 16) ^ 1:02x}" + word[2:]
        assert not prover.verify(json.dumps(altered).encode())
    assert not prover.verify(b"nothing")
    with pytest.raises(ValueError, match="outputs must be"):
        prover.prove(prover.model, inputs, outputs + 1)
    with pytest.raises(vi.OtherModelError):
        prover.prove(bytes(32), inputs, outputs)
    other = vi.zero_knowledge_prover([(layers[0][0] + 0.5, layers[0][1]), layers[1]], inputs)
    assert not other.verify(proof)


@pytest.mark.parametrize(
    ("name", "extra", "call"),
    [
        ("tenseal", "he", lambda: vi.homomorphic_linear(np.ones((2, 2)), np.ones(2))),
        ("onnx", "zk", lambda: vi.onnx_bytes([(np.ones((2, 2)), np.ones(2))])),
        (
            "ezkl",
            "zk",
            lambda: vi.zero_knowledge_prover([(np.ones((2, 2)), np.ones(2))], np.ones((1, 2))),
        ),
    ],
)
def test_an_absent_package_is_named(name, extra, call, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}.*Install dflax\[{extra}\]"):
        call()
