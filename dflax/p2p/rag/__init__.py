"""Retrieval-augmented generation from sources whose reliability is learnt and kept on a ledger."""

__all__: list[str] = []  # what users need of it, a package above imports
