"""The table of a report, as CSV and back, as a dataset and as a chart."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_spectral.config import PATHWAYS, Pathway
from hf_spectral.dataset.report import Skipped
from hf_spectral.errors import SpectralError
from hf_spectral.report.csv_file import read_csv, write_csv
from hf_spectral.visualization import heat_maps, layer_chart

if TYPE_CHECKING:
    import datasets


_SCORES = ("where_score", "what_score")
_PANELS = {
    "where-score: by position": "where_score",
    "what-score: by identity": "what_score",
    "weight found without labels": "weight",
}


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """Scores of a layer, head or timestep, or of all together; means over the eigenvectors, the trivial one left out.

    Args:
        pathway: Whose eigenvectors.
        layer: Index of the layer in call order; None for all together.
        head: Index of the head; None for all heads together.
        timestep: Of a diffusion model, from 0 (data) to noise; None for all together, and for other models.
        name: Qualified module name of the layer, or `all`.
        where_score: Share of the variance that position explains.
        what_score: Share that identity explains beyond position and image.
        image_score: Share that the image alone explains.
        num_eigenvectors: Eigenvectors that the means are over.
        num_images: Images that were scored.
        weight: Share in a dataset-level problem with `layer_weights="auto"`, as `fit` solves it; None for all together.
    """

    pathway: Pathway
    layer: int | None
    head: int | None
    timestep: float | None
    name: str
    where_score: float
    what_score: float
    image_score: float
    num_eigenvectors: int
    num_images: int
    weight: float | None = None


def _whole(cell: str) -> int | None:
    return int(cell) if cell else None


def _number(cell: str) -> float | None:
    return float(cell) if cell else None


# How the cells of each column are read.
_CELLS: dict[str, Callable[[str], Any]] = {
    "pathway": str,
    "layer": _whole,
    "head": _whole,
    "timestep": _number,
    "name": str,
    "where_score": float,
    "what_score": float,
    "image_score": float,
    "num_eigenvectors": int,
    "num_images": int,
    "weight": _number,
}


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The table of a report.

    Args:
        rows: By pathway, in call order, all together last.
        skipped: Images that were left out, in the order of the dataset.
    """

    rows: tuple[ReportRow, ...]
    skipped: tuple[Skipped, ...] = ()

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as a CSV file with a header; it appears whole or not at all.

        Args:
            path: Where to write; folders on the way are made.

        Returns:
            The path written.
        """
        return write_csv(path, [dataclasses.asdict(row) for row in self.rows])

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> LayerReport:
        """Read a table that `to_csv` wrote.

        Args:
            path: The file.

        Returns:
            The report, without the images that were left out.

        Raises:
            SpectralError: If it cannot be read, or is no such table.
        """
        try:
            rows = tuple(
                ReportRow(**{name: read(row[name]) for name, read in _CELLS.items()}) for row in read_csv(path)
            )
            found = f"{len(rows)} rows of {', '.join(sorted({row.pathway for row in rows})) or 'nothing'}"
        except (OSError, KeyError, ValueError) as error:
            rows, found = (), f"{os.fspath(path)!r} ({error})"
        if not rows or any(row.pathway not in PATHWAYS for row in rows):
            raise SpectralError(
                "path", expected="a table that LayerReport.to_csv has written", got=found, fix="Write it anew"
            )
        return cls(rows)

    def to_dataset(self) -> datasets.Dataset:
        """Return the table as a dataset.

        Returns:
            One row a row.

        Raises:
            SpectralError: If the extra `[datasets]` is not installed.
        """
        if importlib.util.find_spec("datasets") is None:
            raise SpectralError(
                "datasets", expected="the extra [datasets]", got="none", fix="Run: pip install 'hf-spectral[datasets]'"
            )
        import datasets

        return datasets.Dataset.from_list([dataclasses.asdict(row) for row in self.rows])

    def chart(self, width: int = 1200) -> Image.Image:
        """Draw how the scores run through depth.

        Lines over the layers, of both scores and of the weights; heat maps of the scores over layers and heads where
        heads are told apart (one a timestep where there are several), and over layers and timesteps where these are.

        Args:
            width: Of the picture in pixels.

        Returns:
            RGB picture.
        """
        pathways = [pathway for pathway in PATHWAYS if any(row.pathway == pathway for row in self.rows)]
        if any(row.head is not None or row.timestep is not None for row in self.rows):
            return self._heat_maps(pathways, width)
        lines: dict[str, dict[str, dict[int | None, float]]] = {
            title: {pathway: self._by_layer(pathway, column) for pathway in pathways}
            for title, column in _PANELS.items()
        }
        return layer_chart({title: of for title, of in lines.items() if any(of.values())}, width)

    def _by_layer(self, pathway: Pathway, column: str) -> dict[int | None, float]:
        values = {row.layer: getattr(row, column) for row in self.rows if row.pathway == pathway}
        return {layer: value for layer, value in values.items() if value is not None}

    def _heat_maps(self, pathways: Sequence[Pathway], width: int) -> Image.Image:
        parts = [row for row in self.rows if row.layer is not None]
        timesteps: list[float | None] = sorted({row.timestep for row in parts}, key=lambda one: one or 0)
        heads = sorted({row.head for row in parts if row.head is not None})
        axis = "head" if heads else "timestep"
        across: list[float | None] = [*heads] if heads else timesteps
        maps: dict[str, dict[tuple[int, int], float]] = {}
        for timestep in timesteps if heads else [None]:
            for pathway in pathways:
                for score in _SCORES:
                    title = f"{pathway} pathway, {score.replace('_', '-')}"
                    maps[title if timestep is None else f"{title}, timestep {timestep:g}"] = {
                        (row.layer, across.index(getattr(row, axis))): getattr(row, score)
                        for row in parts
                        if row.pathway == pathway and row.layer is not None and timestep in (None, row.timestep)
                    }
        return heat_maps(maps, ("layer", axis), len(_SCORES), width, [f"{one:g}" for one in across if one is not None])
