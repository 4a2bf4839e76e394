"""What a run over a dataset has to tell besides its product."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_spectral.atomic import replacing

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that was left out.

    Args:
        position: Its place in the dataset, from 0.
        name: Its file's name below the folder, or `image 3`; never a path of the machine.
        reason: A sentence.
    """

    position: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class FitReport:
    """What `fit` and `transform` return besides their product, with `return_report=True`.

    Example:
        >>> basis, report = hf_spectral.fit(pipe, "photos/", on_error="skip", return_report=True)
        >>> [one.name for one in report.skipped]

    Args:
        num_images: Images that took part, on all processes.
        skipped: Images that were left out, in the order of the dataset.
        num_processes: Number of processes, at least 1.
        seconds: Wall time in seconds.
    """

    num_images: int
    skipped: tuple[Skipped, ...]
    num_processes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self) | {"skipped": [dataclasses.asdict(one) for one in self.skipped]}

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the fields to a JSON file. An interrupted call leaves no partial file.

        Args:
            path: Path of the file. Missing parent folders are created.

        Returns:
            The path of the file.
        """
        path = Path(path)
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path


def log_skipped(skipped: Iterable[Skipped]) -> None:
    """Warn of every image that was left out.

    Args:
        skipped: The images.
    """
    for one in skipped:
        _logger.warning("Skipped %s: %s", one.name, one.reason)
