"""What reads or rewrites traced and compiled programs; `walk` alone knows how JAX writes them down."""
