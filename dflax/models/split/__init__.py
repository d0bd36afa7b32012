"""Models in parts: head, body and tail on different machines, soft prompts, low-rank adapters."""
