"""From the records of images to what the pipelines return: results, label images and segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from hf_spectral.basis import SpectralBasis
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.settings import configs_of
from hf_spectral.problem import ProblemBuilder
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import SegmentationMethod, label_image, segment
from hf_spectral.segmentation import instances as find_instances
from hf_spectral.solvers import solve
from hf_spectral.visualization.palette import label_picture


class Analysis:
    """Solves a problem per image and pathway, or projects on a basis, from records that arrive one by one.

    Args:
        settings: Settings by name, as `over_defaults` returns them.
        num_images: Number of images in each record.

    Raises:
        SpectralError: If there is a walk without a basis.
    """

    def __init__(self, settings: Mapping[str, Any], num_images: int) -> None:
        configs, basis = configs_of(settings), settings.get("basis")
        if basis is None and settings.get("walk") is not None:
            raise SpectralError("walk", expected="a basis beside it", got=settings["walk"], fix="Pass basis=...")
        self._solver = settings.get("solver")
        self._projector = None if basis is None else basis.projector(settings.get("walk"))
        self._builders = [[ProblemBuilder(config) for config in configs] for _ in range(num_images)]
        #: Indices of the layers to record; None means all.
        self.layers = configs[0].layers if basis is None else tuple(layer.index for layer in basis.layers)

    def add(self, record: AttentionRecord) -> None:
        """Add the next layer of all images."""
        if self._projector is not None:
            self._projector.add(record)
            return
        for position, builders in enumerate(self._builders):
            image = record.image(position)
            for builder in builders:
                builder.add(image)

    def results(self, prepared: Sequence[Mapping[str, Any]]) -> list[list[SpectralResult]]:
        """Return the results of each image, one per pathway, with the notes that `preprocess` made of the image."""
        if self._projector is not None:
            found = [[result] for result in self._projector.results()]
        else:
            found = [[solve(builder.build(), self._solver) for builder in builders] for builders in self._builders]
        return [
            [dataclasses.replace(result, notes=tuple(one["notes"])) for result in results]
            for results, one in zip(found, prepared, strict=True)
        ]


def image_output(
    result: SpectralResult,
    picture: Image.Image,
    size: tuple[int, int],
    num_segments: int | Literal["auto"] | None = "auto",
    method: SegmentationMethod = "tree",
    instances: bool = False,
    return_result: bool = False,
    as_json: bool = False,
    basis: SpectralBasis | None = None,
) -> dict[str, Any]:
    """Turn the result of one image into an output, with the segments and instances that were asked for.

    Args:
        result: Eigenvectors of the image.
        picture: The image, or a smaller copy, see `segmentation.working_copy`.
        size: Its height and width in pixels.
        num_segments: A number, "auto", or None for no segmentation.
        method: Of segmentation.
        instances: True adds instance masks.
        return_result: True adds the objects `result` and `hierarchy`.
        as_json: True gives what `json.dumps` takes, see `json_ready`.
        basis: Whose eigenvectors these are. If it has clusters, and `num_segments` is "auto" or their number, they take
            the place of segments of this image alone.

    Returns:
        What `SpectralPathwaysPipeline.__call__` describes.
    """
    output: dict[str, Any] = {
        "eigenvectors": result.eigenvectors,
        "eigenvalues": result.eigenvalues,
        "residuals": result.residuals,
        "status": result.status.value,
        "grid": result.grid.shape,
        "layers": result.layers,
    }
    if return_result:
        output["result"] = result
    clusters = None if basis is None else basis.clusters
    if num_segments is not None:
        if clusters is not None and num_segments in ("auto", clusters.num_segments):
            labels, output["confidence"], scores = label_image(result.eigenvectors, clusters, size)
            output["segmentation"] = label_picture(labels.numpy(), clusters.num_segments)
            kind = "cluster"
        else:
            segmentation = segment(result, image=picture, num_segments=num_segments, method=method, size=size)
            output["segmentation"] = segmentation.to_image()
            scores, kind = segmentation.scores, "segment"
            if return_result:
                output["hierarchy"] = segmentation
        pixels = np.asarray(output["segmentation"])
        output["segments"] = [
            {"label": f"{kind} {index}", "score": float(scores[index]), "mask": _mask_image(pixels == index)}
            for index in np.unique(pixels).tolist()
        ]
    if instances:
        output["instances"] = [
            {"label": "instance", "score": one.score, "mask": _mask_image(one.mask.numpy())}
            for one in find_instances(result, image=picture if method == "tree" else None, size=size)
        ]
    return json_ready(output) if as_json else output


def json_ready(value: Any) -> Any:
    """Turn an output into what `json.dumps` takes.

    Args:
        value: An output, or a part of one.

    Returns:
        Tensors and tuples as lists, a mask as a run-length encoding, and a label map as a list of those, one per label.
        The encoding is that of transformers' mask generation, COCO's uncompressed one: `size` is [height, width], and
        `counts` are the lengths of runs down the columns, of zeros and ones in turn, zeros first.
    """
    if isinstance(value, Mapping):
        return {name: json_ready(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(one) for one in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Image.Image):
        pixels = np.asarray(value)
        if value.mode == "L":
            return _run_lengths(pixels > 0)
        return [_run_lengths(pixels == label) for label in range(int(pixels.max()) + 1)]
    return value


def _run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    return {"size": list(mask.shape), "counts": np.diff(starts, prepend=0, append=flat.size).tolist()}


def _mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype("uint8") * 255)
