"""Rows on disk as they are made: a folder that `datasets.load_from_disk` reads at any moment, also after a crash.

Each part is an Arrow file that appears whole or not at all; `state.json` lists those that are there.
"""

from __future__ import annotations

import atexit
import contextlib
import fnmatch
import gc
import io
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_spectral.atomic import replacing, writing
from hf_spectral.dataset.source import printable
from hf_spectral.dataset.table import typed
from hf_spectral.errors import SpectralError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

PART_ROWS = 64
_PART_BYTES = 64 << 20
_FIX = "Make room and begin anew in another folder; datasets.load_from_disk reads what was written so far"
_WRITING = ("output_dir", _FIX, "folder")
# This file exists, and is locked, while rows are being written.
_UNFINISHED = ".unfinished.lock"
#: Columns of pictures that `transform` adds.
ADDED_PICTURES = frozenset({"eigenvectors_rgb", "segmentation", "confidence"})
#: The basis with its clusters, beside the rows.
BASIS_FOLDER = "basis"
_OWN = (_UNFINISHED, BASIS_FOLDER, "data-*.arrow", "dataset_info.json", "state.json", ".*.partial")


class RowWriter:
    """Writes the rows of one process, part by part.

    Args:
        folder: An existing folder.
        features: Types of all columns.
        rank: Rank of this process.
    """

    def __init__(self, folder: Path, features: datasets.Features, rank: int) -> None:
        self.folder = folder
        self.positions: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.parts: list[Path] = []
        self.features = features
        self._rank = rank
        self._waiting: list[Mapping[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any], position: int, size: tuple[int, int]) -> None:
        """Add a row.

        Args:
            row: All columns, pictures as `embedded` leaves them.
            position: Place of its image in the dataset.
            size: Height and width of the image in pixels.

        Raises:
            SpectralError: If the disk is full or cannot be written.
        """
        self._waiting.append(row)
        self.positions.append(position)
        self.sizes.append(size)
        self._bytes += sum(len(value["bytes"] or b"") for value in row.values() if _is_image(value))
        if len(self._waiting) >= PART_ROWS or self._bytes > _PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as one part.

        Raises:
            SpectralError: If a value does not fit its column, or the disk is full or cannot be written.
        """
        import datasets

        if not self._waiting:
            return
        columns = {name: [row[name] for row in self._waiting] for name in self.features}
        with typed():
            table = datasets.Dataset.from_dict(columns, features=self.features).data.table
        path = self.folder / f"data-{self._rank:05d}-{len(self.parts):05d}.arrow"
        with writing(self.folder, *_WRITING):
            write_part(table, path)
            self.parts.append(path)
            list_parts(self.folder)
        self._waiting, self._bytes = [], 0

    def rewrite(self, change: Callable[[pa.Table, Sequence[tuple[int, int]]], pa.Table]) -> Iterator[int]:
        """Replace every part by a changed one of the same rows.

        Args:
            change: Takes a part and the sizes of its images, returns the new part.

        Yields:
            The rows of each part, once it is replaced.

        Raises:
            SpectralError: If the disk is full or cannot be written; parts not yet replaced stay as they were.
        """
        start = 0
        for path in self.parts:
            table = read_parts([path]).data.table
            changed = change(table, self.sizes[start : start + table.num_rows])
            with writing(self.folder, *_WRITING):
                write_part(changed, path)
            start += table.num_rows
            yield table.num_rows


def embedded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Put the bytes of a row's pictures inside, so that it can be read on any machine.

    Args:
        row: Columns; an encoded image is a mapping of `bytes` and `path`.

    Returns:
        The same columns, without the paths of this machine where there are bytes.

    Raises:
        SpectralError: If an image column names a file that is no picture, or cannot be read.
    """
    return {name: _embedded(value) for name, value in row.items()}


def encoded(image: Any, picture: Image.Image) -> dict[str, Any]:
    """Encode pixels without loss.

    Args:
        image: What the dataset gave.
        picture: What was read from it, in RGB.

    Returns:
        What `datasets.Image` stores: the image itself if it is one that PNG holds, else the picture.
    """
    is_plain = isinstance(image, Image.Image) and image.mode in ("1", "L", "LA", "RGB", "RGBA")
    kept = ImageOps.exif_transpose(image) if is_plain and "transparency" not in image.info else picture
    return stored(kept)


def stored(picture: Image.Image, form: str = "png", **options: Any) -> dict[str, Any]:
    """Encode a picture as `datasets.Image` stores it.

    Args:
        picture: Of a mode that the format holds.
        form: "png", without loss, or "jpeg".
        **options: Of the format, as Pillow calls them.

    Returns:
        The content of a file, and no path.
    """
    content = io.BytesIO()
    picture.save(content, format=form, **options)
    return {"bytes": content.getvalue(), "path": None}


def number_type(features: Mapping[str, Any]) -> str:
    """Return the type of the numbers in the column of eigenvectors."""
    feature = features["eigenvectors"]
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature.dtype


