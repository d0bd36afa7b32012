"""Nodes that answer a query, judge each other's answers in pairs, and agree by a ranking."""
