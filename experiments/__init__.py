"""Studies: one file each, a typed configuration, runs, claims computed from what ran, and figures."""
