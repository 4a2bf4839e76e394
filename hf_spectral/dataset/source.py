"""The images of a folder, a `datasets.Dataset` or an `IterableDataset`, numbered, encoded, in shares of processes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_spectral.dataset.folder import list_pictures
from hf_spectral.dataset.processes import Processes
from hf_spectral.errors import SpectralError, shown

_ACCEPTED = "a datasets.Dataset, an IterableDataset or a folder of pictures"

_PEEK_ROWS = 8

FindColumn = Callable[[Mapping[str, Any], Iterable[str], "str | None"], str]


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
class Item:
    """One image of a dataset.

    Args:
        position: Its place in the dataset, from 0.
        name: What messages and reports call it; no path of the machine.
        image: What the pipeline reads: the encoded picture, or whatever else the dataset gives.
        row: All columns, images among them encoded and not decoded. Where `dataset.with_transform` is at work, the
            column of pictures is missing unless the transform gives encoded ones.
        content: The encoded picture; None where the dataset gives pixels or a URL.
        mode: PIL mode that `datasets.Image(mode=...)` asks for; "" for none.
        error: Why the dataset cannot give this image, or None.
    """

    position: int
    name: str
    image: Any
    row: Mapping[str, Any]
    content: bytes | None = None
    mode: str = ""
    error: SpectralError | None = None

    def decoded(self, image: Any) -> Any:
        """Return the image in the mode that `datasets.Image(mode=...)` asks for, as `datasets` decodes it.

        Args:
            image: `image`, or the pixels that were read from it.

        Returns:
            The image; the same one if no mode is asked for.

        Raises:
            SpectralError: If it cannot be decoded.
        """
        if not self.mode:
            return image
        if self.content is None:
            return image.convert(self.mode)
        import datasets

        with _explained(), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return datasets.Image(mode=self.mode).decode_example({"bytes": self.content, "path": None})


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset of images.

    Args:
        length: Number of images, or None for a stream.
        features: Types of the columns of a `datasets` dataset; None for a folder.
        column: The column of pictures.
        item: Gives the image at a position; None for a stream.
        stream: Gives every n-th image of a stream from a position on, in order; None unless it is a stream.
    """

    length: int | None
    features: Any
    column: str
    item: Callable[[int], Item] | None
    stream: Callable[[int, int], Iterator[Item]] | None = None

    def share(self, processes: Processes) -> Iterator[Item]:
        """Iterate over the images of this process.

        A dataset of known length is cut into contiguous blocks; of a stream each process takes every n-th image, so
        that positions are known without communication: the others are read past, but not decoded.

        Args:
            processes: Which one of how many this is.

        Returns:
            The images, in order.
        """
        if self.stream is not None:
            return self.stream(processes.rank, processes.count)
        assert self.item is not None
        assert self.length is not None
        return map(self.item, processes.block(self.length))

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
    names = [printable(path.relative_to(folder).as_posix()) for path in files]

    def item(position: int) -> Item:
        name = names[position]
        return _item(position, name, str(files[position]), {"file_name": name}, "image", "")

    return Source(len(files), None, "image", item)


def _of_dataset(dataset: Any, image_column: str | None, find_column: FindColumn, whole_rows: bool) -> Source:
    import datasets

    is_stream = not hasattr(dataset, "__len__")
    if not is_stream and len(dataset) == 0:
        raise none_left()
    # A transform shows other pictures than the table holds. All other formats only change the container.
    view = dataset if not is_stream and dataset.format["type"] == "custom" else None
    plain = dataset.with_format(None)
    features = _peeked(plain, until_known=whole_rows) if dataset.features is None else dataset.features.copy()
    if not features and is_stream:
        raise none_left()
    known, names = (features, list(features)) if view is None else _seen(view, features)
    column = find_column(known, names, image_column)
    if not whole_rows:
        features = type(features)({name: feature for name, feature in features.items() if name == column})
        plain = plain.select_columns(list(features))
    for name, feature in features.items():
        # Encoded, an image (or a sound) passes through unchanged, and a corrupt one can be named.
        if getattr(feature, "decode", False) and dataset.features is not None:
            encoded = copy.copy(feature)
            encoded.decode = False
            plain = plain.cast_column(name, encoded)

    if view is not None:

        def seen(position: int) -> Item:
            row = {name: value for name, value in plain[position].items() if name != column} if whole_rows else {}
            try:
                return _item(position, None, _shown(view, position, column), row, column)
            except SpectralError as error:
                return Item(position, f"image {position}", None, row, error=error)

        return Source(len(dataset), type(features)({**features, column: datasets.Image()}), column, seen)
    mode = getattr(features[column], "decode", False) and getattr(features[column], "mode", None)

    def item(position: int, row: Mapping[str, Any] | None = None) -> Item:
        row = plain[position] if row is None else row
        return _item(position, None, row[column], row, column, mode or "")

    if not is_stream:
        return Source(len(dataset), features, column, item)

    def stream(start: int, step: int) -> Iterator[Item]:
        for position, row in itertools.islice(enumerate(plain), start, None, step):
            yield item(position, row if dataset.features is not None else _encoded(row, features, position))

    return Source(None, features, column, None, stream)


