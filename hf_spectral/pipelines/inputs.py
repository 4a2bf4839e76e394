"""Images and datasets as inputs of both pipelines: how images are read, and which column of a dataset holds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

from hf_spectral.config import defaults_hold
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.backbone import blamed
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.outputs import Analysis
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import working_copy
from hf_spectral.torch_state import plain_torch


def iterable_of_images(inputs: Any, column: str | None) -> Any:
    """Turn what `datasets` gives into what transformers iterates over, without importing `datasets`.

    Args:
        inputs: Any input of the pipeline.
        column: Name of the column of pictures, or None.

    Returns:
        The pictures of a dataset; anything else as it came.
    """
    if not type(inputs).__module__.startswith("datasets."):
        return inputs
    if not hasattr(inputs, "column_names"):  # A column.
        return (image for image in inputs)  # The host takes a generator, but no other iterable.
    column = image_column(inputs.features or {}, inputs.column_names or [], column)
    return KeyDataset(inputs, column) if hasattr(inputs, "__len__") else (row[column] for row in inputs)


def image_column(features: Mapping[str, Any], names: Iterable[str], given: str | None = None) -> str:
    """Find the column that holds the pictures.

    Args:
        features: Types of the columns, as far as they are known.
        names: Names of the columns, as far as they are known.
        given: The user's choice, or None.

    Returns:
        The choice, or the only column of images.

    Raises:
        SpectralError: If there is no such column, or none or several hold images; the columns are listed.
    """
    names = list(names)
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if given is not None and (given in names or not names):
        return given
    if given is None and len(images) == 1:
        return images[0]
    raise SpectralError(
        "image_column",
        expected="the name of a column of pictures",
        got=f"{given!r}, among the columns {', '.join(names) or '(unknown)'}",
        fix="Pass image_column=...",
    )


class ImageReader:
    """Base of both pipelines: how an image becomes what the model reads.

    A pipeline has `defaults`, the `_geometry` of the sizes that it reads, the model `_encoder` that reads images first,
    `_encode(image, read_size)`, which returns its input by name, and `_shape(prepared)`, equal for images that can be
    read at once.
    """

    image_column = staticmethod(image_column)
    #: Whether `preprocess` runs a part of the model, so that no two threads may call it at once.
    prepares_with_model = False
    #: File that names the class in the folder of a saved pipeline: a module of `hf_spectral.community`.
    shim_name: ClassVar[str]

    def identity(self: Any) -> dict[str, Any]:
        """Return `id`, `revision` and `model_type` of the backbone, as `describe_backbone` says them."""
        described = self.describe_backbone()
        return {name: described[name] for name in ("id", "revision", "model_type")}

    @defaults_hold
    def read_image(self, source: Any, timeout: float | None = None) -> Image.Image:
        """Read one image as RGB, as `preprocess` does."""
        return read_image(source, timeout)

    @defaults_hold
    @plain_torch()
    def preprocess(
        self: Any,
        image: Any,
        resolution: int | None = None,
        timeout: float | None = None,
        keeps_picture: bool = True,
    ) -> dict[str, Any]:
        """Read one image and bring it to the size and the numbers that the model reads.

        Args:
            image: As in a call.
            resolution: Longer side in pixels; None takes the size of the model.
            timeout: Seconds to wait for a URL; None waits without a limit.
            keeps_picture: Whether to add `picture`, the copy that segments are cut along (`segmentation.working_copy`).

        Returns:
            The input of the model; `size` of the image and `read_size`, at which it is read, (height, width) in pixels;
            `notes`, which say if it is stretched.

        Raises:
            SpectralError: If the image or the model cannot be read, or not at this resolution.
        """
        rgb = read_image(image, timeout)
        with blamed(self._encoder, self._geometry.size_for(rgb.height, rgb.width, resolution), self.prepare):
            prepared: dict[str, Any] = self.prepare(rgb, resolution)
        return {**prepared, "picture": working_copy(rgb)} if keeps_picture else prepared

    def prepare(self: Any, image: Image.Image, resolution: int | None) -> dict[str, Any]:
        """Prepare an RGB image; see `preprocess`."""
        size = (image.height, image.width)
        read_size = self._geometry.size_for(*size, resolution)
        notes = self._geometry.notes_for(*size, resolution)
        return {**self._encode(image, read_size), "size": size, "read_size": read_size, "notes": notes}

    def grouped(self: Any, batch: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Group images that the model can read at once, those of equal size.

        Args:
            batch: What `preprocess` returned for each image.

        Returns:
            Positions in the batch, group by group.
        """
        groups = defaultdict(list)
        for position, prepared in enumerate(batch):
            groups[self._shape(prepared)].append(position)
        return list(groups.values())

    def analyzed(
        self, batch: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], records: Callable[..., object]
    ) -> list[list[SpectralResult]]:
        """Solve one problem per image and pathway, or project on a basis, with one run of the model per image size.

        Args:
            batch: What `preprocess` returned for each image.
            settings: As for `Analysis`.
            records: Runs the model on a group, as `records` of the pipeline does.

        Returns:
            The results of each image, one per pathway.
        """
        results: dict[int, list[SpectralResult]] = {}
        for positions in self.grouped(batch):
            group = [batch[position] for position in positions]
            analysis = Analysis(settings, len(group))
            records(group, analysis.add, analysis.layers)
            results |= zip(positions, analysis.results(group), strict=True)
        return [results[position] for position in range(len(batch))]
