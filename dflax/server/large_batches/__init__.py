"""Methods whose clients now and then read a large batch, or all of their examples."""

__all__: list[str] = []  # what users need of it, a package above imports
