"""Files that appear whole or not at all, and places that cannot be written, found out before there is work to lose."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_spectral.errors import SpectralError

if TYPE_CHECKING:
    from PIL import Image

_FIX = "Make room, or give another place"
_LONGEST_NAME = 240  # In bytes; file systems take 255.


@contextlib.contextmanager
def replacing(path: Path, argument: str = "path", fix: str = _FIX) -> Iterator[Path]:
    """Write a file under another name, and give it its own once the block has ended well.

    Args:
        path: The file to make or replace; folders on the way are made.
        argument: Name of the place as the caller wrote it.
        fix: What to do where it cannot be written.

    Yields:
        The path to write to, in the same folder. Nothing is left of it if the block raises.

    Raises:
        SpectralError: If it cannot be written: a file where a folder should be, no permission, a full disk, ...
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    try:
        partial = path.with_name(f".{name}.partial")
        _exists(path)  # Fails for a name that no file can have.
    except (OSError, ValueError) as error:
        refusal = _unwritable(path, argument, fix, error)
        raise refusal from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        refusal = _unwritable(path, argument, fix, error)
        raise refusal from error


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG; it appears whole or not at all.

    Args:
        picture: The picture.
        path: Where to write; folders on the way are made.

    Raises:
        SpectralError: If it cannot be written.
    """
    with replacing(path) as partial:
        picture.save(partial, format="png")


def require_writable(folder: Path, argument: str, fix: str = _FIX) -> None:
    """Refuse a folder that cannot be written, by writing to it, or to the nearest folder above that exists.

    Args:
        folder: The folder, which need not exist. Nothing is left in it, and it is not made.
        argument: Name of the folder as the caller wrote it.
        fix: What to do about it.

    Raises:
        SpectralError: If it cannot be written.
    """
    try:
        place = folder.absolute()
        while not _exists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null character in the name.
        refusal = _unwritable(folder, argument, fix, error)
        raise refusal from error


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):  # Others, such as a name that is too long, are for the caller.
        return False
    return True


def _unwritable(path: Path, argument: str, fix: str, error: Exception) -> SpectralError:
    reason = getattr(error, "strerror", None) or str(error)
    return SpectralError(argument, expected="a place that can be written", got=f"{path} ({reason})", fix=fix)
