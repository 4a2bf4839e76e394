"""The images of a dataset: numbered, encoded, in shares of processes, each with the reason if it cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hf_spectral.dataset.processes import Processes
from hf_spectral.errors import SpectralError, shown


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that was left out.

    Args:
        position: Its place in the dataset, from 0.
        name: Its file's name below the folder, or `image 3`; never a path of the machine.
        reason: Why it was left out, as a sentence.
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
        row: All columns, images among them encoded and not decoded. Where the dataset gives pixels, as one with
            `with_transform` does, the column of pictures is missing.
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
        with explained():
            # Pillow's warning is not turned into an error: filters of warnings hold for all threads.
            opened, most = Image.open(io.BytesIO(self.content)), Image.MAX_IMAGE_PIXELS
            if most is not None and opened.width * opened.height > most:
                big = ValueError(f"{opened.width} x {opened.height} pixels, above {most}: perhaps a decompression bomb")
                raise big
            return ImageOps.exif_transpose(opened).convert(self.mode)


#: Reads one image when it is called; calls may be made by other threads, and in any order.
Find = Callable[[], Item]


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset of images.

    Args:
        length: Number of images, or None for a stream.
        features: Types of the columns of a `datasets` dataset; None for all others.
        column: The column of pictures.
        images: Function that yields the images at some positions, in order. What has to be done in order and in one
            thread is done while it is iterated over; the rest is done when a yielded function is called.
    """

    length: int | None
    features: Any
    column: str
    images: Callable[[slice], Iterator[Find]]

    def share(self, processes: Processes) -> tuple[Iterator[Find], int | None]:
        """Return the images of this process.

        A dataset of known length is cut into contiguous blocks; of a stream each process takes every n-th image, so
        that positions are known without communication: the others are read past, but not decoded.

        Args:
            processes: Which one of how many this is.

        Returns:
            The images, in order, and their number, None for a stream.
        """
        if self.length is None:
            return self.images(slice(processes.rank, None, processes.count)), None
        block = processes.block(self.length)
        return self.images(slice(block.start, block.stop)), len(block)


def item_of(
    position: int, value: Any, row: Mapping[str, Any], column: str, mode: str = "", name: str | None = None
) -> Item:
    """Read the encoded picture that a value holds or names; its digest, the backbone and the row use the same bytes.

    Args:
        position: Place of the image in the dataset, from 0.
        value: What the dataset gives as the picture.
        row: The columns; without the column of pictures they get the encoded picture, if there is one.
        column: The column of pictures.
        mode: As in `Item`.
        name: As in `Item`; None makes one.

    Returns:
        The image; its row holds the encoded picture, unless the column is one of names.
    """
    path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, (str, os.PathLike)) else None
    path = printable(Path(shown(os.fspath(path)).split("::")[0]).name) if path else None
    if name is None:
        name = f"image {position}" + (f" ({path})" if path else "")
    try:
        with explained():
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


def taken(position: int, give: Callable[[Any], Any], of: Any, row: Mapping[str, Any], column: str) -> Find:
    """Call a function of the user for a picture, and leave reading the picture to whoever calls the result.

    Args:
        position: Place of the image in the dataset, from 0.
        give: Function that returns the picture.
        of: Its argument.
        row: As for `item_of`.
        column: As for `item_of`.

    Returns:
        A function that returns the image, with the reason if `give` fails.
    """
    try:
        with explained():
            return functools.partial(item_of, position, give(of), row, column)
    except SpectralError as error:
        return functools.partial(Item, position, f"image {position}", None, row, error=error)


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
def refused(
    kinds: tuple[type[Exception], ...], argument: str, expected: str, fix: str, where: str = ""
) -> Iterator[None]:
    """Turn errors of libraries and of the operating system into a SpectralError of one line.

    Args:
        kinds: Types of the errors.
        argument: Argument that the error names.
        expected: What was expected.
        fix: What to do.
        where: Text before the reason in the message.

    Yields:
        Nothing.

    Raises:
        SpectralError: In place of theirs.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, SpectralError):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:200]
        reason = reason.removesuffix(".")
        raise SpectralError(argument, expected=expected, got=where + reason, fix=fix) from error


def explained() -> contextlib.AbstractContextManager[None]:
    """Turn errors of Pillow, `datasets` and the file system into one that says that an image cannot be read."""
    kinds = (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError)
    expected = "a picture that opens, also by the transform of the dataset, if it has one"
    return refused(kinds, "image", expected, "Check that it opens in a viewer")


def printable(name: str) -> str:
    r"""Return a file's name as text that can be written: bytes that are not UTF-8 become escapes such as `\xff`.

    Args:
        name: As the operating system gave it.

    Returns:
        The name; the same one wherever it is UTF-8.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def none_left(skipped: Sequence[Skipped] = ()) -> SpectralError:
    """Return the error for a dataset without an image that can be used.

    Args:
        skipped: Images that were left out, if there were any.

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
