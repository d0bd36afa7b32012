import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tasks import half_square, quadratics

import dflax as dx
from dflax import profile
from dflax.programs.collectives import KINDS, estimated_cycles

KEY = jax.random.key(0)

# Written by hand after what XLA prints for CPUs, GPUs and TPUs.
PROGRAM = """HloModule jit_round, is_scheduled=true, replica_count=1, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %carry = (s32[], f32[4]{0}) parameter(0)
  %shifted = bf16[2,3]{1,0:T(8,128)(2,1)} collective-permute(%rows), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, metadata={op_name="jit(round)/roll"}
  ROOT %out = (s32[], f32[4]{0}) tuple(%count, %shifted)
}

%more (carry: (s32[], f32[4])) -> pred[] {
  ROOT %go = pred[] all-reduce(%less), replica_groups={}, to_apply=%add
}

%outer (carry: (s32[], f32[4])) -> (s32[], f32[4]) {
  %twice = (s32[], f32[4]{0}) while(%start), condition=%more, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %part = f32[2]{0} reduce-scatter(%twice), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}

%taken (p: f32[8]) -> f32[8] {
  ROOT %heard = f32[8]{0} collective-broadcast(%p), replica_groups={{0,1,2,3,4,5,6,7}}
}

%skipped (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}

%wrapped_all_to_all (p: s8[8,2]) -> s8[8,2] {
  ROOT %dealt = s8[8,2]{1,0} all-to-all(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (a: f32[8,64], b: pred[]) -> f32[64] {
  %a = f32[8,64]{1,0} parameter(0), metadata={op_name="all-reduce(x) is only a name"}
  %sums = (f32[64]{0}, /*index=1*/pred[]) all-reduce(%a, %b), channel_id=2, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add, metadata={op_name="jit(round)/mean" stack_frame_id=3}
  %known = (s32[], f32[4]{0}) while(%init), condition=%skipped, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %unknown = (s32[], f32[4]{0}) while(%init), condition=%skipped, body=%inner
  %choice = f32[8]{0} conditional(%b, %p, %p), branch_computations={%taken, %skipped}
  %begun = (f32[1,64]{1,0}, f32[8,64]{1,0}) all-gather-start(%row), replica_groups=mesh['d'=4,'m'=8] {'m':(2)4}, dimensions={0}
  %done = f32[8,64]{1,0} all-gather-done(%begun)
  %sent = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%v), source_target_pairs={{1,7}}
  %arrived = f32[4]{0} collective-permute-done(%sent)
  %adding = (f32[16]{0}, f32[3]{0}) all-reduce-start(%v, %w), replica_groups={{0,1}}, to_apply=%add
  %added = (f32[16]{0}, f32[3]{0}) all-reduce-done(%adding)
  %dealing = ((s8[8,2]{1,0}), s8[8,2]{1,0}, s32[]) async-start(%q), calls=%wrapped_all_to_all
  %scattering = ((f32[8]{0}, f32[16]{0}), (f32[4]{0}, f32[8]{0}), u32[]) reduce-scatter-start(%v, %w), replica_groups={{0,1}}, to_apply=%add
  ROOT %all = f32[64]{0} get-tuple-element(%sums), index=0
}
"""  # noqa: E501


def test_a_program_is_read_whole():
    found = [
        (c.kind, c.shapes, c.dtypes, c.bytes, c.devices, c.in_loop, c.times)
        for c in profile.collectives(PROGRAM)
    ]
    assert found == [
        ("all-reduce", ((64,), ()), ("f32", "pred"), 257, 8, False, 1),
        ("all-reduce", ((),), ("pred",), 1, 8, True, 15),
        ("collective-permute", ((2, 3),), ("bf16",), 12, 4, True, 15),
        ("reduce-scatter", ((2,),), ("f32",), 32, 4, True, 3),
        ("collective-permute", ((2, 3),), ("bf16",), 12, 4, True, None),
        ("collective-broadcast", ((8,),), ("f32",), 32, 8, False, 1),
        ("all-gather", ((8, 64),), ("f32",), 2048, 4, False, 1),
        ("collective-permute", ((4,),), ("f32",), 16, 2, False, 1),
        ("all-reduce", ((16,), (3,)), ("f32", "f32"), 76, 2, False, 1),
        ("all-to-all", ((8, 2),), ("s8",), 16, 4, False, 1),
        ("reduce-scatter", ((4,), (8,)), ("f32", "f32"), 96, 2, False, 1),
    ]
    assert {kind for kind, *_ in found} <= set(KINDS)
    first, _, permuted = profile.collectives(PROGRAM)[:3]
    assert first.op_name == "jit(round)/mean"
    assert first.groups == "mesh['axis_0'=8,'axis_1'=1] {'axis_0'}"
    assert str(first) == "all-reduce f32[64], pred[] (257 bytes)"
    assert str(permuted) == "collective-permute bf16[2,3] (12 bytes, 15 times)"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 7 * 100),
        ("all-gather", 7 * 100),
        ("reduce-scatter", 7 * 100),
        ("all-to-all", 7 * 100),
        ("collective-permute", 800),
        ("collective-broadcast", 800),
    ],
)
def test_bytes_sent_are_those_of_the_best_algorithm(kind, sent):
    one = profile.Collective(kind, ((200,),), ("f32",), 800, 8, "", False, 1, "")
    assert one.sent == sent


