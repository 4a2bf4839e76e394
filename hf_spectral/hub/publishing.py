"""`push_to_hub`: push a basis, a result, or analyzed rows to a repository."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.errors import SpectralError
from hf_spectral.hub.cards import CardDetails, basis_context, render, result_context
from hf_spectral.hub.figures import basis_pictures, result_pictures
from hf_spectral.hub.repository import CARD_NAME, Repository
from hf_spectral.hub.rows import push_rows
from hf_spectral.result import RESULT_NAME, SpectralResult

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push_to_hub(
    thing: SpectralBasis | SpectralResult | Any,
    repo_id: str,
    *,
    basis: SpectralBasis | None = None,
    details: CardDetails | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push a basis, a result or the rows of `transform` to the Hub, with a card that explains how to load them.

    To load them again:

    - a `SpectralBasis` by `SpectralBasis.from_pretrained(repo_id)`, or `pipeline("spectral-pathways", basis=repo_id)`
    - rows of `transform` by `datasets.load_dataset(repo_id, name)`. The configuration `name` consists of backbone and
      pathway, for example `dinov2-small-what`; a repository can contain several configurations
    - a `SpectralResult` by `SpectralResult.from_pretrained(repo_id)`

    A basis or a result is pushed in one commit. The shards of rows are committed by `datasets` (in several commits if
    there are more than fifty), followed by one commit with the card. An interrupted push is completed by the same call.

    Args:
        thing: A basis, the rows returned by `transform`, or a result.
        repo_id: Repository `user/name`, created if it does not exist.
        basis: Basis that the rows were computed with; required for rows, because their card describes it.
        details: Additional information for the card.
        private: Whether a new repository is private; None takes the default of the account.
        revision: Branch, created if it does not exist; None takes `main`.
        create_pr: Whether to open a pull request in an existing repository, instead of committing to a branch.
        token: Token with write access; None takes the token of `hf auth login`.
        commit_message: Commit message; None names the type of `thing`.

    Returns:
        Information about the last commit, including `commit_url` and `pr_url`.

    Raises:
        SpectralError: If `thing` has another type, the repository contains something else, or the Hub rejects the push
            (no token, a read-only token, no connection). Files that were pushed before remain unchanged.

    Example:
        >>> import hf_spectral
        >>> basis = hf_spectral.fit(pipe, "photos/", pathway="what")
        >>> hf_spectral.push_to_hub(basis, "user/name").commit_url
    """
    details = details or CardDetails()
    place = functools.partial(Repository, repo_id, token=token, private=private, revision=revision, create_pr=create_pr)
    if isinstance(thing, (SpectralBasis, SpectralResult)):
        repository, files = place(kind="model"), _files(thing, repo_id, details)
        repository.create()
        repository.require_own("basis.safetensors" if isinstance(thing, SpectralBasis) else RESULT_NAME)
        return repository.commit(files, commit_message or f"Push a {type(thing).__name__} by hf-spectral")
    if type(thing).__module__.startswith("datasets."):
        return push_rows(thing, place(kind="dataset"), basis, details, commit_message)
    raise SpectralError(
        "thing",
        expected="a SpectralBasis, the rows that transform returned, or a SpectralResult",
        got=f"a {type(thing).__name__}",
        fix="Push one of these; a Space is pushed by push_space",
    )


def _files(thing: SpectralBasis | SpectralResult, repo_id: str, details: CardDetails) -> dict[str, bytes]:
    if isinstance(thing, SpectralBasis):
        pictures = basis_pictures(details)
        card = render("basis", basis_context(thing, repo_id, details, sorted(pictures)))
        # The names of the user's unreadable files are private; the card shows only their number.
        thing = dataclasses.replace(thing, skipped=())
    else:
        pictures = result_pictures(thing, details)
        card = render("result", result_context(thing, repo_id, details, sorted(pictures)))
    with tempfile.TemporaryDirectory() as scratch:
        thing.save_pretrained(scratch)
        saved = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    return {**saved, **pictures, CARD_NAME: card.encode()}
