"""Kademlia: ids, routing tables, lookups and records that expire."""

__all__: list[str] = []  # what users need of it, a package above imports
