"""What studies train on, and how they run it."""
