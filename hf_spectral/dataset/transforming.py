"""Write every image's dataset-level eigenvectors, and what they segment, as rows of a new dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_spectral.basis import DEFAULT_WALK, SpectralBasis, as_basis
from hf_spectral.checks import require_extra, require_positive_int
from hf_spectral.clusters import Clusters, unit_rows
from hf_spectral.config import defaults_hold
from hf_spectral.dataset.reading import Add, Backbone, FitReport, OnError, Read, Reader, ReadSettings
from hf_spectral.dataset.rows import (
    BASIS_FOLDER,
    RowWriter,
    delete_with,
    embedded,
    encoded,
    list_parts,
    number_type,
    output_folder,
    read_parts,
    stored,
)
from hf_spectral.dataset.source import Source, none_left
from hf_spectral.errors import SpectralError
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import find_clusters, label_image, leading_eigenvectors, sample_tokens
from hf_spectral.torch_state import plain_torch
from hf_spectral.visualization import eigenvectors_to_rgb
from hf_spectral.visualization.palette import label_picture

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from typing_extensions import Unpack

#: Longer side in pixels of the picture of the eigenvectors.
_RGB_SIDE = 256
_Row = tuple[dict[str, Any], tuple[int, int]]  # columns, and the size of the image


class TransformSettings(ReadSettings, total=False):
    """Arguments of `transform` by name."""

    num_segments: int | Literal["auto"] | None
    walk: float | None
    output_dir: str | os.PathLike[str] | None
    dtype: Literal["float16", "float32"]


@overload
def transform(
    pipe: Backbone,
    dataset: Any,
    basis: SpectralBasis | str | os.PathLike[str],
    *,
    return_report: Literal[False] = False,
    **settings: Unpack[TransformSettings],
) -> datasets.Dataset: ...


@overload
def transform(
    pipe: Backbone,
    dataset: Any,
    basis: SpectralBasis | str | os.PathLike[str],
    *,
    return_report: Literal[True],
    **settings: Unpack[TransformSettings],
) -> tuple[datasets.Dataset, FitReport]: ...


@defaults_hold
@plain_torch()
def transform(
    pipe: Backbone,
    dataset: Any,
    basis: SpectralBasis | str | os.PathLike[str],
    *,
    num_segments: int | Literal["auto"] | None = None,
    walk: float | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    on_error: OnError = "raise",
    dtype: Literal["float16", "float32"] = "float16",
    progress: bool = True,
    return_report: bool = False,
) -> datasets.Dataset | tuple[datasets.Dataset, FitReport]:
    """Add the dataset-level eigenvectors of every image as columns; the backbone runs once over the data.

    Rows are written as they are made, so that memory does not grow with the dataset, and what was written can be read
    by `datasets.load_from_disk(output_dir)` also after a crash. Under `accelerate launch` or `torchrun` each process
    writes the rows of its share into the same folder, and all return the whole in the order of the dataset (on disk the
    rows of a stream lie process by process). New columns:

    - `image_id`: place of the image in the dataset, from 0, unless there is a column of that name already
    - `eigenvectors`: lists of lists of lists, eigenvectors x height x width, an array of that shape under
      `rows.with_format("numpy")`; times sqrt(basis.num_nodes), so that over the dataset fitted on their mean square is
      1 however large it was, as float16 needs it. The viewer of the Hub reads nested lists, and so do Parquet's other
      readers; its `Array3D` would need token grids of one size
    - `shape`: eigenvectors, height, width
    - `eigenvectors_rgb`: the first three eigenvectors after the trivial one as one picture
      (`visualization.eigenvectors_to_rgb`), for the eye: JPEG, its longer side 256 pixels at most. A color means the
      same in every image. Left out if the basis has no other eigenvector
    - `segmentation`: PNG picture of the image's size, value = cluster, the same in every image, the largest 0; with a
      palette (mode "P"), beyond 256 clusters without one ("I;16"). Found by `segmentation.find_clusters` on a random
      sample of all tokens, in the first eigenvectors (`segmentation.leading_eigenvectors`), and kept as
      `basis.clusters`: the pipeline, and the Space, give any other image the same numbers by `pipe(image, basis=basis)`
    - `confidence`: beside it, a gray PNG picture of the same size, value = 255 times the confidence of the pixel, from
      0 (another cluster is as near) to 1, see `segmentation.label_image`

    The basis, with its clusters, is written to the folder `basis` beside the rows, where `push_to_hub(rows)` finds it.

    Images are read as the dataset shows them (`dataset.with_transform` and `datasets.Image(mode=...)` are obeyed) and
    stored inside the rows, encoded as they were. Under `with_transform`, the column of pictures holds what was read, as
    PNG, and all other columns what the table holds, not what the transform makes of it. A folder's rows have `image`
    and `file_name`, in which bytes that are not UTF-8 stand as escapes with a backslash. Types of a stream that knows
    none are taken from its first rows, and further ones as long as a column holds nothing but None.

    Pictures are read at the resolution of the fit, unless the pipeline has one as its default. Where the pipeline has
    defaults of the same name, they stand in for what the call leaves out, the basis included.

    Args:
        pipe: The pipeline of the backbone that the basis was fitted on.
        dataset: As for `fit`. Of a column, a list, a torch dataset and a function, the rows have the pictures alone.
        basis: The basis, or its folder.
        num_segments: Clusters to find over all images, at most 65,536; "auto" labels them with `basis.clusters`, found
            on other images; None writes no segmentation.
        walk: See `SpectralBasis.project`.
        output_dir: A new or empty folder, or one that an interrupted call has left, whose rows are then written anew.
            None takes a temporary one, which is deleted once no dataset reads from it any more.
        image_column: As for `fit`.
        split: As for `fit`.
        streaming: As for `fit`.
        revision: As for `fit`.
        batch_size: As for `fit`.
        num_workers: As for `fit`.
        on_error: "raise" names the image that fails; "skip" writes no row for it and lists it in the report.
        dtype: Of the eigenvectors' numbers.
        progress: True shows bars with images per second.
        return_report: True returns a `FitReport` too: what was skipped, and the figures of the run.

    Returns:
        The rows, in the order of the dataset. With `return_report=True` a pair of rows and report.

    Raises:
        SpectralError: If an argument is out of range, the basis belongs to another backbone, `datasets` is not
            installed, the dataset is empty or has no column of pictures, an image fails and `on_error` is "raise", or
            the folder holds something or cannot be written.
    """
    require_extra("datasets", "datasets")
    basis = as_basis(basis)
    kept = basis.clusters if num_segments == "auto" else None
    if dtype not in ("float16", "float32"):
        raise SpectralError("dtype", expected="'float16' or 'float32'", got=repr(dtype), fix="Choose one of these")
    num_segments = None if num_segments is None else _checked_segments(basis, num_segments)
    resolution = pipe.defaults.get("resolution", basis.backbone.get("resolution"))
    basis.check_backbone(pipe.describe_backbone(basis.backbone.get("resolution")))
    if walk is None:  # Clusters found before do not matter to those found now.
        walk = DEFAULT_WALK[basis.config.pathway] if kept is None else kept.walk
    basis.projector(walk)  # A wrong strength is refused here.
    reading = (image_column, split, streaming, revision, batch_size, num_workers, resolution, on_error, progress)
    reader = Reader(pipe, dataset, *reading, whole_rows=True)
    features = _features(reader.source, dtype, num_segments, len(basis.eigenvalues))
    processes = reader.processes
    with contextlib.ExitStack() as stack:
        folder = processes.in_main(lambda: stack.enter_context(output_folder(output_dir, features)))
        run = _Run(basis, walk, reader, RowWriter(folder, features, processes.rank))
        rows = run.rows(num_segments, kept)
        if processes.is_main:  # From there `push_to_hub` takes it.
            basis.save_pretrained(folder / BASIS_FOLDER)
    if output_dir is None and processes.is_main:
        delete_with(rows, folder)
    report = reader.finish(len(rows))
    return (rows, report) if return_report else rows


@dataclasses.dataclass
class _Run:
    """The rows of one process, and the steps that all processes take together."""

    basis: SpectralBasis
    walk: float
    reader: Reader
    writer: RowWriter

    def rows(self, num_segments: int | None, clusters: Clusters | None) -> datasets.Dataset:
        processes = self.reader.processes
        with processes.agreed(), _flushed(self.writer):
            self._project()
        gathered = processes.gathered((self.writer.parts, self.writer.positions))
        parts = [path for share, _ in gathered for path in share]
        if not parts:
            raise none_left(self.reader.all_skipped())
        order = np.argsort([position for _, share in gathered for position in share], kind="stable")
        if num_segments is not None:
            if clusters is None:
                clusters = processes.in_main(lambda: self._found_clusters(parts, order, num_segments))
                self.basis.keep_clusters(clusters)
            self._segment(clusters)
        if processes.is_main:
            list_parts(self.writer.folder)
        processes.gathered(None)
        return read_parts(parts).select(order.tolist())  # A stream is shared out in turns.

    def _project(self) -> None:
        layers = [layer.index for layer in self.basis.layers]
        found: dict[int, _Row] = {}
        for _ in self.reader.run(functools.partial(self._projected, found), lambda: layers, "transform"):
            for position in sorted(found):
                row, size = found.pop(position)
                self.writer.add(row, position, size)

    @contextlib.contextmanager
    def _projected(self, found: dict[int, _Row], group: Sequence[Read]) -> Iterator[Add]:
        # Made first: where a row cannot be kept, no forward pass is needed.
        own = [self._kept(read) for read in group]
        projector = self.basis.projector(self.walk)
        yield projector.add
        for read, columns, result in zip(group, own, projector.results(), strict=True):
            position = read.item.position
            size = read.prepared["size"]
            found[position] = (self._made(position, result, size) | columns, size)

    def _kept(self, read: Read) -> dict[str, Any]:
        """Return the dataset's own columns; of pictures that a transform gave, what was read."""
        row, column = read.item.row, self.reader.source.column
        return embedded(row if column in row else {**row, column: encoded(read.item.image, read.image)})

    def _made(self, position: int, result: SpectralResult, size: tuple[int, int]) -> dict[str, Any]:
        maps = result.eigenvectors.numpy() * self.basis.num_nodes**0.5
        made = {
            "image_id": position,
            "eigenvectors": maps.astype(number_type(self.writer.features)),
            "shape": list(maps.shape),
            "segmentation": None,
            "confidence": None,
        }
        if "eigenvectors_rgb" in self.writer.features:
            factor = min(1, _RGB_SIDE / max(size))
            small = (max(1, round(factor * size[0])), max(1, round(factor * size[1])))
            picture = eigenvectors_to_rgb(maps, result.eigenvalues, small, scale=1.0)
            made["eigenvectors_rgb"] = stored(picture, "jpeg", quality=90)
        return made

    def _found_clusters(self, parts: Sequence[Path], order: np.ndarray, num_segments: int) -> Clusters:
        """Cluster a sample of the tokens of all processes' rows."""
        rows = read_parts(parts).select_columns(["eigenvectors", "shape"]).with_format("arrow")
        counts = np.array([shape[1] * shape[2] for shape in rows["shape"][:].to_pylist()])[order]
        if num_segments > counts.sum():
            raise SpectralError(
                "num_segments",
                expected=f"at most the number of tokens of all images, {counts.sum()}",
                got=num_segments,
                fix="Ask for fewer",
            )
        seed = self.basis.config.seed
        chosen = zip(order, map(torch.from_numpy, sample_tokens(counts.tolist(), seed)), strict=True)
        leading = leading_eigenvectors(self.basis.num_images)
        sample = [unit_rows(_maps(rows[int(place)])[0][:leading])[tokens] for place, tokens in chosen]
        return find_clusters(torch.cat(sample), num_segments, seed, self.walk)

    def _segment(self, clusters: Clusters) -> None:
        import pyarrow as pa

        def change(table: pa.Table, sizes: Sequence[tuple[int, int]]) -> pa.Table:
            made: dict[str, list[Any]] = {"segmentation": [], "confidence": []}
            for maps, size in zip(_maps(table), sizes, strict=True):
                labels, confidence, _ = label_image(maps, clusters, size)
                gray = Image.fromarray(np.rint(255 * confidence.numpy()).astype(np.uint8))
                pictures = label_picture(labels.numpy(), clusters.num_segments), gray
                for column, picture in zip(made.values(), pictures, strict=True):
                    column.append(stored(picture))
            for name, column in made.items():
                place = table.schema.get_field_index(name)
                field = table.schema.field(place)
                table = table.set_column(place, field, pa.array(column, field.type))
            return table.cast(self.writer.features.arrow_schema)

        with self.reader.processes.agreed(), self.reader.bar("segment", len(self.writer.positions)) as bar:
            for count in self.writer.rewrite(change):
                bar.update(count)


