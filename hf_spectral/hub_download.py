"""Download of the named files of a repository of the Hub to a local folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_spectral.errors import SpectralError
from hf_spectral.hub_errors import said_plainly
from hf_spectral.tensor_files import undamaged

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def located(source: str | os.PathLike[str], names: Iterable[str], argument: str, **hub: Any) -> Path:
    """Return the local path of files, after a download if they are named by the id of a repository.

    Args:
        source: Path or repository, as the user gave it.
        names: As for `fetch`.
        argument: Name of the argument as the user wrote it.
        **hub: As for `fetch`.

    Returns:
        A path that exists.

    Raises:
        SpectralError: If it is of another type, nothing lies there, or the Hub does not give it.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise SpectralError(
            argument,
            expected="a path, or the id of a repository of the Hub",
            got="an empty one" if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}",
            fix="Give what was saved or pushed",
        )
    # A file is never the id of a repository, though `folder/file.safetensors` has the form of one.
    if is_repository(source) and not Path(source).exists() and not str(source).endswith(".safetensors"):
        with nor_here(argument):
            return fetch(str(source), names, **hub)
    path = Path(source)
    expected = "a path where something lies, or the id of a repository of the Hub"
    with undamaged(argument, repr(str(source)[:200]), expected, "Check the path"):
        path.stat()
    return path


@contextlib.contextmanager
def nor_here(argument: str) -> Iterator[None]:
    """Add to an error of the Hub that no file or folder on this machine has the name either.

    Args:
        argument: Name of the argument as the user wrote it.

    Yields:
        Nothing.

    Raises:
        SpectralError: In place of one that names the argument `repo_id`.
    """
    try:
        yield
        return
    except SpectralError as error:
        if error.argument != "repo_id":
            raise
        here = f"{error.got}; nor is there a file or folder of that name on this machine"
        refusal = SpectralError(argument, expected=str(error.expected), got=here, fix=str(error.fix))
    raise refusal from None  # `said_plainly` leaves out an error that may quote a token.


def is_repository(value: Any) -> bool:
    """Return whether a value has the form of the id of a repository, `user/name`.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    return isinstance(value, str) and _REPOSITORY.fullmatch(value) is not None


def require_repository(repo_id: str, argument: str = "repo_id") -> None:
    """Check the id of a repository.

    Args:
        repo_id: Name, as the user gave it.
        argument: Name of the argument.

    Raises:
        SpectralError: If it does not have the form `user/name`.
    """
    if not is_repository(repo_id):
        raise SpectralError(
            argument,
            expected="a name such as user/name",
            got=repr(repo_id),
            fix="Use letters, digits, '-', '_' and '.' around one '/'",
        )


def fetch(
    repo_id: str,
    names: Iterable[str],
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Download some files of a repository, all of one commit; files in the cache are not downloaded again.

    If the Hub does not answer, the files in the cache are used.

    Args:
        repo_id: The repository, `user/name`.
        names: Files at its top level.
        token: Token of the user; None takes the token of `hf auth login`.
        cache_dir: Folder of the downloads; None takes the shared one.
        **options: `revision` and `local_files_only`, as for `huggingface_hub.snapshot_download`.

    Returns:
        A folder of the cache; a file that the repository does not hold is missing there.

    Raises:
        SpectralError: If the repository cannot be read.
    """
    from huggingface_hub import snapshot_download

    require_token(token)
    options["cache_dir"] = None if cache_dir is None else Path(cache_dir)
    with said_plainly(repo_id):
        return Path(snapshot_download(repo_id, allow_patterns=list(names), token=token, **options))


def require_token(token: str | bool | None) -> None:
    """Reject a token that no header can carry, before an error message quotes the header.

    Args:
        token: Token, as the user gave it.

    Raises:
        SpectralError: If it holds anything but visible ASCII.
    """
    if isinstance(token, str) and re.fullmatch(r"[!-~]+", token) is None:
        raise SpectralError(
            "token",
            expected="a token as the Hub shows it",
            got="one with spaces, line ends or other characters in it, or an empty one",
            fix="Copy it again",
        )
