"""Kademlia: ids, routing tables, lookups and records that expire."""
