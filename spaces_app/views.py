"""From results to the pictures and files that the page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_spectral import SpectralBasis, TokenAffinity
from hf_spectral.metrics import layout_score
from hf_spectral.visualization import (
    affinity_spotlight,
    eigenvector_image,
    eigenvector_sheet,
    eigenvectors_to_rgb,
    segment_colors,
)
from spaces_app.settings import Settings

Captioned = tuple[Image.Image, str]

#: Longer side of the small pictures.
_TILE = 360
_NUM_COLORS = 256


def segment_names() -> dict[str, str]:
    """Return the color of each segment, by its name; a basis may have more clusters, which Gradio colors by itself."""
    table = segment_colors(_NUM_COLORS)
    return {str(index + 1): "#" + bytes(color).hex() for index, color in enumerate(table)}


def colors(picture: Image.Image, found: dict[str, Any], basis: SpectralBasis | None) -> Image.Image:
    """Return the first eigenvectors as one color picture.

    Args:
        picture: The photo.
        found: Output of the pipeline for one pathway.
        basis: The basis it was found with: colors then mean the same in every picture.

    Returns:
        RGB picture of the photo's size.
    """
    size = (picture.height, picture.width)
    return eigenvectors_to_rgb(found["eigenvectors"], found["eigenvalues"], size, scale=_scale(basis))


def masks(picture: Image.Image, labels: np.ndarray) -> tuple[Image.Image, list[tuple[np.ndarray, str]]]:
    """Return the photo with a mask and a name per segment, as `gradio.AnnotatedImage` takes them."""
    return picture, [((labels == index) * 0.62, str(index + 1)) for index in np.unique(labels).tolist()]


def tiles(
    picture: Image.Image, found: dict[str, Any], basis: SpectralBasis | None, num_eigenvectors: int
) -> list[Captioned]:
    """Return every eigenvector after the trivial one, captioned with index, eigenvalue and layout score."""
    size = _tile_size(picture)
    scores = layout_score(found["eigenvectors"]).tolist()
    scale = _scale(basis)
    shown = range(1, min(num_eigenvectors + 1, len(found["eigenvectors"])))
    return [
        (
            eigenvector_image(found["eigenvectors"][index], size, bound=None if scale is None else 2 * scale),
            f"{index}  ·  λ {float(found['eigenvalues'][index]):.3f}  ·  layout {100 * scores[index]:.0f} %",
        )
        for index in shown
    ]


def spotlights(picture: Image.Image, found: TokenAffinity) -> tuple[Image.Image, list[Captioned]]:
    """Return a token's affinity over all layers on the photo, and that of each layer, smaller."""
    small = picture.resize(_tile_size(picture)[::-1], Image.Resampling.LANCZOS)
    layers = []
    for index, values in found.layers.items():
        height, width = values.shape
        token = (found.token[0] * height // found.grid.height, found.token[1] * width // found.grid.width)
        layers.append((affinity_spotlight(small, values, token), f"layer {index}"))
    return affinity_spotlight(picture, found.joint, found.token), layers


def write_downloads(picture: Image.Image, found: dict[str, Any], pathway: str, folder: Path) -> list[str]:
    """Write the files that a visitor may download.

    Args:
        picture: The photo.
        found: Output of the pipeline for one pathway.
        pathway: Its name, which file names carry; the photo's own name never becomes part of a path.
        folder: Where to write.

    Returns:
        Paths of the result, the label map and the sheet of eigenvectors.
    """
    result, labels, sheet = (folder / f"{pathway}.{end}" for end in ("safetensors", "segments.png", "eigenvectors.png"))
    found["result"].save_pretrained(result)
    found["segmentation"].save(labels)
    eigenvector_sheet(picture, found["eigenvectors"], found["eigenvalues"]).save(sheet)
    return [str(result), str(labels), str(sheet)]


def code(settings: Settings) -> str:
    """Return the Python that gives the same result."""
    arguments: dict[str, Any] = {"basis": settings.basis}
    if not settings.basis:
        arguments = {"pathway": settings.pathway, "num_eigenvectors": settings.num_eigenvectors + 1}
    arguments |= {"num_segments": settings.num_segments, "resolution": settings.resolution}
    written = [f"{name}={json.dumps(value)}" for name, value in arguments.items() if value is not None]
    model = f"model={json.dumps(settings.model)}" if settings.model else ""
    call = ", ".join(['pipe("photo.jpg"', *written])
    return f"import hf_spectral\n\npipe = hf_spectral.pipeline({model})\nout = {call})"


def _scale(basis: SpectralBasis | None) -> float | None:
    """Return the size that values of a basis' eigenvectors, of unit norm over its dataset, have."""
    return None if basis is None else basis.num_nodes**-0.5


def _tile_size(picture: Image.Image) -> tuple[int, int]:
    factor = _TILE / max(picture.size)
    return max(1, round(picture.height * factor)), max(1, round(picture.width * factor))
