"""Retrieval-augmented generation from sources whose reliability is learnt and kept on a ledger."""
