"""Segmentations and affinities drawn over photos, and sheets of several images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hf_spectral.errors import SpectralError
from hf_spectral.visualization.eigenvectors import Numbers, eigenvector_image, read_numbers, resized_maps
from hf_spectral.visualization.palette import BACKGROUND, INK, segment_colors

# Opacity of the photo where there is no affinity, and the color that it fades to.
_REST, _NIGHT = 0.10, (10, 20, 40)


def segmentation_overlay(
    image: Image.Image,
    labels: Numbers,
    alpha: float = 0.55,
    fill: Literal["palette", "mean"] = "palette",
    boundaries: bool = True,
) -> Image.Image:
    """Tint a photo by segment and draw the boundaries between segments.

    Args:
        image: The photo.
        labels: Segment of each pixel, (height, width), non-negative integers: a tensor, an array, or the PIL image that
            the pipeline returns. Labels of another size are resized to the photo by nearest neighbor.
        alpha: Strength of the tint, from 0 (the photo) to 1 (uniform colors).
        fill: `"palette"` gives each segment a distinct color, `"mean"` the mean color of its pixels in the photo.
        boundaries: Whether to draw a white line between segments.

    Returns:
        RGB image of the photo's size.

    Raises:
        SpectralError: If `alpha` is not between 0 and 1, or `labels` has negative labels or not two dimensions.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from hf_spectral.visualization import segmentation_overlay
        >>> segmentation_overlay(Image.new("RGB", (60, 40)), torch.tensor([[0, 1], [2, 2]])).size
        (60, 40)
    """
    if not 0 <= alpha <= 1:
        raise SpectralError("alpha", expected="a number from 0 to 1", got=alpha, fix="Try 0.55")
    known = read_numbers("labels", labels, 2).astype(np.intp)
    if known.min() < 0:
        raise SpectralError("labels", expected="no negative label", got=known.min(), fix="Count from 0")
    photo = np.asarray(image.convert("RGB"), dtype=np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip(photo.shape[:2], known.shape, strict=True))
    segments = known[np.ix_(rows, columns)]
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


def eigenvector_sheet(
    image: Image.Image | None,
    eigenvectors: Numbers,
    eigenvalues: Numbers,
    columns: int = 4,
    tile_width: int = 320,
) -> Image.Image:
    """Draw a sheet of the photo and all eigenvectors after the trivial one, each with its index and eigenvalue.

    Args:
        image: The photo; None leaves it out.
        eigenvectors: Eigenvectors of the photo, (num_eigenvectors, height, width), with the trivial one at index 0: a
            tensor, an array or nested lists.
        eigenvalues: Eigenvalues of the normalized Laplacian, (num_eigenvectors,).
        columns: Number of images per row, at least 1.
        tile_width: Width of each image in pixels.

    Returns:
        RGB image.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from hf_spectral.visualization import eigenvector_sheet
        >>> sheet = eigenvector_sheet(Image.new("RGB", (60, 40)), torch.randn(8, 4, 6), torch.linspace(0, 0.9, 8))
        >>> sheet.mode
        'RGB'
    """
    eigenvectors = read_numbers("eigenvectors", eigenvectors, 3)
    eigenvalues = read_numbers("eigenvalues", eigenvalues, 1)
    height, width = eigenvectors.shape[1:] if image is None else (image.height, image.width)
    size = (max(1, round(tile_width * height / width)), tile_width)
    tiles = [] if image is None else [("photo", image)]
    for index in range(1, len(eigenvectors)):
        caption = f"eigenvector {index}   eigenvalue {eigenvalues[index]:.3f}"
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
    """Show the photo, its *where* eigenvectors and its *what* eigenvectors side by side.

    Args:
        image: The photo.
        where: Image of the query-key eigenvectors, for example from `eigenvectors_to_rgb`.
        what: Image of the value-value eigenvectors.
        captions: Three captions.
        tile_width: Width of each image in pixels.

    Returns:
        RGB image.

    Example:
        >>> from PIL import Image
        >>> from hf_spectral.visualization import pathways_figure
        >>> photo, where, what = (Image.new("RGB", (60, 40), color) for color in ("gray", "blue", "red"))
        >>> pathways_figure(photo, where, what).mode
        'RGB'
    """
    return figure([list(zip(captions, (image, where, what), strict=True))], tile_width=tile_width)


def figure(rows: Sequence[Sequence[tuple[str, Image.Image]]], tile_width: int = 320) -> Image.Image:
    """Arrange images in rows on a white background, with a caption below each image.

    A row in which all captions are empty takes no space for captions.

    Args:
        rows: Rows of (caption, image) pairs. Rows may differ in length and are aligned to the left.
        tile_width: Width of each image in pixels; the aspect ratio is kept.

    Returns:
        RGB image.

    Raises:
        SpectralError: If there is no image.

    Example:
        >>> from PIL import Image
        >>> from hf_spectral.visualization import figure
        >>> figure([[("left", Image.new("RGB", (60, 40))), ("right", Image.new("RGB", (60, 40)))]]).mode
        'RGB'
    """
    if not any(len(row) for row in rows):
        raise SpectralError("rows", expected="at least one image", got="none", fix="Pass (caption, image) pairs")
    margin = max(6, tile_width // 24)
    font = ImageFont.load_default(size=max(11, tile_width // 20))
    caption_height = 2 * max(11, tile_width // 20)
    tiles = [[(caption, _fitted(picture, tile_width)) for caption, picture in row] for row in rows if row]
    heights = [max(picture.height for _, picture in row) for row in tiles]
    captioned = [any(caption for caption, _ in row) for row in tiles]
    width = margin + max(len(row) for row in tiles) * (tile_width + margin)
    height = margin + sum(h + (caption_height if c else margin) for h, c in zip(heights, captioned, strict=True))
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = margin
    for row, row_height, has_caption in zip(tiles, heights, captioned, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = margin + column * (tile_width + margin)
            canvas.paste(picture, (left, top))
            center = (left + tile_width // 2, top + picture.height + caption_height // 2)
            draw.text(center, caption, fill=INK, font=font, anchor="mm")
        top += row_height + (caption_height if has_caption else margin)
    return canvas


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(width * picture.height / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _boundary(segments: np.ndarray, thickness: float) -> np.ndarray:
    """Return the opacity of an anti-aliased line between pixels of different segments."""
    edge = np.zeros(segments.shape, dtype=bool)
    edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    edge[1:] |= segments[1:] != segments[:-1]
    if not edge.any():
        return np.zeros(segments.shape, dtype=np.float32)
    distance = ndimage.distance_transform_edt(~edge)
    return (0.5 + thickness / 2 - distance).clip(0, 1).astype(np.float32) * 0.9


def affinity_spotlight(image: Image.Image, affinity: Numbers, token: tuple[int, int] | None = None) -> Image.Image:
    """Show the photo bright where the affinity of a token is strong, and dark elsewhere.

    The brightness is the square root of the affinity, scaled from its 2nd percentile (dark) to its 98th (full). The
    percentiles exclude the token itself, whose affinity to itself is often many times larger than to any other token.

    Args:
        image: The photo.
        affinity: Affinity of the token to all tokens, (height, width): a tensor or an array.
        token: Row and column of the token, which is marked by a ring; None draws no ring.

    Returns:
        RGB image of the photo's size.

    Raises:
        SpectralError: If `token` is outside the map, or `affinity` has another number of dimensions.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from hf_spectral.visualization import affinity_spotlight
        >>> affinity_spotlight(Image.new("RGB", (60, 40), "white"), torch.rand(4, 6), token=(1, 2)).size
        (60, 40)
    """
    values = np.sqrt(read_numbers("affinity", affinity, 2).clip(0))
    others = values.ravel()
    height, width = values.shape
    if token is not None:
        if not (0 <= token[0] < height and 0 <= token[1] < width):
            raise SpectralError(
                "token", expected=f"a row and a column of {height} x {width}", got=token, fix="Count from 0"
            )
        if len(others) > 1:
            others = np.delete(others, token[0] * width + token[1])
    low, high = np.quantile(others, [0.02, 0.98])
    light = resized_maps(((values - low) / max(high - low, 1e-12)).clip(0, 1)[None], (image.height, image.width))[0]
    light = (_REST + (1 - _REST) * light.clip(0, 1))[..., None]
    photo = np.asarray(image.convert("RGB"), dtype=np.float64)
    lit = Image.fromarray(np.rint(photo * light + np.array(_NIGHT) * (1 - light)).astype(np.uint8))
    if token is not None:
        _ring(lit, ((token[1] + 0.5) / width * image.width, (token[0] + 0.5) / height * image.height))
    return lit


def _ring(picture: Image.Image, center: tuple[float, float]) -> None:
    """Draw a white ring with a dark rim. It is drawn large and reduced, because PIL does not anti-alias lines."""
    radius, oversampling = max(5.0, max(picture.size) / 70), 4
    side = int(2 * radius * 1.5) * oversampling
    mark = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(mark)
    for color, thickness in ((INK, radius * 0.55), (BACKGROUND, radius * 0.3)):
        reach = (radius + thickness / 2) * oversampling
        box = [side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach]
        draw.ellipse(box, outline=(*color, 255), width=round(thickness * oversampling))
    mark = mark.resize((side // oversampling,) * 2, Image.Resampling.LANCZOS)
    place = (round(center[0] - mark.width / 2), round(center[1] - mark.height / 2))
    picture.paste(mark, place, mark)
