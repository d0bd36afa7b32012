"""What a compiled program costs, and how that is shown."""

from typing import Any, NamedTuple

from dflax.mesh.machines import Memory
from dflax.programs.collectives import Collective

FLOPS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP")
BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


class TooLargeError(MemoryError):
    """A program that needs more memory than a device has for it.

    Attributes:
      needed: bytes on one device; None where the compiler does not say.
      available: bytes that a device has for programs.
      profile: the program's `Profile`; None where the compiler itself refused it.
    """

    def __init__(self, message: str, needed: int | None, available: int, profile: Any = None):
        super().__init__(message)
        self.needed, self.available, self.profile = needed, available, profile


class Profile(NamedTuple):
    """The costs of a compiled round; sizes are bytes on one device.

    Attributes:
      devices: how many devices run the program together.
      flops: floating-point operations of a round on all devices: 2 for a product and its addition,
        1 for every other elementwise result, loops multiplied out (a loop of unknown length counts
        once, the dearest branch of a conditional counts).
      bytes_accessed: reads and writes of memory as XLA estimates them, the body of a loop counted
        once; None where the backend does not say.
      argument_bytes: state, data set and partition.
      output_bytes: the new state and the metrics.
      alias_bytes: the part of the output that takes the place of an argument: the donated state.
      temporary_bytes: what is needed in between.
      peak_bytes: what must fit at once, `argument + output - alias + temporary`.
      compile_seconds: tracing and compiling; short when a compilation cache had the program.
      collectives: what the devices exchange.
      machine: what JAX calls one of the devices.
      memory: of such a device; None where it is not known.
      members: how many clients take part in a round; None of a source whose rounds do not say.
      places: how many the devices have place for, at least as many: the others compute for nothing.
      undivided: of how many clients every device holds the whole state, because the devices do not
        divide them; None where each device holds its own clients'.
      least_sent_bytes: what one device must send at least for the exchanges of the round's parts: for
        a mean of messages of b bytes over p devices `2 b (p - 1) / p`, for a coordinate-wise rule the
        messages dealt once by coordinates and the result gathered, for gossip each model once to each
        device that hears it.
      sharing: devices that share each model.
      estimated_seconds: the time that a device takes by the compiler's own estimate of its cycles, loops
        multiplied out, exchanges left out; None where it gives none, as for GPUs. It is no measurement.
      seconds: steady time of a round; None unless rounds were run to measure it.
    """

    devices: int
    flops: float
    bytes_accessed: float | None
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    peak_bytes: int
    compile_seconds: float
    collectives: tuple[Collective, ...]
    machine: str = ""
    memory: Memory | None = None
    members: int | None = None
    places: int | None = None
    undivided: int | None = None
    least_sent_bytes: float = 0.0
    sharing: int = 1
    estimated_seconds: float | None = None
    seconds: float | None = None

    @property
    def flops_per_second(self) -> float | None:
        """Operations per second that a steady round reaches; None where it was not measured."""
        return None if self.seconds is None else self.flops / self.seconds

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in a round; a loop of unknown length counts once."""
        return sum(map(_sent, self.collectives))

    @property
    def sent_within_models(self) -> float:
        """Of these, bytes for devices that share its models: what layers exchange in local steps.

        `least_sent_bytes` leaves them out.
        """
        within = (c for c in self.collectives if c.stays_within(self.sharing))
        return sum(map(_sent, within)) if self.sharing > 1 else 0.0

    def __str__(self) -> str:
        accessed = self.bytes_accessed
        traffic = "not reported" if accessed is None else in_bytes(accessed)
        least = in_bytes(self.least_sent_bytes)
        within = f", and {in_bytes(self.sent_within_models)} for layers" if self.sharing > 1 else ""
        rows = [
            ("devices", f"{self.devices} {self.machine}".rstrip()),
            *self._who(),
            ("arithmetic, all devices", scaled(self.flops, 1000, FLOPS)),
            ("memory traffic, loops once", traffic),
            ("arguments", in_bytes(self.argument_bytes)),
            ("outputs", f"{in_bytes(self.output_bytes)}, {in_bytes(self.alias_bytes)} in place"),
            ("temporaries", in_bytes(self.temporary_bytes)),
            ("peak memory", f"{in_bytes(self.peak_bytes)}{self._of_memory()}"),
            ("sent per device", f"{in_bytes(self.sent_bytes)}, at least {least}{within}"),
            ("compiled in", f"{self.compile_seconds:.2f} s"),
            *((f"  {c.kind}", str(c).removeprefix(c.kind).strip()) for c in self.collectives),
        ]
        if self.estimated_seconds is not None:
            estimate = f"{1e3 * self.estimated_seconds:.4g} ms without exchanges, not measured"
            rows.append(("the compiler's estimate", estimate))
        if self.seconds is not None:
            reached = scaled(self.flops / self.seconds, 1000, FLOPS)
            rows.append(("a steady round", f"{1e3 * self.seconds:.4g} ms, {reached}/s"))
        return "\n".join(f"{name:<28}{value}" for name, value in rows)

    def _who(self) -> list[tuple[str, str]]:
        if self.members is None or self.places is None:
            return []
        idle = self.places - self.members
        padded = f", padded to {self.places}: {idle} are computed for nothing" if idle else ""
        rows = [("clients of a round", f"{self.members}{padded}")]
        if self.undivided is not None:
            whole = f"of all {self.undivided} clients on every device, which do not divide them"
            rows.append(("state", whole))
        return rows

    def _of_memory(self) -> str:
        if self.memory is None:
            return ""
        share = self.peak_bytes / self.memory.usable
        return f", {100 * share:.3g} % of {in_bytes(self.memory.usable)} ({self.memory.why})"


def _sent(collective: Collective) -> float:
    return collective.sent * (1 if collective.times is None else collective.times)


def in_bytes(size: float) -> str:
    """For example 1.69 MiB."""
    return scaled(size, 1024, BYTES)


def scaled(number: float, step: int, units: tuple[str, ...]) -> str:
    """A number in the unit that leaves few digits, such as 1.69 MiB."""
    power = 0
    while abs(number) >= step and power < len(units) - 1:
        number, power = number / step, power + 1
    return f"{number:.4g} {units[power]}"
