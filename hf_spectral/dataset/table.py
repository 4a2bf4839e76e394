"""Datasets of the library `datasets`: tables and streams, as their transforms and their types show them."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from hf_spectral.dataset.source import Find, Item, Source, explained, item_of, none_left, refused, taken
from hf_spectral.errors import SpectralError

_PEEK_ROWS = 8

FindColumn = Callable[[Mapping[str, Any], Iterable[str], "str | None"], str]


def of_table(dataset: Any, image_column: str | None, find_column: FindColumn, whole_rows: bool) -> Source:
    """Return the images of a `datasets.Dataset` or of an `IterableDataset`, as it shows them.

    Args:
        dataset: The dataset.
        image_column: Column of the pictures; None finds the only image column.
        find_column: Function that finds the column of pictures, see `Backbone.image_column`.
        whole_rows: False reads the column of pictures only.

    Returns:
        The source.

    Raises:
        SpectralError: If the dataset is empty, or has no column of pictures.
    """
    import datasets

    is_stream = not hasattr(dataset, "__len__")
    empty = none_left()
    if not is_stream and len(dataset) == 0:
        raise empty
    # A transform shows other pictures than the table holds. All other formats only change the container.
    view = dataset if not is_stream and dataset.format["type"] == "custom" else None
    plain = dataset.with_format(None)
    features = _peeked(plain, until_known=whole_rows) if dataset.features is None else dataset.features.copy()
    if not features and is_stream:
        raise empty
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

        def seen(which: slice) -> Iterator[Find]:
            for position in range(len(dataset))[which]:
                row = {name: value for name, value in plain[position].items() if name != column} if whole_rows else {}
                yield taken(position, functools.partial(_shown, view, column=column), position, row, column)

        return Source(len(dataset), type(features)({**features, column: datasets.Image()}), column, seen)
    mode = (getattr(features[column], "decode", False) and getattr(features[column], "mode", None)) or ""

    def images(which: slice) -> Iterator[Find]:
        for position in range(len(dataset))[which]:
            row = plain[position]
            yield functools.partial(item_of, position, row[column], row, column, mode)

    def stream(which: slice) -> Iterator[Find]:
        for position, row in itertools.islice(enumerate(plain), which.start, which.stop, which.step):
            row = row if dataset.features is not None else _encoded(row, features, position)
            # Read now: a file inside an archive may be closed when the stream goes on.
            item = item_of(position, row[column], row, column, mode)
            yield functools.partial(Item, **vars(item))

    return Source(None, features, column, stream) if is_stream else Source(len(dataset), features, column, images)


def _shown(view: Any, position: int, column: str | None = None) -> Any:
    """Return a row as `dataset.with_transform` shows it, or one column of it."""
    with explained():
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
    """Return the types of a stream's columns, inferred from its first rows.

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
        where: Text before the reason in the message.

    Returns:
        A context manager that raises a SpectralError in place of theirs.
    """
    import pyarrow as pa

    fix = "Give the stream its types: IterableDataset.from_generator(..., features=datasets.Features(...))"
    kinds = (pa.ArrowException, ValueError, TypeError)
    return refused(kinds, "dataset", "values of one type in every column", fix, where)
