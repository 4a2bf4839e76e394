"""Writing of files that appear whole or not at all, and checks that a place can be written before work is done."""

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
def writing(place: Path, argument: str, fix: str = _FIX, kind: str = "place") -> Iterator[None]:
    """Turn an OSError into a SpectralError that names the place that cannot be written.

    Args:
        place: The file or folder.
        argument: Name of the place as the caller wrote it.
        fix: What to do about it.
        kind: What the place is, for the message.

    Yields:
        Nothing.

    Raises:
        SpectralError: Instead of an OSError: a file where a folder should be, no permission, a full disk, ...
    """
    try:
        yield
    except OSError as error:
        expected, reason = f"a {kind} that can be written", error.strerror or error
        raise SpectralError(argument, expected=expected, got=f"{place} ({reason})", fix=fix) from error


@contextlib.contextmanager
def replacing(path: Path, argument: str = "path", fix: str = _FIX, is_flushed: bool = False) -> Iterator[Path]:
    """Write a file under another name, and rename it once the block has ended without an error.

    Args:
        path: The file to make or replace; folders on the way are made.
        argument: Name of the place as the caller wrote it.
        fix: What to do where it cannot be written.
        is_flushed: Wait until the file is on the disk, so that it also survives a crash of the machine.

    Yields:
        The path to write to, in the same folder. Nothing is left of it if the block raises.

    Raises:
        SpectralError: If it cannot be written.
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    partial = path.parent / f".{name}.partial"
    with writing(path, argument, fix):
        _exists(path)  # Fails for a name that no file can have.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if is_flushed:
                _flush(partial)
            partial.replace(path)
            if is_flushed:
                _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


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


def require_writable(folder: Path, argument: str) -> None:
    """Require a folder to be writable, by writing to it, or to the nearest folder above it that exists.

    Args:
        folder: The folder, which need not exist. Nothing is left in it, and it is not made.
        argument: Name of the folder as the caller wrote it.

    Raises:
        SpectralError: If it cannot be written.
    """
    with writing(folder, argument):
        place = folder.absolute()
        while not _exists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):  # Others, such as a name that is too long, are for the caller.
        return False
    except ValueError as error:  # A null character in the name.
        raise OSError(str(error)) from error
    return True


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
