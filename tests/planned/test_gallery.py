"""What rounds need and send on machines that are not here, compiled by their own compilers."""

import functools
import hashlib
import importlib.util
import inspect
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planned import gallery, others, private, swarms

import dflax as dx
from dflax import decentralized, profile, server
from dflax.clients import platform
from dflax.programs.in_place import map_in_place

ROOT = pathlib.Path(dx.__file__).parent
KEPT = ROOT.parent / ".cache" / "planned"
WHEELS = {"v5e": ("libtpu", "plan-tpu"), "H100": ("jax_plugins", "plan-gpu")}
MACHINES = ("v5e:2x4", "8xH100")
# Beside the models: counters, masks and metrics, which a TPU fills up to whole tiles.
SMALL = 8 << 10
# Of small models, which lie in a TPU's own memory on the chip, programs need about as much whatever
# the size of the models: scratch, beside which 1.3 times cannot be seen.
SCRATCH = {"v5e:2x4": 768 << 10, "8xH100": 0}
# Hidden units with which a model, 205 MB, is larger than that memory, and what is compiled with them.
LARGE = 1 << 16
OF_LARGE_MODELS = (
    "fedavg",
    "fedavg, geometric median",
    "krum",
    "dispfl",
    "dfedadmm",
    "dfedavg, random neighbours",
    "modest",
)


def machine(name, **options):
    """A planned mesh; skips, naming the extra, where its compiler is not installed."""
    wheel, extra = next(found for kind, found in WHEELS.items() if kind in name)
    if importlib.util.find_spec(wheel) is None:
        pytest.skip(f"needs {wheel}: pip install 'dflax[{extra}]'")
    return dx.mesh.planned(name, **options)


@functools.cache
def digest():
    """Of everything that what is found depends on."""
    total = hashlib.sha256(f"{jax.__version__}".encode())
    own = (pathlib.Path(m.__file__) for m in (gallery, others, private, swarms))
    for path in (*sorted(ROOT.rglob("*.py")), *own):
        total.update(path.read_bytes())
    return total.hexdigest()[:24]


def found(name, where, hidden=gallery.HIDDEN):
    """Bytes sent, least, peak, arguments and members of a round, kept from test run to test run."""
    mesh = machine(where)
    path = KEPT / f"{digest()} {name} {hidden} {where.replace(':', '_')}.json"
    if not path.exists():
        case = gallery.case(name, hidden)
        cost = profile.round(case.algorithm, case.state, case.source, mesh=mesh)
        told = {
            "sent": cost.sent_bytes,
            "least": cost.least_sent_bytes,
            "peak": cost.peak_bytes,
            "arguments": cost.argument_bytes,
            "working": working_set(name, case, where, hidden),
            "large": [(c.kind, c.bytes) for c in cost.collectives if c.bytes > 1024],
        }
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
    return json.loads(path.read_text())


@functools.cache
def alone(name, where, hidden):
    """What the work of a client needs, or of an event's two: a local solve, or a method's own steps."""
    mesh = machine("v5e:1x1" if "v5e" in where else "1xH100")
    if name == "sfprompt":
        algorithm, source, state = others.in_parts(1)
        return profile.round(algorithm, state, source, mesh=mesh).temporary_bytes
    if name in swarms.METHODS:
        # An eighth of what all robots need together on one device; matchings of a few at a time.
        algorithm, source, state = swarms.case(name)
        share = profile.round(algorithm, state, source, mesh=mesh).temporary_bytes / gallery.N
        return share + (swarms.matching(mesh) if name == "dbp" else 0)
    if name not in gallery.SOLVES:
        method = gallery.ALONE.get(name, gallery.NETWORKS["fedavg"])
        algorithm = method(gallery.loss_of(hidden))
        state = jax.eval_shape(algorithm.init, gallery.KEY, gallery.params_of(hidden))
        source = gallery.federation(1, steps=gallery.steps_of(name))
        return profile.round(algorithm, state, source, mesh=mesh).temporary_bytes
    place = jax.NamedSharding(mesh, jax.P())
    shapes = [(gallery.CONJUGATE,), (gallery.OWN, gallery.CONJUGATE), (gallery.OWN,)]
    y, inputs, labels = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for s in shapes)
    with jax.set_mesh(mesh):
        solve = jax.jit(gallery.least_squares_conjugate)
        program = solve.lower(y, dx.data.Batch(inputs, labels, None)).compile()
    return gallery.SOLVES[name] * program.memory_analysis().temp_size_in_bytes


