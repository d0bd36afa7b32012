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
from planned import gallery

import dflax as dx
from dflax import profile
from dflax.clients import platform

ROOT = pathlib.Path(dx.__file__).parent
KEPT = ROOT.parent / ".cache" / "planned"
WHEELS = {"v5e": ("libtpu", "plan-tpu"), "H100": ("jax_plugins", "plan-gpu")}
MACHINES = ("v5e:2x4", "8xH100")
# Beside the models: counters, masks and metrics, which a TPU fills up to whole tiles.
SMALL = 8 << 10
# What needs more than 1.3 times state, data and a client, and why: see docs/pods.md.
MEMORY = {
    # A client sorts its weights and its gradients, and its masks travel as numbers.
    ("dispfl", "v5e:2x4"): 1.65,
}


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
    for path in (*sorted(ROOT.rglob("*.py")), pathlib.Path(gallery.__file__)):
        total.update(path.read_bytes())
    return total.hexdigest()[:24]


def found(name, where):
    """Bytes sent, least, peak, arguments and members of a round, kept from test run to test run."""
    mesh = machine(where)
    path = KEPT / f"{digest()} {name} {where.replace(':', '_')}.json"
    if not path.exists():
        case = gallery.case(name)
        cost = profile.round(case.algorithm, case.state, case.source, mesh=mesh)
        told = {
            "sent": cost.sent_bytes,
            "least": cost.least_sent_bytes,
            "peak": cost.peak_bytes,
            "arguments": cost.argument_bytes,
            "working": working_set(case, where, gallery.SOLVES.get(name, 0)),
            "large": [(c.kind, c.bytes) for c in cost.collectives if c.bytes > 1024],
        }
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
    return json.loads(path.read_text())


@functools.cache
def alone(where, solving):
    """What the work of a client, or of an event's two, needs: local solves, or else FedAvg's steps."""
    mesh = machine("v5e:1x1" if "v5e" in where else "1xH100")
    place = jax.NamedSharding(mesh, jax.P())
    if not solving:
        algorithm = gallery.NETWORKS["fedavg"](gallery.loss_of())
        state = jax.eval_shape(algorithm.init, gallery.KEY, gallery.params_of())
        return profile.round(algorithm, state, gallery.federation(1), mesh=mesh).temporary_bytes
    shapes = [(gallery.CONJUGATE,), (gallery.OWN, gallery.CONJUGATE), (gallery.OWN,)]
    y, inputs, labels = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for s in shapes)
    batch = dx.data.Batch(inputs, labels, None)
    with jax.set_mesh(mesh):
        solve = jax.jit(gallery.least_squares_conjugate).lower(y, batch).compile()
    return solving * solve.memory_analysis().temp_size_in_bytes


def working_set(case, where, solving=0):
    """What a client needs beside state and data: its work's own, its new state and its message."""
    one = alone(where, solving)
    own = sum(
        leaf.size * leaf.dtype.itemsize / gallery.N for leaf in jax.tree.leaves(case.state.clients)
    )
    server = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(case.state.server))
    return one + 2 * own + 2 * server


def test_the_gallery_has_every_method():
    made = {
        name
        for room in (dx.server, dx.decentralized)
        for name, value in vars(room).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation is dx.Algorithm
        and value.__name__ == name
    }
    frameworks = {"with_server", "adapt_then_combine", "combine_then_adapt"}
    methods = set(gallery.NAMES) - set(gallery.ROBUST)
    assert made - frameworks == {name.partition(",")[0] for name in methods}


@pytest.mark.slow
@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("name", gallery.NAMES)
def test_a_round_sends_the_least_and_needs_no_more_than_its_state_and_a_client(name, where):
    told = found(name, where)
    assert told["sent"] <= 1.06 * told["least"] + SMALL
    most = MEMORY.get((name, where), 1.3)
    assert told["peak"] <= most * (told["arguments"] + told["working"])


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
