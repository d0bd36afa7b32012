"""Replicated data that agree without a server: states whose join is that of a semilattice."""

__all__: list[str] = []  # what users need of it, a package above imports
