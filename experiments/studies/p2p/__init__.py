"""Peers without a server: what they rank, find, keep and send each other."""
