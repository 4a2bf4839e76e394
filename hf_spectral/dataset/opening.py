"""Open what a user gives as a dataset: a folder, one of the Hub or in memory, a list, a torch dataset, a function.

A string that names an existing folder is that folder; any other one of the form `user/name` is a dataset on the Hub.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers.pipelines.pt_utils import KeyDataset

from hf_spectral.checks import require_extra
from hf_spectral.dataset.folder import list_pictures
from hf_spectral.dataset.source import Find, Source, item_of, none_left, printable, refused, taken
from hf_spectral.dataset.table import FindColumn, of_table
from hf_spectral.errors import SpectralError, shown
from hf_spectral.hub_download import is_repository, nor_here
from hf_spectral.hub_errors import said_plainly

_ACCEPTED = (
    "a folder of pictures, the id of a dataset on the Hub, a datasets.Dataset or IterableDataset, a column of one, a "
    "list of images, a torch dataset, or a function that returns an iterator of images"
)


def open_source(
    dataset: Any,
    image_column: str | None,
    find_column: FindColumn,
    whole_rows: bool,
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
) -> Source:
    """Open a dataset of any kind.

    Args:
        dataset: One of the kinds that `fit` takes.
        image_column: Column of the pictures; None finds the only image column.
        find_column: Function that finds the column of pictures, see `Backbone.image_column`.
        whole_rows: False reads the column of pictures only.
        split: Of a dataset on the Hub, or of a `DatasetDict`; None takes the only one.
        streaming: True reads a dataset of the Hub without storing it.
        revision: Branch, tag or commit of a dataset on the Hub; None takes the main branch.

    Returns:
        The source.

    Raises:
        SpectralError: If it is none of these, is empty, has no column of pictures, cannot be had, or can be read once
            only.
    """
    if is_repository(dataset) and not os.path.exists(dataset):
        dataset, split, streaming, revision = _on_hub(dataset, split, streaming, revision), None, False, None
    if isinstance(dataset, Mapping) and hasattr(dataset, "cast_column"):
        dataset, split = dataset[_only_split(dataset, split)], None
    for name, value in (("split", split), ("streaming", streaming), ("revision", revision)):
        if value:
            what = f"{value!r} beside {_described(dataset)}"
            raise SpectralError(name, expected="the id of a dataset on the Hub beside it", got=what, fix="Leave it out")
    if isinstance(dataset, (str, os.PathLike)):
        return _of_folder(Path(dataset))
    if hasattr(dataset, "cast_column"):
        return of_table(dataset, image_column, find_column, whole_rows)
    names = ("dataset", "key") if isinstance(dataset, KeyDataset) else ("source", "column_name")
    table, column = (getattr(dataset, name, None) for name in names)
    if hasattr(table, "cast_column"):
        return of_table(table, column, find_column, whole_rows=False)
    return _of_values(dataset, partial(_picture, image_column, find_column), whole_rows)


def _on_hub(repo_id: str, split: str | None, streaming: bool, revision: str | None) -> Any:
    require_extra("datasets", "datasets")
    import datasets

    # Asked first, since the Hub answers at once where `datasets` tries again for half a minute.
    with nor_here("dataset"), said_plainly(repo_id):
        if not huggingface_hub.constants.is_offline_mode():
            huggingface_hub.HfApi().dataset_info(repo_id, revision=revision)
    expected = f"a dataset that loads, for {repo_id!r}"
    fix = "Check its split, or pass what datasets.load_dataset returns"
    with refused((OSError, ValueError, RuntimeError), "dataset", expected, fix), said_plainly(repo_id, "dataset"):
        if split is None:
            split = _only_split(datasets.get_dataset_split_names(repo_id, revision=revision), None)
        return datasets.load_dataset(repo_id, split=split, streaming=streaming, revision=revision)


def _only_split(splits: Any, split: str | None) -> str:
    names = list(splits)
    if split in names or (split is None and len(names) == 1):
        return names[0] if split is None else split
    raise SpectralError(
        "split",
        expected=f"one of the splits {', '.join(map(str, names))}",
        got="none" if split is None else repr(split),
        fix=f"Pass split={next(iter(names), 'train')!r}",
    )


def _of_folder(folder: Path) -> Source:
    if not os.path.isdir(folder):  # Unlike `Path.is_dir` also of a name that no file can have.
        raise SpectralError(
            "dataset",
            expected=_ACCEPTED,
            got=repr(shown(str(folder))),
            fix="Check that the folder exists",
        )
    files = list_pictures(folder)
    names = [printable(path.relative_to(folder).as_posix()) for path in files]

    def images(which: slice) -> Iterator[Find]:
        for position in range(len(files))[which]:
            name = names[position]
            yield partial(item_of, position, str(files[position]), {"file_name": name}, "image", name=name)

    return Source(len(files), None, "image", images)


def _of_values(dataset: Any, pick: Callable[[Any], Any], whole_rows: bool) -> Source:
    """Return the images of a sequence, or of what can be iterated over more than once."""
    features = None
    if whole_rows:
        import datasets

        features = datasets.Features({"image": datasets.Image()})
    is_array = getattr(dataset, "ndim", 4) != 4  # One image, or a table.
    is_plain = not isinstance(dataset, (Mapping, bytes, type)) and not is_array
    is_stream = isinstance(dataset, torch.utils.data.IterableDataset)
    if is_plain and not is_stream and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        if not len(dataset):
            raise none_left()

        def images(which: slice) -> Iterator[Find]:
            for position in range(len(dataset))[which]:
                yield taken(position, lambda place: pick(dataset[place]), position, {}, "image")

        return Source(len(dataset), features, "image", images)
    if not is_plain or not (callable(dataset) or hasattr(dataset, "__iter__")):
        raise SpectralError("dataset", expected=_ACCEPTED, got=_described(dataset), fix="Give one of these")

    def values() -> Iterator[Any]:
        return iter(dataset() if callable(dataset) and not is_stream else dataset)

    with refused((TypeError,), "dataset", "a function that returns an iterator and needs no argument", "Give such one"):
        if values() is values():
            raise SpectralError(
                "dataset",
                expected="images that can be read again from the first on",
                got=f"{_described(dataset)}, which can be read once",
                fix="Give a function that returns a new iterator at every call, such as the generator function itself",
            )

    def stream(which: slice) -> Iterator[Find]:
        for position, value in itertools.islice(enumerate(values()), which.start, which.stop, which.step):
            yield taken(position, pick, value, {}, "image")

    return Source(None, features, "image", stream)


def _picture(image_column: str | None, find_column: FindColumn, value: Any) -> Any:
    """Return the picture in an element of a sequence or an iterator: a column of a row, or the first part of a pair."""
    if isinstance(value, tuple) and value:
        return value[0]
    if isinstance(value, Mapping) and not value.keys() <= {"bytes", "path"}:
        return value[find_column({}, value, image_column or ("image" if "image" in value else None))]
    return value


def _described(dataset: Any) -> str:
    return f"{shown(str(dataset))!r}" if isinstance(dataset, (str, os.PathLike)) else f"a {type(dataset).__name__}"