def _item(position: int, name: str | None, value: Any, row: Mapping[str, Any], column: str, mode: str = "") -> Item:
    """Read the encoded picture that a value holds or names, once for all: for its identity, the backbone and the row.

    Returns:
        The image; its row holds the encoded picture, unless the column is one of names.
    """
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
    path = printable(Path(shown(path).split("::")[0]).name) if path else None
    if name is None:
        name = f"image {position}" + (f" ({path})" if path else "")
    try:
        with _explained():
            value = np.asarray(value) if isinstance(value, list) else value
            content = _content(value)
    except SpectralError as error:
        return Item(position, name, None, row, error=error)
    if content is None:
        return Item(position, name, value, row, mode=mode)
    image = {"bytes": content, "path": path}
    if column not in row or isinstance(row[column], Mapping):
        row = {**row, column: image}
    return Item(position, name, {**image, "path": name}, row, content, mode)


def _content(value: Any) -> bytes | None:
    """Return the encoded picture that a value holds or names; None where it is one of pixels, or a URL."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, (str, Path)) or str(value)[:6].partition(":")[0].lower() in ("http", "https", "data"):
        return None
    if "://" in str(value):  # Inside an archive or on the Hub, as streams of `datasets` name their files.
        from datasets.utils.file_utils import xopen

        with xopen(str(value), "rb") as file:
            return bytes(file.read())
    if not Path(value).is_file():
        raise FileNotFoundError("no such file")
    return Path(value).read_bytes()


@contextlib.contextmanager
def _refused(
    kinds: tuple[type[Exception], ...], argument: str, expected: str, fix: str, where: str = ""
) -> Iterator[None]:
    """Turn errors of libraries and of the operating system into a SpectralError of one line."""
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SpectralError(argument, expected=expected, got=where + reason, fix=fix) from error


def _explained() -> contextlib.AbstractContextManager[None]:
    """Turn errors of Pillow, `datasets` and the file system into one that says that an image cannot be read."""
    kinds = (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError)
    expected = "a picture that opens, also by the transform of the dataset, if it has one"
    return _refused(kinds, "image", expected, "Check that it opens in a viewer")


def _shown(view: Any, position: int, column: str | None = None) -> Any:
    """Return a row as `dataset.with_transform` shows it, or one column of it."""
    with _explained():
        row = view[position]
    if column is None or column in row:
        return row if column is None else row[column]
    raise SpectralError(
        "image_column",
        expected=f"a column that the transform of the dataset gives: {', '.join(row)}",
        got=repr(column),
        fix="Pass image_column=..., or let the transform return this column",
    )


def _seen(view: Any, features: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the columns that `dataset.with_transform` shows, judged by the first row that it can show.

    Raises:
        SpectralError: If none of the first rows can be shown.
    """
    import datasets

    for position in range(min(_PEEK_ROWS, len(view))):
        with contextlib.suppress(SpectralError):
            row = _shown(view, position)
            own = {name: features[name] for name in row if name in features}
            pictures = {name: datasets.Image() for name, value in row.items() if isinstance(value, Image.Image)}
            return own | pictures, list(row)
    _shown(view, 0)
    return {}, []


def _peeked(dataset: Any, until_known: bool) -> Any:
    """Return the types of a stream's columns: what it holds shows only when its first rows are looked at.

    Args:
        dataset: A stream.
        until_known: True reads on until every column has had a value that is not None.
    """
    import datasets
    import pyarrow as pa

    rows, schema = iter(dataset), None
    while chunk := list(itertools.islice(rows, _PEEK_ROWS)):
        names = dict.fromkeys(name for row in chunk for name in row)
        if schema is not None:
            names = dict.fromkeys(field.name for field in schema if _holds_null(field.type))
        with typed():
            columns = {name: [row.get(name) for row in chunk] for name in names}
            found = datasets.Dataset.from_dict(columns).features.arrow_schema
            schema = pa.unify_schemas([schema or found, found], promote_options="permissive")
        if not until_known or not any(_holds_null(field.type) for field in schema):
            break
    return datasets.Features() if schema is None else datasets.Features.from_arrow_schema(schema)


def _encoded(row: Mapping[str, Any], features: Any, position: int) -> dict[str, Any]:
    """Encode a row of a stream that declares no types; refuse values that the types of its first rows would change."""
    with typed(f"image {position}: "):
        whole = {name: row.get(name) for name in features}
        encoded: dict[str, Any] = features.encode_example(whole)
        changed = [
            name
            for name, value in whole.items()
            if isinstance(value, (bool, int, float, str)) and value == value and encoded[name] != value
        ]
        if changed := changed or sorted(row.keys() - features.keys()):
            raise ValueError(f"other values than in the first rows: {', '.join(changed)}")
    return encoded


def _holds_null(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_null(kind) or any(_holds_null(kind.field(place).type) for place in range(kind.num_fields))


def typed(where: str = "") -> contextlib.AbstractContextManager[None]:
    """Turn errors of `datasets` and pyarrow into one that says that a value does not fit the type of its column.

    Args:
        where: Begins what came.

    Returns:
        A context manager that raises a SpectralError in place of theirs.
    """
    import pyarrow as pa

    fix = "Give the stream its types: IterableDataset.from_generator(..., features=datasets.Features(...))"
    kinds = (pa.ArrowException, ValueError, TypeError)
    return _refused(kinds, "dataset", "values of one type in every column", fix, where)


def printable(name: str) -> str:
    r"""Return a file's name as text that can be written: bytes that are not UTF-8 become escapes such as `\xff`.

    Args:
        name: As the operating system gave it.

    Returns:
        The name; the same one wherever it is UTF-8.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
