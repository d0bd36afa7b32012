"""Replicated data that agree without a server: states whose join is that of a semilattice."""
