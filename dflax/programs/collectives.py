"""Which data a compiled program moves between devices, read from the program's text."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<shape>[^%\"]*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OPERAND = re.compile(r" while\(%?([\w.\-]+)\)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")


class Collective(NamedTuple):
    """One exchange between devices in a compiled program.

    Attributes:
      kind: XLA's name without "-start", one of `KINDS`.
      shapes: the shapes of its results on one device; several when XLA merged several exchanges.
      dtypes: XLA's names of their dtypes, such as "f32".
      bytes: size of the array worked on, as one device holds it: what goes into a reduce-scatter,
        what comes out of every other kind.
      devices: p, how many devices exchange with each other.
      groups: the groups of devices, or the pairs of a permutation, as XLA writes them.
      in_loop: whether a loop contains it.
      times: how often a run of the program executes it; None in a loop whose length is only known
        when it runs. A branch of a conditional counts as taken.
      op_name: the JAX operation that it comes from.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    bytes: int
    devices: int
    groups: str
    in_loop: bool
    times: int | None
    op_name: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends, in one execution, when the network is used best.

        For b bytes on p devices: all-reduce `2 b (p - 1) / p` (a reduce-scatter, then an all-gather);
        all-gather, reduce-scatter and all-to-all `b (p - 1) / p`; permutation and broadcast b.
        """
        if self.kind.startswith("collective-"):
            return float(self.bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.bytes * (self.devices - 1) / self.devices

    def stays_within(self, devices: int) -> bool:
        """Whether nothing leaves blocks of so many devices that follow each other; False: not known."""
        members = _members(self.groups)
        return bool(members) and all(len({d // devices for d in group}) == 1 for group in members)

    def __str__(self) -> str:
        pairs = zip(self.dtypes, self.shapes, strict=True)
        arrays = ", ".join(f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in pairs)
        times = "? times" if self.times is None else f"{self.times} times"
        return f"{self.kind} {arrays} ({self.bytes} bytes{', ' + times if self.in_loop else ''})"


def collectives(compiled: Any) -> list[Collective]:
    """The collectives of a compiled program.

    Each instruction is listed once for every place it is called from, with the number of times it
    runs. Asynchronous pairs (`all-gather-start`, `all-gather-done`) are one collective.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns, or its text.

    Returns:
      The collectives in the order of the program, of one device.

    Raises:
      TypeError: neither text nor a program that has one.
      ValueError: text of something that is not compiled yet.
    """
    text = compiled.as_text() if hasattr(compiled, "as_text") else compiled
    if not isinstance(text, str):
        raise TypeError(
            f"compiled must be a compiled program or its text, got {type(compiled).__name__}. "
            "Make one with jax.jit(f).lower(...).compile()."
        )
    if "HloModule" not in text[:200]:
        raise ValueError(
            "compiled must be the text of a compiled program, which starts with HloModule, got "
            f"{text[:40]!r}. Pass jax.jit(f).lower(...).compile(): there are no collectives before."
        )
    devices = _devices(text)
    return [
        _collective(found, line, devices, in_loop, times)
        for line, in_loop, times in _instructions(text)
        if (found := _INSTRUCTION.match(line)) is not None
    ]


def estimated_cycles(compiled: Any) -> int | None:
    """Cycles of a device that the compiler for TPUs expects a program to take, loops multiplied out.

    Exchanges between devices are not in it. A loop of unknown length counts once.

    Args:
      compiled: a compiled program, or its text.

    Returns:
      Their number; None where the compiler says nothing.
    """
    text = compiled.as_text() if hasattr(compiled, "as_text") else compiled
    told = [
        int(cycles[1]) * (1 if times is None else times)
        for line, _, times in _instructions(text)
        if (cycles := _CYCLES.search(line)) is not None
    ]
    return sum(told) if told else None


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry computation and the instructions of every computation."""
    entry, name = "", ""
    computations: dict[str, list[str]] = {"": []}
    for line in text.splitlines():
        header = None if line[:1].isspace() else _COMPUTATION.match(line)
        if header is not None and not line.startswith("HloModule"):
            name = header["name"]
            computations[name] = []
            entry = name if header["entry"] else entry
        else:
            computations[name].append(line)
    return entry, computations


def _instructions(text: str) -> Iterator[tuple[str, bool, int | None]]:
    """Every instruction, whether a loop contains it, and how often it runs, where it is called."""
    entry, computations = _computations(text)
    return _walk(entry, computations, False, 1)


def _walk(
    name: str, computations: dict[str, list[str]], in_loop: bool, times: int | None
) -> Iterator[tuple[str, bool, int | None]]:
    for line in computations.get(name, ()):
        yield line, in_loop, times
        if _INSTRUCTION.match(line) is not None:
            continue
        for role, names in _CALLED.findall(line):
            inside, count = in_loop, times
            if role in ("body", "condition"):
                trips = _trips(line, computations[name], computations)
                inside = True
                count = None if trips is None or times is None else times * trips
            for called in re.findall(r"[\w.\-]+", names):
                yield from _walk(called, computations, inside, count)


