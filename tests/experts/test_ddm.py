"""Decentralized diffusion: identities of the ensemble, rules, dispatch, training apart, doors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dflax as dx

X, G = dx.experts, dx.generative
KEY = jax.random.key(0)
K, D, B = 4, 3, 12
PATH = G.rectified()
RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(9, D)) * 1.5
OWNERS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 3])
NOISED = G.Noised(
    jnp.asarray(RNG.normal(size=(B, D)), jnp.float32), jnp.linspace(0.2, 1.0, B), None
)


def linear(params, noised):
    """A field that tells experts, samples and times apart."""
    return noised.x @ params["w"] + noised.time[:, None] * params["b"]


PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(K, D, D)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(K, D)), jnp.float32),
}
ROUTER = {"w": jnp.asarray(2 * RNG.normal(size=(D, K)), jnp.float32)}


def router(noised, key):
    return noised.x @ ROUTER["w"] + noised.time[:, None]


def told(rule, **options):
    return jax.jit(lambda n: X.ensemble(linear, PARAMS, router, rule, **options)(n, KEY))(NOISED)


@functools.cache
def values():
    """Every expert's velocity `[K, B, D]` and the router's probabilities `[B, K]`, by hand."""
    x, t = np.asarray(NOISED.x), np.asarray(NOISED.time)[:, None]
    each = np.stack([x @ w + t * b for w, b in zip(PARAMS["w"], PARAMS["b"], strict=True)])
    logits = x @ np.asarray(ROUTER["w"]) + t
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return each, shares


def by_hand(keep):
    each, shares = values()
    weights = np.where(keep, shares, 0)
    return np.einsum("bk,kbd->bd", weights / weights.sum(1, keepdims=True), each)


@pytest.mark.slow
@pytest.mark.parametrize("path", [G.rectified(), G.cosine()], ids=["rectified", "cosine"])
def test_experts_with_the_ideal_router_are_one_ideal_model(path):
    with jax.enable_x64():
        whole = G.mixture(MEANS, 0.0, np.arange(1.0, 10.0))
        seen = G.Noised(
            jnp.asarray(RNG.normal(size=(50, D))), jnp.asarray(RNG.uniform(0.05, 1, 50))
        )
        parts = jnp.stack([jnp.where(k == OWNERS, whole.weights, 0.0) for k in range(K)])

        def expert(weights, noised):
            return G.exact(whole._replace(weights=weights), path)(noised, KEY)

        def ideal(noised, key):
            return G.log_responsibilities(whole, OWNERS, K, path, noised)

        together = jax.jit(X.ensemble(expert, parts, ideal, X.full()))(seen, KEY)
        alone = jax.jit(G.exact(whole, path))(seen, KEY)
        np.testing.assert_allclose(together, alone, atol=1e-11)
    # At t = 1 the share of a cluster is its mass.
    ends = G.Noised(jnp.ones((2, D)), jnp.ones(2))
    masses = [np.arange(1.0, 10.0)[k == OWNERS].sum() / 45 for k in range(K)]
    whole = G.mixture(MEANS, 0.0, np.arange(1.0, 10.0))
    share = jnp.exp(G.log_responsibilities(whole, OWNERS, K, PATH, ends))
    np.testing.assert_allclose(share[0], masses, rtol=1e-5)


def test_rules_weigh_as_they_say():
    _, shares = values()
    ranks = np.argsort(np.argsort(-shares, axis=1), axis=1)
    before = np.stack([[row[row > p].sum() for p in row] for row in shares])
    np.testing.assert_allclose(told(X.full()), by_hand(shares >= 0), rtol=2e-4, atol=1e-5)
    for rule, keep in (
        (X.top(1), ranks < 1),
        (X.top(2), ranks < 2),
        (X.threshold(0.3), (shares >= 0.3) | (ranks == 0)),
        (X.nucleus(0.7), (before < 0.7) | (ranks == 0)),
    ):
        np.testing.assert_allclose(told(rule), by_hand(keep), rtol=2e-4, atol=1e-5)
    for rule in (X.top(K), X.threshold(0.0), X.nucleus(1.0)):
        np.testing.assert_allclose(told(rule), told(X.full()), rtol=1e-5, atol=1e-6)
    for rule in (X.threshold(1.0), X.nucleus(0.0)):
        np.testing.assert_allclose(told(rule), told(X.top(1)), rtol=1e-6)
    each, _ = values()
    labels = np.arange(B) % K
    wanted = each[labels, np.arange(B)]
    np.testing.assert_allclose(told(X.oracle(labels)), wanted, rtol=2e-4, atol=1e-5)
    found = X.ensemble(linear, PARAMS, None, X.oracle(labels))(NOISED, KEY)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-5)


def test_equal_shares_keep_the_first_experts():
    even = jnp.full((1, 4), 0.25)
    np.testing.assert_allclose(X.top(2).weigh(KEY, even), [[0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(X.nucleus(0.5).weigh(KEY, even), [[0.5, 0.5, 0, 0]])


def test_a_sampled_expert_has_the_full_rule_as_its_mean():
    rule = X.sampled()
    _, shares = values()
    drawn = jax.vmap(lambda key: rule.weigh(key, jnp.asarray(shares)))(jax.random.split(KEY, 4000))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), shares, atol=0.04)


def test_identical_experts_need_no_router_and_permuted_ones_no_names():
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), PARAMS)
    wanted = linear(jax.tree.map(lambda leaf: leaf[0], PARAMS), NOISED)
    for rule in (X.full(), X.top(1), X.sampled(), X.nucleus(0.5)):
        found = jax.jit(X.ensemble(linear, same, router, rule))(NOISED, KEY)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    turned = np.array([2, 0, 3, 1])
    moved = jax.tree.map(lambda leaf: leaf[turned], PARAMS)
    found = X.ensemble(linear, moved, lambda n, key: router(n, key)[:, turned], X.top(2))
    np.testing.assert_allclose(jax.jit(found)(NOISED, KEY), told(X.top(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.some(2)
@pytest.mark.parametrize("block", [1, 2, 5, 30])
@pytest.mark.parametrize("active", [1, 3])
def test_dispatch_gives_what_all_experts_give(block, active):
    found = told(X.top(active), block=block)
    np.testing.assert_allclose(found, told(X.top(active)), rtol=2e-4, atol=2e-5)


def test_dispatch_bears_a_router_that_sends_all_to_one():
    labels = np.full(B, 3)
    rule = X.oracle(labels)
    found = jax.jit(X.ensemble(linear, PARAMS, None, rule, block=4))(NOISED, KEY)
    np.testing.assert_allclose(found, values()[0][3], rtol=2e-4, atol=1e-5)


def test_a_router_without_doubts_makes_all_rules_the_oracle():
    labels = np.arange(B)[::-1] % K
    sure = jax.nn.one_hot(labels, K) * 1e4
    rules = (X.full(), X.top(2), X.nucleus(0.9), X.threshold(0.1), X.sampled())
    found = jax.jit(
        lambda n: [X.ensemble(linear, PARAMS, lambda n, key: sure, r)(n, KEY) for r in rules]
    )(NOISED)
    for one in found:
        np.testing.assert_allclose(one, values()[0][labels, np.arange(B)], rtol=2e-4, atol=1e-5)


def test_the_load_says_what_the_field_of_the_same_key_asks():
    each, shares = values()

    @jax.jit
    def found(noised):
        return {
            name: X.expert_load(router, rule, K, noised, KEY)
            for name, rule in (("top", X.top(2)), ("sampled", X.sampled()))
        }

    loads = found(NOISED)
    entropy = -(shares * np.log(shares)).sum(1).mean()
    keep = np.argsort(np.argsort(-shares, axis=1), axis=1) < 2
    weights = np.where(keep, shares, 0)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(loads["top"].entropy, entropy, rtol=1e-4)
    np.testing.assert_allclose(loads["top"].share, weights.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loads["top"].asked, keep.mean(0), rtol=1e-6)
    # Of a draw, the experts that were drawn are those whose velocity comes out.
    nearest = np.abs(np.asarray(told(X.sampled())) - each).sum(-1).argmin(0)
    counts = np.bincount(nearest, minlength=K) / B
    np.testing.assert_allclose(loads["sampled"].asked, counts, rtol=1e-6)
    without = X.expert_load(None, X.oracle(np.arange(B) % 2), K, NOISED, KEY)
    np.testing.assert_allclose(without.asked, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(without.entropy, np.log(K), rtol=1e-6)


def test_each_expert_may_be_guided():
    def conditioned(params, noised):
        return linear(params, noised) + noised.condition[:, None]

    seen = NOISED._replace(condition=jnp.arange(float(B)))
    field = X.ensemble(
        conditioned, PARAMS, router, X.top(1), each=lambda f: G.guided(f, 2.0, 9.0), block=4
    )
    wanted = told(X.top(1)) + (9 + 2 * (np.arange(B) - 9))[:, None]
    np.testing.assert_allclose(jax.jit(field)(seen, KEY), wanted, rtol=2e-4, atol=1e-4)


def test_dispatch_costs_little_more_than_one_expert():
    """Floating-point operations of a compiled step, against those of one expert on the batch."""
    from dflax.programs.arithmetic import operations

    model = dx.models.TimeMLP(64)
    noised = G.Noised(jnp.zeros((256, 16)), jnp.ones(256))
    small = dx.models.TimeMLP(8, outputs=K)
    one, routing = (jax.eval_shape(m.init, KEY, noised)["params"] for m in (model, small))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((K, *leaf.shape), leaf.dtype), one)

    def flops(field, *given):
        return operations(jax.make_jaxpr(lambda *p: field(*p)(noised, KEY))(*given))

    def by_router(params, routing, **options):
        return X.ensemble(model, params, G.field(small, routing), X.top(1), **options)

    alone = flops(lambda p: G.field(model, p), one)
    top = flops(functools.partial(by_router, block=16), params, routing)
    all_of_them = flops(by_router, params, routing)
    assert top < 1.3 * alone
    assert all_of_them > 3.9 * alone
    assert X.evaluations(256, K, 1, 16) == 304


DATA = dx.data.from_arrays(
    (MEANS[np.arange(90) % 9] + 0.1 * RNG.normal(size=(90, D))).astype(np.float32),
    np.arange(90) % 9,
    test_fraction=0.1,
)
MODEL = dx.models.TimeMLP(8, depth=2)
LABELS = OWNERS[np.asarray(DATA.labels)]
ONE = G.Noised(DATA.example, jnp.ones(1))
START = jax.jit(MODEL.init)(KEY, ONE)["params"]
LOSS = G.denoising(MODEL, PATH)
ALGORITHM = X.ddm(LOSS, optax.adam(1e-3), K, decay=0.9)


def source(**options):
    return X.apart(DATA, LABELS, batch_size=2 * K, **options)


@functools.cache
def trained(rounds=4):
    state = ALGORITHM.init(KEY, START)
    return dx.run(ALGORITHM, state, source(), rounds=rounds, key=KEY, progress=False)


@pytest.mark.slow
def test_each_expert_is_an_ordinary_optimiser_on_its_own_cluster():
    state, history = trained()
    assert history.metrics["loss"].shape == (4, K)
    assert all(
        set(LABELS[list(rows)]) == {k} for k, rows in enumerate(source().partition.as_lists())
    )
    # By hand, of the second expert.
    optimizer = optax.adam(1e-3)
    params, inner, average = START, optimizer.init(START), START

    @jax.jit
    def by_hand(params, inner, average, own, t):
        round = own.draw(KEY, t)
        work = jax.tree.map(lambda leaf: leaf[1], round.assignments)
        fetch_key, loss_key = jax.random.split(jax.random.fold_in(work.key, 0))
        batch = round.data.fetch(work.minibatches[0], fetch_key)
        slope = jax.grad(lambda p: LOSS(p, batch, loss_key)[0])(params)
        updates, inner = optimizer.update(slope, inner, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, params)
        return params, inner, average

    for t in range(4):
        params, inner, average = by_hand(params, inner, average, source(), jnp.int32(t))
    for found, wanted in ((state.clients.params, params), (state.clients.average, average)):
        for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours[1], right, rtol=2e-4, atol=2e-6)


@pytest.mark.slow
def test_one_expert_is_the_monolith():
    alone = X.ddm(LOSS, optax.adam(1e-3), 1, decay=0.9)
    whole = X.apart(DATA, np.zeros_like(LABELS), batch_size=8)
    state, _ = dx.run(alone, alone.init(KEY, START), whole, rounds=3, key=KEY, progress=False)
    plain = dx.decentralized.dpsgd(LOSS, optax.adam(1e-3), dx.gossip.identity(1))
    other, _ = dx.run(plain, plain.init(KEY, START), whole, rounds=3, key=KEY, progress=False)
    for ours, theirs in zip(
        jax.tree.leaves(state.clients.params), jax.tree.leaves(other.clients.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def dealt(algorithm, state, own):
    """The compiled step of eight experts on as many devices."""
    layout = dx.mesh.state_sharding(state, dx.client_mesh())
    place = jax.NamedSharding(dx.client_mesh(), jax.P())
    with jax.set_mesh(dx.client_mesh()):
        step = jax.jit(
            lambda s, source, key, t: algorithm.step(s, source.draw(key, t)),
            in_shardings=(layout, place, place, place),
            out_shardings=(layout, None),
        )
        given = jax.eval_shape(lambda *a: a, state, own, KEY, jnp.int32(0))
        return step.lower(*given).compile()


def assert_the_same_rounds(algorithm, state, own, program, name):
    """Three rounds on eight devices, step by step, and of `dx.run` on one."""
    alone, history = dx.run(algorithm, state, own, rounds=3, key=KEY, progress=False)
    assert len(jax.tree.leaves(program.input_shardings[0][0].clients)[0].device_set) == 8
    for t in range(3):
        given = jax.device_put((state, own, KEY, jnp.int32(t)), program.input_shardings[0])
        state, metrics = program(*given)
        np.testing.assert_allclose(metrics[name], history.metrics[name][t], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_train_what_one_does_and_exchange_nothing():
    labels = np.arange(len(LABELS)) % 8
    algorithm = X.ddm(LOSS, optax.adam(1e-3), 8, decay=0.9)
    given = algorithm, algorithm.init(KEY, START), X.apart(DATA, labels, batch_size=16)
    program = dealt(*given)
    assert dx.profile.collectives(program) == []
    assert_the_same_rounds(*given, program, "loss")


def test_sampling_with_dealt_experts_sums_one_array_of_the_samples_size():
    mesh = dx.client_mesh()
    params = jax.tree.map(lambda leaf: jnp.concatenate([leaf, -leaf]), PARAMS)
    both = jnp.concatenate([ROUTER["w"], ROUTER["w"]], axis=1)

    def velocity(params, noised):
        return X.ensemble(linear, params, lambda n, key: n.x @ both, X.full())(noised, KEY)

    with jax.set_mesh(mesh):
        dealt = jax.NamedSharding(mesh, jax.P("clients"))
        place = jax.NamedSharding(mesh, jax.P())
        program = (
            jax.jit(velocity, in_shardings=(dealt, place), out_shardings=place)
            .lower(params, NOISED)
            .compile()
        )
        found = program(jax.device_put(params, dealt), jax.device_put(NOISED, place))
    np.testing.assert_allclose(found, velocity(params, NOISED), rtol=1e-4, atol=1e-5)
    exchanged = dx.profile.collectives(program)
    assert [c.kind for c in exchanged] == ["all-reduce"]
    assert exchanged[0].bytes == B * D * 4


@pytest.mark.slow
def test_runs_resume_bit_for_bit(tmp_path):
    state, _ = trained()
    options = {"key": KEY, "progress": False, "checkpoint": tmp_path / "it"}
    dx.run(ALGORITHM, ALGORITHM.init(KEY, START), source(), rounds=2, **options)
    resumed, _ = dx.run(ALGORITHM, ALGORITHM.init(KEY, START), source(), rounds=4, **options)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_decay_drop_and_eta_can_be_swept():
    @jax.jit
    def swept(decays, drops, etas, own):
        def one(decay, drop, eta):
            def model(params, noised):
                return linear(params, noised) + noised.condition[:, None]

            loss = G.denoising(model, PATH, conditional=True, null=9, drop=drop)
            algorithm = X.ddm(loss, optax.sgd(0.01), K, decay=decay)
            start = jax.tree.map(lambda leaf: leaf[0], PARAMS)
            state, _ = dx.rollout(algorithm, algorithm.init(KEY, start), own, KEY, 2)
            field = X.ensemble(linear, state.clients.average, router, X.nucleus(eta / 2))
            step = G.ddim(PATH, eta=eta)
            return G.sample(field, step, jnp.ones((2, D)), G.grid(3), KEY)

        return jax.vmap(one)(decays, drops, etas)

    values = jnp.array([[0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.2, 0.2, 1.0]])
    found = swept(*values, source())
    assert found.shape == (3, 2, D)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-4
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_the_student_learns_the_whole_ensemble():
    """Teachers that are constants: the best student says sum_k P(c = k | x_t) v_k."""
    constant = {"v": jnp.arange(float(K))[:, None] * jnp.ones((K, D))}

    def teacher(params, noised):
        return jnp.broadcast_to(params["v"], noised.x.shape)

    algorithm = X.distillation(teacher, teacher, PATH, optax.sgd(0.5), K, decay=0.0)
    state = algorithm.init(KEY, {"v": jnp.zeros(D)}, constant)
    state, history = dx.run(algorithm, state, source(), rounds=200, key=KEY, progress=False)
    masses = np.bincount(LABELS) / len(LABELS)
    np.testing.assert_allclose(state.server.average["v"], masses @ np.arange(K), rtol=1e-4)
    spread = masses @ np.arange(K) ** 2 - (masses @ np.arange(K)) ** 2
    np.testing.assert_allclose(history.metrics["loss"][-1], spread, rtol=1e-4)
    for kept, given in zip(jax.tree.leaves(state.clients), jax.tree.leaves(constant), strict=True):
        np.testing.assert_array_equal(kept, given)


@pytest.mark.slow
def test_eight_devices_teach_what_one_does():
    """A round's only exchange is the student's gradient, its loss and the weights' sum."""
    teachers = jax.tree.map(lambda leaf: jnp.concatenate([leaf, -leaf]), PARAMS)
    algorithm = X.distillation(linear, linear, PATH, optax.adam(0.1), 8, decay=0.5)
    start = jax.tree.map(lambda leaf: leaf[0], PARAMS)
    own = X.apart(DATA, np.arange(len(LABELS)) % 8, batch_size=16)
    given = algorithm, algorithm.init(KEY, start, teachers), own
    program = dealt(*given)
    exchanged = dx.profile.collectives(program)
    assert {c.kind for c in exchanged} == {"all-reduce"}
    assert sum(c.bytes for c in exchanged) <= 4 * (D * D + D + 1 + 8 + 1)
    assert_the_same_rounds(*given, program, "loss")


