"""Pictures of eigenvectors and segments: tensors and PIL images in, PIL images out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.stats import rankdata
from torch import Tensor

from hf_spectral.errors import SpectralError

_BACKGROUND = (255, 255, 255)
_INK = (40, 44, 52)
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))

# Negative, zero, positive: the lightness falls evenly to both sides, so that equal magnitudes look equally strong.
_DIVERGING_STOPS = ("#0a2348", "#1c4e8c", "#4a8fc4", "#a3cbe3", "#f6f3ee", "#f2b892", "#d9694a", "#a32639", "#4d0a2b")

# OKLab (Ottosson 2020): cone responses from linear sRGB, then lightness and two opponent axes from their cube roots.
_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_OPPONENTS = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def eigenvector_image(values: Float[Tensor, "height width"], size: tuple[int, int] | None = None) -> Image.Image:
    """Color one eigenvector: blue below zero, white at zero, red above.

    Both ends of the color map stand for the same magnitude, the 98th percentile, so that a few extreme tokens do not
    pale all others. Values are interpolated before they are colored.

    Args:
        values: One map.
        size: Height and width of the picture in pixels; `None`: one pixel a token.

    Returns:
        RGB picture.
    """
    maps = _resized(values[None], size)[0]
    bound = max(float(np.percentile(np.abs(values.detach().cpu().double().numpy()), 98)), 1e-12)
    position = (np.clip(maps / bound, -1, 1) + 1) / 2
    return Image.fromarray(_diverging_table()[np.rint(position * 255).astype(np.intp)])


def eigenvectors_to_rgb(
    eigenvectors: Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"] | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Show the first three eigenvectors after the trivial one as one color picture.

    They steer the three axes of the perceptual space OKLab: the first green to red, the second blue to yellow, the
    third dark to light, so that equal steps look equally large. Each is half its value, stretched from the 2nd to the
    98th percentile, half its rank: eigenvectors that single out a small part would leave the rest one flat color.
    Signs are fixed first (the entry of largest magnitude is positive), so the picture does not depend on them.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0; missing ones (fewer than three) stay neutral.
        eigenvalues: Of the normalized Laplacian. If given, eigenvector j > 1 spans (1 - lambda_j) / (1 - lambda_1) of
            its axis, at least half: weak eigenvectors tint, strong ones color.
        size: Height and width of the picture in pixels; `None`: one pixel a token.

    Returns:
        RGB picture.

    Raises:
        SpectralError: If there is only the trivial eigenvector.
    """
    if len(eigenvectors) < 2:
        raise SpectralError(
            "eigenvectors", expected="at least 2", got=len(eigenvectors), fix="Solve with num_eigenvectors=4 or more"
        )
    chosen = eigenvectors[1:4].detach().cpu().double().flatten(1).numpy()
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(1)[:, None], axis=1)
    chosen = np.where(largest < 0, -chosen, chosen)
    low, high = np.quantile(chosen, [0.02, 0.98], axis=1)[:, :, None]
    stretched = ((chosen - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    spread = (stretched + (rankdata(chosen, axis=1) - 0.5) / chosen.shape[1]) / 2 - 0.5
    if eigenvalues is not None:
        scales = (1 - eigenvalues[1:4].detach().cpu().double().numpy()).clip(1e-6)
        spread = spread * (scales / scales[0]).clip(0.5, 1)[:, None]
    maps = _resized(torch.from_numpy(spread).reshape(-1, *eigenvectors.shape[1:]), size).clip(-0.5, 0.5)
    lab = np.zeros((*maps.shape[1:], 3))
    lab[..., 0] = 0.66
    for axis, (values, gain) in zip((1, 2, 0), zip(maps, (0.34, 0.34, 0.46), strict=False), strict=False):
        lab[..., axis] += gain * values
    return Image.fromarray(_bytes_from_oklab(lab))


def segmentation_overlay(
    image: Image.Image,
    labels: Int[Tensor, "height width"],
    alpha: float = 0.55,
    fill: Literal["palette", "mean"] = "palette",
    boundaries: bool = True,
) -> Image.Image:
    """Tint a photo by segment and draw thin boundaries.

    Args:
        image: The photo.
        labels: Segment of each pixel, from 0; enlarged by nearest neighbor if it is not of the photo's size.
        alpha: Strength of the tint, 0 (photo) to 1 (flat colors).
        fill: `"palette"`: one distinct color a segment; `"mean"`: the segment's mean color in the photo.
        boundaries: Draw a white line between segments.

    Returns:
        RGB picture of the photo's size.

    Raises:
        SpectralError: If `alpha` lies outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise SpectralError("alpha", expected="a number from 0 to 1", got=alpha, fix="Try 0.55")
    photo = np.asarray(image.convert("RGB"), dtype=np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip(photo.shape[:2], labels.shape, strict=True))
    segments = labels.detach().cpu().numpy()[np.ix_(rows, columns)]
    count = int(segments.max()) + 1
    if fill == "mean":
        areas = np.maximum(np.bincount(segments.ravel(), minlength=count), 1)
        sums = [np.bincount(segments.ravel(), photo[..., c].ravel(), minlength=count) for c in range(3)]
        table = np.stack(sums, axis=1) / areas[:, None]
    else:
        table = segment_colors(count).astype(np.float32)
    result = photo * (1 - alpha) + table[segments] * alpha
    if boundaries:
        line = _boundary(segments, thickness=max(1.0, min(segments.shape) / 320))[..., None]
        result = result * (1 - line) + 255 * line
    return Image.fromarray(np.rint(result.clip(0, 255)).astype(np.uint8))


def segment_colors(count: int) -> np.ndarray:
    """Choose colors that stay apart: hues a golden angle apart, lightness in turns, in the perceptual space OKLCH.

    Args:
        count: How many, at least 1. Color i does not depend on `count`.

    Returns:
        uint8 array of shape (count, 3).
    """
    index = np.arange(count)
    hue = 0.45 + _GOLDEN_ANGLE * index
    lightness = np.array([0.72, 0.60, 0.82])[index % 3]
    chroma = np.array([0.155, 0.165, 0.135])[index % 3]
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return _bytes_from_oklab(lab)


def eigenvector_sheet(
    image: Image.Image,
    eigenvectors: Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"],
    columns: int = 4,
    tile_width: int = 320,
) -> Image.Image:
    """Lay out the photo and every eigenvector after the trivial one, each with its index and eigenvalue.

    Args:
        image: The photo.
        eigenvectors: Maps of the photo, the trivial one at index 0.
        eigenvalues: Of the normalized Laplacian.
        columns: Pictures in a row, at least 1.
        tile_width: Width of each picture in pixels.

    Returns:
        RGB picture.
    """
    size = (max(1, round(tile_width * image.height / image.width)), tile_width)
    tiles = [("photo", image)]
    for index in range(1, len(eigenvectors)):
        caption = f"eigenvector {index}   eigenvalue {float(eigenvalues[index]):.3f}"
        tiles.append((caption, eigenvector_image(eigenvectors[index], size)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), max(1, columns))]
    return figure(rows, tile_width=tile_width)


def pathways_figure(
    image: Image.Image,
    where: Image.Image,
    what: Image.Image,
    captions: Sequence[str] = ("photo", "where: spatial layout", "what: object identity"),
    tile_width: int = 480,
) -> Image.Image:
    """Set the photo, its *where* picture and its *what* picture side by side.

    Args:
        image: The photo.
        where: Picture of the query-key eigenvectors, as `eigenvectors_to_rgb` gives it.
        what: Picture of the value-value eigenvectors.
        captions: Three captions.
        tile_width: Width of each picture in pixels.

    Returns:
        RGB picture.
    """
    return figure([list(zip(captions, (image, where, what), strict=True))], tile_width=tile_width)


def figure(rows: Sequence[Sequence[tuple[str, Image.Image]]], tile_width: int = 320) -> Image.Image:
    """Lay pictures out in rows on white, each with a caption below; an empty caption takes no space in a bare row.

    Args:
        rows: Rows of (caption, picture); rows may differ in length and are aligned left.
        tile_width: Width of each picture in pixels; heights follow.

    Returns:
        RGB picture.

    Raises:
        SpectralError: If there is no picture.
    """
    if not any(len(row) for row in rows):
        raise SpectralError("rows", expected="at least one picture", got="none", fix="Pass (caption, picture) pairs")
    margin = max(6, tile_width // 24)
    font = ImageFont.load_default(size=max(11, tile_width // 20))
    caption_height = 2 * max(11, tile_width // 20)
    tiles = [[(caption, _fitted(picture, tile_width)) for caption, picture in row] for row in rows if row]
    heights = [max(picture.height for _, picture in row) for row in tiles]
    captioned = [any(caption for caption, _ in row) for row in tiles]
    width = margin + max(len(row) for row in tiles) * (tile_width + margin)
    height = margin + sum(h + (caption_height if c else margin) for h, c in zip(heights, captioned, strict=True))
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = margin
    for row, row_height, has_caption in zip(tiles, heights, captioned, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = margin + column * (tile_width + margin)
            canvas.paste(picture, (left, top))
            center = (left + tile_width // 2, top + picture.height + caption_height // 2)
            draw.text(center, caption, fill=_INK, font=font, anchor="mm")
        top += row_height + (caption_height if has_caption else margin)
    return canvas


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(width * picture.height / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _resized(maps: Float[Tensor, "channels _h _w"], size: tuple[int, int] | None) -> np.ndarray:
    values = maps.detach().cpu().double()
    if size is not None:
        values = torch.nn.functional.interpolate(values[None], tuple(size), mode="bicubic", align_corners=False)[0]
    return values.numpy()


def _boundary(segments: np.ndarray, thickness: float) -> np.ndarray:
    """Return the opacity of a smooth line along the sides between pixels of different segments."""
    edge = np.zeros(segments.shape, dtype=bool)
    edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    edge[1:] |= segments[1:] != segments[:-1]
    if not edge.any():
        return np.zeros(segments.shape, dtype=np.float32)
    distance = ndimage.distance_transform_edt(~edge)
    return (0.5 + thickness / 2 - distance).clip(0, 1).astype(np.float32) * 0.9


def _diverging_table() -> np.ndarray:
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _DIVERGING_STOPS]) / 255
    linear = np.where(stops <= 0.04045, stops / 12.92, ((stops + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T
    position = np.linspace(0, len(lab) - 1, 256)
    return _bytes_from_oklab(np.stack([np.interp(position, np.arange(len(lab)), lab[:, c]) for c in range(3)], axis=1))


def _bytes_from_oklab(lab: np.ndarray) -> np.ndarray:
    linear = ((lab @ np.linalg.inv(_OPPONENTS).T) ** 3 @ np.linalg.inv(_CONES).T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)