def _trips(line: str, beside: list[str], computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler says, or of a counter that goes up by 1 to a constant.

    Args:
      line: of the loop.
      beside: the instructions of the computation that it is in.
      computations: all of them.
    """
    known = _TRIPS.search(line)
    if known is not None:
        return int(known[1])
    condition, body = (
        computations.get(found[1], [])
        for found in (re.search(rf"{role}=%?([\w.\-]+)", line) for role in ("condition", "body"))
        if found is not None
    )
    compared = _root(condition, "compare")
    if compared is None or "direction=LT" not in compared[1]:
        return None
    counter, bound = compared[0]
    place = re.search(r"index=(\d+)", _of(condition, counter, "get-tuple-element") or "")
    carried, after = _OPERAND.search(line), _root(body, "tuple")
    if place is None or carried is None or after is None:
        return None
    started = _operands(_of(beside, carried[1], "tuple") or "")
    counted = _operands(_of(body, after[0][int(place[1])], "add") or "")
    step = [_constant(body, name) for name in counted]
    last, first = _constant(condition, bound), None
    if len(started) > int(place[1]):
        first = _constant(beside, started[int(place[1])])
    if first is None or last is None or 1 not in step:
        return None
    return max(0, last - first)


def _root(computation: list[str], kind: str) -> tuple[list[str], str] | None:
    """The operands and the text of a computation's last instruction, if it is of a kind."""
    for line in computation:
        if line.lstrip().startswith("ROOT ") and f" {kind}(" in line:
            return _operands(line[line.index(f" {kind}(") :]), line
    return None


def _of(computation: list[str], name: str, kind: str) -> str | None:
    """The text of an instruction from its kind on, if it is of that kind."""
    for line in computation:
        if re.match(rf"\s*(?:ROOT )?%?{re.escape(name)} = ", line):
            at = line.find(f" {kind}(")
            return None if at < 0 else line[at:]
    return None


def _operands(text: str) -> list[str]:
    """The names of what an instruction works on."""
    inside = re.search(r"\(([^()]*)\)", re.sub(r"/\*.*?\*/", "", text))
    return [] if inside is None else [part.strip().lstrip("%") for part in inside[1].split(",")]


def _constant(computation: list[str], name: str) -> int | None:
    """The integer that a name stands for, through copies."""
    for _ in range(len(computation)):
        number = re.match(r" constant\((-?\d+)\)", _of(computation, name, "constant") or "")
        if number is not None:
            return int(number[1])
        copied = _operands(_of(computation, name, "copy") or "")
        if not copied:
            return None
        name = copied[0]
    return None


def _collective(
    found: re.Match[str], line: str, devices: int, in_loop: bool, times: int | None
) -> Collective:
    kind = found["kind"]
    arrays = _ARRAY.findall(_result(found["shape"], kind, found["start"] is not None))
    shapes = tuple(tuple(int(n.lstrip("<=")) for n in dims.split(",") if n) for _, dims in arrays)
    dtypes = tuple(dtype for dtype, _ in arrays)
    size = sum(
        -(-_bits(dtype) * math.prod(shape) // 8)
        for dtype, shape in zip(dtypes, shapes, strict=True)
    )
    groups, width = _groups(line, devices)
    op_name = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        kind,
        shapes,
        dtypes,
        size * width if kind == "reduce-scatter" else size,
        width,
        groups,
        in_loop,
        times,
        "" if op_name is None else op_name[1],
    )


def _result(shape: str, kind: str, start: bool) -> str:
    """The part of an instruction's shape that is its result, without layouts and comments."""
    shape = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", shape).strip()
    # The start of an all-reduce has the result's own shape, that of any other is a tuple of
    # operands, results and bookkeeping.
    if not start or kind == "all-reduce" or not shape.startswith("("):
        return shape
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts[1]


def _bits(dtype: str) -> int:
    """Bits of one number: "pred" is stored in a byte, every other name says its width."""
    width = re.search(r"\d+", dtype)
    return 8 if dtype == "pred" else 0 if width is None else int(width[0])


def _groups(line: str, devices: int) -> tuple[str, int]:
    """The groups as written and how many devices are in one."""
    pairs = re.search(r"source_target_pairs=(\{\{.*?\}\}|\{\})", line)
    if pairs is not None:
        return pairs[1], len(set(re.findall(r"\d+", pairs[1])))
    listed = re.search(r"replica_groups=(\{\{.*?\}\}|\{\})", line)
    if listed is not None:
        first = re.findall(r"\d+", listed[1].split("}")[0])
        return listed[1], len(first) or devices
    counted = re.search(r"replica_groups=(\[\d+,(\d+)\]<=\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if counted is not None:
        return counted[1], int(counted[2])
    named = re.search(r"replica_groups=(mesh\[(.*?)\].*? \{(.*?)\})", line)
    if named is None:
        return "", devices
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[2]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[3])
    return named[1], math.prod(int(part or sizes[axis]) for axis, part in axes)


def _members(groups: str) -> list[tuple[int, ...]]:
    """The devices of each group, or pair, as XLA writes them; none of a notation that is not known."""
    if groups.startswith("{{"):
        listed = re.findall(r"\{([\d, ]+)\}", groups)
        return [tuple(map(int, group.split(","))) for group in listed]
    counted = re.fullmatch(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
    if counted is not None:
        sides, order = (
            [int(n) for n in part.split(",")] for part in (counted[3], counted[4] or "0")
        )
        numbers = np.arange(math.prod(sides)).reshape(sides)
        if counted[4]:
            numbers = numbers.transpose(order)
        return [tuple(group) for group in numbers.reshape(int(counted[1]), -1).tolist()]
    named = re.fullmatch(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups)
    if named is None or ":(" in named[2]:
        return []
    sizes = re.findall(r"'([^']+)'=(\d+)", named[1])
    numbers = np.arange(math.prod(int(size) for _, size in sizes))
    numbers = numbers.reshape([int(size) for _, size in sizes])
    along = [place for place, (name, _) in enumerate(sizes) if f"'{name}'" in named[2]]
    width = math.prod(numbers.shape[place] for place in along)
    moved = np.moveaxis(numbers, along, range(-len(along), 0))
    return [tuple(group) for group in moved.reshape(-1, width).tolist()]


def _devices(text: str) -> int:
    """How many devices run the program."""
    header = text.split("\n", 1)[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
    return math.prod(map(int, counts))
