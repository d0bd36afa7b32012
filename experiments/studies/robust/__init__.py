"""Studies of what liars can do, and of what stands against them."""
