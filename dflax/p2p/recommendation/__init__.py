"""Web3Recommend: recommendations by trusted random walks on what peers gossip."""

__all__: list[str] = []  # what users need of it, a package above imports
