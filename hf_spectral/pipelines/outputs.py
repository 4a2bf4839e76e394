"""What the pipeline hands back: maps, label pictures and segments of one image."""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image
from torch import Tensor

from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import Instance, Segmentation, instances, segment


def image_output(
    result: SpectralResult,
    size: tuple[int, int],
    num_segments: int | Literal["auto"] | None,
    method: Literal["ward", "kmeans"],
    with_instances: bool,
) -> dict[str, Any]:
    """Segment what was found on one image, as far as asked for.

    Args:
        result: Eigenvectors of the image.
        size: Its height and width in pixels.
        num_segments: A number, "auto", or None for no segmentation.
        method: Of segmentation.
        with_instances: True adds instance masks.

    Returns:
        What `SpectralPathwaysPipeline.__call__` describes.
    """
    output: dict[str, Any] = {
        "eigenvectors": result.eigenvectors,
        "eigenvalues": result.eigenvalues,
        "residuals": result.residuals,
        "status": result.status.value,
        "grid": (result.grid.height, result.grid.width),
        "layers": result.layers,
        "result": result,
    }
    if num_segments is not None:
        segmentation = segment(result, num_segments=num_segments, method=method, size=size)
        output["segmentation"] = _label_image(segmentation.labels)
        output["segments"] = _segments(segmentation)
    if with_instances:
        output["instances"] = [_instance(found) for found in instances(result, size=size)]
    return output


def _label_image(labels: Tensor) -> Image.Image:
    array = labels.cpu().numpy()
    return Image.fromarray(array.astype("uint8" if array.max() < 256 else "uint16"))


def _segments(segmentation: Segmentation) -> list[dict[str, Any]]:
    return [
        {"label": f"segment {index}", "score": float(score), "mask": _mask_image(segmentation.labels == index)}
        for index, score in enumerate(segmentation.scores)
    ]


def _instance(instance: Instance) -> dict[str, Any]:
    return {"label": "instance", "score": instance.score, "mask": _mask_image(instance.mask)}


def _mask_image(mask: Tensor) -> Image.Image:
    return Image.fromarray(mask.cpu().numpy().astype("uint8") * 255)
