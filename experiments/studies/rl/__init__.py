"""Studies of reinforcement learning."""
