"""Running a system: the host's loop, its checkpoints, and where its numbers go."""