@pytest.mark.slow
def test_the_router_can_be_trained_by_fedavg():
    import dataclasses

    data = dataclasses.replace(DATA.train, labels=jnp.asarray(LABELS, jnp.int32), classes=K)
    model = dx.models.TimeMLP(16, depth=1, outputs=K)
    loss = X.routing(model, PATH, times=G.uniform(0.0, 0.3))
    algorithm = dx.server.fedavg(loss, optax.adam(0.02))
    own = dx.Federation(
        data, dx.data.iid(LABELS, 3), batch_size=27, local_steps=5, replacement=True
    )
    params = jax.jit(model.init)(KEY, ONE)["params"]
    start = algorithm.init(KEY, params)
    state, _ = dx.run(algorithm, start, own, rounds=20, key=KEY, progress=False)
    every = data.fetch(jnp.arange(len(data)))
    assert loss(state.server.params, every)[1]["accuracy"] > 0.9


def test_clusters_are_k_means_and_know_other_examples():
    groups = RNG.permutation(np.repeat(np.arange(3), 20))
    features = np.array([[0, 0], [5, 0], [0, 5]])[groups] + 0.1 * RNG.normal(size=(60, 2))
    for fine in (None, 9):
        found = X.clusters(features, 3, seed=1, fine=fine)
        pairs = {(int(a), int(b)) for a, b in zip(groups, found.labels, strict=True)}
        assert len(pairs) == 3
        np.testing.assert_array_equal(found.assign(features), found.labels)
        assert found.labels.dtype == np.int32


def mismatched():
    other = X.ddm(LOSS, optax.sgd(0.1), 3)
    return other.step(ALGORITHM.init(KEY, START), source().draw(KEY, 0))


def asked(router, rule, **options):
    return X.ensemble(linear, PARAMS, router, rule, **options)(NOISED, KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: X.apart(DATA, LABELS, batch_size=8, experts=5), "none for cluster 4 of 5"),
        (lambda: X.apart(DATA, LABELS, batch_size=10), "batch_size must be divisible by .* 4"),
        (lambda: X.clusters(np.zeros((5, 2)), 2), "features must have at least 2 different"),
        (lambda: mismatched(), "experts must be the federation's"),
        (
            lambda: X.ddm(LOSS, optax.sgd(0.1), 3, independent=True).init(KEY, PARAMS),
            "params must have a leading axis",
        ),
        (lambda: asked(lambda n, key: jnp.ones((B, 3)), X.full()), "router must give logits"),
        (lambda: asked(router, X.top(5)), "k must be at most"),
        (lambda: asked(router, X.full(), block=2), "block must be None"),
        (lambda: asked(router, X.oracle(np.zeros(3, int))), "labels must be one for each"),
    ],
)
def test_doors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
