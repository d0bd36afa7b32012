"""Strong convexity and smoothness of the clients' objectives, checked at the door."""

from jaxtyping import Array, Float

from dflax import validation


def verify_conditioning(
    strong_convexity: float | Float[Array, ""], smoothness: float | Float[Array, ""]
) -> None:
    """Refuse constants that no function has: mu > L, or either not positive. Tracers pass.

    Raises:
      TypeError: no real numbers.
      ValueError: out of range, or mu > L.
    """
    for name, value in (("strong_convexity", strong_convexity), ("smoothness", smoothness)):
        validation.real(name, value, low=0.0, low_open=True, scalar=True)
    if validation.is_traced(strong_convexity) or validation.is_traced(smoothness):
        return
    if float(strong_convexity) > float(smoothness):
        raise ValueError(
            f"strong_convexity must be at most smoothness, got {float(strong_convexity):g} > "
            f"{float(smoothness):g}. They are the least and the largest eigenvalue of the Hessians "
            "of all clients' objectives."
        )
