"""Errors of the Hub as one sentence each, without a token and without an address of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hf_spectral.errors import SpectralError

#: What was expected, what came, and what to do.
_Refusal = tuple[str, str, str]

_LOGIN = "Run: hf auth login, or pass token=..."
_AGAIN = "Check the connection and make the same call again: what has arrived is not sent twice"
_TOKEN = "a token that the Hub accepts"
# By the name of the error's class, which goes first, and by the status of the answer; {repo} is the repository.
_REFUSALS: dict[str | int, _Refusal] = {
    "GatedRepoError": (
        "a repository that is open to you",
        "{repo}, which is gated",
        "Ask for access on its page, and log in by: hf auth login; a Space needs a secret HF_TOKEN",
    ),
    "RevisionNotFoundError": (
        "a branch, tag or commit that exists",
        "none of that name in {repo}",
        "Check revision=...",
    ),
    "LocalTokenNotFoundError": (_TOKEN, "none", _LOGIN),
    "LocalEntryNotFoundError": ("an answer from the Hub, or a copy in the cache", "neither for {repo}", _AGAIN),
    "EntryNotFoundError": (
        "a repository that holds what is asked for",
        "{repo} without it",
        "Check its name on the Hub",
    ),
    "RepositoryNotFoundError": (
        "a repository that exists",
        "no {repo} on the Hub, or none that your token may see",
        "Check it, and log in by: hf auth login",
    ),
    "HFValidationError": ("a name such as user/name", "{repo!r}", "Check its name"),
    "OfflineModeIsEnabled": ("the Hub within reach", "HF_HUB_OFFLINE=1", "Unset it"),
    401: (_TOKEN, "none, or one that is not valid", _LOGIN),
    402: (
        "an account that may have it",
        "a request for payment: Gradio Spaces ask for a PRO account or a Team",
        "Subscribe on the Hub, or show the app locally: hf-spectral demo",
    ),
    403: (
        "a token that may write there",
        "one that may only read, or that belongs to somebody else",
        "Make a token with write access on the Hub, and choose a name below your own account",
    ),
    404: ("a repository that exists", "none of that name and kind", "Check its name, or make it on the Hub first"),
    409: (
        "a repository that nobody else changes at this moment",
        "a conflict with another commit",
        "Make the same call again",
    ),
    412: ("a repository that stays as it is meanwhile", "a change by another commit", "Make the same call again"),
    413: (
        "files that the Hub takes",
        "files that are too large for it",
        "Push fewer eigenvectors, or fewer rows at a time",
    ),
    429: ("fewer requests", "the limit that the Hub sets in a time", "Wait some minutes and make the same call again"),
}


@contextlib.contextmanager
def said_plainly(repo_id: str, argument: str = "repo_id") -> Iterator[None]:
    """Raise a `SpectralError` in place of an error of the Hub or of the connection.

    The original error is left out of the chain: it may quote the headers of the request, the token among them.

    Args:
        repo_id: The repository, for the message.
        argument: Name of the argument as the user wrote it.

    Yields:
        Nothing.

    Raises:
        SpectralError: In place of any error of `huggingface_hub` or of its connection.
        OSError: Unchanged, if it has nothing to do with the Hub, such as a full disk.
        ValueError: Unchanged, if it has nothing to do with the Hub.
        RuntimeError: Unchanged, if it has nothing to do with the Hub.
    """
    refusable: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *connection_errors())
    try:
        yield
    except SpectralError:
        raise
    except refusable as error:
        refusal = _refusal_of(error, repo_id)
        if refusal is None:
            raise
    else:
        return
    expected, got, fix = refusal
    raise SpectralError(argument, expected=expected, got=got, fix=fix) from None


def connection_errors() -> tuple[type[Exception], ...]:
    """Return the base error of the HTTP client, which differs between versions of `huggingface_hub`.

    Returns:
        The base class, which the errors of the Hub share.
    """
    from huggingface_hub import errors

    return tuple(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def _refusal_of(error: BaseException, repo_id: str) -> _Refusal | None:
    """Return the sentence of an error.

    Returns:
        What was expected, what came, and what to do; None for an error that is not the Hub's.
    """
    from huggingface_hub import errors

    # An upload that fails is wrapped once more by the client.
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _REFUSALS), None)
    if name is not None:
        expected, got, fix = _REFUSALS[name]
        return expected, got.format(repo=repo_id), fix
    if isinstance(error.__cause__, errors.BadRequestError):  # The check of a card, which the client words itself.
        said = " ".join(str(error).split())
        return f"a card that the Hub takes, for {repo_id}", said[:300], "Check the license and the other details"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status not in _REFUSALS:
            return f"the Hub to take it, for {repo_id}", f"an error of the Hub ({status})", _AGAIN
        expected, got, fix = _REFUSALS[status]
        return expected, f"{got} ({repo_id}: {status})", fix
    if isinstance(error, (ConnectionError, TimeoutError, *connection_errors())):
        return f"the Hub within reach, for {repo_id}", f"a connection that failed ({type(error).__name__})", _AGAIN
    return None
