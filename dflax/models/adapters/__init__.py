"""Models of other libraries as functions of parameters and inputs."""

__all__: list[str] = []  # what users need of it, a package above imports
