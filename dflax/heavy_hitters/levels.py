"""A prefix tree that grows a level a round, from the estimates of parties that share or do not."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.heavy_hitters.candidates import Candidates, children, chosen, find, largest, those
from dflax.heavy_hitters.extension import Extension
from dflax.heavy_hitters.groups import Group
from dflax.heavy_hitters.pruning import Known, Pruning
from dflax.heavy_hitters.words import MOST_BITS, ascending, shifted_right, word_count
from dflax.participation import Count
from dflax.privacy.local_privacy import Domain, Estimates, FrequencyOracle

MOST_CANDIDATES = 1 << 22


class Found(NamedTuple):
    """The server's k most frequent prefixes so far; after the last level, items.

    Attributes:
      items: `[k, W]` uint32, the most frequent first.
      counts: `[k]` float32, how many users are estimated to have each.
      number: `[]` int32, how many of the k there are.
    """

    items: UInt32[Array, "k W"]
    counts: Float[Array, " k"]
    number: Int[Array, ""]


class Party(NamedTuple):
    """The parties, a row for each of M.

    Attributes:
      parents: `[M, P]` the prefixes that each extends.
      users: `[M]` float32, N_i, which are public.
    """

    parents: Candidates
    users: Float[Array, " M"]


class Survey(NamedTuple):
    """What a party's group of a level told.

    Attributes:
      candidates: `[D]` prefixes that were asked about.
      estimates: of them.
    """

    candidates: Candidates
    estimates: Estimates


# What a party tells of its top prefixes: `(frequency [k], counts [k], users [], valid [k]) -> [k]`.
Weighing = Callable[[Array, Array, Array, Array], Array]


def by_population(
    frequency: Float[Array, " k"], counts: Int[Array, " k"], users: Array, valid: Array
) -> Float[Array, " k"]:
    """N_i max(f, 0): how many of the party's users have the item.

    Args:
      frequency: `[k]` estimates of the party's top k.
      counts: `[k]` int32, reports that support each.
      users: `[]` N_i.
      valid: `[k]` bool, which of the k there are.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _require_top(frequency, counts, users, valid)
    return jnp.where(valid, users * jnp.maximum(frequency, 0), 0.0)


