"""The images of a folder, a `datasets.Dataset` or an `IterableDataset`, numbered, encoded, in shares of processes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_spectral.dataset.folder import list_pictures
from hf_spectral.dataset.processes import Processes
from hf_spectral.dataset.report import Skipped
from hf_spectral.errors import SpectralError, shown

_ACCEPTED = "a datasets.Dataset, an IterableDataset or a folder of pictures"

_PEEK_ROWS = 8

FindColumn = Callable[[Mapping[str, Any], Iterable[str], "str | None"], str]


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a dataset.

    Args:
        position: Its place in the dataset, from 0.
        name: What messages and reports call it; no path of the machine.
        image: What the pipeline reads.
        row: All columns, images among them encoded and not decoded.
    """

    position: int
    name: str
    image: Any
    row: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset of images.

    Args:
        length: Number of images, or None for a stream.
        features: Types of the columns of a `datasets` dataset; None for a folder.
        digest: Tells this dataset from others, as well as can be told without reading it.
        item: Gives the image at a position; None for a stream.
        stream: Gives a stream's images in order; None unless it is a stream.
    """

    length: int | None
    features: Any
    digest: str
    item: Callable[[int], Item] | None
    stream: Callable[[], Iterator[Item]] | None = None

    def share(self, processes: Processes, start: int = 0) -> Iterator[Item]:
        """Iterate over the images of this process.

        A dataset of known length is cut into contiguous blocks; of a stream each process takes every n-th image, so
        that positions are known without communication: the others are read past, but not decoded.

        Args:
            processes: Which one of how many this is.
            start: Images of the share that are passed over.

        Yields:
            The images, in order.
        """
        if self.item is not None and self.length is not None:
            for position in processes.block(self.length)[start:]:
                yield self.item(position)
        elif self.stream is not None:
            yield from itertools.islice(self.stream(), processes.rank + start * processes.count, None, processes.count)

    def share_length(self, processes: Processes) -> int | None:
        """Return the number of images of this process.

        Args:
            processes: Which one of how many this is.

        Returns:
            A number, or None for a stream.
        """
        return None if self.length is None else len(processes.block(self.length))


def open_source(dataset: Any, image_column: str | None, find_column: FindColumn, whole_rows: bool) -> Source:
    """Recognize what a user calls a dataset.

    Args:
        dataset: A folder, a `datasets.Dataset` or an `IterableDataset`.
        image_column: Column of the pictures; None finds the only image column.
        find_column: Resolves it.
        whole_rows: False reads the column of pictures only.

    Returns:
        The source.

    Raises:
        SpectralError: If it is none of these, or is empty, or has no column of pictures.
    """
    if isinstance(dataset, (str, os.PathLike)):
        return _of_folder(Path(dataset))
    if isinstance(dataset, Mapping) and type(dataset).__module__.startswith("datasets."):
        raise SpectralError(
            "dataset",
            expected="one split",
            got=f"the splits {', '.join(map(str, dataset))}",
            fix=f"Pass dataset[{next(iter(dataset), 'train')!r}]",
        )
    if not type(dataset).__module__.startswith("datasets.") or not hasattr(dataset, "cast_column"):
        raise SpectralError("dataset", expected=_ACCEPTED, got=f"a {type(dataset).__name__}", fix="Give one of these")
    return _of_dataset(dataset, image_column, find_column, whole_rows)


def _of_folder(folder: Path) -> Source:
    if not os.path.isdir(folder):  # Unlike `Path.is_dir` also of a name that no file can have.
        raise SpectralError(
            "dataset", expected=_ACCEPTED, got=repr(shown(str(folder))), fix="Check that the folder exists"
        )
    files = list_pictures(folder)
    names = [path.relative_to(folder).as_posix() for path in files]

    def item(position: int) -> Item:
        path, name = files[position], names[position]
        row = {"image": {"bytes": None, "path": str(path)}, "file_name": name}
        return Item(position, name, str(path), row)

    sizes = [path.stat().st_size for path in files]
    return Source(len(files), None, _digest(zip(names, sizes, strict=True)), item)


def _of_dataset(dataset: Any, image_column: str | None, find_column: FindColumn, whole_rows: bool) -> Source:
    import datasets

    is_stream = not hasattr(dataset, "__len__")
    if is_stream and dataset.features is None:
        # A stream of a generator says what it holds only when its first rows are looked at.
        first = list(itertools.islice(dataset, _PEEK_ROWS))
        if not first:
            raise none_left()
        dataset = dataset.cast(datasets.Dataset.from_list(first).features)
    if not is_stream and len(dataset) == 0:
        raise none_left()
    column = find_column(dataset.features or {}, dataset.column_names or [], image_column)
    if not whole_rows:
        dataset = dataset.select_columns([column])
    features = dataset.features.copy()
    for name, feature in features.items():
        # Encoded, an image (or a sound) passes through unchanged, and a corrupt one can be named.
        if getattr(feature, "decode", False):
            encoded = copy.copy(feature)
            encoded.decode = False
            dataset = dataset.cast_column(name, encoded)
    dataset = dataset.with_format(None)

    def as_item(position: int, row: Mapping[str, Any]) -> Item:
        value = row[column]
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        name = f"image {position}" + (f" ({Path(path).name})" if path else "")
        return Item(position, name, value, row)

    if is_stream:
        return Source(
            None,
            features,
            _digest([("stream", column)]),
            None,
            lambda: (as_item(position, row) for position, row in enumerate(dataset)),
        )
    ends = [(column, dataset[position][column]) for position in {0, len(dataset) // 2, len(dataset) - 1}]
    digest = _digest([("length", len(dataset)), *sorted(ends, key=repr)])
    return Source(len(dataset), features, digest, lambda position: as_item(position, dataset[position]))


def none_left(skipped: Sequence[Skipped] = ()) -> SpectralError:
    """Return the error that says that there is nothing to work on.

    Args:
        skipped: What there was.

    Returns:
        The error, to be raised.
    """
    if not skipped:
        return SpectralError(
            "dataset", expected="at least one image", got="none", fix="Check the split, the filter or the folder"
        )
    return SpectralError(
        "dataset",
        expected="at least one image that can be analyzed",
        got=f"none of {len(skipped)}: {skipped[0].name}: {skipped[0].reason.removesuffix('.')}",
        fix="Mend the images",
    )


def _digest(parts: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode())
    return found.hexdigest()[:16]
