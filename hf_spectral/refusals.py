"""What the Hub refuses, said in one sentence, without a token and without an address of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hf_spectral.errors import SpectralError

_SENTENCES: dict[int, tuple[str, str, str]] = {
    401: ("a token that the Hub accepts", "none, or one that is not valid", "Run: hf auth login, or pass token=..."),
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
_AGAIN = "Look at the connection and make the same call again: what has arrived is not sent twice"


@contextlib.contextmanager
def said_plainly(repo_id: str, argument: str = "repo_id") -> Iterator[None]:
    """Turn what the Hub, or the way to it, refuses into a sentence.

    The original error is left out of the chain: it may quote the headers of the request, the token among them.

    Args:
        repo_id: The repository that is spoken of.
        argument: Name of the argument as the user wrote it.

    Yields:
        Nothing.

    Raises:
        SpectralError: In place of any error of `huggingface_hub` or of its connection.
    """
    from huggingface_hub import errors

    # The package that carries the requests differs between versions; its errors are the base of the Hub's own.
    bases = errors.HfHubHTTPError.__mro__
    connection_error: type[BaseException] = next(base for base in bases if base.__name__ == "HTTPError")
    try:
        yield
    except SpectralError:
        raise
    except errors.GatedRepoError:
        refusal = (
            "a repository that is open to you",
            f"{repo_id}, which is gated",
            f"Ask for access on its page, {_LOGIN}",
        )
    except errors.RevisionNotFoundError:
        refusal = ("a branch, tag or commit that exists", f"none of that name in {repo_id}", "Check revision=...")
    except errors.LocalTokenNotFoundError:
        refusal = ("a token that the Hub accepts", "none", "Run: hf auth login, or pass token=...")
    except errors.LocalEntryNotFoundError:
        refusal = ("an answer from the Hub, or a copy in the cache", f"neither for {repo_id}", _AGAIN)
    except errors.EntryNotFoundError:
        refusal = ("a repository that holds what is asked for", f"{repo_id} without it", "Check its name on the Hub")
    except errors.RepositoryNotFoundError:
        refusal = (
            _SENTENCES[404][0],
            f"no {repo_id} on the Hub, or none that your token may see",
            f"Check its name, {_LOGIN}",
        )
    except errors.HFValidationError:
        refusal = ("a name such as user/name", repr(repo_id), "Use letters, digits, '-', '_' and '.' around one '/'")
    except errors.HfHubHTTPError as error:
        refusal = _of_status(error.response.status_code, repo_id)
    except errors.OfflineModeIsEnabled:
        refusal = ("the Hub within reach", "HF_HUB_OFFLINE=1", "Unset it, and make the same call again")
    except (connection_error, ConnectionError, TimeoutError) as error:
        refusal = (f"the Hub within reach, for {repo_id}", f"a connection that failed ({type(error).__name__})", _AGAIN)
    else:
        return
    expected, got, fix = refusal
    raise SpectralError(argument, expected=expected, got=got, fix=fix)


_LOGIN = "and log in by: hf auth login"


def _of_status(status: int, repo_id: str) -> tuple[str, str, str]:
    if status in _SENTENCES:
        expected, got, fix = _SENTENCES[status]
        return expected, f"{got} ({repo_id}: {status})", fix
    return f"the Hub to take it, for {repo_id}", f"an error of the Hub ({status})", _AGAIN
