"""The pictures of a folder: one rule for `fit`, `transform`, `layer_report` and the command line."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from hf_spectral.errors import SpectralError

# Formats that Pillow opens and that are no pictures: documents, films, data, and what only other programs decode.
_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
# Folders of hidden copies; names that begin with a dot are hidden anyway.
_HIDDEN_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
# What `hf-spectral analyze` writes beside its tensors.
_OWN = re.compile(r"\.((where|what)\.(eigenvectors|segmentation|labels)|pathways)\.png$")

_logger = logging.getLogger(__name__)


def list_pictures(folder: str | os.PathLike[str], argument: str = "dataset") -> list[Path]:
    """Return the pictures of a folder and of all folders below it, and log in one line what is left out and why.

    Pictures are files with a suffix that Pillow has registered for a format that it opens. Left out are hidden files
    and folders, what this package itself has written, and files of other types. Links are followed; a folder that is
    reached in several ways counts once.

    Args:
        folder: The folder.
        argument: What the caller names it.

    Returns:
        Paths, sorted by folder and name.

    Raises:
        SpectralError: If there is no such folder, or no picture in it.
    """
    Image.init()  # Registers what Pillow and its plugins read.
    suffixes = {suffix for suffix, form in Image.EXTENSION.items() if form in {*Image.OPEN, "MPO"} - _NO_PICTURES}
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise SpectralError(
                argument,
                expected="a folder of pictures that can be read",
                got=f"{os.fspath(folder)!r} ({error.strerror})",
                fix="Check that the folder exists",
            ) from error
        left_out["folders that cannot be opened"] += 1

    for root, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            left_out["folders that a second link leads to"] += 1
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        is_hidden = any(map(_is_hidden, Path(os.path.relpath(root, folder)).parts))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if is_hidden or _is_hidden(name):
                left_out["hidden"] += 1
            elif suffix not in suffixes:
                others[suffix or "none"] += 1
            elif _OWN.search(name) or (name == "layers.png" and "layers.csv" in files):
                left_out["written by hf_spectral"] += 1
            elif not os.path.isfile(os.path.join(root, name)):
                left_out["links to nothing"] += 1
            else:
                found.append(Path(root, name))
    reasons = [f"{count} {reason}" for reason, count in sorted(left_out.items())]
    if others:
        kinds = [suffix for suffix, _ in others.most_common(5)]
        reasons.append(f"{others.total()} of other types ({', '.join(kinds)}{', ...' if len(others) > 5 else ''})")
    if not found:
        raise SpectralError(
            argument,
            expected="a folder that holds pictures",
            got=f"{os.fspath(folder)!r}{' with ' if reasons else ''}{', '.join(reasons)}",
            fix="Give the folder of the files",
        )
    if reasons and os.environ.get("RANK", "0") == "0":  # Under `accelerate launch`, one process says it.
        _logger.warning("%s: %d pictures; left out: %s", os.fspath(folder), len(found), ", ".join(reasons))
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN_FOLDERS
