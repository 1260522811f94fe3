"""Draw a graph in layers, top to bottom, as one SVG without scripts: boxes never touch, long edges pass beside them.

In: boxes and edges. Out: SVG text. Method: Sugiyama et al. (1981): a box stands as far down as those that need it let
it, boxes are ordered by the barycentre of their neighbours, and an edge over several layers keeps a lane in each;
all long edges out of one box share its lane, so that the picture stays a few lines and not a thicket.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, LINE, PAD, GAP_X, GAP_Y, LANE = 250, 17, 8, 12, 36, 4  # pixels
COLUMNS = 3
"""Cells that stand side by side in a box."""

Edge = tuple[str, str]


@dataclass
class Box:
    """Lines of text, the first one bold, or a titled frame around cells; without either, the lane of a long edge."""

    lines: list[str] = field(default_factory=list)
    kind: str = "lane"
    hint: str = ""
    cells: list[str] = field(default_factory=list)
    x: float = 0.0
    """Of its middle."""
    top: float = 0.0
    """Where its layer begins."""
    tall: float = 0.0
    """The height of its layer, in whose middle it stands."""

    @property
    def width(self) -> float:
        """As many cells as stand side by side, or one."""
        return LANE if self.kind == "lane" else WIDTH * max(1, min(COLUMNS, len(self.cells)))

    @property
    def y(self) -> float:
        """Of its upper edge."""
        return self.top + (self.tall - self.height) / 2

    @property
    def height(self) -> float:
        """Its lines, then its rows of cells."""
        rows = -(-len(self.cells) // COLUMNS)
        return self.tall if self.kind == "lane" else len(self.lines) * LINE + 2 * PAD + rows * (LINE + 2 * PAD)


def draw(boxes: Mapping[str, Box], edges: Iterable[Edge]) -> str:
    """The picture."""
    layers, parts = arrange(dict(boxes), list(edges))
    width = max(box.x + box.width / 2 for layer in layers for box in layer.values()) + PAD
    height = max(box.y + box.height for layer in layers for box in layer.values()) + PAD
    lines = [curve(*part) for part in parts]
    shapes = [shape(box) for layer in layers for box in layer.values() if box.kind != "lane"]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    marker = '<marker id="tip" markerWidth="7" markerHeight="7" refX="6" refY="3" orient="auto">'
    tip = f'<defs>{marker}<path class="tip" d="M0 0L6 3L0 6z"/></marker></defs>'
    return "\n".join([f'{head} style="max-width:{width:.0f}px">{tip}', *lines, *shapes, "</svg>"])


# -- where everything stands ------------------------------------------------------------------------------------------


def arrange(
    boxes: dict[str, Box], edges: list[Edge]
) -> tuple[list[dict[str, Box]], list[tuple[Box, Box, float, float]]]:
    """Layers from the top with every box placed, and the lines as (from, to, share of its width at either end)."""
    rank = ranks(boxes, edges)
    boxes, short = lanes(boxes, edges, rank)
    layers = [{name: boxes[name] for name in boxes if rank[name] == at} for at in range(max(rank.values()), -1, -1)]
    near = {name: [b for a, b in short if a == name] + [a for a, b in short if b == name] for name in boxes}
    for sweep in range(24):
        for at in range(len(layers)) if sweep % 2 else reversed(range(len(layers))):
            layers[at] = ordered(layers[at], near, boxes)
    left, top = min(box.x - box.width / 2 for box in boxes.values()) - PAD, float(PAD)
    for layer in layers:
        tall = max(box.height for box in layer.values())
        for box in layer.values():
            box.x, box.top, box.tall = box.x - left, top, tall
        top += tall + GAP_Y
    return layers, [(boxes[a], boxes[b], *ends(a, b, short, boxes)) for a, b in short]


def ranks(boxes: Iterable[str], edges: Iterable[Edge]) -> dict[str, int]:
    """How many layers each box stands above the lowest: one more than the highest of those that it leads to."""
    rank = dict.fromkeys(boxes, 0)
    for _ in rank:
        for a, b in edges:
            rank[a] = max(rank[a], rank[b] + 1)
    return rank


def lanes(boxes: dict[str, Box], edges: list[Edge], rank: dict[str, int]) -> tuple[dict[str, Box], list[Edge]]:
    """Boxes with a lane for each layer that an edge passes, and edges that each go down one layer."""
    short: dict[Edge, None] = {}
    for a, b in edges:
        way = [a, *(f"{a} at {at}" for at in range(rank[a] - 1, rank[b], -1)), b]
        for at, lane in enumerate(way[1:-1], 1):
            boxes.setdefault(lane, Box())
            rank[lane] = rank[a] - at
        short |= dict.fromkeys(pairwise(way))
    return boxes, list(short)


def ordered(layer: dict[str, Box], near: Mapping[str, list[str]], boxes: Mapping[str, Box]) -> dict[str, Box]:
    """The layer by where its neighbours are, each box as near to them as the others let it."""
    wish = {n: sum(boxes[m].x for m in near[n]) / max(1, len(near[n])) for n in layer}
    layer = {name: layer[name] for name in sorted(layer, key=lambda name: wish[name])}
    right = float("-inf")
    for name, box in layer.items():
        box.x = max(wish[name], right + box.width / 2)
        right = box.x + box.width / 2 + GAP_X
    shift = sum(box.x - wish[name] for name, box in layer.items()) / len(layer)
    for box in layer.values():
        box.x -= shift
    return layer


def ends(a: str, b: str, edges: list[Edge], boxes: Mapping[str, Box]) -> tuple[float, float]:
    """How far from the middle a line leaves and arrives, so that lines at one box stand side by side."""
    out = sorted((m for n, m in edges if n == a), key=lambda m: boxes[m].x)
    into = sorted((n for n, m in edges if m == b), key=lambda n: boxes[n].x)
    return spread(boxes[a], out.index(b), len(out)), spread(boxes[b], into.index(a), len(into))


def spread(box: Box, at: int, count: int) -> float:
    """The offset of one of several line ends at a box."""
    return 0.0 if box.kind == "lane" else (at - (count - 1) / 2) * min(22, box.width / (count + 1))


# -- what is drawn ----------------------------------------------------------------------------------------------------


def curve(a: Box, b: Box, start: float, end: float) -> str:
    """A line from one box down to the next: it bends between the layers and goes straight within them."""
    x1, x2, y1, y2 = a.x + start, b.x + end, a.top + a.tall, b.top
    bend = f"V{y1:.0f}C{x1:.0f} {y1 + GAP_Y / 2:.0f} {x2:.0f} {y2 - GAP_Y / 2:.0f} {x2:.0f} {y2:.0f}"
    stop = b.y + b.height if b.kind == "lane" else b.y - 1
    tip = "" if b.kind == "lane" else ' marker-end="url(#tip)"'
    return f'<path class="line" d="M{x1:.0f} {min(a.y + a.height, y1):.0f}{bend}V{stop:.0f}"{tip}/>'


def shape(box: Box) -> str:
    """A box with its text; its hint shows under the pointer."""
    x, y = box.x - box.width / 2, box.y
    parts = [f'<g class="{box.kind}"><title>{escape(box.hint)}</title>']
    parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" rx="6"/>')
    for n, line in enumerate(box.lines):
        head = ' class="head"' if n == 0 else ""
        parts.append(f'<text{head} x="{x + PAD:.0f}" y="{y + PAD + n * LINE + 13:.0f}">{escape(line)}</text>')
    for n, cell in enumerate(box.cells):
        at_x, at_y = x + PAD / 2 + (n % COLUMNS) * WIDTH, y + PAD + len(box.lines) * LINE
        at_y += (n // COLUMNS) * (LINE + 2 * PAD)
        frame = f'x="{at_x:.0f}" y="{at_y:.0f}" width="{WIDTH - PAD}" height="{LINE + PAD}" rx="4"'
        text = f'x="{at_x + PAD / 2:.0f}" y="{at_y + LINE:.0f}"'
        parts.append(f'<rect class="cell" {frame}/><text {text}>{escape(cell)}</text>')
    return "".join([*parts, "</g>"])
