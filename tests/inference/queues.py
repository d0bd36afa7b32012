"""Queues in float64, event by event: what the scans must give."""

import heapq

import numpy as np


def on_demand(arrived, takes, slots, limit):
    """One queue for all slots; who would miss the limit leaves."""
    free = [0.0] * slots
    starts, served = np.empty(len(arrived)), np.zeros(len(arrived), bool)
    for i, (a, d) in enumerate(zip(arrived, takes, strict=True)):
        starts[i] = max(a, free[0])
        served[i] = starts[i] + d - a <= limit
        if served[i]:
            heapq.heapreplace(free, starts[i] + d)
    return starts, served


def retried(arrived, takes, slots, limit, tau):
    """Every offer of every request, in the order of time."""
    free = [0.0] * slots
    starts, served = np.full(len(arrived), np.inf), np.zeros(len(arrived), bool)
    offers = [(a, i, 0) for i, a in enumerate(arrived)]
    heapq.heapify(offers)
    while offers:
        t, i, m = heapq.heappop(offers)
        if free[0] <= t:
            starts[i] = t
            served[i] = t + takes[i] - arrived[i] <= limit
            if served[i]:
                heapq.heapreplace(free, t + takes[i])
        else:
            heapq.heappush(offers, (arrived[i] + (m + 1) * tau, i, m + 1))
    return starts, served


def decoded(asked, sends, lasts, slots):
    """First come first served among those whose prefill ended; infinity never comes."""
    free, began = [0.0] * slots, np.full(len(asked), np.inf)
    for i in np.argsort(asked, kind="stable"):
        if np.isfinite(asked[i]):
            began[i] = max(asked[i], free[0]) + sends[i]
            heapq.heapreplace(free, began[i] + lasts[i])
    return began


def held(arrived, takes, sends, lasts, slots, decoders, limit):
    """Prefill slots that wait for the transfer, by events in the order of time."""
    idle, free, ready = slots, [0.0] * decoders, []
    coming, n, now = 0, len(arrived), 0.0
    starts, began = np.full(n, np.inf), np.full(n, np.inf)
    leaving = []
    while coming < n or ready:
        times = [(arrived[coming], 2)] if coming < n and idle else []
        times += [(leaving[0], 0)] if leaving else []
        times += [(max(ready[0][0], free[0]), 1)] if ready else []
        time, kind = min(times)
        now = max(now, time)
        if kind == 0:
            heapq.heappop(leaving)
            idle += 1
        elif kind == 1:
            _, i = heapq.heappop(ready)
            began[i] = now + sends[i]
            heapq.heapreplace(free, began[i] + lasts[i])
            heapq.heappush(leaving, began[i])
        else:
            i, coming = coming, coming + 1
            if now + takes[i] - arrived[i] <= limit:
                starts[i], idle = now, idle - 1
                heapq.heappush(ready, (now + takes[i], i))
    return starts, began


def local(arrived, takes, instances, limit, choose):
    """A queue at every instance; `choose(i, now, free)` says which."""
    free = np.zeros(instances)
    to, starts = np.zeros(len(arrived), int), np.empty(len(arrived))
    served = np.zeros(len(arrived), bool)
    for i, (a, d) in enumerate(zip(arrived, takes, strict=True)):
        to[i] = choose(i, a, free)
        starts[i] = max(a, free[to[i]])
        served[i] = starts[i] - a <= limit
        if served[i]:
            free[to[i]] = starts[i] + d
    return to, starts, served


def aggregated(arrived, takes, lasts, instances, slots, limit):
    """Instances that do both: the clock of answers stands still while a prefill runs."""
    opens, clock = np.zeros(instances), [[] for _ in range(instances)]
    first, last = np.full(len(arrived), np.inf), np.full(len(arrived), np.inf)

    def end(k, begin, work, until=np.inf):
        # When an answer that begins at `begin` has had `work` seconds without prefills.
        for s, f in clock[k]:
            if f <= begin:
                continue
            if s - begin >= work:
                return begin + work
            work -= max(s - begin, 0.0)
            begin = f
        return begin + work

    running = [[] for _ in range(instances)]
    for i, (a, d) in enumerate(zip(arrived, takes, strict=True)):
        begins = []
        for k in range(instances):
            ends = sorted(end(k, first[j], lasts[j]) for j in running[k])
            slot = ends[-slots] if len(ends) >= slots else 0.0
            begins.append(max(a, opens[k], slot))
        k = int(np.argmin(begins))
        if begins[k] + d - a <= limit:
            opens[k] = first[i] = begins[k] + d
            clock[k].append((begins[k], opens[k]))
            running[k].append(i)
    for k in range(instances):
        for j in running[k]:
            last[j] = end(k, first[j], lasts[j])
    return first, last
