"""Networks of noised inputs, their times and conditions: denoisers and routers."""

__all__: list[str] = []  # what users need of it, a package above imports
