"""Charts of scores over the layers of a backbone, drawn by matplotlib."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hf_spectral.checks import require_extra
from hf_spectral.errors import SpectralError
from hf_spectral.visualization.palette import SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colors differ in hue and in lightness.
_LINE_COLORS = {"where": "#1877a1", "what": "#cd5c2a"}
_MORE_COLORS = ("#6854a8", "#408a52", "#96761e", "#a83c6e")
_INCHES = 12  # Width of every figure; the resolution gives its width in pixels.
# DejaVu Sans comes with matplotlib, so that a chart looks the same on every machine.
_STYLE = Path(__file__).with_name("charts.mplstyle")

Scores = Mapping[int | None, float]


def layer_chart(panels: Mapping[str, Mapping[str, Scores]], width: int = 1200) -> Image.Image:
    """Draw scores as lines over the layers, and the score of all layers together as a separate point.

    Each panel shows one score and has its own vertical axis.

    Args:
        panels: Non-negative values by panel title, then by line name, then by layer index. The index None stands for
            all layers together.
        width: Width of the image in pixels.

    Returns:
        RGB image.

    Raises:
        SpectralError: If there is no value, a value is not finite, or the extra `[charts]` is not installed.

    Example:
        >>> from hf_spectral.visualization import layer_chart
        >>> layer_chart({"where-score": {"what": {0: 0.4, 1: 0.2, None: 0.3}}}, width=600).size
        (600, 250)
    """
    _check("panels", [value for lines in panels.values() for scores in lines.values() for value in scores.values()])
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    more = iter(_MORE_COLORS * len(names))
    colors = {name: _LINE_COLORS.get(name) or next(more) for name in names}
    indices = {index for lines in panels.values() for scores in lines.values() for index in scores} - {None}
    layers = sorted(index for index in indices if index is not None)
    room = _INCHES * 0.8 / len(panels) / (len(layers) + 2)
    with _figure(width, 5.0) as figure:
        for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axes.set_title(title)
            _lines(axes, lines, colors, layers, room)
        for name, color in colors.items():
            figure.axes[0].plot([], [], "o", color=color, label=f"{name} pathway")
        figure.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.14), ncols=len(names), labelcolor="linecolor")
        return _image(figure)


def heat_maps(
    maps: Mapping[str, Mapping[tuple[int, int], float]],
    axes: tuple[str, str],
    columns: int = 2,
    width: int = 1200,
    names: Sequence[str] = (),
) -> Image.Image:
    """Draw tables of values as colored cells.

    The tables of one column share a color scale from 0 (light) to their largest value (dark).

    Args:
        maps: Non-negative values by table title, then by row and column index. A cell without a value stays empty.
        axes: Labels of the rows and of the columns.
        columns: Number of tables side by side.
        width: Width of the image in pixels.
        names: Names of the columns of each table; by default their indices.

    Returns:
        RGB image.

    Raises:
        SpectralError: If there is no value, a value is not finite, or the extra `[charts]` is not installed.

    Example:
        >>> from hf_spectral.visualization import heat_maps
        >>> heat_maps({"what-score": {(0, 0): 0.1, (0, 1): 0.4}}, ("layer", "head"), columns=1, width=600).width
        600
    """
    _check("maps", [value for cells in maps.values() for value in cells.values()])
    rows, count = (max(cell[axis] for cells in maps.values() for cell in cells) + 1 for axis in (0, 1))
    lines = -(-len(maps) // columns)
    with _figure(width, lines * (0.38 * rows + 1.1)) as figure:
        grid = figure.subplots(lines, columns, squeeze=False)
        for panel in grid.flat[len(maps) :]:
            panel.set_axis_off()
        for number, (panel, (title, cells)) in enumerate(zip(grid.flat, maps.items(), strict=False)):
            table = np.full((rows, count), np.nan)
            for place, value in cells.items():
                table[place] = value
            beside = list(maps.values())[number % columns :: columns]
            top = max((value for cells in beside for value in cells.values()), default=0.0)
            panel.set_title(title)
            panel.set(ylabel=axes[0], xlabel=axes[1])
            _cells(panel, table, top, names or range(count), _INCHES * 0.85 / columns / count)
        return _image(figure)


@contextlib.contextmanager
def _figure(width: int, inches: float) -> Iterator[Figure]:
    """Yield a new figure in the style of this module; pyplot and the user's own settings stay as they are."""
    require_extra("charts", "matplotlib")
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", str(_STYLE)]):
        yield Figure((_INCHES, inches), dpi=width / _INCHES)


def _image(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _lines(
    axes: Axes, lines: Mapping[str, Scores], colors: Mapping[str, str], layers: Sequence[int], room: float
) -> None:
    """Draw one panel, where `room` is the width of a layer in inches."""
    from matplotlib.ticker import MaxNLocator

    places: dict[int | None, float] = {layer: place for place, layer in enumerate(layers)}
    places[None] = len(layers) - 0.5 + max(1, 0.35 / room)  # The gap shows that this is not another layer.
    for name, scores in lines.items():
        shown = [layer for layer in layers if layer in scores]
        color, size = colors[name], min(7.5, max(3, 36 * room))
        plot = functools.partial(axes.plot, color=color, marker="o", mec="white", clip_on=False, zorder=3)
        plot([places[one] for one in shown], [scores[layer] for layer in shown], lw=2, ms=size, mew=size / 7)
        if None in scores:
            point, text = (places[None], scores[None]), f"{scores[None]:.2f}"
            plot(*point, ms=12)
            axes.annotate(text, point, (9, 0), textcoords="offset points", va="center", color=color)
    largest = max((value for scores in lines.values() for value in scores.values()), default=0.0)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, max(largest, 0.01))
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(ylim=(0, ticks[-1]), xlim=(-0.7, places[None] + 0.25 / room), xlabel="layer")
    axes.grid(axis="y")
    marks = {places[layer]: str(layer) for layer in layers[:: math.ceil(0.22 / room)]}
    if any(None in scores for scores in lines.values()):
        marks[places[None]] = "all"
    axes.set_xticks(list(marks), list(marks.values()))


def _cells(axes: Axes, table: np.ndarray, top: float, names: Sequence[object], room: float) -> None:
    """Draw one table, where `room` is the width of a cell in inches."""
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(SEQUENTIAL / 255)
    mesh = axes.pcolormesh(table, cmap=colors, vmin=0, vmax=max(top, 1e-12), edgecolors="white", linewidth=0.7)
    axes.invert_yaxis()
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks(np.arange(len(table)) + 0.5, [str(row) for row in range(len(table))])
    step = math.ceil(0.1 * (1 + max(len(str(name)) for name in names)) / room)
    axes.set_xticks(np.arange(0, table.shape[1], step) + 0.5, [str(name) for name in names[::step]])
    if room < 0.3:
        axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=40).outline.set_visible(False)
    else:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                ink = "white" if value > 0.55 * top else None
                text = f"{value:.2f}".removeprefix("0")
                axes.text(column + 0.5, row + 0.5, text, color=ink, size=9, ha="center", va="center_baseline")


def _check(argument: str, values: Sequence[float]) -> None:
    if not values or not np.isfinite(values).all():
        raise SpectralError(
            argument,
            expected="at least one value, all finite",
            got="none" if not values else "NaN or infinity",
            fix="Look at the table first",
        )
