"""The report over what a user calls a dataset: a folder, a `datasets` dataset, a stream."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from hf_spectral.checks import require_positive_int
from hf_spectral.config import defaults_hold
from hf_spectral.dataset.processes import Processes
from hf_spectral.dataset.reading import Add, Backbone, OnError, Read, Reader
from hf_spectral.dataset.source import Source, none_left, open_source
from hf_spectral.dataset.summary import log_skipped
from hf_spectral.errors import SpectralError
from hf_spectral.records import PATHWAYS, AttentionRecord, Pathway
from hf_spectral.report.scores import score_layers
from hf_spectral.report.table import LayerReport
from hf_spectral.torch_state import plain_torch


@defaults_hold
@plain_torch()
def layer_report(
    pipe: Backbone,
    dataset: Any,
    *,
    pathways: Sequence[Pathway] = PATHWAYS,
    num_eigenvectors: int = 13,
    image_column: str | None = None,
    batch_size: int = 1,
    resolution: int | None = None,
    by_head: bool = False,
    max_images: int | None = None,
    max_width: int | None = None,
    on_error: OnError = "raise",
    seed: int = 0,
    progress: bool = True,
) -> LayerReport:
    """Score where and what every layer of a backbone looks at: each layer on its own, and all together.

    The where-score of an eigenvector is the share of its variance over the dataset that the position of a token
    explains; its what-score the share that identity explains beyond that (`metrics.what_score`). The backbone runs over
    the images four times, in one process: see `score_layers`. Where the pipeline has defaults of the same name, its
    `pathway` for `pathways` among them, they stand in for what the call leaves out.

    Args:
        pipe: The pipeline of the backbone.
        dataset: A `datasets.Dataset`, an `IterableDataset` (read four times in the same order), or a folder of
            pictures, subfolders included.
        pathways: "where", "what" or both.
        num_eigenvectors: Eigenvectors of each, the trivial one among them; scores are means over the others.
        image_column: Column of the pictures; None finds the only image column.
        batch_size: Images that are read together; all layers of a batch are in memory at once.
        resolution: Longer side in pixels at which pictures are read; None takes the backbone's image size.
        by_head: Treat every head as a layer of its own; all together is then the mean over all heads.
        max_images: Stop after about so many images; None takes all. A hundred give steady scores, four are needed.
        max_width: Bound on the width of the Gram matrix, for wide backbones; see `BasisAccumulator`.
        on_error: "raise" names the image that fails; "skip" leaves it out and lists it in the report.
        seed: Seed of start vectors, of the bounded width and of the clusters.
        progress: True shows bars with images per second.

    Returns:
        The table, which can be written as CSV and drawn.

    Raises:
        SpectralError: If an argument is out of range, the dataset is empty or has no column of pictures, an image
            fails and `on_error` is "raise", or fewer than four images are left.
    """
    batch_size = require_positive_int("batch_size", batch_size)
    pipe.check_reading(resolution, pathways=pathways)
    source = open_source(dataset, image_column, pipe.image_column, whole_rows=False)
    passes = _Passes(source, Reader(pipe, resolution, on_error), _alone(pipe), batch_size)
    report = score_layers(
        passes,
        pathways,
        num_eigenvectors,
        by_head=by_head,
        max_images=max_images,
        max_width=max_width,
        seed=seed,
        progress=progress,
    )
    skipped = passes.reader.skipped
    report = dataclasses.replace(report, skipped=tuple(skipped[position] for position in sorted(skipped)))
    log_skipped(report.skipped)
    return report


def _alone(pipe: Backbone) -> Processes:
    processes = Processes(pipe.device)
    if processes.count > 1:
        raise SpectralError(
            "accelerate",
            expected="one process, since each layer's scores come from one place",
            got=f"{processes.count} processes",
            fix="Start the report without `accelerate launch`; `max_images` bounds its time",
        )
    return processes


@dataclasses.dataclass
class _Passes:
    """Gives the records of the same images at every call: what was skipped the first time stays out."""

    source: Source
    reader: Reader
    processes: Processes
    batch_size: int
    has_begun: bool = False

    def __call__(self) -> Iterator[Sequence[AttentionRecord]]:
        """Yield the records of each forward pass."""
        if self.has_begun:
            self.reader = self.reader.again()
        self.has_begun = True
        found: list[list[AttentionRecord]] = []
        is_empty = True
        for batch in self.reader.batches(self.source.share(self.processes), self.batch_size):
            self.reader.read(batch, functools.partial(_collected, found), None)
            is_empty = is_empty and not found
            yield from found
            found.clear()
        if is_empty:
            raise none_left(list(self.reader.skipped.values()))


@contextlib.contextmanager
def _collected(found: list[list[AttentionRecord]], group: Sequence[Read]) -> Iterator[Add]:
    """Keep the layers of some images of one size, once all have arrived."""
    del group
    records: list[AttentionRecord] = []
    yield records.append
    found.append(records)
