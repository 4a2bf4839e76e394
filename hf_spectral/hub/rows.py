"""Pushing an analyzed dataset: `datasets` writes the shards and the YAML metadata, to which the card is added."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard

from hf_spectral.basis import SpectralBasis, as_basis
from hf_spectral.dataset.rows import ADDED_PICTURES, BASIS_FOLDER
from hf_spectral.errors import SpectralError
from hf_spectral.hub.cards import LIBRARY, LICENSE_NAMES, TAGS, CardDetails, licensed, render, rows_context
from hf_spectral.hub.figures import rows_pictures
from hf_spectral.hub.repository import CARD_NAME, Repository
from hf_spectral.hub_errors import said_plainly
from hf_spectral.pipelines.inputs import image_column

if TYPE_CHECKING:
    import datasets
    from huggingface_hub import CommitInfo

#: What the rows are for, in the words of the Hub.
_TASK_CATEGORIES = ("image-segmentation", "image-feature-extraction")
_SECTION = "<!-- hf-spectral: {name} -->\n{text}\n<!-- end of {name} -->"
_SECTIONS = re.compile(r"<!-- hf-spectral: (\S+) -->\n(.*?)\n<!-- end of \1 -->", re.DOTALL)


def push_rows(
    rows: Any, repository: Repository, basis: SpectralBasis | None, details: CardDetails, message: str | None
) -> CommitInfo:
    """Push the rows returned by `transform`.

    Args:
        rows: The rows.
        repository: Repository to push to.
        basis: Basis that the rows were computed with; None takes the one beside their files.
        details: Additional information for the card.
        message: Commit message; None describes the rows.

    Returns:
        Information about the last commit.

    Raises:
        SpectralError: If `rows` are not rows of `transform`, no basis lies beside their files and none is given, or the
            Hub rejects the push.
    """
    if not {"eigenvectors", "shape"} <= set(getattr(rows, "column_names", None) or ()) or not hasattr(rows, "__len__"):
        raise SpectralError(
            "thing",
            expected="rows that transform returned, with the columns eigenvectors and shape",
            got=f"a {type(rows).__name__} with {getattr(rows, 'column_names', None)}",
            fix="Push what transform returned, or datasets.load_from_disk of its output_dir",
        )
    basis = basis_of_rows(rows) if basis is None else as_basis(basis)
    name = config_name(basis)
    others = {key: feature for key, feature in rows.features.items() if key not in ADDED_PICTURES}
    pictures = rows_pictures(rows, image_column(others, list(others)), basis, name)
    repository.create()
    _require_own(repository)
    message = message or f"Push {len(rows)} rows, {name}, by hf-spectral"
    where = _push_shards(rows, repository, name, message)
    before = _fetch_card(where)
    details = licensed(details, repository.api, "dataset", details.dataset, DatasetCard(before).data.to_dict())
    context = rows_context(rows, basis, repository.repo_id, details, name, sorted(pictures))
    card = rows_card(before, context)
    return where.commit({**pictures, CARD_NAME: card.encode()}, f"{message}: card")


def basis_of_rows(rows: datasets.Dataset) -> SpectralBasis:
    """Return the basis that `transform` has written beside the files of its rows.

    Args:
        rows: The rows, or what `datasets` has made of them: it reads the same files, or writes others beside them.

    Returns:
        The basis.

    Raises:
        SpectralError: If none lies there, or several do.
    """
    folders = {Path(one["filename"]).parent / BASIS_FOLDER for one in rows.cache_files}
    found = [folder for folder in folders if folder.is_dir()]
    if len(found) != 1:
        raise SpectralError(
            "basis",
            expected="rows that transform has written, with one basis beside their files",
            got=f"{len(found) or 'none'} beside them",
            fix="Pass basis=...: the card describes it",
        )
    return SpectralBasis.from_pretrained(found[0])


def config_name(basis: SpectralBasis) -> str:
    """Return the name of the dataset configuration of rows.

    Args:
        basis: Basis that the rows were computed with.

    Returns:
        Backbone and pathway, for example `dinov2-small-what`.
    """
    backbone = str(basis.backbone.get("id") or basis.backbone.get("model_type") or "backbone")
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", backbone.rsplit("/", 1)[-1]).strip("-.")
    return f"{plain or 'backbone'}-{basis.config.pathway}"


def _require_own(repository: Repository) -> None:
    """Raise a `SpectralError` if the repository contains another dataset."""
    names = repository.names()
    card = _fetch_card(repository) if CARD_NAME in names else ""
    if names - {".gitattributes", CARD_NAME} and "eigenvectors" not in card:
        raise repository.taken("another dataset")


def _push_shards(rows: datasets.Dataset, repository: Repository, name: str, message: str) -> Repository:
    """Push by `datasets`; return the repository, at the revision of the pull request if one was opened."""
    with said_plainly(repository.repo_id):
        info = rows.push_to_hub(
            repository.repo_id,
            config_name=name,
            split="train",
            commit_message=message,
            private=repository.private,
            token=repository.token,
            revision=repository.revision,
            create_pr=repository.create_pr,
        )
    if repository.create_pr:
        return dataclasses.replace(repository, revision=info.pr_revision, create_pr=False)
    return repository


def _fetch_card(repository: Repository) -> str:
    with said_plainly(repository.repo_id):
        path = repository.api.hf_hub_download(
            repository.repo_id, CARD_NAME, repo_type="dataset", revision=repository.revision
        )
    return Path(path).read_text(encoding="utf-8")


def rows_card(existing: str, context: dict[str, Any]) -> str:
    """Add the section of a configuration to a card, or replace it.

    Args:
        existing: The existing card, with the YAML metadata of `datasets`.
        context: Values returned by `rows_context`.

    Returns:
        The new card.
    """
    card = DatasetCard(existing)
    sections = dict(_SECTIONS.findall(card.text))
    sections[context["name"]] = render("rows_section", context)
    texts = [_SECTION.format(name=name, text=text) for name, text in sorted(sections.items())]
    card.text = render("rows", {**context, "sections": texts})
    card.data["tags"] = sorted({*(card.data.get("tags") or ()), LIBRARY, *TAGS})
    name = re.sub(r"[-_]+", " ", context["repo_id"].rpartition("/")[2])
    own = {"pretty_name": name[:1].upper() + name[1:], "task_categories": list(_TASK_CATEGORIES)}
    stated = {name: context[name] for name in LICENSE_NAMES if context[name]}
    if context["dataset"]:
        stated["source_datasets"] = [context["dataset"]]
    # What a user has written stays, unless it is stated anew.
    for key, value in {**own, **{key: one for key, one in card.data.to_dict().items() if key in own}, **stated}.items():
        card.data[key] = value
    return str(card)
