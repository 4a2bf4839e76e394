"""`push_space`: publish the app as a Space, optionally with a basis that it loads at start-up."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_spectral.errors import SpectralError
from hf_spectral.hub.repository import Repository
from hf_spectral.hub_download import require_repository
from hf_spectral.hub_errors import said_plainly
from hf_spectral.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

APP_PACKAGE = "spaces_app"
SETTINGS_NAME = "space.json"
_REQUIREMENTS_NAME = "requirements.txt"
_NEEDED = ("app.py", "README.md")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_logger = logging.getLogger(__name__)


def push_space(
    repo_id: str,
    *,
    basis: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    requirement: str | None = None,
    hardware: str | None = None,
    secrets: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Create or update a Space with the app, in a single commit.

    The Space holds a readable `app.py` with title, backbones and examples to edit: its owner, or whoever presses
    "Duplicate this Space", edits that file. A second push writes the app's files anew.

    Args:
        repo_id: Space `user/name`, created if it does not exist.
        basis: Id of a basis on the Hub that the app loads at start-up; None loads no basis.
        folder: Folder of the app; None takes the app that is installed with this package.
        requirement: Line of `requirements.txt` that installs this package in the Space; None takes exactly the version
            that runs here. A development version is on no index: then pass `"hf-spectral[app] @ git+https://..."`, or
            the address of a wheel.
        hardware: Hardware that the Space runs on, such as "t4-small" or "zero-a10g"; None leaves it as it is.
        secrets: Values by name, which the app finds in its environment and the Hub never shows again. A gated backbone
            needs "HF_TOKEN".
        variables: The same for values that everybody may see.
        private: Whether a new Space is private; None takes the default of the account.
        token: Token with write access; None takes the token of `hf auth login`.
        commit_message: Commit message; None takes a default message.

    Returns:
        Information about the commit, including `commit_url`.

    Raises:
        SpectralError: If the basis is not on the Hub, the Space contains something else, a name or value is malformed,
            or the Hub rejects the push.

    Example:
        >>> import hf_spectral
        >>> hf_spectral.push_space("user/space", basis="user/name").commit_url
    """
    repository = Repository(repo_id, "space", token, private)
    _check_settings(hardware, {"secrets": secrets or {}, "variables": variables or {}})
    files = _app_files(_installed_app() if folder is None else Path(folder))
    _require_package(files, requirement)
    if folder is None:  # The other files of the folder are installed with the package.
        kept = importlib.import_module(APP_PACKAGE).SPACE_FILES
        files = {name: content for name, content in files.items() if name in kept}
    start = json.loads(files.get(SETTINGS_NAME, b"{}"))
    files[SETTINGS_NAME] = (json.dumps({**start, "basis": basis}, indent=2) + "\n").encode()
    if basis is not None:
        _require_basis(repository, basis)
    repository.create()
    repository.require_own(SETTINGS_NAME)
    api: Any = repository.api
    with said_plainly(repo_id):
        if hardware is not None:
            api.request_space_hardware(repo_id, hardware)
        for name, value in (secrets or {}).items():
            api.add_space_secret(repo_id, name, value)
        for name, value in (variables or {}).items():
            api.add_space_variable(repo_id, name, value)
    return repository.commit(files, commit_message or "Push the app of hf-spectral")


def _installed_app() -> Path:
    return Path(str(importlib.import_module(APP_PACKAGE).__file__)).parent


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


def _require_package(files: dict[str, bytes], requirement: str | None) -> None:
    """Replace the line of the requirements that installs this package, or add it."""
    if requirement is None:
        requirement = f"hf-spectral[app]=={__version__}"
        if "dev" in __version__:
            _logger.warning("%s is on no index, so the Space cannot install it: pass requirement=...", requirement)
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


def _check_settings(hardware: str | None, strings: Mapping[str, Mapping[str, str]]) -> None:
    """Check the hardware, and the secrets and variables by the name of their argument; no message shows a value."""
    from huggingface_hub import SpaceHardware

    known = [one.value for one in SpaceHardware]
    if hardware is not None and hardware not in known:
        raise SpectralError(
            "hardware", expected=f"one of {', '.join(known)}", got=repr(hardware), fix="Choose one, or leave it out"
        )
    for argument, values in strings.items():
        for name, value in values.items():
            if not isinstance(value, str) or not isinstance(name, str) or not _VARIABLE.fullmatch(name):
                raise SpectralError(
                    argument,
                    expected="strings by the names of environment variables, such as HF_TOKEN",
                    got="a name with other signs than letters, digits and '_', or a value that is no string",
                    fix="Correct it",
                )
