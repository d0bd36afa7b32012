"""Products of a mixing matrix and all clients' rows, and what linear mixers share."""
