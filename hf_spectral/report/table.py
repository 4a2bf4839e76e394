"""The table of a report, as CSV, as a dataset and as a chart."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from hf_spectral.atomic import replacing
from hf_spectral.config import PATHWAYS, Pathway
from hf_spectral.dataset.report import Skipped
from hf_spectral.errors import SpectralError
from hf_spectral.visualization import heat_maps, layer_chart

if TYPE_CHECKING:
    import datasets


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """Scores of one layer or head, or of all together; means over the eigenvectors, the trivial one left out.

    Args:
        pathway: Whose eigenvectors.
        layer: Index of the layer in call order; None for all together.
        head: Index of the head; None for all heads together.
        name: Qualified module name of the layer, or `all`.
        where_score: Share of the variance that position explains.
        what_score: Share that identity explains beyond position and image.
        image_score: Share that the image alone explains.
        num_eigenvectors: Eigenvectors that the means are over.
        num_images: Images that were scored.
    """

    pathway: Pathway
    layer: int | None
    head: int | None
    name: str
    where_score: float
    what_score: float
    image_score: float
    num_eigenvectors: int
    num_images: int


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
        path = Path(path)
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(ReportRow)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in self.rows)
        return path

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
        """Draw how the scores run through depth: lines over the layers, or heat maps where heads are told apart.

        Args:
            width: Of the picture in pixels.

        Returns:
            RGB picture.
        """
        panels = {"where-score: share that position explains": "where_score"}
        panels["what-score: share that identity explains"] = "what_score"
        pathways = [pathway for pathway in PATHWAYS if any(row.pathway == pathway for row in self.rows)]
        if any(row.head is not None for row in self.rows):
            maps = {
                f"{pathway} pathway, {score.replace('_', '-')}": self._by_head(pathway, score)
                for pathway in pathways
                for score in panels.values()
            }
            return heat_maps(maps, ("layer", "head"), len(panels), width)
        lines: dict[str, dict[str, dict[int | None, float]]] = {
            title: {pathway: self._by_layer(pathway, score) for pathway in pathways} for title, score in panels.items()
        }
        return layer_chart(lines, width)

    def _by_layer(self, pathway: Pathway, score: str) -> dict[int | None, float]:
        return {row.layer: getattr(row, score) for row in self.rows if row.pathway == pathway}

    def _by_head(self, pathway: Pathway, score: str) -> dict[tuple[int, int], float]:
        return {
            (row.layer, row.head): getattr(row, score)
            for row in self.rows
            if row.pathway == pathway and row.layer is not None and row.head is not None
        }