def working_set(name, case, where, hidden=gallery.HIDDEN):
    """What a client needs beside state and data: its work's own, its new state and its message."""
    itself = {*gallery.ALONE, *gallery.SOLVES, *swarms.METHODS, "sfprompt"}
    one = alone(name if name in itself else "", where, hidden)
    own = sum(
        leaf.size * leaf.dtype.itemsize / gallery.N for leaf in jax.tree.leaves(case.state.clients)
    )
    server = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(case.state.server))
    return one + 2 * own + 2 * server


FRAMEWORKS = {
    *("with_server", "adapt_then_combine", "combine_then_adapt"),
    *("client_momentum", "expectation_maximisation"),
}
# Whose rounds have scenes in the place of models: tests/robots/planning compiles them for such machines.
OF_SCENES = {"cpto", "driving"}


def test_the_gallery_has_every_method():
    made = {
        name
        for room in (dx.server, dx.decentralized, dx.asynchronous, dx.recipes, dx.robots)
        for name, value in vars(room).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation is dx.Algorithm
        and value.__name__ == name
    }
    methods = set(gallery.NAMES) - set(gallery.ROBUST)
    assert made - FRAMEWORKS - OF_SCENES == {name.partition(",")[0] for name in methods}


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("name", gallery.NAMES)
def test_a_round_sends_the_least_and_needs_no_more_than_its_state_and_a_client(name, where):
    told = found(name, where)
    assert told["sent"] <= 1.06 * told["least"] + SMALL
    assert told["peak"] <= 1.3 * (told["arguments"] + told["working"]) + SCRATCH[where]


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("name", OF_LARGE_MODELS)
def test_a_round_of_large_models_needs_no_more_either(name, where):
    told = found(name, where, LARGE)
    assert told["sent"] <= 1.06 * told["least"] + SMALL
    assert told["peak"] <= 1.3 * (told["arguments"] + told["working"])


