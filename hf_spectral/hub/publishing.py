"""`push_to_hub`: which kind of thing becomes which kind of repository."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.errors import SpectralError
from hf_spectral.hub.cards import CardDetails, basis_context, render, result_context
from hf_spectral.hub.pictures import basis_pictures, result_pictures
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
    """Push what was fitted or analyzed, with a card that says what it is and how to load it.

    What comes back by:

    - a `SpectralBasis`: `SpectralBasis.from_pretrained(repo_id)`, or `pipeline("spectral-pathways", basis=repo_id)`
    - rows of `transform`: `datasets.load_dataset(repo_id, name)`, where `name` tells backbone and pathway, such as
      `dinov2-small-what`: pushes of other backbones and pathways to the same repository stand beside each other
    - a `SpectralResult`: `SpectralResult.load(repo_id)`

    A basis and a result arrive in one commit. Of rows, `datasets` commits the shards (in several commits where there
    are more than fifty), and one more commit adds the card. Whatever interrupts a push: the same call completes it.

    Args:
        thing: A basis, the rows that `transform` returned, or a result.
        repo_id: `user/name`; made if it is not there.
        basis: Of rows, the basis that made them, which the card describes.
        details: What the card says beyond what the thing itself knows.
        private: True hides a new repository; None takes the account's default.
        revision: Branch, made if it is not there; None takes `main`.
        create_pr: Propose the push to an existing repository in place of making it.
        token: With write access; None takes the one of `hf auth login`.
        commit_message: None says what is pushed.

    Returns:
        What the Hub says about the (last) commit, `commit_url` and `pr_url` among it.

    Raises:
        SpectralError: If the thing is of another type, the name is taken by something else, or the Hub refuses: no
            token, one that may only read, or a connection that fails. What is pushed stays as it is.
    """
    details = details or CardDetails()
    place = functools.partial(Repository, repo_id, token=token, private=private, revision=revision, create_pr=create_pr)
    if isinstance(thing, SpectralBasis):
        repository = place(kind="model")
        files, marker = _basis_files(thing, repo_id, details), "basis.safetensors"
    elif isinstance(thing, SpectralResult):
        repository = place(kind="model")
        files, marker = _result_files(thing, repo_id, details), RESULT_NAME
    elif type(thing).__module__.startswith("datasets."):
        return push_rows(thing, place(kind="dataset"), basis, details, commit_message)
    else:
        raise SpectralError(
            "thing",
            expected="a SpectralBasis, the rows that transform returned, or a SpectralResult",
            got=f"a {type(thing).__name__}",
            fix="Push one of these; a Space is pushed by push_space",
        )
    repository.create()
    repository.require_own(marker)
    return repository.commit(files, commit_message or f"Push a {type(thing).__name__} by hf-spectral")


def _basis_files(basis: SpectralBasis, repo_id: str, details: CardDetails) -> dict[str, bytes]:
    pictures = basis_pictures(details)
    card = render("basis", basis_context(basis, repo_id, details, sorted(pictures)))
    # Which of the user's files could not be read is nobody's business; the card says how many.
    public = dataclasses.replace(basis, skipped=())
    with tempfile.TemporaryDirectory() as scratch:
        folder = public.save_pretrained(scratch)
        saved = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return {**saved, **pictures, CARD_NAME: card.encode()}


def _result_files(result: SpectralResult, repo_id: str, details: CardDetails) -> dict[str, bytes]:
    pictures = result_pictures(result, details)
    card = render("result", result_context(result, repo_id, details, sorted(pictures)))
    with tempfile.TemporaryDirectory() as scratch:
        content = result.save(Path(scratch) / RESULT_NAME).read_bytes()
    return {RESULT_NAME: content, **pictures, CARD_NAME: card.encode()}
