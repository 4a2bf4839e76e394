"""`push_space`: publish the app as a Space, optionally with a basis that it loads at start-up."""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_spectral.errors import SpectralError
from hf_spectral.hub.repository import Repository
from hf_spectral.hub_download import require_repository
from hf_spectral.hub_errors import said_plainly

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

APP_PACKAGE = "spaces_app"
SETTINGS_NAME = "space.json"
#: The line of requirements.txt that installs this package in a Space.
REQUIREMENT = "hf-spectral[app]"
_REQUIREMENTS_NAME = "requirements.txt"
_NEEDED = ("app.py", "README.md")
_logger = logging.getLogger(__name__)


def push_space(
    repo_id: str,
    *,
    basis: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    requirement: str = REQUIREMENT,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Create or update a Space with the app, in a single commit.

    Args:
        repo_id: Space `user/name`, created if it does not exist.
        basis: Id of a basis on the Hub that the app loads at start-up; None loads no basis.
        folder: Folder of the app; None takes the app that is installed with this package.
        requirement: Line of `requirements.txt` that installs this package in the Space, with a version or a URL.
        private: Whether a new Space is private; None takes the default of the account.
        token: Token with write access; None takes the token of `hf auth login`.
        commit_message: Commit message; None takes a default message.

    Returns:
        Information about the commit, including `commit_url`.

    Raises:
        SpectralError: If the basis is not on the Hub, the Space contains something else, or the Hub rejects the push.

    Example:
        >>> import hf_spectral
        >>> hf_spectral.push_space("user/space", basis="user/name").commit_url
    """
    repository = Repository(repo_id, "space", token, private)
    with contextlib.nullcontext(Path(folder)) if folder is not None else _installed_app() as app:
        files = _app_files(app)
    _require_package(files, requirement)
    if folder is None:  # The other files of the folder are installed with the package.
        kept = importlib.import_module(APP_PACKAGE).SPACE_FILES
        files = {name: content for name, content in files.items() if name in kept}
    settings = json.loads(files.get(SETTINGS_NAME, b"{}"))
    files[SETTINGS_NAME] = (json.dumps({**settings, "basis": basis}, indent=2) + "\n").encode()
    if basis is not None:
        _require_basis(repository, basis)
    repository.create()
    repository.require_own(SETTINGS_NAME)
    return repository.commit(files, commit_message or "Push the app of hf-spectral")


@contextlib.contextmanager
def _installed_app() -> Iterator[Path]:
    try:
        app = importlib.resources.files(APP_PACKAGE)
    except ModuleNotFoundError as error:
        raise SpectralError(
            "folder",
            expected=f"the app, which is installed with hf-spectral as {APP_PACKAGE}",
            got="none",
            fix="Install hf-spectral again, or pass folder=...",
        ) from error
    with importlib.resources.as_file(app) as folder:
        yield folder


def _app_files(app: Path) -> dict[str, bytes]:
    """Return the contents of the files of the app by path, without hidden and compiled files and links."""
    files = {}
    for path in sorted(app.rglob("*")):
        parts = path.relative_to(app).parts
        is_public = not any(part.startswith(".") or part == "__pycache__" for part in parts)
        if is_public and path.is_file() and not path.is_symlink() and path.suffix != ".pyc":
            files["/".join(parts)] = path.read_bytes()
    missing = [name for name in _NEEDED if name not in files]
    if missing:
        raise SpectralError(
            "folder",
            expected=f"an app with {' and '.join(_NEEDED)}",
            got=f"{app} without {missing[0]}",
            fix="Check the folder",
        )
    return files


def _require_package(files: dict[str, bytes], requirement: str) -> None:
    """Replace the line of the requirements that installs this package, or add it."""
    lines = files.get(_REQUIREMENTS_NAME, b"").decode().splitlines()
    others = [line for line in lines if not re.match(r"hf[-_.]spectral\b", line, re.IGNORECASE)]
    files[_REQUIREMENTS_NAME] = "".join(f"{line}\n" for line in (*others, requirement)).encode()


def _require_basis(repository: Repository, basis: str) -> None:
    """Raise a `SpectralError` if the Space could not load the basis; log a warning if the basis is private."""
    require_repository(basis, "basis")
    with said_plainly(basis, "basis"):
        found = repository.api.model_info(basis)
        if not any(sibling.rfilename == "basis.safetensors" for sibling in found.siblings or ()):
            raise SpectralError(
                "basis", expected="a repository that holds a basis", got=basis, fix="Push one: hf-spectral push"
            )
    if found.private:
        _logger.warning("%s is private: give the Space a secret HF_TOKEN that may read it.", basis)
