"""A table as a CSV file, and back."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_spectral.atomic import replacing


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table with a header; it appears whole or not at all.

    Args:
        path: Where to write; folders on the way are made.
        rows: At least one, all with the same names in the same order.

    Returns:
        The path written.
    """
    path = Path(path)
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read a table with a header.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its rows, names to what stands in the cells; empty cells, and those of short rows, hold "".

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text, or no table.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        try:
            return list(csv.DictReader(file, restval=""))
        except csv.Error as error:
            raise ValueError(str(error)) from error