# Models that one client's work holds at a time.
WORK = {"fedavg": 3.1, "scaffold": 7.7, "dfedadmm": 4.1}
IN_TURN = {
    "fedavg": lambda loss, n: server.fedavg(loss, gallery.SGD, at_once=1),
    "scaffold": lambda loss, n: server.scaffold(loss, gallery.SGD, n, at_once=1),
    "dfedadmm": lambda loss, n: decentralized.dfedadmm(
        loss, gallery.SGD, dx.gossip.ring(n), at_once=1
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("name", IN_TURN)
def test_clients_in_turn_hold_their_state_and_the_work_of_one(name, where):
    """New rows lie where old ones did, and messages are added up as they come."""
    mesh, clients = machine(where), 64
    network = dx.models.MLP(features=(1024, 1024, 1024), classes=10)
    params = jax.eval_shape(network.init, gallery.KEY, jnp.zeros((1, gallery.FEATURES)))["params"]
    loss = dx.losses.classification(network.apply)
    algorithm = IN_TURN[name](loss, clients)
    state = jax.eval_shape(algorithm.init, gallery.KEY, params)
    source = dx.data.deal(gallery.federation(clients), mesh)
    cost = profile.round(algorithm, state, source, mesh=mesh)
    model, all_clients, of_server = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (params, state.clients, state.server)
    )
    held = all_clients / 8 + of_server
    # A GPU has no memory of its own for one client's model, gradients and message.
    work = {"v5e:2x4": 0.25, "8xH100": WORK[name]}[where] * model
    assert cost.peak_bytes <= 1.02 * held + work + (1 << 18)
    if name == "dfedadmm":
        assert cost.peak_bytes <= 1.3 * held
    assert cost.sent_bytes <= 1.06 * cost.least_sent_bytes + SMALL


@pytest.mark.slow
@pytest.mark.parametrize("where", ["v5e:1x1", "1xH100"])
def test_a_stack_of_kernels_is_copied_to_no_other_layout(where):
    mesh, count, width = machine(where), 32, 128
    place = jax.NamedSharding(mesh, jax.P())
    stack = jax.ShapeDtypeStruct((count, 3, 3, width, width), jnp.float32, sharding=place)
    images = jax.ShapeDtypeStruct((4, 8, 8, width), jnp.float32, sharding=place)

    def trained(kernels, images):
        def loss(kernel):
            layout = ("NHWC", "HWIO", "NHWC")
            out = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=layout
            )
            return jnp.mean(out**2)

        return map_in_place(lambda kernel: kernel - 0.1 * jax.grad(loss)(kernel), kernels)

    with jax.set_mesh(mesh):
        program = jax.jit(trained, donate_argnums=0).lower(stack, images).compile()
    of_all = 4 * count * 9 * width**2
    assert program.memory_analysis().temp_size_in_bytes <= of_all / 2


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_a_fedavg_round_is_one_all_reduce_of_the_model(where):
    model = 4 * sum(leaf.size for leaf in jax.tree.leaves(gallery.params_of()))
    ((kind, bytes),) = found("fedavg", where)["large"]
    assert kind == "all-reduce"
    assert model <= bytes <= model + 64


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("rows", [32, 256])
def test_a_median_is_compiled_in_seconds(rows, where):
    mesh = machine(where)
    values = jax.ShapeDtypeStruct(
        (rows, 5000), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P())
    )
    with jax.set_mesh(mesh):
        text = jax.jit(dx.aggregation.median_rows).lower(values).compile().as_text()
    # A network of comparators is one operation each; a sort is one for all.
    assert (" sort(" in text or "Sort" in text) == (rows > 32)


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_models_shared_by_two_devices_and_dealt_data(where):
    whole, half = machine(where), machine(where, model=2)
    case = gallery.case("scaffold")
    alone = profile.round(case.algorithm, case.state, case.source, mesh=whole)
    both = profile.round(case.algorithm, case.state, case.source, mesh=half)
    assert half.shape == {"clients": 4, "model": 2}
    assert both.devices == 8
    between = both.sent_bytes - both.sent_within_models
    assert 0 < both.least_sent_bytes <= between <= 1.06 * both.least_sent_bytes + SMALL
    # Half of every model, of twice as many clients.
    assert both.argument_bytes <= 1.1 * alone.argument_bytes
    source = gallery.federation(gallery.N)
    dealt = dx.data.deal(source, whole)
    shapes = jax.tree.leaves(dealt.data.inputs)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes)
    spread = profile.round(case.algorithm, case.state, dealt, mesh=whole)
    saved = alone.argument_bytes - spread.argument_bytes
    examples = source.data.inputs.nbytes
    assert saved >= 0.8 * examples * 7 / 8
    assert spread.sent_bytes <= alone.sent_bytes + SMALL


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_shared_models_without_structure_are_dealt_in_parts(where):
    case, mesh = gallery.case("dfedavg, random neighbours"), machine(where, model=2)
    cost = profile.round(case.algorithm, case.state, case.source, mesh=mesh)
    between = cost.sent_bytes - cost.sent_within_models
    assert between <= 1.06 * cost.least_sent_bytes + SMALL


