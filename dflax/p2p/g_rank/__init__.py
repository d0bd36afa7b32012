"""G-Rank: learning to rank from clicks that peers gossip."""