def test_what_is_not_a_compiled_program_is_refused():
    lowered = jax.jit(jnp.sin).lower(1.0)
    with pytest.raises(
        ValueError, match=r"compiled must be the text.*lower\(\.\.\.\)\.compile\(\)"
    ):
        profile.collectives(lowered)
    with pytest.raises(TypeError, match="compiled must be a compiled program or its text, got int"):
        profile.collectives(3)
    assert profile.collectives(lowered.compile()) == []


class Keys:
    """A source of rounds that are keys."""

    def draw(self, key, index):
        return jax.random.fold_in(key, index)


jax.tree_util.register_static(Keys)


def system(step):
    return dx.Algorithm(lambda key, params: params, lambda state, round: (step(state), {}))


def flops(step, *shapes):
    state = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    state = state if len(state) > 1 else state[0]
    return profile.round(system(step), state, Keys()).flops


def test_arithmetic_is_counted_through_loops_branches_and_calls():
    def powers(x):
        return jax.lax.scan(lambda y, _: (jax.jit(jnp.matmul)(x, y), None), x, length=7)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, powers, lambda x: x + x, x)

    def convolve(both):
        image, kernel = both
        product = jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID")
        return [image + product.sum(), kernel]

    product = 2 * 4**3
    assert flops(lambda x: x @ x, (4, 4)) == product
    assert flops(powers, (4, 4)) == 7 * product
    assert flops(branch, (4, 4)) == 7 * product
    assert flops(lambda x: x.T.reshape(2, 8), (4, 4)) == 0
    assert flops(lambda x: x * 2 + 1, (4, 4)) == 32
    assert flops(lambda x: x - x.sum(0), (4, 5)) == 40
    assert flops(lambda x: jnp.stack(list(x)[::-1]), (4, 5)) == 0
    assert flops(lambda x: x.at[jnp.arange(3), 0].add(x[0, 1]), (4, 5)) == 3
    assert flops(lambda x: jax.lax.reduce(x, 0.0, lambda a, b: a + b, (0, 1)) - x, (4, 5)) == 40
    places = 2 * 5 * 6 * 6
    assert flops(convolve, (2, 3, 8, 8), (5, 3, 3, 3)) == places * 2 * 27 + places + 2 * 3 * 64


def test_nothing_is_executed_and_shapes_are_enough():
    state = jax.ShapeDtypeStruct((1 << 38,), jnp.float32)
    found = profile.round(system(lambda x: x + 1), state, Keys())
    assert found.devices == 1
    assert found.flops == 1 << 38
    assert found.argument_bytes >= 1 << 40
    # The donated state is overwritten in place.
    assert found.alias_bytes == 1 << 40
    assert found.peak_bytes < (1 << 40) + 4096
    assert found.collectives == ()
    assert found.sent_bytes == 0


def test_arrays_and_shapes_have_the_same_profile_and_arrays_stay_usable():
    task = quadratics(8, 16)
    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(8))
    state, source = algorithm.init(KEY, jnp.ones(16)), task.federation(3)
    shapes = jax.eval_shape(algorithm.init, KEY, jnp.ones(16))
    abstract = jax.eval_shape(lambda source: source, source)
    told = [
        profile.round(algorithm, *both, key=key)
        for both, key in (((state, source), KEY), ((shapes, abstract), None))
    ]
    assert told[0]._replace(compile_seconds=0.0) == told[1]._replace(compile_seconds=0.0)
    np.testing.assert_array_equal(state.clients.params, 1.0)
    # Each of 3 steps of 8 clients computes 16 differences, squares and derivatives at the least.
    assert told[0].flops >= 3 * 8 * 16 * 3


