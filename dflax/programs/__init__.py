"""What reads or rewrites traced programs."""
