"""What reads or rewrites traced and compiled programs; `walk` alone knows how JAX writes them down."""

__all__: list[str] = []  # what users need of it, a package above imports