def by_own_share(
    frequency: Float[Array, " k"], counts: Int[Array, " k"], users: Array, valid: Array
) -> Float[Array, " k"]:
    """Reports for the item over reports for all k: parties of any size weigh the same.

    Args:
      frequency: `[k]` estimates of the party's top k.
      counts: `[k]` int32, reports that support each.
      users: `[]` N_i.
      valid: `[k]` bool, which of the k there are.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _require_top(frequency, counts, users, valid)
    told = jnp.where(jnp.asarray(valid), jnp.asarray(counts), 0).astype(jnp.float32)
    return told / jnp.maximum(told.sum(), 1)


def _require_top(frequency: Array, counts: Array, users: Array, valid: Array) -> None:
    length = validation.array("frequency", frequency, kind="real", shape=("k",)).shape
    validation.array("counts", counts, kind="integer", shape=length, low=0)
    validation.real("users", users, low=0.0, scalar=True)
    validation.array("valid", valid, kind="boolean", shape=length)


def prefix_tree(
    oracle: FrequencyOracle,
    *,
    bits: int,
    levels: int,
    k: int,
    sharing: int | Int[Array, ""],
    extension: Extension,
    pruning: Pruning | None = None,
    weighing: Weighing = by_population,
) -> Algorithm:
    """A prefix tree over the users of M parties, a level a round: what TAP, TAPS, PEM and GTF share.

    At level h = 1, ..., g every party extends its prefixes to C_h, all those of l_h = ceil(h m / g) bits
    below them, and the users of its group of this level report their own prefix through the oracle over
    C_h. Users whose prefix is not in C_h report, too. Then, of the estimates N_i f_i,

        h <= g_s (shared):  the server adds them up and chooses the prefixes that all parties extend
        h >  g_s:           each party chooses its own

    where the extension rule says how many. With a pruning rule the parties of the levels that are not
    shared work in the order of decreasing N_i, each told of the estimates of the one before it.
    After every level the server adds up what the parties report of their top k. Of a level that is
    shared it has everything.

    A run is one scan of g steps. States, candidates and reports have static shapes.

    Args:
      oracle: how users report, for example `dflax.privacy.local_privacy.k_rr(epsilon)`.
      bits: m in [1, 64] of an item.
      levels: g in [1, m].
      k: how many items are looked for, in [1, 2^m].
      sharing: g_s in [0, g], levels that all parties share; traceable.
      extension: how many prefixes are extended.
      pruning: what is left out; None: nothing, and parties work at the same time.
      weighing: what a party reports of its top k at levels that are not shared.

    Returns:
      An `Algorithm`: `init(key, parties)` with `[M]` numbers of users; its source is `grouped`. The
      result is `state.server`, a `Found`. Metrics: `candidates`, d in the mean over parties, and
      `most_candidates`; `extended`, prefixes extended; `deviation` of the estimate of a value that
      nobody has; `report_bits` of a user; `numbers_sent` by a party, prefixes counted as numbers.

    Raises:
      TypeError, ValueError: naming the argument; while a step is traced, a source of other parties,
        items or levels.
    """
    shape = _verified(oracle, bits, levels, k, sharing, extension)
    if pruning is not None:
        validation.instance("pruning", pruning, Pruning, "For example prior().")
    fix = "For example dflax.heavy_hitters.by_population."
    validation.function("weighing", weighing, fix, takes=4)

    def init(key: Key[Array, ""], params: Int[Array, " M"]) -> FederatedState:
        validation.typed_key("key", key)
        fix = "Give the number of users of every party."
        given = validation.array("params", params, kind="real", shape=("M",), low=1, fix=fix)
        users = jnp.asarray(given, jnp.float32)
        parties = users.shape[0]
        root = jnp.zeros((parties, shape.parents, word_count(bits)), jnp.uint32)
        parents = Candidates(root, jnp.ones(parties, jnp.int32))
        found = Found(jnp.zeros((k, word_count(bits)), jnp.uint32), jnp.zeros(k), jnp.int32(0))
        return FederatedState(jnp.int32(0), found, Party(parents, users))

    def step(
        state: FederatedState, drawn: tuple[Group, Key[Array, ""]]
    ) -> tuple[FederatedState, Metrics]:
        group, key = drawn
        level, (parents, users) = state.round, state.clients
        _require_group(group, users, bits, levels)
        shared, last = level < sharing, level == levels - 1
        length = jnp.asarray(shape.lengths, jnp.int32)[level]
        width = jnp.asarray(shape.widths, jnp.int32)[level]
        below = jax.vmap(children, (0, None, None, None))(
            parents, width, max(shape.widths), shape.capacity
        )
        prefixes = shifted_right(group.items, bits - length)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(users.shape[0]))
        if pruning is None:
            asked = jax.vmap(lambda *own: _survey(oracle, *own))
            surveys = asked(keys, prefixes, group.present, below)
        else:
            surveys = _in_sequence(
                oracle, pruning, k, keys, prefixes, group.present, below, users, ~shared
            )
        value, deviation, valid = _judged(surveys, users, shared)
        extended, kept = jax.vmap(lambda *own: _extended(extension, shape.parents, *own))(
            value, deviation, valid, surveys.candidates
        )
        found = _found(surveys, value, users, shared, k, weighing)
        size = surveys.candidates.size
        alone = 2 * size if pruning is not None else 0
        domains = jax.vmap(lambda size: oracle.bits(Domain(size, Count(shape.capacity))))
        metrics = {
            "candidates": size.mean(dtype=jnp.float32),
            "most_candidates": size.max(),
            "extended": kept.mean(dtype=jnp.float32),
            "deviation": surveys.estimates.deviation.max(1).mean(),
            "report_bits": domains(size).mean(),
            "numbers_sent": jnp.mean(
                jnp.where(shared, 2 * size, alone + jnp.where(last, 2 * k, 0)), dtype=jnp.float32
            ),
        }
        return FederatedState(level + 1, found, Party(extended, users)), metrics

    return Algorithm(init, step)


def _require_group(group: Group, users: Float[Array, " M"], bits: int, levels: int) -> None:
    fix = "Use dflax.heavy_hitters.grouped with the same parties, items and levels."
    validation.instance("the round's group", group, Group, fix)
    given = (group.items.shape[0], group.items.shape[2], int(group.levels))
    wanted = (users.shape[0], word_count(bits), levels)
    if given != wanted:
        raise ValueError(
            f"the source must have groups of {wanted[0]} parties, items of {wanted[1]} words and "
            f"{wanted[2]} levels, got {given[0]}, {given[1]} and {given[2]}. {fix}"
        )


class _Shape(NamedTuple):
    """Static sizes of a tree: prefix lengths, bits added at each level, rows of C_h and of parents."""

    lengths: tuple[int, ...]
    widths: tuple[int, ...]
    capacity: int
    parents: int


def _verified(
    oracle: FrequencyOracle,
    bits: int,
    levels: int,
    k: int,
    sharing: int | Int[Array, ""],
    extension: Extension,
) -> _Shape:
    fix = "Make one in dflax.privacy.local_privacy, for example k_rr(1.0)."
    validation.instance("oracle", oracle, FrequencyOracle, fix)
    validation.integer("bits", bits, low=1, high=MOST_BITS)
    validation.integer("levels", levels, low=1, high=bits, fix="A level adds at least one bit.")
    validation.integer("k", k, low=1, high=min(1 << bits, 1 << 20))
    fix = f"It counts levels, of which there are {levels}."
    validation.array("sharing", sharing, kind="integer", shape=(), low=0, high=levels, fix=fix)
    fix = "For example dflax.heavy_hitters.adaptive(k)."
    validation.instance("extension", extension, Extension, fix)
    lengths = tuple(-(-(level + 1) * bits // levels) for level in range(levels))
    widths = tuple(b - a for a, b in zip((0, *lengths[:-1]), lengths, strict=True))
    parents = [1, *(min(extension.most, 1 << length) for length in lengths[:-1])]
    rows = max(before << width for before, width in zip(parents, widths, strict=True))
    if rows > MOST_CANDIDATES:
        raise ValueError(
            f"levels must be so many that at most {MOST_CANDIDATES} prefixes are candidates at once, "
            f"got {levels} for {bits} bits, which makes {rows}. Take more levels."
        )
    return _Shape(lengths, widths, rows, max(parents))


def _survey(
    oracle: FrequencyOracle,
    key: Key[Array, ""],
    prefixes: UInt32[Array, "n W"],
    present: Bool[Array, " n"],
    candidates: Candidates,
) -> Survey:
    """One report of each user of a group."""
    asked = Domain(candidates.size, Count(candidates.words.shape[0]))
    estimates = oracle.simulate(key, find(candidates, prefixes), asked, present)
    return Survey(candidates, estimates)


def _in_sequence(
    oracle: FrequencyOracle,
    pruning: Pruning,
    k: int,
    keys: Key[Array, " M"],
    prefixes: UInt32[Array, "M n W"],
    present: Bool[Array, "M n"],
    below: Candidates,
    users: Float[Array, " M"],
    prunes: Bool[Array, ""],
) -> Survey:
    """The parties' surveys, the largest party first, each after it has pruned its candidates."""
    capacity = below.words.shape[1]

    def party(before: Survey, own: tuple) -> tuple[Survey, Survey]:
        key, prefixes, present, candidates = own
        place = find(before.candidates, candidates.words)
        told = Known(
            before.estimates.frequency[place],
            before.estimates.deviation[place],
            (place >= 0) & candidates.valid & prunes,
        )
        first, here = jnp.zeros(present.shape, bool), candidates.valid
        nothing = jnp.zeros(capacity)
        alone = Known(nothing, jnp.full(capacity, jnp.inf), jnp.zeros(capacity, bool))
        if pruning.share > 0:
            # Groups are in random order.
            some = jnp.cumsum(present) <= pruning.share * jnp.sum(present)
            first = present & some & told.there.any()
            early_key, key = jax.random.split(key)
            early = _survey(oracle, early_key, prefixes, first, candidates)
            alone = Known(early.estimates.frequency, early.estimates.deviation, here)
        kept = pruning.keeps(told, alone, here, k) | ~prunes
        pruned = those(candidates, kept, capacity)
        survey = _survey(oracle, key, prefixes, present & ~first, pruned)
        return survey, survey

    order = jnp.argsort(-users, stable=True)
    rows = jax.tree.map(lambda leaf: leaf[order], (keys, prefixes, present, below))
    shapes = jax.eval_shape(lambda own: _survey(oracle, *own), jax.tree.map(lambda x: x[0], rows))
    nobody = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    _, surveys = jax.lax.scan(party, nobody, rows)
    back = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf[back], surveys)


