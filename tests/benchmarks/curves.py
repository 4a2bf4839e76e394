"""Slopes of measured curves on log-log axes, and their charts, drawn as the project draws its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from hf_spectral.visualization.charts import _figure, _image

Points = Sequence[tuple[float, float]]


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
    with _figure(width, 4.2 * rows) as figure:
        for axes, (title, lines) in zip(
            figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False
        ):
            axes.set_title(title)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(axis="y")
            xs = sorted({x for points in lines.values() for x, _ in points})
            ys = [y for points in lines.values() for _, y in points]
            # Whole decades, so that a flat curve looks flat.
            axes.set_ylim(10.0 ** math.floor(math.log10(min(ys))), 10.0 ** math.ceil(math.log10(max(ys)) + 1e-9))
            axes.set_xticks(xs, [f"{x:,g}" for x in xs])
            axes.minorticks_off()
            for name, points in lines.items():
                words = f"{name}, {short(log_slope(points)[0])}" if len(points) > 1 else name
                axes.plot(*zip(*points, strict=True), marker="o", label=words)
            axes.legend()
        return _image(figure)
