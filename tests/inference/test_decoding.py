"""Cached decoding beside the model without a cache: ragged prompts, chunks, prefixes, slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx
from dflax.inference import decoding

MODEL = dx.models.TransformerLM(17, length=150, width=16, depth=2, heads=2)
VOCABULARY = 17
SLOTS, ROOM = 4, 150
PROMPTS = np.array([130, 3, 64])
PLACES = jnp.array([2, 0, 3])
KEY = jax.random.key(3)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def params(model=MODEL):
    """Large enough that attention is far from uniform and positions matter."""
    made = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"]
    return jax.tree.map(
        lambda x, k: x + 0.2 * jax.random.normal(k, x.shape),
        made,
        jax.tree.unflatten(
            jax.tree.structure(made),
            list(jax.random.split(jax.random.key(2), len(jax.tree.leaves(made)))),
        ),
    )


@functools.cache
def whole(model=MODEL):
    held = params(model)
    return jax.jit(lambda tokens: model.apply({"params": held}, tokens))


@functools.cache
def served(chunk=None, model=MODEL, choose=None):
    return decoding.compiled(decoding.decoder(model, choose=choose, chunk=chunk))


@functools.cache
def prompts():
    return np.random.default_rng(0).integers(0, VOCABULARY, (3, int(PROMPTS.max())))


def cache(model=MODEL):
    return decoding.empty_cache(model, SLOTS, ROOM)


def uncached_logits(rows, lengths, model=MODEL):
    """Of the last token of each row, by the model that sees the whole row."""
    padded = np.zeros((len(rows), ROOM), int)
    padded[:, : rows.shape[1]] = rows
    return np.asarray(whole(model)(padded))[np.arange(len(rows)), lengths - 1]


@pytest.mark.parametrize("chunk", [None, pytest.param(32, marks=pytest.mark.slow), 50])
def test_prefill_of_ragged_prompts_is_the_model_without_a_cache(chunk):
    logits, filled = served(chunk).prefill(params(), cache(), PLACES, prompts(), PROMPTS)
    np.testing.assert_allclose(logits, uncached_logits(prompts(), PROMPTS), **TOLERANCE)
    assert filled.lengths.tolist() == [3, 0, 130, 64]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [{"scan_blocks": True}, {"tied": False}])
def test_stacked_blocks_and_an_untied_head_are_served_as_well(variant):
    model = MODEL.clone(**variant)
    logits, _ = served(None, model).prefill(params(model), cache(model), PLACES, prompts(), PROMPTS)
    np.testing.assert_allclose(logits, uncached_logits(prompts(), PROMPTS, model), **TOLERANCE)


def test_each_decoded_token_is_the_likeliest_of_the_whole_row():
    steps = 8
    made, filled = served().generate(params(), cache(), PLACES, prompts(), PROMPTS, KEY, steps)
    rows = np.zeros((3, ROOM), int)
    for row, length in enumerate(PROMPTS):
        rows[row, :length] = prompts()[row, :length]
        rows[row, length : length + steps] = made[row]
    logits = np.asarray(whole()(rows))
    for row, length in enumerate(PROMPTS):
        expected = logits[row, length - 1 : length - 1 + steps].argmax(-1)
        np.testing.assert_array_equal(made[row], expected)
    # The last token is said, and not yet seen.
    np.testing.assert_array_equal(filled.lengths[PLACES], PROMPTS + steps - 1)


def test_rows_stop_after_their_own_counts_and_where_their_slot_is_full():
    _, filled = served().prefill(params(), cache(), PLACES, prompts(), PROMPTS)
    counts = jnp.array([30, 2, 5])
    tokens = jnp.array([1, 2, 3])
    made, filled = served().decode(params(), filled, PLACES, tokens, counts, KEY, 30)
    np.testing.assert_array_equal(filled.lengths[PLACES], [150, 5, 69])
    assert len(set(np.asarray(made[1, 1:]))) == 1
    assert len(set(np.asarray(made[0, 19:]))) == 1


@pytest.mark.slow
def test_a_slot_joins_while_others_decode_and_neither_sees_the_other():
    """Continuous batching: what a slot says does not depend on who is beside it."""
    alone = [
        served().generate(
            params(), cache(), PLACES[i : i + 1], prompts()[i : i + 1], PROMPTS[i : i + 1], KEY, 8
        )[0][0]
        for i in range(2)
    ]
    model = served()
    logits, held = model.prefill(params(), cache(), PLACES[:1], prompts()[:1], PROMPTS[:1])
    first = jnp.argmax(logits, -1)
    said, held = model.decode(params(), held, PLACES[:1], first, jnp.array([3]), KEY, 3)
    logits, held = model.prefill(params(), held, PLACES[1:2], prompts()[1:2], PROMPTS[1:2])
    both = jnp.stack([said[0, -1], jnp.argmax(logits[0])])
    rest, _ = model.decode(params(), held, PLACES[:2], both, jnp.array([4, 7]), KEY, 7)
    np.testing.assert_array_equal(np.r_[first, said[0], rest[0, :4]], alone[0])
    np.testing.assert_array_equal(np.r_[both[1], rest[1]], alone[1])


@pytest.mark.slow
def test_a_shared_prefix_is_computed_once_and_copied():
    prefix, model = 70, served()
    whole_prompts = prompts()[:2].copy()
    whole_prompts[1, :prefix] = whole_prompts[0, :prefix]
    lengths = np.array([130, 75])
    expected = uncached_logits(whole_prompts, lengths)
    _, held = model.prefill(
        params(), cache(), jnp.array([1]), whole_prompts[:1, :prefix], np.array([prefix])
    )
    held = decoding.share_prefix(held, 1, jnp.array([0, 3]), prefix)
    rest = whole_prompts[:, prefix:]
    logits, held = model.prefill(params(), held, jnp.array([0, 3]), rest, lengths - prefix)
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
    assert held.lengths.tolist() == [130, 70, 0, 75]
    assert decoding.release(held, jnp.array([0])).lengths.tolist() == [0, 70, 0, 75]


def test_sampled_tokens_follow_the_softmax_and_the_key():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.7, 0.2, 0.1])), (20_000, 3))
    drawn = jax.jit(decoding.sampled(0.5))(KEY, logits)
    shares = np.bincount(drawn, minlength=3) / 20_000
    expected = np.array([0.49, 0.04, 0.01]) / 0.54
    assert np.abs(shares - expected).max() < 5 * 0.5 / np.sqrt(20_000)
    model = served(None, MODEL, decoding.sampled(2.0))
    draws = [
        np.asarray(
            model.generate(params(), cache(), PLACES, prompts(), PROMPTS, jax.random.key(k), 8)[0]
        )
        for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


@pytest.mark.slow
def test_a_batch_of_models_decodes_under_vmap():
    """Instances: each has parameters and a cache of its own."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), params(), jax.tree.map(jnp.sin, params()))
    caches = jax.tree.map(lambda x: jnp.stack([x, x]), cache())
    run = decoding.decoder(MODEL).prefill
    args = (PLACES, jnp.asarray(prompts()), jnp.asarray(PROMPTS))
    logits, _ = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None, None)))(stacked, caches, *args)
    np.testing.assert_allclose(logits[0], uncached_logits(prompts(), PROMPTS), **TOLERANCE)
    assert np.abs(np.asarray(logits[0] - logits[1])).max() > 0.1


