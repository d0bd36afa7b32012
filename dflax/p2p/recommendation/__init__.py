"""Web3Recommend: recommendations by trusted random walks on what peers gossip."""
