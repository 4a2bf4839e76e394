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

REPORT_NAME = "fit.json"

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


@dataclasses.dataclass
class FitReport:
    """What `fit` and `transform` tell besides what they return: hand one in, and it is filled.

    Args:
        num_images: Images that took part, on all processes.
        skipped: Images that were left out, in the order of the dataset.
        num_processes: Processes that worked.
        seconds: Wall time.
    """

    num_images: int = 0
    skipped: tuple[Skipped, ...] = ()
    num_processes: int = 1
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self) | {"skipped": [dataclasses.asdict(one) for one in self.skipped]}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `fit.json`, beside the files of a basis, say; it appears whole or not at all.

        Args:
            folder: Where to write; made if need be.

        Returns:
            The path written.
        """
        path = Path(folder) / REPORT_NAME
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
