"""A training's losses as a figure, for `report/` and so for MLflow.

In: the journal's points, (step, {name: value}). Out: `loss.png`: training loss, held-out loss, the learning rate below.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

Point = tuple[int, Mapping[str, float]]


def draw(path: Path, points: Sequence[Point]) -> None:
    """The file; its folder is made."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(7, 4.5), layout="constrained")
    top, below = sheet.subplots(2, sharex=True, height_ratios=(4, 1))
    for name, style in (("train/loss", {"linewidth": 0.8, "color": "silver"}), ("val/loss", {"marker": "o"})):
        if line := series(points, name):
            top.plot(*zip(*line, strict=True), label=name, **style)
    top.set_ylabel("nats")
    top.legend()
    if rates := series(points, "train/lr"):
        below.plot(*zip(*rates, strict=True), color="silver")
    below.set(xlabel="step", ylabel="lr")
    path.parent.mkdir(exist_ok=True)
    sheet.savefig(path, dpi=110)


def series(points: Sequence[Point], name: str) -> list[tuple[int, float]]:
    """Where a name has values, and which."""
    return [(step, values[name]) for step, values in points if name in values]
