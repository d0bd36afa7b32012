"""Models in parts: head, body and tail on different machines, soft prompts, low-rank adapters."""

__all__: list[str] = []  # what users need of it, a package above imports
