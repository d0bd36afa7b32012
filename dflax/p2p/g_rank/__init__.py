"""G-Rank: learning to rank from clicks that peers gossip."""

__all__: list[str] = []  # what users need of it, a package above imports