@contextlib.contextmanager
def output_folder(output_dir: str | os.PathLike[str] | None, features: datasets.Features) -> Iterator[Path]:
    """Give a folder to write rows to, which `datasets.load_from_disk` reads from the beginning.

    While the block runs, and after it was left by an error or killed, the folder is marked as unfinished: whoever comes
    next may write it anew.

    Args:
        output_dir: A new, empty or unfinished folder; None makes a temporary one, which is deleted on an error.
        features: Types of all columns.

    Yields:
        The folder, which holds no rows.

    Raises:
        SpectralError: If it holds other files, another process is writing there, or it cannot be written.
    """
    import datasets

    folder = Path(tempfile.mkdtemp(prefix="hf-spectral-") if output_dir is None else output_dir)
    mark = folder / _UNFINISHED
    lock = filelock.FileLock(mark)
    try:
        with writing(folder, *_WRITING):
            folder.mkdir(parents=True, exist_ok=True)
            _claim(folder, lock)
            datasets.DatasetInfo(features=features).write_to_directory(str(folder))
            write_part(features.arrow_schema.empty_table(), folder / "data-00000-00000.arrow")
            list_parts(folder)
        yield folder
        lock.release()
        mark.unlink(missing_ok=True)
    except BaseException:
        if output_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.release()


def delete_with(rows: datasets.Dataset, folder: Path) -> None:
    """Delete a temporary folder once no dataset reads from it any more, at the latest when the program ends.

    Args:
        rows: Rows that lie in it. Datasets made from them, such as by `select` or `map`, keep it too.
        folder: The folder.
    """
    weakref.finalize(rows, _delete_unless_used, folder).atexit = False
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _delete_unless_used(folder: Path) -> None:
    import datasets

    for one in gc.get_objects():
        # A dataset that is being deleted has lost its table already.
        is_alive = issubclass(type(one), datasets.Dataset) and hasattr(one, "_data")
        if is_alive and any(folder in Path(file["filename"]).parents for file in one.cache_files):
            weakref.finalize(one, _delete_unless_used, folder).atexit = False
            return
    shutil.rmtree(folder, ignore_errors=True)


def _claim(folder: Path, lock: filelock.BaseFileLock) -> None:
    """Empty a folder of what an interrupted run has left, and keep other processes out; refuse any other folder."""
    names = {path.name for path in folder.iterdir()}
    others = [name for name in names if not any(fnmatch.fnmatch(name, own) for own in _OWN)]
    why = "which holds files" if names and (others or _UNFINISHED not in names) else ""
    if not why:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            why = "where another process is writing"
    if why:
        raise SpectralError(
            "output_dir",
            expected="a new or empty folder, or one that an interrupted transform has left",
            got=f"{folder}, {why}",
            fix="Empty it or give another one",
        )
    shutil.rmtree(folder / BASIS_FOLDER, ignore_errors=True)
    for name in names - {_UNFINISHED, BASIS_FOLDER}:
        (folder / name).unlink()


def read_parts(parts: Sequence[Path]) -> datasets.Dataset:
    """Map parts into memory.

    Args:
        parts: At least one.

    Returns:
        Their rows, one part after the other.
    """
    import datasets

    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in parts])


def write_part(table: pa.Table, path: Path) -> None:
    """Write a table as an Arrow stream, under another name first.

    Args:
        table: Rows, their types in its schema as `datasets` writes them.
        path: Path of the part.

    Raises:
        SpectralError: If it cannot be written; nothing is left behind then.
    """
    from datasets.arrow_writer import ArrowWriter

    with replacing(path, "output_dir", _FIX) as partial, ArrowWriter(table.schema, path=str(partial)) as writer:
        writer.write_table(table)
        writer.finalize()


def list_parts(folder: Path) -> None:
    """Write `state.json`, by which `datasets.load_from_disk` finds the parts.

    Args:
        folder: Folder of the parts.
    """
    names = sorted(path.name for path in folder.glob("data-*.arrow"))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": f"hf-spectral-{len(names)}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    partial = folder / f".state.json.{os.getpid()}.partial"  # Several processes list the parts of one folder.
    partial.write_text(json.dumps(state, indent=2), encoding="utf-8")
    partial.replace(folder / "state.json")


def _is_image(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _embedded(value: Any) -> Any:
    if not _is_image(value):
        return value
    path = value["path"]
    content = value["bytes"]
    if content is None and path is not None and Path(path).is_file():
        content = _picture(Path(path))
    return {"bytes": content, "path": path if content is None else path and printable(Path(path).name)}


def _picture(path: Path) -> bytes:
    """Read a file that a row names, if it is a picture: a dataset of unknown origin may name any file there is."""
    try:
        with Image.open(path):
            return path.read_bytes()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        why = "which is none" if isinstance(error, UnidentifiedImageError) else type(error).__name__
        raise SpectralError(
            "dataset",
            expected="image columns that name pictures",
            got=f"{path.name}, {why}",
            fix="Remove that column, or mend its paths",
        ) from error
