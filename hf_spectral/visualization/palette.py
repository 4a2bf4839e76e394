"""Color palettes and color maps, constructed in the perceptually uniform color space OKLab."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageColor

BACKGROUND = (255, 255, 255)
INK = (40, 44, 52)
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))

# OKLab (Ottosson 2020) maps linear sRGB to cone responses, and their cube roots to lightness and two opponent axes.
_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_OPPONENTS = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def segment_colors(count: int) -> np.ndarray:
    """Return distinct colors: in the color space OKLCH, hues a golden angle apart, with alternating lightness.

    Args:
        count: Number of colors, at least 1. Color i does not depend on `count`.

    Returns:
        RGB values, uint8 array of shape (count, 3).

    Example:
        >>> from hf_spectral.visualization import segment_colors
        >>> segment_colors(5).shape
        (5, 3)
    """
    index = np.arange(count)
    hue = 0.45 + _GOLDEN_ANGLE * index
    lightness = np.array([0.72, 0.60, 0.82])[index % 3]
    chroma = np.array([0.155, 0.165, 0.135])[index % 3]
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return bytes_from_oklab(lab)


def label_picture(labels: np.ndarray, num_labels: int) -> Image.Image:
    """Return labels as a picture with a palette: its values are the labels, and viewers show the colors.

    Args:
        labels: Label of each pixel, from 0.
        num_labels: How many labels there are, in this picture and in others that belong to it; at most 65,536.

    Returns:
        Picture of mode "P", colored by `segment_colors`; beyond 256 labels of mode "I;16", without colors.
    """
    picture = Image.fromarray(labels.astype(np.min_scalar_type(num_labels - 1), copy=False))
    if picture.mode == "L":
        picture.putpalette(segment_colors(num_labels).tobytes())
    picture.format = "PNG"  # Without a format, `datasets` stores a picture that has a palette as TIFF.
    return picture


def bytes_from_oklab(lab: np.ndarray) -> np.ndarray:
    """Convert OKLab colors to sRGB; colors outside the sRGB gamut are clipped.

    Args:
        lab: Lightness from 0 to 1 and the two opponent axes, in the last dimension of size 3.

    Returns:
        RGB values, uint8 array of the same shape.
    """
    linear = ((lab @ np.linalg.inv(_OPPONENTS).T) ** 3 @ np.linalg.inv(_CONES).T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def _color_map(*names: str) -> np.ndarray:
    """Return 256 colors that pass through the given ones, uint8 array of shape (256, 3)."""
    stops = np.array([ImageColor.getrgb(name) for name in names]) / 255
    linear = np.where(stops <= 0.04045, stops / 12.92, ((stops + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T
    position = np.linspace(0, len(lab) - 1, 256)
    table = np.stack([np.interp(position, np.arange(len(lab)), lab[:, c]) for c in range(3)], axis=1)
    return bytes_from_oklab(table)


#: From blue over white to red; lightness falls evenly on both sides, so that equal magnitudes look equally strong.
DIVERGING = _color_map(
    "#0a2348", "#1c4e8c", "#4a8fc4", "#a3cbe3", "#f6f3ee", "#f2b892", "#d9694a", "#a32639", "#4d0a2b"
)
#: From nearly white to dark blue, with evenly falling lightness.
SEQUENTIAL = _color_map("#f7f8fa", "#cfdcee", "#97b6dc", "#5a86bf", "#2c5697", "#142f63")
