"""The prefix tree in NumPy, float64, with sets and dictionaries in place of padded arrays."""

import math

import numpy as np


def lengths(bits, levels):
    return [math.ceil((level + 1) * bits / levels) for level in range(levels)]


def adaptive(values, deviation, k, c=1.0):
    """How many are extended, of estimates and one deviation."""
    kth = sorted(values)[::-1][:k][-1]
    above = sum(value > max(kth - c * deviation, c * deviation) for value in values)
    return min(max(above, max(2, k // 2)), 2 * k)


def ordered(values):
    """Prefixes by decreasing value, of equal ones the smaller first."""
    return sorted(values, key=lambda prefix: (-values[prefix], prefix))


def pruned(candidates, before, own, deviation, own_deviation, k, z):
    """What a party keeps of its candidates, told of the dictionary before."""
    judged = {v: (before[v], deviation) for v in candidates if v in before}
    if own is not None and judged:
        weights = 1 / deviation**2, 1 / own_deviation**2
        judged = {
            v: ((weights[0] * f + weights[1] * own[v]) / sum(weights), sum(weights) ** -0.5)
            for v, (f, _) in judged.items()
        }
    if not judged:
        return list(candidates)
    kth = sorted((f for f, _ in judged.values()), reverse=True)[:k][-1]
    best = {v: f + z * s for v, (f, s) in judged.items()}
    kept = [v for v in candidates if v not in best or (best[v] >= kth and best[v] > 0)]
    if len(kept) < k:
        ranks = {v: judged[v][0] if v in judged else math.inf for v in candidates}
        kept = sorted(ordered(ranks)[:k])
    return kept


def tree(groups, sizes, bits, k, sharing, extend, deviation, prune=None, weigh=None):
    """Items found, and their sums, of `groups[level][party]`, lists of items.

    An oracle that is exact but says `deviation / sqrt(n)`. `extend(values, deviation) -> number`;
    `prune` is `(z, share)`; `weigh(counts) -> list`, default N_i max(f, 0).
    """
    steps = lengths(bits, len(groups))
    parents = [[0] for _ in sizes]
    before_length = 0
    for level, (group, length) in enumerate(zip(groups, steps, strict=True)):
        width, before_length = length - before_length, length
        shared, frequency = level < sharing, [None] * len(sizes)
        counts, noise = [None] * len(sizes), [None] * len(sizes)
        last = ({}, 1.0)
        for party in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            candidates = [
                (p << width) + b for p in sorted(parents[party]) for b in range(1 << width)
            ]
            told = [item >> (bits - length) for item in group[party]]

            def shares(told, candidates):
                return {v: told.count(v) / len(told) for v in candidates}

            if prune is not None and not shared:
                z, share = prune
                own, some = None, 0
                if share and any(v in last[0] for v in candidates):
                    some = math.floor(share * len(told))
                    own = shares(told[:some], candidates)
                early = deviation / math.sqrt(some) if some else None
                candidates = pruned(candidates, last[0], own, last[1], early, k, z)
                told = told[some:]
            frequency[party] = shares(told, candidates)
            counts[party] = {v: told.count(v) for v in candidates}
            noise[party] = deviation / math.sqrt(len(told))
            last = (frequency[party], noise[party])
        values = [
            {v: n * f for v, f in own.items()} for n, own in zip(sizes, frequency, strict=True)
        ]
        spread = [n * s for n, s in zip(sizes, noise, strict=True)]
        if shared:
            total = {v: sum(own[v] for own in values) for v in values[0]}
            values, spread = [total] * len(sizes), [math.hypot(*spread)] * len(sizes)
        parents = [
            sorted(ordered(own)[: extend(list(own.values()), s)])
            for own, s in zip(values, spread, strict=True)
        ]
    sums = {}
    if shared:
        sums = {v: values[0][v] for v in ordered(values[0])[:k]}
    else:
        for own, count, f, n in zip(values, counts, frequency, sizes, strict=True):
            top = ordered(own)[:k]
            weights = [n * max(f[v], 0) for v in top]
            if weigh is not None:
                weights = weigh([count[v] for v in top])
            for v, w in zip(top, weights, strict=True):
                sums[v] = sums.get(v, 0) + w
    found = ordered(sums)[:k]
    return found, np.array([sums[v] for v in found])
