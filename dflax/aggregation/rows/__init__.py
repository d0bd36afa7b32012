"""What rules are made of: order statistics, products, distances and norms of rows of messages."""

__all__: list[str] = []  # what users need of it, a package above imports
