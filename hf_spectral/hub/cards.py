"""Model and dataset cards: the values that a card shows, and the templates that are filled with them."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from hf_spectral.basis import SpectralBasis, as_basis
from hf_spectral.dataset.rows import number_type
from hf_spectral.errors import SpectralError
from hf_spectral.fingerprint import WEIGHTS
from hf_spectral.hub_errors import said_plainly
from hf_spectral.pipelines import DEFAULT_BACKBONE, SpectralPathwaysPipeline
from hf_spectral.pipelines.saved import storable
from hf_spectral.pipelines.transformers.offline import OFFLINE_NAME
from hf_spectral.records import PATHWAYS
from hf_spectral.report import LayerReport
from hf_spectral.result import SpectralResult

if TYPE_CHECKING:
    import datasets
    from huggingface_hub import HfApi

    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

LIBRARY = "hf-spectral"
TAGS = ("interpretability", "segmentation", "spectral-clustering")
#: The closest task of the Hub: a model that computes features of images.
PIPELINE_TAG = "image-feature-extraction"
#: What the Hub calls the license of files whose author states none.
NO_LICENSE = "unknown"
#: What a card says about the license; fields of `CardDetails` too.
LICENSE_NAMES = ("license", "license_name", "license_link")
_SHOWN_EIGENVALUES = 12
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CardDetails:
    """Additional information for a card that the pushed object does not contain.

    Args:
        summary: Description of the images and of their origin, in Markdown.
        dataset: Id of the dataset on the Hub that contains the images.
        base_model: Id of the backbone on the Hub; None takes the backbone of the basis, if that is a repository id.
        license: License identifier of the Hub for the pushed files, such as "cc-by-4.0". None takes the license on the
            card of the backbone, or of `dataset` for rows, whose files hold its pictures; else "unknown". A push says
            which it took.
        report: Scores of all layers, shown as a table and as a chart.
        examples: Photos with their results, `pipe(photo, basis=basis, return_result=True)["result"]`. The card shows
            the first one, visible to everyone with access to the repository.
        license_name: Name of the license, if `license` is "other".
        license_link: Address of its text, if `license` is "other".

    Example:
        >>> from hf_spectral import CardDetails
        >>> details = CardDetails(summary="Photos of birds, taken in our garden.", license="cc-by-4.0")
    """

    summary: str | None = None
    dataset: str | None = None
    base_model: str | None = None
    license: str | Sequence[str] | None = None
    report: LayerReport | None = None
    examples: Sequence[tuple[Image.Image, SpectralResult]] = ()
    license_name: str | None = None
    license_link: str | None = None


def licensed(
    details: CardDetails,
    api: HfApi,
    kind: Literal["model", "dataset"],
    source: str | None,
    before: Mapping[str, Any] | None = None,
) -> CardDetails:
    """Return the details with a license, and say which one was taken where the user states none.

    Args:
        details: Additional information from the user.
        api: Client of the Hub with the token of the user.
        kind: Type of the repository that the files come from, a backbone or a dataset.
        source: Its id; None if it is not known.
        before: Metadata of the card that an earlier push has left.

    Returns:
        Details whose license is not None.
    """
    if details.license is not None:
        return details
    found: Mapping[str, Any] = {}
    if before is not None and before.get("license") not in (None, NO_LICENSE):
        found, why = before, "as the card says already"
    elif source is None:
        why = f"since no {'backbone' if kind == 'model' else 'dataset'} on the Hub is named"
    else:
        try:
            with said_plainly(source):
                card = (api.model_info if kind == "model" else api.dataset_info)(source).card_data
            found = {} if card is None else card.to_dict()
            why = f"that of {source}" if found.get("license") else f"since the card of {source} states none"
        except SpectralError as error:
            why = f"since the card of {source} cannot be read: {error.got}"
    taken = {name: found.get(name) for name in LICENSE_NAMES} if found.get("license") else {"license": NO_LICENSE}
    _logger.warning("License: %s, %s. CardDetails(license=...), or --license, states another.", taken["license"], why)
    return dataclasses.replace(details, **taken)


def basis_context(basis: SpectralBasis, repo_id: str, details: CardDetails, pictures: Sequence[str]) -> dict[str, Any]:
    """Return the values that the card of a basis shows.

    Args:
        basis: The basis.
        repo_id: Id of its repository.
        details: Additional information from the user.
        pictures: Paths of the images in the repository.

    Returns:
        JSON values by name.
    """
    return {
        **_of_basis(basis, repo_id, details, pictures),
        "scores": _scores(details.report),
        "scored_images": details.report.rows[0].num_images if details.report else None,
    }


def rows_context(
    rows: datasets.Dataset, basis: SpectralBasis, repo_id: str, details: CardDetails, name: str, pictures: Sequence[str]
) -> dict[str, Any]:
    """Return the values that the card of an analyzed dataset shows.

    Args:
        rows: Rows returned by `transform`.
        basis: Basis that the rows were computed with.
        repo_id: Id of their repository.
        details: Additional information from the user.
        name: Name of the dataset configuration.
        pictures: Paths of the images in the repository.

    Returns:
        JSON values by name.
    """
    own = {"name": name, "num_rows": len(rows), "dtype": number_type(rows.features)}
    return _of_basis(basis, repo_id, details, pictures) | own


def pipeline_card(
    pipe: SpectralPathwaysPipeline | SpectralDiffusionPipeline, repo_id: str, details: CardDetails | None = None
) -> str:
    """Return the card of a pipeline.

    Args:
        pipe: The pipeline.
        repo_id: Id of its repository, or the name of its folder.
        details: Additional information from the user.

    Returns:
        Markdown text with metadata.
    """
    details, backbone = details or CardDetails(), pipe.identity()
    basis = None if pipe.defaults.get("basis") is None else as_basis(pipe.defaults["basis"])
    context = {
        "repo_id": repo_id,
        "backbone": backbone,
        "basis": None if basis is None else {**basis.config.to_dict(), "num_images": basis.num_images},
        "pathway": (pipe.defaults.get("pathway") or "what") if basis is None else basis.config.pathway,
        "settings": json.dumps(storable(pipe.defaults), indent=2, sort_keys=True),
        "shim": pipe.shim_name,
        "library": "transformers" if isinstance(pipe, SpectralPathwaysPipeline) else "diffusers",
        "base_model": base_model(backbone, details),
        **_said(details),
    }
    return render("pipeline", context)


def result_context(
    result: SpectralResult, repo_id: str, details: CardDetails, pictures: Sequence[str]
) -> dict[str, Any]:
    """Return the values that the card of a result shows.

    Args:
        result: The result.
        repo_id: Id of its repository.
        details: Additional information from the user.
        pictures: Paths of the images in the repository.

    Returns:
        JSON values by name.
    """
    settings = {name: getattr(result, name) for name in ("solver", "steps", "status")}
    settings["config"] = result.config.to_dict()
    return {
        **_of_solved(result, repo_id, details, pictures),
        "grid": [result.grid.height, result.grid.width],
        "status": f"{result.status.value}: {result.status.remedy}",
        "settings": json.dumps(settings, indent=2, sort_keys=True),
        "base_model": details.base_model,
    }


def render(template: str, context: dict[str, Any]) -> str:
    """Render a template.

    Args:
        template: Name of a file in `templates/`, without its extension.
        context: JSON values by name.

    Returns:
        Markdown text, including the metadata block if the template has one.
    """
    from huggingface_hub import ModelCardData

    is_adapter = template == "basis" and context.get("base_model")
    stated: dict[str, Any] = {name: context.get(name) for name in LICENSE_NAMES}
    metadata = ModelCardData(
        base_model=context.get("base_model"),
        base_model_relation="adapter" if is_adapter else None,
        datasets=[context["dataset"]] if context.get("dataset") else None,
        library_name=context.get("library", LIBRARY),
        **stated,
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, f"{context['pathway']}-pathway"] if context["pathway"] in PATHWAYS else [*TAGS, LIBRARY],
    )
    return _templates().get_template(f"{template}.md").render(card_data=metadata.to_yaml(), **context)


@functools.cache
def _templates() -> Any:
    import jinja2

    # Markdown needs no escaping. A misspelled name in a template is an error.
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hf_spectral.hub"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _of_basis(basis: SpectralBasis, repo_id: str, details: CardDetails, pictures: Sequence[str]) -> dict[str, Any]:
    backbone = {**dict.fromkeys(("id", "model_type", "revision", "resolution")), **basis.backbone}
    name = str(backbone.get("id") or "")
    described = {
        "backbone": {name: value for name, value in basis.backbone.items() if name != WEIGHTS},
        "config": basis.config.to_dict(),
        "max_width": basis.max_width,
        "versions": basis.versions,
    }
    return {
        **_of_solved(basis, repo_id, details, pictures),
        "backbone": backbone,
        "is_offline_copy": name == OFFLINE_NAME,
        "loaded_by": _loaded_by(name, backbone.get("revision")),
        "num_images": basis.num_images,
        "num_skipped": len(basis.skipped),
        "num_nodes": basis.num_nodes,
        "layer_weights": [
            [layer.index, layer.timestep, round(weight, 3)]
            for layer, weight in zip(basis.layers, basis.weights, strict=True)
        ],
        "settings": json.dumps(described, indent=2, sort_keys=True),
        "base_model": base_model(basis.backbone, details),
    }


def base_model(backbone: Mapping[str, Any], details: CardDetails) -> str | None:
    """Return the repository of a backbone.

    Args:
        backbone: What a pipeline says about it.
        details: Additional information from the user, which comes first.

    Returns:
        Its id, or None if it came from a folder.
    """
    name = str(backbone.get("id") or "")
    return details.base_model or (DEFAULT_BACKBONE if name == OFFLINE_NAME else name if "/" in name else None)


def _of_solved(
    solved: SpectralBasis | SpectralResult, repo_id: str, details: CardDetails, pictures: Sequence[str]
) -> dict[str, Any]:
    """Return the values that every card shows."""
    return {
        "repo_id": repo_id,
        "pictures": list(pictures),
        "pathway": solved.config.pathway,
        "num_layers": len(solved.layers),
        "num_eigenvectors": len(solved.eigenvalues),
        "eigenvalues": [round(value, 4) for value in solved.eigenvalues[:_SHOWN_EIGENVALUES].tolist()],
        "largest_residual": float(f"{float(solved.residuals.max()):.1e}"),
        **_said(details),
    }


def _said(details: CardDetails) -> dict[str, Any]:
    return {name: getattr(details, name) for name in ("summary", "dataset", *LICENSE_NAMES)}


def _loaded_by(name: str, revision: Any) -> str:
    """Return the arguments of `pipeline` that load the backbone of a basis, as Python code."""
    if name == OFFLINE_NAME:
        return "str(offline.offline_backbone())"
    arguments = _literal(name or "path/to/the/backbone")
    return arguments if revision is None else f"{arguments}, revision={_literal(str(revision))}"


def _literal(text: str) -> str:
    # Users run the code of a card, so a name must not be able to end the string.
    return json.dumps(re.sub(r"[^\w./-]", "", text, flags=re.ASCII))


def _scores(report: LayerReport | None) -> list[dict[str, Any]]:
    """Return the rows of the table of scores: layers and all layers together, but no single heads."""
    if report is None:
        return []
    return [
        {
            "pathway": row.pathway,
            "layer": "all" if row.layer is None else row.layer,
            "where": f"{row.where_score:.3f}",
            "what": f"{row.what_score:.3f}",
            "weight": "" if row.weight is None else f"{row.weight:.3f}",
        }
        for row in report.rows
        if row.head is None
    ]