@pytest.mark.slow
@pytest.mark.parametrize(("where", "share"), [("v5e:2x4", 0.55), ("8xH100", 0.35)])
def test_layers_of_a_cnn_send_less_for_split_minibatches(where, share):
    mesh, clients, batch = machine(where, model=2), 8, 32
    network = dx.models.CNN(classes=10)
    images = jnp.zeros((clients * batch, 28, 28, 1), jnp.uint8)
    data = dx.data.Dataset(images, jnp.zeros(len(images), jnp.int32), classes=10)
    owned = np.arange(len(images)).reshape(clients, batch)
    source = dx.Federation(
        data, dx.data.from_indices(owned.tolist()), local_steps=2, batch_size=batch
    )
    params = jax.eval_shape(network.init, gallery.KEY, jnp.zeros((1, 28, 28, 1)))["params"]
    sent = []
    for loss in (lambda loss: loss, dx.losses.split_batch):
        told = loss(dx.losses.classification(network.apply))
        algorithm = server.fedavg(told, gallery.SGD, at_once=1)
        state = jax.eval_shape(algorithm.init, gallery.KEY, params)
        cost = profile.round(algorithm, state, source, mesh=mesh)
        between = cost.sent_bytes - cost.sent_within_models
        assert between <= 1.06 * cost.least_sent_bytes + SMALL
        sent.append(cost.sent_within_models)
    assert 0 < sent[1] <= share * sent[0]


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_what_does_not_fit_is_refused_with_both_numbers(where):
    mesh = machine(where)
    algorithm = dx.decentralized.dfedavg(
        lambda params, batch, key: (params.sum(), {}), optax.sgd(0.1), dx.gossip.ring(8)
    )
    vast = jax.ShapeDtypeStruct((1 << 35,), jnp.float32)
    state = jax.eval_shape(algorithm.init, gallery.KEY, vast)
    with pytest.raises(
        profile.TooLargeError, match=r"a round needs .* GiB .* which has .* GiB"
    ) as e:
        profile.round(algorithm, state, gallery.federation(8), mesh=mesh)
    assert e.value.needed >= 128 << 30 > e.value.available


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_a_plan_says_whom_it_pads_and_what_the_machine_is(where):
    mesh = machine(where)
    algorithm = gallery.NETWORKS["fedavg"](gallery.loss_of())
    state = jax.eval_shape(algorithm.init, gallery.KEY, gallery.params_of())
    cost = profile.round(algorithm, state, gallery.federation(5), mesh=mesh)
    assert (cost.members, cost.places) == (5, 8)
    assert "5, padded to 8: 3 are computed for nothing" in str(cost)
    assert mesh.devices.flat[0].device_kind in str(cost)
    assert (cost.estimated_seconds is not None) == ("v5e" in where)
    rounds = profile.run(algorithm, state, gallery.federation(8), mesh=mesh)
    assert rounds.peak_bytes < 2 * cost.peak_bytes + (8 << 20)
    assert rounds.sent_bytes <= cost.sent_bytes + SMALL


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
def test_choices_follow_the_machine_and_nothing_is_run_there(where, tmp_path):
    mesh = machine(where)
    with jax.set_mesh(mesh):
        assert platform() == {"v5e:2x4": "tpu", "8xH100": "gpu"}[where]
    assert platform() == jax.default_backend()
    algorithm = gallery.NETWORKS["fedavg"](gallery.loss_of())
    state = algorithm.init(
        gallery.KEY, gallery.network().init(gallery.KEY, np.ones((1, 784)))["params"]
    )
    source = gallery.federation(8)
    with pytest.raises(ValueError, match="mesh must be of devices of this machine"):
        dx.run(algorithm, state, source, rounds=1, key=gallery.KEY, mesh=mesh)
    with pytest.raises(ValueError, match="layout must be of devices of this machine"):
        dx.mesh.shard(state, mesh)
    with pytest.raises(ValueError, match="measured_rounds must be 0 on a mesh"):
        profile.round(algorithm, state, source, mesh=mesh, measured_rounds=1)
    dx.plan.save(tmp_path / "it", algorithm, state, source, rounds=2, mesh=mesh)
    with pytest.raises(ValueError, match=r"mesh must be of 8 devices of platform .*got"):
        dx.plan.load(tmp_path / "it")
    with pytest.raises(ValueError, match="model must be an integer"):
        dx.mesh.planned(where, model=16)