def _judged(
    surveys: Survey, users: Float[Array, " M"], shared: Bool[Array, ""]
) -> tuple[Float[Array, "M D"], Float[Array, "M D"], Bool[Array, "M D"]]:
    """Users with each prefix by which a party chooses, with deviations: its own, or those of all."""
    value = users[:, None] * surveys.estimates.frequency
    deviation = users[:, None] * surveys.estimates.deviation
    total = jnp.sqrt(jnp.square(deviation).sum(0))
    value = jnp.where(shared, value.sum(0), value)
    deviation = jnp.where(shared, total, deviation)
    return value, deviation, jax.vmap(lambda some: some.valid)(surveys.candidates)


def _extended(
    extension: Extension,
    parents: int,
    value: Float[Array, " D"],
    deviation: Float[Array, " D"],
    valid: Bool[Array, " D"],
    candidates: Candidates,
) -> tuple[Candidates, Int[Array, ""]]:
    """The prefixes of a party's next level, and how many they are."""
    places = largest(value, valid, min(parents, value.shape[0]))
    number = jnp.minimum(extension.number(value, deviation, valid), candidates.size)
    kept = those(candidates, chosen(places, number, value.shape[0]), parents)
    return kept, kept.size


def _found(
    surveys: Survey,
    value: Float[Array, "M D"],
    users: Float[Array, " M"],
    shared: Bool[Array, ""],
    k: int,
    weighing: Weighing,
) -> Found:
    """The k largest sums over parties of what each reports of its top k, or of all it has."""
    candidates, estimates = surveys
    top = min(k, value.shape[1])

    def reported(value: Array, frequency: Array, counts: Array, users: Array, own: Candidates):
        places = largest(value, own.valid, top)
        there = own.valid[places]
        weights = weighing(frequency[places], counts[places], users, there)
        return own.words[places], jnp.where(shared, value[places], weights), there

    words, weights, there = jax.vmap(reported)(
        value, estimates.frequency, estimates.counts, users, candidates
    )
    # Of a shared level all parties have the same sums: those of one are enough.
    first = jnp.arange(users.shape[0])[:, None] == 0
    there = there & (first | ~shared)
    return merged(words.reshape(-1, words.shape[-1]), weights.ravel(), there.ravel(), k)


