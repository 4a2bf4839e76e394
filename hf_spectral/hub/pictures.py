"""The pictures of a card, as PNG files by their path in the repository."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hf_spectral.basis import SpectralBasis
from hf_spectral.hub.cards import CardDetails
from hf_spectral.result import SpectralResult
from hf_spectral.visualization import eigenvector_image, eigenvector_sheet, figure, segmentation_overlay

if TYPE_CHECKING:
    import datasets

SHEET, CHART = "images/eigenvectors.png", "images/layers.png"
# With the photo they fill rows of four.
_SHOWN_EIGENVECTORS, _SHOWN_ROWS, _TILE_WIDTH = 11, 4, 240


def basis_pictures(details: CardDetails) -> dict[str, bytes]:
    """Draw the eigenvectors of the first example, and the scores of the layers.

    Args:
        details: The examples, and the report.

    Returns:
        PNG files by path; none where there is nothing to draw.
    """
    pictures = {SHEET: _sheet(*details.examples[0])} if details.examples else {}
    return pictures if details.report is None else {**pictures, CHART: _png(details.report.chart())}


def result_pictures(result: SpectralResult, details: CardDetails) -> dict[str, bytes]:
    """Draw the eigenvectors of a result, beside its photo where the user gives one.

    Args:
        result: The result.
        details: The first example holds the photo.

    Returns:
        PNG files by path.
    """
    if details.examples:
        return {SHEET: _sheet(details.examples[0][0], result)}
    scale = max(1, _TILE_WIDTH // result.grid.width)
    size = (result.grid.height * scale, result.grid.width * scale)
    shown = result.eigenvectors[1 : 1 + _SHOWN_EIGENVECTORS]
    tiles = [(f"eigenvector {index}", eigenvector_image(one, size)) for index, one in enumerate(shown, 1)]
    rows = [tiles[start : start + 4] for start in range(0, len(tiles), 4)]
    return {SHEET: _png(figure(rows, _TILE_WIDTH))} if rows else {}


def rows_pictures(rows: datasets.Dataset, column: str, basis: SpectralBasis, name: str) -> dict[str, bytes]:
    """Draw the eigenvectors of the first row, and the segments of the first few.

    Args:
        rows: What `transform` returned.
        column: Of the pictures.
        basis: Whose eigenvectors they are.
        name: Of the configuration.

    Returns:
        PNG files by path.
    """
    first = rows[0]
    shape = first["shape"]
    maps = torch.from_numpy(np.asarray(first["eigenvectors"], dtype=np.float32).reshape(shape))
    count = 1 + _SHOWN_EIGENVECTORS
    sheet = eigenvector_sheet(
        first[column].convert("RGB"), maps[:count], basis.eigenvalues[:count], tile_width=_TILE_WIDTH
    )
    pictures = {f"images/{name}-eigenvectors.png": _png(sheet)}
    if "segmentation" in rows.column_names:
        tiles = [
            ("", _overlay(row[column], row["segmentation"])) for row in rows.select(range(min(_SHOWN_ROWS, len(rows))))
        ]
        pictures[f"images/{name}-segments.png"] = _png(figure([tiles], _TILE_WIDTH))
    return pictures


def _overlay(photo: Image.Image, segmentation: Image.Image) -> Image.Image:
    labels = torch.from_numpy(np.asarray(segmentation).astype(np.int64))
    return segmentation_overlay(photo.convert("RGB"), labels)


def _sheet(photo: Image.Image, result: SpectralResult) -> bytes:
    count = 1 + _SHOWN_EIGENVECTORS
    return _png(
        eigenvector_sheet(photo, result.eigenvectors[:count], result.eigenvalues[:count], tile_width=_TILE_WIDTH)
    )


def _png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="png", optimize=True)
    return encoded.getvalue()
