"""Runs on disk: what is written, bound, locked and read again."""
