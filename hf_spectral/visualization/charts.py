"""Charts of scores over the depth of a backbone, drawn with PIL alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_spectral.errors import SpectralError
from hf_spectral.visualization.palette import BACKGROUND, FAINT, INK, MUTED, sequential_table

# Of the pathways, and then of any other line: apart in hue and in lightness.
_LINE_COLORS = {"where": (24, 119, 161), "what": (205, 92, 42)}
_MORE_COLORS = ((104, 84, 168), (64, 138, 82), (150, 118, 30), (168, 60, 110))
# Drawn so much larger, then reduced: PIL draws no smooth lines.
_OVERSAMPLING = 3
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25)

Scores = Mapping[int | None, float]


def layer_chart(panels: Mapping[str, Mapping[str, Scores]], width: int = 1200) -> Image.Image:
    """Draw lines over the layers, all layers together as a point beside them; one panel a score, each of its own scale.

    Args:
        panels: By title, then by name of the line, then by layer index (None for all layers together): values from 0.
        width: Of the picture in pixels.

    Returns:
        RGB picture.

    Raises:
        SpectralError: If there is no value, or one is not finite.
    """
    values = [value for lines in panels.values() for scores in lines.values() for value in scores.values()]
    _check("panels", values)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    more = iter(_MORE_COLORS * len(names))
    colors = {name: _LINE_COLORS.get(name) or next(more) for name in names}
    layers = sorted(
        {index for lines in panels.values() for one in lines.values() for index in one if index is not None}
    )
    canvas = _Canvas(width, round(width * 0.44))
    gap, margin = width * 0.055, width * 0.045
    panel_width = (width - 2 * margin - gap * (len(panels) - 1)) / len(panels)
    for number, (title, lines) in enumerate(panels.items()):
        left = margin + number * (panel_width + gap)
        largest = max((value for one in lines.values() for value in one.values()), default=0.0)
        step = next((one for one in _STEPS if largest <= 5 * one), 0.25)
        top = max(1, math.ceil(largest / step - 1e-9)) * step
        frame = _Frame(canvas, left, width * 0.1, panel_width, width * 0.26, layers, top)
        canvas.text(left, width * 0.04, title, 0.0165, INK, "lm")
        frame.axes(step)
        for name in names:
            if name in lines:
                frame.line(lines[name], colors[name])
    canvas.legend(margin, width * 0.068, {f"{name} pathway": color for name, color in colors.items()})
    return canvas.finish()


def heat_maps(
    maps: Mapping[str, Mapping[tuple[int, int], float]],
    axes: tuple[str, str],
    columns: int = 2,
    width: int = 1200,
    names: Sequence[str] = (),
) -> Image.Image:
    """Draw tables of values as colored cells, from 0 (light) to the largest value of the column of tables (dark).

    Args:
        maps: By title, then by row and column; a cell without a value stays empty.
        axes: What rows and columns are.
        columns: Tables beside each other.
        width: Of the picture in pixels.
        names: Of the columns of a table, from 0; none where their numbers say enough.

    Returns:
        RGB picture.

    Raises:
        SpectralError: If there is no value, or one is not finite.
    """
    values = [value for cells in maps.values() for value in cells.values()]
    _check("maps", values)
    tables = list(maps.values())
    tops = [max((one for cells in tables[i::columns] for one in cells.values()), default=0.0) for i in range(columns)]
    margin = width * 0.05
    table_width = (width - margin * (columns + 1)) / columns
    across = max(cell[1] for cells in maps.values() for cell in cells) + 1
    down = max(cell[0] for cells in maps.values() for cell in cells) + 1
    side = min(table_width / across, width * 0.032)
    pitch = side * down + width * 0.085
    thin = max(1, math.ceil(width * 0.009 * max(map(len, names), default=0) * across / table_width))
    canvas = _Canvas(width, round(width * 0.02 + pitch * -(-len(maps) // columns)))
    for number, (title, cells) in enumerate(maps.items()):
        left = margin + number % columns * (table_width + margin)
        above = width * 0.065 + number // columns * pitch
        canvas.text(left, above - width * 0.04, title, 0.0165, INK, "lm")
        canvas.text(left, above - width * 0.016, f"{axes[0]} down, {axes[1]} across", 0.0115, MUTED, "lm")
        _cells(canvas, cells, (left, above, side), table_width / across, tops[number % columns])
        foot = above + side * down + width * 0.011
        for column in range(0, len(names), thin):
            canvas.text(left + (column + 0.49) * table_width / across, foot, names[column], 0.011, MUTED, "mm")
    return canvas.finish()


def _cells(
    canvas: _Canvas, cells: Mapping[tuple[int, int], float], place: tuple[float, float, float], wide: float, top: float
) -> None:
    left, above, side = place
    for row in {cell[0] for cell in cells}:
        canvas.text(left - side * 0.25, above + (row + 0.5) * side, str(row), 0.011, MUTED, "rm")
    for (row, column), value in cells.items():
        x, y = left + column * wide, above + row * side
        color = tuple(
            int(part) for part in sequential_table()[round(255 * min(1.0, max(0.0, value / max(top, 1e-12))))]
        )
        canvas.box(x, y, x + wide * 0.98, y + side * 0.96, color)
        if wide < canvas.width * 0.025:  # No room for a number.
            continue
        ink = BACKGROUND if value > 0.55 * top else INK
        canvas.text(x + wide * 0.49, y + side * 0.48, f"{value:.2f}".lstrip("0"), 0.011, ink, "mm")


class _Frame:
    """One panel of a line chart: from layers and values to places on the canvas."""

    def __init__(
        self, canvas: _Canvas, left: float, above: float, width: float, height: float, layers: list[int], top: float
    ) -> None:
        self._canvas = canvas
        self._left, self._right = left, left + width
        self._above, self._below = above, above + height
        # All layers together stand a slot and a half apart, as they are no step of depth.
        slot = width / (len(layers) + 2)
        self._columns: dict[int | None, float] = {layer: left + (i + 0.7) * slot for i, layer in enumerate(layers)}
        self._columns[None] = left + (len(layers) + 1.2) * slot
        self._slot, self._layers, self._top = slot, layers, top

    def axes(self, step: float) -> None:
        """Draw the horizontal lines and name layers and values."""
        canvas = self._canvas
        for number in range(round(self._top / step) + 1):
            value = number * step
            y = self._row(value)
            canvas.line([(self._left, y), (self._right, y)], MUTED if number == 0 else FAINT, 1)
            canvas.text(self._left - canvas.width * 0.006, y, f"{value:g}", 0.012, MUTED, "rm")
        foot = self._below + canvas.width * 0.014
        thin = max(1, math.ceil(len(self._layers) * canvas.width * 0.022 / (self._right - self._left)))
        for layer in self._layers[::thin]:
            canvas.text(self._columns[layer], foot, str(layer), 0.012, MUTED, "mm")
        canvas.text(self._columns[None], foot, "all", 0.012, INK, "mm")
        middle = (self._columns[self._layers[0]] + self._columns[self._layers[-1]]) / 2 if self._layers else self._left
        canvas.text(middle, foot + canvas.width * 0.02, "layer", 0.012, MUTED, "mm")

    def line(self, scores: Scores, color: tuple[int, int, int]) -> None:
        """Draw one line with its points, and the point of all layers together with its value."""
        canvas = self._canvas
        points = [(self._columns[layer], self._row(scores[layer])) for layer in self._layers if layer in scores]
        canvas.line(points, color, 2.4)
        for x, y in points:
            canvas.dot(x, y, 3.4, color)
        if None in scores:
            x, y = self._columns[None], self._row(scores[None])
            canvas.dot(x, y, 6, color)
            canvas.text(x + canvas.width * 0.009, y, f"{scores[None]:.2f}", 0.012, color, "lm")

    def _row(self, value: float) -> float:
        return self._below - (self._below - self._above) * value / self._top


class _Canvas:
    """White paper, measured in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self._size = (width, height)
        self._image = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)
        self._unit = _OVERSAMPLING * width / 1200  # One pixel of a picture of the default width.

    def text(self, x: float, y: float, words: str, size: float, color: tuple[int, ...], anchor: str) -> None:
        """Write, `size` in shares of the width."""
        font = ImageFont.load_default(size=max(6.0, size * self.width * _OVERSAMPLING))
        self._draw.text((x * _OVERSAMPLING, y * _OVERSAMPLING), words, fill=color, font=font, anchor=anchor)

    def line(self, points: list[tuple[float, float]], color: tuple[int, ...], thickness: float | int) -> None:
        """Draw straight strokes through the points."""
        places = [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points]
        if len(places) > 1:
            self._draw.line(places, fill=color, width=max(1, round(thickness * self._unit)), joint="curve")

    def dot(self, x: float, y: float, radius: float | int, color: tuple[int, ...]) -> None:
        """Draw a disc with a white rim."""
        for size, fill in ((radius + 1.6, BACKGROUND), (radius, color)):
            box = [place * _OVERSAMPLING + sign * size * self._unit for sign in (-1, 1) for place in (x, y)]
            self._draw.ellipse(box, fill=fill)

    def box(self, left: float, above: float, right: float, below: float, color: tuple[int, ...]) -> None:
        """Fill a rectangle."""
        self._draw.rectangle([one * _OVERSAMPLING for one in (left, above, right, below)], fill=color)

    def legend(self, left: float, y: float, colors: Mapping[str, tuple[int, int, int]]) -> None:
        """Name the colors in a row."""
        for name, color in colors.items():
            self.dot(left + self.width * 0.006, y, 5, color)
            self.text(left + self.width * 0.016, y, name, 0.0135, color, "lm")
            font = ImageFont.load_default(size=0.0135 * self.width)
            left += self.width * 0.04 + font.getlength(name)

    def finish(self) -> Image.Image:
        """Return the picture at its own size."""
        return self._image.resize(self._size, Image.Resampling.LANCZOS)


def _check(argument: str, values: list[float]) -> None:
    if not values or not np.isfinite(values).all():
        raise SpectralError(
            argument,
            expected="at least one value, all finite",
            got="none" if not values else "NaN or infinity",
            fix="Look at the table first",
        )