def test_a_mesh_deals_the_clients_and_keeps_what_is_dealt_already():
    mesh = dx.client_mesh()
    width, clients = 512, 64
    task = quadratics(clients, width)
    source = task.federation(1)
    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(clients))
    state = jax.eval_shape(algorithm.init, KEY, jnp.ones(width))
    alone = profile.round(algorithm, state, source)
    dealt = profile.round(algorithm, state, source, mesh=mesh)
    assert (alone.devices, dealt.devices) == (1, 8)
    assert alone.argument_bytes - dealt.argument_bytes == 4 * width * clients * 7 // 8
    assert alone.sent_bytes == 0
    assert 2 * 4 * width <= dealt.sent_bytes <= 2 * 4 * width + 200
    rows = jax.device_put(task.data.inputs, NamedSharding(mesh, PartitionSpec("clients")))
    source.data = jax.tree.map(lambda leaf: rows if leaf.ndim == 2 else leaf, task.data)
    spread = profile.round(algorithm, state, source, mesh=mesh)
    assert dealt.argument_bytes - spread.argument_bytes == 4 * width * clients * 7 // 8


def test_a_profile_prints_as_a_table():
    algorithm = dx.server.fedavg(half_square, optax.sgd(0.1))
    state = jax.eval_shape(algorithm.init, KEY, jnp.ones(256))
    source = quadratics(16, 256).federation(1)
    found = profile.round(algorithm, state, source, mesh=dx.client_mesh())
    lines = {line[:28].strip(): line[28:] for line in str(found).splitlines()}
    assert lines["devices"] == "8"
    assert lines["arithmetic, all devices"].endswith("kFLOP")
    assert lines["sent per device"].startswith("1.7")
    assert lines["sent per device"].endswith("KiB")
    assert "all-reduce" in lines


@pytest.mark.parametrize("meshed", [False, True])
def test_rounds_are_timed_when_asked_for(meshed):
    algorithm = dx.server.fedavg(half_square, optax.sgd(0.1))
    state, source = algorithm.init(KEY, jnp.ones(16)), quadratics(8, 16).federation(1)
    mesh = dx.client_mesh() if meshed else None
    found = profile.round(algorithm, state, source, mesh=mesh, measured_rounds=3)
    assert 0 < found.seconds < 60
    assert found.flops_per_second == found.flops / found.seconds
    assert "a steady round" in str(found)
    plain = profile.round(algorithm, state, source, mesh=mesh)
    assert (plain.seconds, plain.flops_per_second) == (None, None)
    assert "a steady round" not in str(plain)
    np.testing.assert_array_equal(state.server.params, 1.0)


def test_a_trace_names_the_operations_of_the_program(tmp_path):
    program = jax.jit(lambda x: jnp.sort(x) @ jnp.cos(x))
    path = profile.trace(tmp_path / "new", program, jnp.arange(1000.0))
    content = gzip.decompress(path.read_bytes()).decode()
    assert path.name == "perfetto_trace.json.gz"
    assert "sort" in content
    again = profile.trace(tmp_path / "new", program, jnp.arange(1000.0))
    assert again.exists()
    with pytest.raises(TypeError, match="function must be"):
        profile.trace(tmp_path, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": 1}, "algorithm must be an Algorithm, got int"),
        ({"source": 1}, r"source must have a method draw\(key, index\), got int"),
        ({"measured_rounds": -1}, "measured_rounds must be an integer"),
        (
            {"measured_rounds": 2, "state": jax.ShapeDtypeStruct((2,), jnp.float32)},
            "measured_rounds must be 0 where state or source are shapes, got 2",
        ),
        ({"mesh": 8}, "mesh must be a jax Mesh or None, got int"),
        ({"key": 0}, "key must be one typed JAX key"),
        (
            {"mesh": jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))},
            'mesh must have an axis named "clients"',
        ),
    ],
)
def test_bad_arguments_are_refused(change, message):
    good = {"algorithm": system(lambda x: x), "state": jnp.ones(2), "source": Keys()}
    with pytest.raises((TypeError, ValueError), match=message):
        profile.round(**good | change)


