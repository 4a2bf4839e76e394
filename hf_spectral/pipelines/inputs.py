"""Datasets as inputs: which column holds the pictures, and how transformers iterates over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers.pipelines.pt_utils import KeyDataset

from hf_spectral.errors import SpectralError


def iterable_of_images(inputs: Any, column: str | None) -> Any:
    """Turn what `datasets` gives into what transformers iterates over, without importing `datasets`.

    Args:
        inputs: Any input of the pipeline.
        column: Name of the column of pictures, or None.

    Returns:
        The pictures of a dataset; anything else as it came.
    """
    if not type(inputs).__module__.startswith("datasets."):
        return inputs
    if not hasattr(inputs, "column_names"):  # A column.
        return (image for image in inputs)  # The host takes a generator, but no other iterable.
    column = image_column(inputs.features or {}, inputs.column_names or [], column)
    return KeyDataset(inputs, column) if hasattr(inputs, "__len__") else (row[column] for row in inputs)


def image_column(features: Mapping[str, Any], names: Iterable[str], given: str | None = None) -> str:
    """Find the column that holds the pictures.

    Args:
        features: Types of the columns, as far as they are known.
        names: Names of the columns, as far as they are known.
        given: The user's choice, or None.

    Returns:
        The choice, or the only column of images.

    Raises:
        SpectralError: If there is no such column, or none or several hold images; the columns are listed.
    """
    names = list(names)
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if given is not None and (given in names or not names):
        return given
    if given is None and len(images) == 1:
        return images[0]
    raise SpectralError(
        "image_column",
        expected="the name of a column of pictures",
        got=f"{given!r}, among the columns {', '.join(names) or '(unknown)'}",
        fix="Pass image_column=...",
    )
