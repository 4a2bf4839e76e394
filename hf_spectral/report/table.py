"""The table of a layer report, with conversions to CSV, to a dataset and to a chart."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_spectral.atomic import replacing
from hf_spectral.checks import require_extra
from hf_spectral.dataset.source import Skipped
from hf_spectral.records import PATHWAYS, Pathway
from hf_spectral.tensor_files import undamaged
from hf_spectral.visualization import heat_maps, layer_chart

if TYPE_CHECKING:
    import datasets

#: Name of the table in a folder.
REPORT_NAME = "layers.csv"
_SCORES = ("where_score", "what_score")
_PANELS = {
    "where-score: by position": "where_score",
    "what-score: by identity": "what_score",
    "weight found without labels": "weight",
}


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """Scores of one layer (or of one of its heads or timesteps), or of all layers together.

    Scores are means over all eigenvectors except the trivial one, from 0 to 1.

    Args:
        pathway: Pathway of the eigenvectors.
        layer: Index of the layer in call order; None for all layers together.
        head: Index of the head; None for all heads together.
        timestep: Timestep of a diffusion model, from 0 (data) to noise; None for all timesteps, and for other models.
        name: Qualified module name of the layer, or `all`.
        where_score: Share of the variance that position explains, see `metrics.where_score`.
        what_score: Share of the variance that identity explains, see `metrics.what_score`.
        image_score: Share of the variance that the image explains, see `metrics.image_score`.
        num_eigenvectors: Number of eigenvectors that were scored.
        num_images: Number of images that were scored.
        weight: Weight of the layer in `fit` with `layer_weights="auto"`; None for all layers together.

    Example:
        >>> from hf_spectral.report import ReportRow
        >>> row = ReportRow("what", 3, None, None, "encoder.layer.3", 0.21, 0.34, 0.05, 12, 100)
        >>> row.what_score
        0.34
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


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The table of a layer report.

    Args:
        rows: Rows by pathway; within a pathway in call order, followed by all layers together.
        skipped: Images that could not be read, in the order of the dataset.

    Example:
        >>> from hf_spectral.report import LayerReport, ReportRow
        >>> scores = {0: (0.6, 0.1), 1: (0.3, 0.2), None: (0.4, 0.2)}
        >>> rows = [ReportRow("what", index, None, None, "", *two, 0.1, 12, 100) for index, two in scores.items()]
        >>> LayerReport(tuple(rows)).chart(width=600).size
        (600, 250)
    """

    rows: tuple[ReportRow, ...]
    skipped: tuple[Skipped, ...] = ()

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to a CSV file with a header. An interrupted call leaves no partial file.

        Args:
            path: A folder, which then contains `layers.csv`, or a file whose name ends in `.csv`. Missing folders are
                created.

        Returns:
            The given path, which `from_pretrained` reads.
        """
        path = Path(path)
        write_csv(path if path.suffix == ".csv" else path / REPORT_NAME, [dataclasses.asdict(row) for row in self.rows])
        return path

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> LayerReport:
        """Read a table that was written by `save_pretrained`.

        Args:
            path: A CSV file, or a folder that contains `layers.csv`.

        Returns:
            The report; its `skipped` is empty.

        Raises:
            SpectralError: If the file cannot be read, or was not written by `save_pretrained`.
        """
        path = Path(path)
        with undamaged("path", path, "a table that LayerReport.save_pretrained has written", "Write it again"):
            return cls(_read_rows(path / REPORT_NAME if path.is_dir() else path))

    def to_dataset(self) -> datasets.Dataset:
        """Return the table as a dataset.

        Returns:
            A dataset with one row per `ReportRow`.

        Raises:
            SpectralError: If the extra `[datasets]` is not installed.
        """
        require_extra("datasets", "datasets")
        import datasets

        return datasets.Dataset.from_list([dataclasses.asdict(row) for row in self.rows])

    def chart(self, width: int = 1200) -> Image.Image:
        """Draw the scores over the layers.

        The chart shows lines over the layers for both scores and for the weights. If the report distinguishes heads,
        it shows heat maps of the scores over layers and heads instead, one per timestep; if it distinguishes only
        timesteps, heat maps over layers and timesteps.

        Args:
            width: Width of the image in pixels.

        Returns:
            RGB image.

        Raises:
            SpectralError: If the extra `[charts]` is not installed.
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


def _read_rows(path: Path) -> tuple[ReportRow, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file, restval=""))
    rows = tuple(
        ReportRow(**{one.name: _value(one, cells[one.name]) for one in dataclasses.fields(ReportRow)})
        for cells in table
    )
    if not rows or any(row.pathway not in PATHWAYS for row in rows):
        raise ValueError(f"{len(rows)} rows of {', '.join(sorted({row.pathway for row in rows})) or 'nothing'}")
    return rows


def _value(field: dataclasses.Field[Any], cell: str) -> Any:
    """Read a cell by the type of its field, which is text such as `int | None`."""
    kind, _, rest = str(field.type).partition(" | ")
    return None if rest and not cell else {"int": int, "float": float}.get(kind, str)(cell)


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