def _maps(table: pa.Table) -> list[Tensor]:
    columns = zip(table["eigenvectors"], table["shape"], strict=True)
    flat = [(maps.values.flatten().flatten().to_numpy(zero_copy_only=False), shape.as_py()) for maps, shape in columns]
    return [torch.from_numpy(values.astype(np.float32)).reshape(shape) for values, shape in flat]


@contextlib.contextmanager
def _flushed(writer: RowWriter) -> Iterator[None]:
    """Write the rows that wait, also after an error or an interrupt.

    Yields:
        Nothing.

    Raises:
        SpectralError: That of the block, or of the writing.
    """
    try:
        yield
    except BaseException:  # Ctrl-C too.
        # If it was the writing that failed, this fails too, and the first error says more.
        with contextlib.suppress(SpectralError):
            writer.flush()
        raise
    writer.flush()


def _features(source: Source, dtype: str, num_segments: int | None, num_eigenvectors: int) -> datasets.Features:
    import datasets

    own = source.features or {"image": datasets.Image(), "file_name": datasets.Value("string")}
    made = {
        "eigenvectors": datasets.List(datasets.List(datasets.List(datasets.Value(dtype)))),
        "shape": datasets.List(datasets.Value("int32"), length=3),
    }
    if num_eigenvectors > 1:
        made["eigenvectors_rgb"] = datasets.Image()
    if num_segments is not None:
        made |= {"segmentation": datasets.Image(), "confidence": datasets.Image()}
    clashing = sorted(set(own) & set(made))
    if clashing:
        raise SpectralError(
            "dataset",
            expected=f"no columns named {', '.join(made)}, which transform adds",
            got=", ".join(clashing),
            fix="Rename or remove them",
        )
    return datasets.Features({"image_id": datasets.Value("int64"), **own, **made})


def _checked_segments(basis: SpectralBasis, num_segments: int | Literal["auto"]) -> int:
    if num_segments == "auto":
        if basis.clusters is None:
            raise SpectralError(
                "num_segments",
                expected="a number, or a basis that has clusters",
                got="'auto' and a basis that has none",
                fix="Transform the images that the clusters are to be found on, with their number",
            )
        return basis.clusters.num_segments
    num_segments = require_positive_int("num_segments", num_segments)
    if num_segments > 2**16 or len(basis.eigenvalues) < 2:
        raise SpectralError(
            "num_segments",
            expected="at most 65536, and a basis of at least 2 eigenvectors, since the one at index 0 is trivial",
            got=f"{num_segments} and {len(basis.eigenvalues)} eigenvectors",
            fix="Ask for fewer, or fit more eigenvectors",
        )
    return num_segments
