"""Writing tables to CSV files, and reading them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_spectral.atomic import replacing


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table with a header. An interrupted call leaves no partial file.

    Args:
        path: Path of the file. Missing parent folders are created.
        rows: At least one row; all rows have the same column names in the same order.

    Returns:
        The path of the file.
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
        path: Path of the file, encoded in UTF-8.

    Returns:
        One dictionary per row, from column names to cells. Empty and missing cells are "".

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not a CSV file in UTF-8.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        try:
            return list(csv.DictReader(file, restval=""))
        except csv.Error as error:
            raise ValueError(str(error)) from error
