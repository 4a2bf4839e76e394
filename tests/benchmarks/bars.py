"""The picture of a claim: one column of its table as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tests.benchmarks.common import cell, leading

OURS, OTHERS = "#2a6f97", "#b8b8b8"
PEERS = ("last hidden state", "gradient")


def draw_bars(rows: list[dict[str, Any]], column: str, path: Path) -> None:
    """Draw a bar per row, those of peers in gray, and save a PNG.

    Args:
        rows: Of equal columns, the first of which name the row.
        column: What the bars show; a cell may hold a median with its spread, `0.66 (0.65-0.67)`.
        path: Where to.
    """
    names = [row_name(row, rows, column) for row in rows]
    values = [leading(row[column]) for row in rows]
    colors = [OTHERS if any(peer in name for peer in PEERS) else OURS for name in names]
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7.2, 0.6 + 0.26 * len(rows)), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(range(len(rows)), values, color=colors, height=0.7)
        axes.bar_label(bars, [cell(row[column]) for row in rows], padding=3)
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.margins(x=0.2, y=0.02)
        axes.set_xlabel(column)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Software": None})


def row_name(row: dict[str, Any], rows: list[dict[str, Any]], column: str) -> str:
    """Return as many of the first columns as tell the rows apart."""
    columns = [name for name in row if name != column]
    for count in range(1, len(columns) + 1):
        if len({tuple(one[name] for name in columns[:count]) for one in rows}) == len(rows):
            break
    return ", ".join(str(row[name]) for name in columns[:count])
