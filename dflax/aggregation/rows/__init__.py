"""What rules are made of: order statistics, products, distances and norms of rows of messages."""
