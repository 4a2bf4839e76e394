"""An analyzed dataset as a repository: shards and YAML by `datasets`, then the card around that YAML."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.errors import SpectralError
from hf_spectral.hub.cards import LIBRARY, TAGS, CardDetails, render, rows_context
from hf_spectral.hub.pictures import rows_pictures
from hf_spectral.hub.repository import CARD_NAME, Repository
from hf_spectral.pipelines.inputs import image_column
from hf_spectral.refusals import said_plainly

if TYPE_CHECKING:
    import datasets
    from huggingface_hub import CommitInfo

_SECTION = "<!-- hf-spectral: {name} -->\n{text}\n<!-- end of {name} -->"
_SECTIONS = re.compile(r"<!-- hf-spectral: (\S+) -->\n(.*?)\n<!-- end of \1 -->", re.DOTALL)


def push_rows(
    rows: Any, repository: Repository, basis: SpectralBasis | None, details: CardDetails, message: str | None
) -> CommitInfo:
    """Push the rows that `transform` returned.

    Args:
        rows: The rows.
        repository: Where.
        basis: The basis that made them.
        details: For the card.
        message: Of the commits, or None.

    Returns:
        What the Hub says about the last commit.

    Raises:
        SpectralError: If they are no such rows, the basis is missing, or the Hub refuses.
    """
    if not {"eigenvectors", "shape"} <= set(getattr(rows, "column_names", None) or ()) or not hasattr(rows, "__len__"):
        raise SpectralError(
            "thing",
            expected="rows that transform returned, with the columns eigenvectors and shape",
            got=f"a {type(rows).__name__} with {getattr(rows, 'column_names', None)}",
            fix="Push what transform returned, or datasets.load_from_disk of its output_dir",
        )
    if basis is None:
        raise SpectralError(
            "basis", expected="the basis that made the rows, which their card describes", got=None, fix="Pass basis=..."
        )
    name = config_name(basis)
    others = {key: feature for key, feature in rows.features.items() if key != "segmentation"}
    pictures = rows_pictures(rows, image_column(others, list(others)), basis, name)
    context = rows_context(rows, basis, repository.repo_id, details, name, sorted(pictures))
    repository.create()
    _require_own(repository)
    message = message or f"Push {len(rows)} rows, {name}, by hf-spectral"
    where = _push_shards(rows, repository, name, message)
    card = rows_card(_fetch_card(where), context, details)
    return where.commit({**pictures, CARD_NAME: card.encode()}, f"{message}: card")


def config_name(basis: SpectralBasis) -> str:
    """Return the name under which rows stand in their repository.

    Args:
        basis: Whose eigenvectors they hold.

    Returns:
        Backbone and pathway, such as `dinov2-small-what`.
    """
    backbone = str(basis.backbone.get("id") or basis.backbone.get("model_type") or "backbone")
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", backbone.rsplit("/", 1)[-1]).strip("-.")
    return f"{plain or 'backbone'}-{basis.config.pathway}"


def _require_own(repository: Repository) -> None:
    """Refuse a repository of data that are no rows of this package.

    Raises:
        SpectralError: If there are others.
    """
    names = repository.names()
    card = _fetch_card(repository) if CARD_NAME in names else ""
    if names - {".gitattributes", CARD_NAME} and "eigenvectors" not in card:
        raise repository.taken("another dataset")


def _push_shards(rows: datasets.Dataset, repository: Repository, name: str, message: str) -> Repository:
    """Push by `datasets`, which writes the YAML that `load_dataset` and the viewer read.

    Returns:
        The repository, at the pull request if there is one.
    """
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
    from huggingface_hub import hf_hub_download

    with said_plainly(repository.repo_id):
        path = hf_hub_download(
            repository.repo_id,
            CARD_NAME,
            repo_type="dataset",
            revision=repository.revision,
            token=repository.token,
        )
    with open(path, encoding="utf-8") as file:
        return file.read()


def rows_card(existing: str, context: dict[str, Any], details: CardDetails) -> str:
    """Put the section of a configuration beside those of others, below the YAML that is there.

    Args:
        existing: The card as it is, its YAML by `datasets`.
        context: What `rows_context` gave, and `pictures`.
        details: From the user.

    Returns:
        The card.
    """
    from huggingface_hub import DatasetCard

    card = DatasetCard(existing)
    sections = dict(_SECTIONS.findall(card.text))
    sections[context["name"]] = render("rows_section", context)
    texts = [_SECTION.format(name=name, text=text) for name, text in sorted(sections.items())]
    card.text = render("rows", {**context, "sections": texts})
    card.data["tags"] = sorted({*(card.data.get("tags") or ()), LIBRARY, *TAGS})
    if details.license:
        card.data["license"] = details.license
    if details.dataset:
        card.data["source_datasets"] = [details.dataset]
    return str(card)
