"""Where to begin: the quickstart, its check against plain loops, and a sweep."""
