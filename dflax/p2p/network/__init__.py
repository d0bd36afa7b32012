"""Who reaches whom: NATs, hole punching, relays, and what a call over a link costs."""
