"""The images of a card, as PNG files by their path in the repository."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hf_spectral.basis import SpectralBasis
from hf_spectral.hub.cards import CardDetails
from hf_spectral.result import SpectralResult
from hf_spectral.visualization import eigenvector_sheet, figure, segmentation_overlay

if TYPE_CHECKING:
    import datasets

SHEET, CHART = "images/eigenvectors.png", "images/layers.png"
# With the photo, the eigenvectors fill three rows of four images.
_SHOWN_EIGENVECTORS, _SHOWN_ROWS, _TILE_WIDTH = 11, 4, 240


def basis_pictures(details: CardDetails) -> dict[str, bytes]:
    """Draw the eigenvectors of the first example and the chart of the report, if given.

    Args:
        details: The examples and the report.

    Returns:
        PNG files by path.
    """
    pictures = {}
    if details.examples:
        photo, result = details.examples[0]
        pictures[SHEET] = _sheet(photo, result.eigenvectors, result)
    return pictures if details.report is None else {**pictures, CHART: _png(details.report.chart())}


def result_pictures(result: SpectralResult, details: CardDetails) -> dict[str, bytes]:
    """Draw the eigenvectors of a result, together with the photo of the first example, if given.

    Args:
        result: The result.
        details: The examples.

    Returns:
        PNG files by path.
    """
    if not details.examples and len(result.eigenvalues) == 1:
        return {}
    photo = details.examples[0][0] if details.examples else None
    return {SHEET: _sheet(photo, result.eigenvectors, result)}


def rows_pictures(rows: datasets.Dataset, column: str, basis: SpectralBasis, name: str) -> dict[str, bytes]:
    """Draw the eigenvectors of the first row and the segments of the first rows.

    Args:
        rows: Rows returned by `transform`.
        column: Name of the image column.
        basis: Basis that the rows were computed with.
        name: Name of the dataset configuration.

    Returns:
        PNG files by path.
    """
    first = rows[0]
    maps = np.asarray(first["eigenvectors"], dtype=np.float32).reshape(first["shape"])
    pictures = {f"images/{name}-eigenvectors.png": _sheet(first[column].convert("RGB"), maps, basis)}
    if "segmentation" in rows.column_names:
        shown = rows.select(range(min(_SHOWN_ROWS, len(rows))))
        tiles = [("", segmentation_overlay(row[column], row["segmentation"])) for row in shown]
        pictures[f"images/{name}-segments.png"] = _png(figure([tiles], _TILE_WIDTH))
    return pictures


def _sheet(photo: Image.Image | None, maps: torch.Tensor | np.ndarray, solved: SpectralResult | SpectralBasis) -> bytes:
    count = 1 + _SHOWN_EIGENVECTORS
    return _png(eigenvector_sheet(photo, maps[:count], solved.eigenvalues[:count], tile_width=_TILE_WIDTH))


def _png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, format="png", optimize=True)
    return encoded.getvalue()
