"""`push_to_hub`: push a basis, a result, analyzed rows or a pipeline to a repository."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.errors import SpectralError
from hf_spectral.hub.cards import (
    CardDetails,
    base_model,
    basis_context,
    licensed,
    pipeline_card,
    render,
    result_context,
)
from hf_spectral.hub.figures import basis_pictures, result_pictures
from hf_spectral.hub.repository import CARD_NAME, Repository
from hf_spectral.hub.rows import push_rows
from hf_spectral.pipelines.inputs import ImageReader
from hf_spectral.result import RESULT_NAME, SpectralResult

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

#: What is pushed to a model repository, each with a file that every push of its kind writes.
_MODELS = {SpectralBasis: "basis.safetensors", SpectralResult: RESULT_NAME}


def push_to_hub(
    thing: SpectralBasis | SpectralResult | ImageReader | Any,
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
    """Push a basis, a result, a pipeline or the rows of `transform` to the Hub, with a card that says how to load it.

    To load them again:

    - a `SpectralBasis` by `SpectralBasis.from_pretrained(repo_id)`, or with the backbone that it names by
      `pipeline("spectral-pathways", model=repo_id)`
    - a `SpectralPathwaysPipeline` by `transformers.pipeline(model=repo_id, trust_remote_code=True)`, and a
      `SpectralDiffusionPipeline` by `DiffusionPipeline.from_pretrained(repo_id, trust_remote_code=True)`
    - rows of `transform` by `datasets.load_dataset(repo_id, name)`. The configuration `name` consists of backbone and
      pathway, for example `dinov2-small-what`; a repository can contain several configurations
    - a `SpectralResult` by `SpectralResult.from_pretrained(repo_id)`

    All but rows are pushed in one commit. The shards of rows are committed by `datasets` (in several commits if
    there are more than fifty), followed by one commit with the card. An interrupted push is completed by the same call.

    Args:
        thing: A basis, the rows returned by `transform`, a result, or a pipeline.
        repo_id: Repository `user/name`, created if it does not exist.
        basis: Basis that the rows were computed with, which their card describes; None takes the one that `transform`
            has written beside them.
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
    marker = thing.shim_name if isinstance(thing, ImageReader) else _MODELS.get(type(thing))
    if marker is not None:
        repository = place(kind="model")
        with tempfile.TemporaryDirectory() as scratch:
            files = _files(thing, repository, details, Path(scratch))
            repository.create()
            repository.require_own(marker)
            return repository.commit(files, commit_message or f"Push a {type(thing).__name__} by hf-spectral")
    if type(thing).__module__.startswith("datasets."):
        return push_rows(thing, place(kind="dataset"), basis, details, commit_message)
    raise SpectralError(
        "thing",
        expected="a SpectralBasis, the rows that transform returned, a SpectralResult or a pipeline of hf_spectral",
        got=f"a {type(thing).__name__}",
        fix="Push one of these; a Space is pushed by push_space",
    )


def _files(thing: Any, repository: Repository, details: CardDetails, scratch: Path) -> dict[str, bytes | Path]:
    """Save a thing to a folder, and return its files, its pictures and its card by their path in the repository."""
    repo_id, pictures = repository.repo_id, {}
    backbone = thing.identity() if isinstance(thing, ImageReader) else getattr(thing, "backbone", {})
    details = licensed(details, repository.api, "model", base_model(backbone, details))
    if isinstance(thing, SpectralBasis):
        pictures = basis_pictures(details)
        card = render("basis", basis_context(thing, repo_id, details, sorted(pictures)))
        # The names of the user's unreadable files are private; the card shows only their number.
        thing = dataclasses.replace(thing, skipped=())
    elif isinstance(thing, SpectralResult):
        pictures = result_pictures(thing, details)
        card = render("result", result_context(thing, repo_id, details, sorted(pictures)))
    else:
        card = pipeline_card(thing, repo_id, details)
    thing.save_pretrained(scratch)
    saved = {path.relative_to(scratch).as_posix(): path for path in sorted(scratch.rglob("*")) if path.is_file()}
    return {**saved, **pictures, CARD_NAME: card.encode()}
