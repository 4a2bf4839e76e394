"""Slopes of measured curves on log-log axes, and their charts, drawn as the project draws its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from hf_spectral.visualization.charts import _Canvas
from hf_spectral.visualization.palette import FAINT, INK, MUTED

Points = Sequence[tuple[float, float]]
COLORS = ((205, 92, 42), (24, 119, 161), (104, 84, 168), (64, 138, 82), (150, 118, 30))


def log_slope(points: Points) -> tuple[float, float]:
    """Fit y = a x^s by least squares of the logarithms; return s and its standard error (NaN for two points)."""
    x, y = np.log(np.asarray(points, dtype=float).T)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    if len(x) == 2:
        return slope, float("nan")
    residual = float(((y - slope * x) ** 2).sum())
    return slope, math.sqrt(residual / (len(x) - 2) / float(x @ x))


def short(slope: float) -> str:
    """Two digits, without the sign of a zero."""
    return f"{round(slope, 2) + 0.0:.2f}"


def slope_row(curve: str, points: Points, target: str = "-") -> dict[str, str]:
    """Describe a curve: its slope, that of its last step, and what was aimed at."""
    if len(points) < 2:
        return {"curve": curve, "from": "-", "to": "-", "slope": "too few points", "last step": "-", "target": target}
    slope, error = log_slope(points)
    return {
        "curve": curve,
        "from": f"{points[0][0]:,}",
        "to": f"{points[-1][0]:,}",
        "slope": short(slope) + ("" if math.isnan(error) else f" +- {error:.2f}"),
        "last step": short(log_slope(points[-2:])[0]),
        "target": target,
    }


def power_chart(panels: Mapping[str, Mapping[str, Points]], columns: int = 2, width: int = 1200) -> Image.Image:
    """Draw curves on log-log axes, each with its slope beside its name.

    Args:
        panels: By title ("y against x"), then by name of the curve.
        columns: Panels beside each other.
        width: Of the picture in pixels.
    """
    rows = -(-len(panels) // columns)
    canvas = _Canvas(width, round(width * 0.36 * rows))
    for number, (title, lines) in enumerate(panels.items()):
        left = width * (0.06 + number % columns * 0.94 / columns)
        above = width * (0.075 + 0.36 * (number // columns))
        _panel(canvas, title, lines, (left, above, width * (0.94 / columns - 0.08), width * 0.23))
    return canvas.finish()


def _panel(canvas: _Canvas, title: str, lines: Mapping[str, Points], place: tuple[float, float, float, float]) -> None:
    left, above, wide, high = place
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    low, top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)) + 1e-9)
    span = max(math.log(xs[-1] / xs[0]), 1e-9)

    def spot(x: float, y: float) -> tuple[float, float]:
        return left + wide * math.log(x / xs[0]) / span, above + high * (top - math.log10(y)) / (top - low)

    canvas.text(left, above - canvas.width * 0.05, title, 0.015, INK, "lm")
    for power in range(low, top + 1):
        _, y = spot(xs[0], 10.0**power)
        canvas.line([(left, y), (left + wide, y)], FAINT, 1)
        canvas.text(left - canvas.width * 0.006, y, f"{10.0**power:,g}", 0.0115, MUTED, "rm")
    for x in xs:
        canvas.text(spot(x, 1)[0], above + high + canvas.width * 0.014, f"{x:,g}", 0.0115, MUTED, "mm")
    colors = dict(zip(lines, COLORS * len(lines), strict=False))
    names = {
        name: f"{name}, {short(log_slope(one)[0])}" if len(one) > 1 else name for name, one in lines.items() if one
    }
    canvas.legend(left, above - canvas.width * 0.024, {words: colors[name] for name, words in names.items()})
    for name in names:
        places = [spot(x, y) for x, y in lines[name]]
        canvas.line(places, colors[name], 2.4)
        for x, y in places:
            canvas.dot(x, y, 3.4, colors[name])
