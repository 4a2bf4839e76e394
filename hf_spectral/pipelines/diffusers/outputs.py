"""The outputs of the diffusers pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from hf_spectral.pipelines.outputs import image_output
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import Segmentation

#: Forms of pictures and numbers: pictures and tensors, arrays alone, or tensors alone.
OutputType = Literal["pil", "np", "pt"]


@dataclasses.dataclass
class SpectralDiffusionOutput(BaseOutput):
    """The result of one picture for one pathway.

    Args:
        eigenvectors: Float32 tensor (num_eigenvectors, height, width) on the finest token grid, each of unit norm, its
            entry of largest magnitude positive; the trivial one at index 0.
        eigenvalues: Float32 tensor (num_eigenvectors,), of the normalized Laplacian, from 0 to 2, ascending.
        residuals: Float32 tensor (num_eigenvectors,), at least 0: how far each is from an eigenvector.
        grid: (height, width) of the token grid.
        size: (height, width) in pixels at which the picture was read.
        layers: Names of the layers that took part, in call order, once for each timestep and noise sample.
        timesteps: The timesteps, from 0 (clean) to the number that the model was trained with.
        segmentation: PIL image of the picture's size, mode "P" with a palette ("I;16" without one beyond 256
            segments), value = segment; None if none was asked for.
        segments: List of {"label", "score" (0 to 1), "mask" (PIL image, 0 or 255)}, or None.
        confidence: With clusters of a basis, float32 tensor (height, width), one number per pixel of the picture, from
            0 (another cluster is as near) to 1; or None.
        instances: Candidate objects in the form of `segments`, or None.
        status: "converged", "max_steps" or "not_checked", see `SolveStatus`.
        result: The `SpectralResult`, which can be saved; like `hierarchy`, None without `return_result=True`.
        hierarchy: The `Segmentation`, which with the method "tree" gives every other number of segments.
    """

    eigenvectors: Tensor
    eigenvalues: Tensor
    residuals: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    segmentation: Image.Image | None = None
    segments: list[dict[str, Any]] | None = None
    status: str | None = None
    instances: list[dict[str, Any]] | None = None
    result: SpectralResult | None = None
    hierarchy: Segmentation | None = None
    confidence: Tensor | None = None


def outputs_of(
    results: list[SpectralResult],
    prepared: Mapping[str, Any],
    timesteps: tuple[float, ...],
    return_dict: bool = True,
    output_type: OutputType = "pil",
    **cut: Any,
) -> Any:
    """Turn the results of one picture into outputs, with the segments and instances that were asked for.

    Args:
        results: One per pathway.
        prepared: What `preprocess` gave.
        timesteps: Timesteps at which the denoiser was run.
        return_dict: False gives tuples.
        output_type: Form of label maps and masks, and of numbers.
        **cut: Arguments of the segmentation: further arguments of `image_output`.

    Returns:
        An output, or a dict of them by pathway where there are two.
    """
    found: dict[str, Any] = {}
    own = {"size": prepared["read_size"], "timesteps": timesteps}
    for result in results:
        fields = image_output(result, prepared["picture"], prepared["size"], **cut) | own
        if not cut.get("as_json"):
            if output_type != "pil":
                fields = {name: _in_form(one, output_type) for name, one in fields.items()}
            output = SpectralDiffusionOutput(**fields)
            fields = output if return_dict else output.to_tuple()
        found[result.config.pathway] = fields
    return found if len(found) > 1 else next(iter(found.values()))


def _in_form(value: Any, output_type: OutputType, dtype: torch.dtype = torch.int64) -> Any:
    """Return a label map, masks (in lists of dicts) or numbers as tensors or arrays; anything else as it came."""
    if isinstance(value, list):
        return [{name: _in_form(one, output_type, torch.bool) for name, one in part.items()} for part in value]
    if isinstance(value, Image.Image):
        value = torch.from_numpy(np.array(value)).to(dtype)
    return value.numpy() if output_type == "np" and isinstance(value, Tensor) else value