# As the compiler for TPUs writes a loop: its length is that of its counter, and cycles are told.
LOOP = """HloModule jit_round, num_partitions=8

%below (p: (s32[], f32[4])) -> pred[] {
  %most = s32[] constant(7)
  %p = (s32[], f32[4]{0}) parameter(0)
  %at = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%at, %most), direction=LT
}

%step (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %one = s32[] constant(STEP)
  %at = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %next = s32[] add(%at, %one)
  %sum = f32[4]{0} all-reduce(%x), replica_groups={{0,1}}, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, %sum)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %two = s32[] constant(2)
  %begin = s32[]{:T(128)} copy(%two)
  %start = (s32[], f32[4]{0}) tuple(%begin, %a)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%below, body=%step
  ROOT %all = f32[4]{0} get-tuple-element(%loop), index=1, backend_config={"estimated_cycles":"3"}
}
"""


def test_loops_are_counted_by_their_counter_where_the_compiler_does_not_say():
    (one,) = profile.collectives(LOOP.replace("STEP", "1"))
    assert (one.in_loop, one.times) == (True, 5)
    assert estimated_cycles(LOOP.replace("STEP", "1")) == 503
    (other,) = profile.collectives(LOOP.replace("STEP", "2"))
    assert other.times is None
    assert estimated_cycles("HloModule x") is None


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("make", "models"),
    [
        (lambda: dx.server.fedavg(half_square, optax.sgd(0.1)), 2 * 7 / 8),
        (
            lambda: dx.server.fedavg(
                half_square, optax.sgd(0.1), aggregator=dx.aggregation.median()
            ),
            (2 + 1) * 7 / 8,
        ),
        (lambda: dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(16)), 2),
        (
            lambda: dx.decentralized.dfedavg(
                half_square, optax.sgd(0.1), dx.gossip.ring(16, steps=3)
            ),
            6,
        ),
        (
            lambda: dx.decentralized.dfedavg(
                half_square, optax.sgd(0.1), dx.gossip.random_neighbours(16, 3)
            ),
            # A device's 2 models there by coordinates, and back.
            2 * 2 * 7 / 8,
        ),
    ],
)
def test_the_least_is_what_the_parts_of_a_round_have_to_exchange(make, models):
    algorithm = make()
    state = jax.eval_shape(algorithm.init, KEY, jnp.ones(4096))
    source = quadratics(16, 4096).federation(1)
    found = profile.round(algorithm, state, source, mesh=dx.client_mesh())
    # Beside the models a few metrics and masks.
    assert models * 4 * 4096 <= found.least_sent_bytes <= models * 4 * 4096 + 512
    assert found.least_sent_bytes <= found.sent_bytes <= 1.06 * found.least_sent_bytes


def test_who_is_padded_and_whose_state_is_not_split_is_said():
    algorithm = dx.decentralized.dfedavg(half_square, optax.sgd(0.1), dx.gossip.ring(12))
    state = jax.eval_shape(algorithm.init, KEY, jnp.ones(8))
    found = profile.round(algorithm, state, quadratics(12, 8).federation(1), mesh=dx.client_mesh())
    assert (found.members, found.places, found.undivided) == (12, 16, 12)
    assert "12, padded to 16: 4 are computed for nothing" in str(found)
    assert "of all 12 clients on every device" in str(found)


@pytest.mark.slow
def test_runs_and_sweeps_are_compiled_as_they_would_run():
    source = quadratics(8, 16).federation(1)

    def make(rate):
        return dx.server.fedavg(half_square, optax.sgd(rate))

    def start(algorithm, key):
        return algorithm.init(key, jnp.ones(16))

    whole = profile.run(make(0.1), start(make(0.1), KEY), source, mesh=dx.client_mesh())
    once = profile.round(make(0.1), start(make(0.1), KEY), source, mesh=dx.client_mesh())
    assert whole.devices == 8
    assert once.flops <= whole.flops <= 1.5 * once.flops + 100
    assert whole.least_sent_bytes >= once.least_sent_bytes > 0
    swept = profile.sweep(make, start, source, grid={"rate": [0.1, 0.2]}, key=KEY, seeds=8)
    # Two points a device, each of which stays there.
    assert swept.devices == 8
    assert swept.flops >= 15 * once.flops
    assert swept.sent_bytes <= 256
