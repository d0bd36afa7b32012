"""MoDeST: sampling by hashes, views, and aggregators that move from round to round."""

__all__: list[str] = []  # what users need of it, a package above imports
