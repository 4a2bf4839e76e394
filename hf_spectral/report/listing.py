"""The attention layers of a backbone, with their token grids, widths, and the pathways that they support."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from hf_spectral.config import defaults_hold
from hf_spectral.dataset.reading import Backbone
from hf_spectral.records import PATHWAYS, AttentionRecord
from hf_spectral.report.table import write_csv

_TITLES = ("layer", "module", "grid", "heads", "width", "prefix", "text", "pathways")
_SIDE = 512  # Side of the random image, before it is resized for the backbone.


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One self-attention layer.

    Args:
        index: Position in call order, from 0.
        name: Qualified module name.
        rows: Number of rows of its token grid. This and the following five are None if the layer was not recorded.
        columns: Number of columns of its token grid.
        heads: Number of attention heads.
        width: Length of the value vectors of all heads together.
        num_prefix: Number of class and register tokens, which are left out.
        num_text: Number of text tokens, which are left out.
        pathways: Pathways that the layer supports.
        reason: Why it does not support both pathways, or None.

    Example:
        >>> from hf_spectral.report import LayerRow
        >>> LayerRow(0, "layer.0.attention", rows=16, columns=16, heads=6, pathways=("where", "what")).reason is None
        True
    """

    index: int
    name: str
    rows: int | None = None
    columns: int | None = None
    heads: int | None = None
    width: int | None = None
    num_prefix: int | None = None
    num_text: int | None = None
    pathways: tuple[str, ...] = ()
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class LayerListing:
    """The attention layers of a backbone.

    Args:
        rows: One row per layer, in call order.

    Example:
        >>> from hf_spectral.report import LayerListing, LayerRow
        >>> print(LayerListing((LayerRow(0, "blocks.0.attention", reason="its queries are pooled"),)).to_text())
        layer  module              grid  heads  width  prefix  text  pathways
        0      blocks.0.attention  -     -      -      -       -     none
        Of layer 0 no where or what, since its queries are pooled.
    """

    rows: tuple[LayerRow, ...]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to a CSV file with a header. An interrupted call leaves no partial file.

        Args:
            path: Path of the file. Missing parent folders are created.

        Returns:
            The path of the file.
        """
        return write_csv(path, [{**dataclasses.asdict(row), "pathways": " ".join(row.pathways)} for row in self.rows])

    def to_text(self) -> str:
        """Return the table as text, followed by the reasons for unsupported pathways with the layers concerned."""
        cells = [_TITLES, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.reason is not None:
                refused = " or ".join(name for name in PATHWAYS if name not in row.pathways)
                reasons.setdefault(f"no {refused}, since {row.reason}", []).append(str(row.index))
        for reason, indices in reasons.items():
            lines.append(f"Of layer{'s' if len(indices) > 1 else ''} {', '.join(indices)} {reason}.")
        return "\n".join(lines)


@defaults_hold
def list_layers(pipe: Backbone, resolution: int | None = None) -> LayerListing:
    """List the self-attention layers that a backbone calls, by running it on one random image.

    Args:
        pipe: Pipeline of the backbone. For a diffusion model, select one timestep by `pipe.at(...)`.
        resolution: Longer side of the image in pixels; None takes the image size of the backbone.

    Returns:
        All layers in call order, including those that cannot be recorded.

    Example:
        >>> import hf_spectral
        >>> from hf_spectral.report import list_layers
        >>> listing = list_layers(hf_spectral.pipeline(), resolution=112)
        >>> listing.rows[0].rows, listing.rows[0].columns, listing.rows[0].pathways
        (8, 8, ('where', 'what'))
    """
    found: dict[int, LayerRow] = {}

    def note(record: AttentionRecord) -> None:
        found.setdefault(record.index, _row_of(record))

    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    skipped = pipe.records([pipe.preprocess(Image.fromarray(pixels), resolution=resolution)], note)
    rows = [
        *found.values(),
        *(LayerRow(one.index, one.name, reason=one.reason) for one in skipped if one.index is not None),
    ]
    return LayerListing(tuple(sorted(rows, key=lambda row: row.index)))


def _row_of(record: AttentionRecord) -> LayerRow:
    refusals = {pathway: record.refusal(pathway) for pathway in PATHWAYS}
    return LayerRow(
        index=record.index,
        name=record.name,
        rows=record.grid.height,
        columns=record.grid.width,
        heads=record.value.shape[1],
        width=record.value.shape[1] * record.value.shape[3],
        # Text tokens before the image are also counted as prefix tokens by the grid.
        num_prefix=0 if record.num_text_tokens else record.grid.num_prefix,
        num_text=record.num_text_tokens,
        pathways=tuple(pathway for pathway, reason in refusals.items() if reason is None),
        reason=next((reason for reason in refusals.values() if reason is not None), None),
    )


def _cells(row: LayerRow) -> tuple[str, ...]:
    grid = "-" if row.rows is None else f"{row.rows} x {row.columns}"
    counts = ("-" if value is None else str(value) for value in (row.heads, row.width, row.num_prefix, row.num_text))
    return (str(row.index), row.name, grid, *counts, ", ".join(row.pathways) or "none")
