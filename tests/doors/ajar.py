"""Arguments whose doors do not refuse every wrong value yet: what is left to be mended.

Nothing may be added here. What is mended is taken out.
"""

AJAR: set[str] = set()
