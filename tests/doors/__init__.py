"""A right call of every public callable, and the wrong values it is tried with."""
