"""Problems whose optimum is known."""

__all__: list[str] = []  # what users need of it, a package above imports