@pytest.mark.parametrize("prefill", [served().prefill, decoding.decoder(MODEL).prefill])
def test_prompts_beyond_the_context_or_the_cache_are_refused_by_name(prefill):
    tokens = np.zeros((1, 151), int)
    with pytest.raises(ValueError, match=r"lengths .* 150 tokens of the model's context, got 151"):
        prefill(params(), cache(), jnp.array([0]), tokens, np.array([151]))
    small = decoding.empty_cache(MODEL, 2, 64)
    with pytest.raises(ValueError, match=r"lengths .* 64 tokens of the cache, got 65"):
        prefill(params(), small, jnp.array([0]), tokens[:, :65], np.array([65]))
    with pytest.raises(ValueError, match=r"slots must be different slots"):
        prefill(params(), small, jnp.array([0, 0]), tokens[:, :2].repeat(2, 0), np.array([1, 1]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"length .*in \[1, 150\]"):
        decoding.empty_cache(MODEL, 2, 151)
    with pytest.raises(ValueError, match=r"tokens .*The source holds no more"):
        decoding.share_prefix(cache(), 0, jnp.array([1]), 5)
    other = MODEL.clone(depth=3)
    with pytest.raises(ValueError, match="cache must have the model's layers"):
        decoding.decoder(MODEL).prefill(
            params(), cache(other), PLACES, np.zeros((3, 2), int), np.ones(3, int)
        )
    with pytest.raises(ValueError, match="mixture of experts"):
        decoding.decoder(MODEL.clone(mixture=dx.models.MoE(4)))