def merged(
    items: UInt32[Array, "r W"], weights: Float[Array, " r"], there: Bool[Array, " r"], k: int
) -> Found:
    """The k items with the largest sums of weights; of equal ones the smaller number comes first."""
    rows, valid, (sorted_weights,) = ascending(items, there, weights)
    before = jnp.concatenate([jnp.zeros(1, bool), jnp.all(rows[1:] == rows[:-1], -1)])
    begins = valid & ~before
    item = jnp.where(valid, jnp.cumsum(begins) - 1, rows.shape[0])
    sums = jnp.zeros(rows.shape[0]).at[item].add(sorted_weights, mode="drop")
    places = jnp.zeros(rows.shape[0], jnp.int32)
    places = places.at[jnp.where(begins, item, rows.shape[0])].set(
        jnp.arange(rows.shape[0], dtype=jnp.int32), mode="drop"
    )
    number = jnp.sum(begins, dtype=jnp.int32)
    top = largest(sums, jnp.arange(rows.shape[0]) < number, min(k, rows.shape[0]))
    number = jnp.minimum(number, top.shape[0])
    exists = jnp.arange(top.shape[0]) < number
    missing = (0, k - top.shape[0])
    return Found(
        jnp.pad(jnp.where(exists[:, None], rows[places[top]], 0), (missing, (0, 0))),
        jnp.pad(jnp.where(exists, sums[top], 0.0), missing),
        number,
    )
