"""A plain simulator in NumPy and float64 that walks through every iteration, one request at a time."""

import numpy as np


class _One:
    def __init__(self, row, requests, block, reuse):
        self.row = row
        self.arrived = float(requests.arrived[row])
        self.prompt, self.output = int(requests.prompt[row]), int(requests.output[row])
        self.computed = self.prompt - reuse * int(requests.shared[row])
        self.held = -(-(self.prompt + self.output) // block) * block
        self.made = 0
        self.done = 0.0


def walk(costs, requests, *, slots, policy, tokens, memory=np.inf, block=16, reuse=0.0, most=16):
    """`policy` is "prefill first", "chunked" or "decode only"; returns first and last token times."""
    n = len(requests.arrived)
    first, last = np.full(n, np.inf), np.full(n, np.inf)
    queue = [_One(i, requests, block, reuse) for i in range(n)]
    queue = [one for one in queue if one.held <= memory]
    clock, running, filling = 0.0, [], None

    def free_memory():
        some = running + ([filling] if filling else [])
        return memory - sum(one.held for one in some)

    def token(one):
        one.made += 1
        if one.made == 1:
            first[one.row] = one.arrived if policy == "decode only" else clock
        if one.made == one.output:
            last[one.row] = first[one.row] if one.output == 1 else clock

    def begin(one):
        token(one)
        if one.made < one.output:
            running.append(one)

    while queue or running or filling:
        if not running and not filling:
            clock = max(clock, queue[0].arrived)
        if policy == "chunked":
            came = filling is None and queue and queue[0].arrived <= clock
            if came and len(running) < slots and queue[0].held <= free_memory():
                filling = queue.pop(0)
            seconds, part = 0.0, 0.0
            batch, context = len(running), sum(one.prompt + one.made for one in running)
            if batch:
                seconds += costs.decode(batch, context)
            if filling is not None:
                part = min(tokens - batch, filling.computed - filling.done)
                squares = (filling.done + part) ** 2 - filling.done**2
                seconds += costs.prefill(part, squares) - (costs.prefill(0, 0) if batch else 0.0)
            clock += seconds
            for one in running:
                token(one)
            running = [one for one in running if one.made < one.output]
            if filling is not None:
                filling.done += part
                if filling.done >= filling.computed:
                    begin(filling)
                    filling = None
            continue
        batch, total, left = [], 0.0, free_memory()
        while queue and len(batch) < min(most, slots - len(running)):
            one = queue[0]
            if one.arrived > clock or one.held > left:
                break
            if batch and total + one.computed > tokens:
                break
            batch.append(queue.pop(0))
            total += one.computed
            left -= one.held
        if batch:
            if policy == "prefill first":
                lengths = np.array([one.computed for one in batch])
                clock += float(costs.prefill(lengths.sum(), np.square(lengths).sum()))
            for one in batch:
                begin(one)
            continue
        if running:
            context = sum(one.prompt + one.made for one in running)
            clock += float(costs.decode(len(running), context))
            for one in running:
                token(one)
            running = [one for one in running if one.made < one.output]
    return first, last
