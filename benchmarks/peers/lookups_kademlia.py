"""The lookups of the `kademlia` package, over tables in memory instead of its datagrams."""

import asyncio
import heapq
import time
from typing import Any

from kademlia.crawling import NodeSpiderCrawl
from kademlia.node import Node

# Its ids have 160 bits: ours are the first 32, which keeps every comparison of distances.
SHIFT = 128


def measure(
    ids: list[int], contacts: list[list[int]], sources: list[int], keys: list[int], count: int
) -> dict[str, Any]:
    """Milliseconds of a lookup and the peers found, from tables `[n, M]` (-1: free)."""
    places = {one: place for place, one in enumerate(ids)}
    tables = [[ids[peer] for peer in row if peer >= 0] for row in contacts]

    class Memory:
        """Answers as a peer of the package would, at once."""

        async def call_find_node(self, asked: Node, wanted: Node) -> tuple[bool, list[Any]]:
            key = wanted.long_id >> SHIFT
            table = tables[places[asked.long_id >> SHIFT]]
            nearest = heapq.nsmallest(count, table, key=lambda one: one ^ key)
            return True, [(_bytes(one), None, None) for one in nearest]

    async def everything() -> list[list[int]]:
        found = []
        for source, key in zip(sources, keys, strict=True):
            nearest = heapq.nsmallest(count, tables[source], key=lambda one: one ^ key)
            peers = [Node(_bytes(one)) for one in nearest]
            crawl = NodeSpiderCrawl(Memory(), Node(_bytes(key)), peers, count, 3)
            found.append([places[node.long_id >> SHIFT] for node in await crawl.find()])
        return found

    began = time.perf_counter()
    found = asyncio.run(everything())
    return {"ms": 1e3 * (time.perf_counter() - began) / len(sources), "found": found}


def _bytes(word: int) -> bytes:
    return (word << SHIFT).to_bytes(20, "big")
