"""The house of dflax as a drawing, from the table of rooms in docs/architecture.md.

`python docs/hooks/house.py` writes docs/figures/house.svg anew; a test says when that is due.
"""

import pathlib
import re
from xml.sax.saxutils import escape

DOCS = pathlib.Path(__file__).resolve().parents[1]
DRAWING = DOCS / "figures" / "house.svg"
WIDTH, MARGIN, LABEL = 960, 24, 300
BOX, GAP, LETTER, ROOF = 32, 8, 8.6, 110
FLOORS = ("#eef2fb", "#e3e9f7")


def rows_of_rooms(page: str) -> list[tuple[str, list[str]]]:
    """The rows of the table `| row | rooms |`, from the foundation up."""
    table = page.partition("| row | rooms |")[2].partition("\n\n")[0]
    found = re.findall(r"^\| ([^|`]+?) \| (`.+`) \|$", table, re.MULTILINE)
    return [(row, re.findall(r"`(\w+)`", rooms)) for row, rooms in found]


def drawn(rows: list[tuple[str, list[str]]]) -> str:
    """The rows as floors, the first at the bottom, under a roof of what imports dflax."""
    floors, top = [], float(ROOF)
    for number, (row, rooms) in enumerate(reversed(rows)):
        boxes, height = _boxes(rooms, top)
        colour = FLOORS[number % len(FLOORS)]
        floors += [
            f'<rect x="{MARGIN}" y="{top:g}" width="{WIDTH - 2 * MARGIN}" height="{height:g}" '
            f'fill="{colour}" stroke="#5b6b9a"/>',
            _text(MARGIN + 12, top + height / 2 + 5, row, "start", "#33406b", "italic"),
            *boxes,
        ]
        top += height
    middle = WIDTH / 2
    roof = [
        f'<path d="M{MARGIN - 16} {ROOF} L{middle:g} 12 L{WIDTH - MARGIN + 16} {ROOF} Z" '
        'fill="#3f51b5" stroke="#2c3a86"/>',
        _text(middle, ROOF - 44, "experiments, benchmarks", "middle", "#ffffff"),
        _text(
            middle, ROOF - 22, "import dflax, and nothing there imports them", "middle", "#dfe4fb"
        ),
    ]
    foot = _text(
        middle, top + 26, "a room imports from floors below its own, never beside or above",
        "middle", "#33406b", "italic",
    )  # fmt: skip
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 44:g}" '
            'font-family="sans-serif" font-size="16" role="img">',
            "<title>The rooms of dflax, floor by floor</title>",
            f'<rect width="{WIDTH}" height="{top + 44:g}" fill="#ffffff"/>',
            *roof,
            *floors,
            foot,
            "</svg>",
            "",
        ]
    )


def _boxes(rooms: list[str], top: float) -> tuple[list[str], float]:
    """A floor's rooms, as many in a line as fit, and the floor's height."""
    drawings, left, line = [], float(LABEL), top + GAP
    for room in rooms:
        width = LETTER * len(room) + 20
        if left + width > WIDTH - MARGIN - GAP:
            left, line = float(LABEL), line + BOX + GAP
        drawings += [
            f'<rect x="{left:g}" y="{line:g}" width="{width:g}" height="{BOX}" rx="4" '
            'fill="#ffffff" stroke="#8a97c4"/>',
            _text(left + width / 2, line + 21, room, "middle", "#1d2440"),
        ]
        left += width + GAP
    return drawings, line + BOX + GAP - top


def _text(x: float, y: float, text: str, anchor: str, colour: str, style: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" '
        f'font-style="{style}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    DRAWING.write_text(drawn(rows_of_rooms(page)), encoding="utf-8")
