"""Every attention layer of a backbone: where it looks, how wide it is, and which pathways it serves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hf_spectral.config import PATHWAYS, defaults_hold
from hf_spectral.dataset.reading import Backbone
from hf_spectral.records import AttentionRecord, SkippedLayer
from hf_spectral.report.csv_file import write_csv

_TITLES = ("layer", "module", "grid", "heads", "width", "prefix", "text", "pathways")
_SIDE = 512  # Of the picture that is shown, before the backbone's own size is taken.


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One self-attention layer.

    Args:
        index: Position in call order, from 0.
        name: Qualified module name.
        rows: Of its token grid; None, as all that follows, where it gave no record.
        columns: Of its token grid.
        heads: Attention heads.
        width: Length of a token with its heads merged, as values have it.
        num_prefix: Class and register tokens that are left out.
        num_text: Text tokens that are left out.
        pathways: Those that the layer serves.
        reason: Why it serves no more, or None.
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
    """The layers of a backbone, in call order.

    Args:
        rows: One a layer.
    """

    rows: tuple[LayerRow, ...]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as a CSV file with a header; it appears whole or not at all.

        Args:
            path: Where to write; folders on the way are made.

        Returns:
            The path written.
        """
        return write_csv(path, [{**dataclasses.asdict(row), "pathways": " ".join(row.pathways)} for row in self.rows])

    def to_text(self) -> str:
        """Return the table in columns, the reasons below it, each with the layers it holds for."""
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
    """List every self-attention layer that the backbone runs when it is shown a picture, here one of noise.

    Args:
        pipe: The pipeline of the backbone; a diffusion model's is best set to one timestep by `pipe.at(...)`.
        resolution: Longer side in pixels at which the picture is read; None takes the backbone's image size.

    Returns:
        The layers in call order, those that give no record among them.
    """
    found: dict[int, LayerRow] = {}

    def note(record: AttentionRecord) -> None:
        found.setdefault(record.index, _row_of(record))

    pixels = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    skipped = pipe.records([pipe.preprocess(Image.fromarray(pixels), resolution=resolution)], note)
    rows = [*found.values(), *_rows_of_skipped(skipped)]
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
        # Text that stands before the image is a prefix as well; it is counted once.
        num_prefix=0 if record.num_text_tokens else record.grid.num_prefix,
        num_text=record.num_text_tokens,
        pathways=tuple(pathway for pathway, reason in refusals.items() if reason is None),
        reason=next((reason for reason in refusals.values() if reason is not None), None),
    )


def _rows_of_skipped(skipped: Sequence[SkippedLayer]) -> list[LayerRow]:
    return [LayerRow(one.index, one.name, reason=one.reason) for one in skipped if one.index is not None]


def _cells(row: LayerRow) -> tuple[str, ...]:
    grid = "-" if row.rows is None else f"{row.rows} x {row.columns}"
    counts = ("-" if value is None else str(value) for value in (row.heads, row.width, row.num_prefix, row.num_text))
    return (str(row.index), row.name, grid, *counts, ", ".join(row.pathways) or "none")
